"""The drawing of notebook 00: a Diffusion Transformer, and one of its blocks. Light and dark, as SVG.

python docs/block.py docs
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from massact_utils.show.plots import COLOURS

INKS = {  # paper, ink, faint ink, boxes of image and text tokens, of both, of modulation
    "light": ("#FFFFFF", "#1B1F24", "#6B7280", "#DCEBFA", "#FBE7CF", "#ECECEF", "#E4F3E3"),
    "dark": ("#14181E", "#E8EAED", "#9AA3AF", "#1F3B57", "#5A4220", "#353A42", "#234A2B"),
}


def draw(theme: str):
    """The figure in "light" or "dark": above the whole model, below one block."""
    paper, ink, faint, image, text, both, modulation = INKS[theme]
    figure, ax = plt.subplots(figsize=(9, 6.9), facecolor=paper)
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, 90), ylim=(7, 76))
    ax.axis("off")

    def box(x, y, w, h, words, colour, size=14):
        ax.add_patch(FancyBboxPatch((x, y), w, h, "round,pad=0,rounding_size=1.2", fc=colour, ec=ink, lw=1.2))
        ax.text(x + w / 2, y + h / 2, words, color=ink, size=size, ha="center", va="center")

    def arrow(start, end, colour=ink, width=1.8, bend=0.0):
        look = dict(arrowstyle="-|>", color=colour, lw=width, mutation_scale=16, shrinkA=0, shrinkB=0)
        ax.annotate("", end, start, arrowprops=look | dict(connectionstyle=f"arc3,rad={bend}"))

    def say(x, y, words, colour=ink, size=14, **how):
        ax.text(x, y, words, color=colour, size=size, **(dict(ha="center", va="center") | how))

    say(1.5, 73.2, "One denoising step", size=18, ha="left", weight="bold")
    box(1.5, 60, 13, 8, "noisy\nimage", image)
    box(1.5, 48, 13, 8, "prompt", text)
    for y, x in ((64, 20), (52, 20)):
        arrow((14.5, y), (x, y))
    for x in (20, 31):
        box(x, 60, 7.5, 8, "image", image, 13)
        box(x, 48, 7.5, 8, "text", text, 13)
        ax.plot([x + 3.75] * 2, [56, 60], color=ink, lw=1.8)
    for y in (64, 52):
        arrow((27.5, y), (31, y))
        arrow((38.5, y), (43.5, y))
    for x in (43.5, 53):
        box(x, 48, 6.5, 20, "both", both, 13)
    arrow((50, 58), (53, 58))
    say(29.25, 45, "dual blocks", faint)
    say(51.5, 45, "single blocks", faint)
    arrow((59.5, 58), (66, 58))
    box(66, 54, 11, 8, "velocity", image)
    arrow((77, 58), (81, 58))
    say(85.3, 58, "cleaner\nimage")
    ax.plot([85.3, 85.3, 8, 8], [61.5, 70, 70, 69], color=faint, lw=1.8)
    arrow((8, 70), (8, 68), faint)
    say(85.3, 73, "next step, from noise to image", faint, ha="right")
    say(77.5, 45, "run with and without the\nprompt: guidance", faint)

    say(1.5, 40, "One block", size=18, ha="left", weight="bold")
    box(1, 9.5, 88, 27.5, "", paper)
    y = 14
    arrow((3, y), (87, y), COLOURS["top"] if theme == "light" else "#F08A3C", 5)
    say(4, y - 2.6, "residual stream: a vector of D channels for each image token", ink, 13, ha="left")
    for x, words, colour in (
        (12, "norm", both),
        (26.5, "scale,\nshift", modulation),
        (41, "attention,\nMLP", both),
        (57, "gate", modulation),
    ):
        box(x, 20, 11.5, 7, words, colour, 13)
    for a, b in ((23.5, 26.5), (38, 41), (52.5, 57)):
        arrow((a, 23.5), (b, 23.5))
    ax.plot([7, 7], [y, 23.5], color=ink, lw=1.8)
    arrow((7, 23.5), (12, 23.5))
    ax.plot([68.5, 73], [23.5, 23.5], color=ink, lw=1.8)
    arrow((73, 23.5), (73, y + 2))
    ax.plot(73, y, "o", ms=19, color=paper, mec=ink, mew=1.5)
    say(73, y, "+", size=17)
    box(32, 31, 26, 4.6, "time step: modulation", modulation, 13)
    arrow((36, 31), (32.2, 27))
    arrow((54, 31), (62, 27))
    ax.plot([82, 82], [y + 1, 22], color=ink, lw=1.8, ls=":")
    say(82, 25.6, "a probe\nlooks here", size=13)
    return figure


if __name__ == "__main__":
    plt.rcParams.update({"svg.hashsalt": "massact", "font.family": "DejaVu Sans"})
    for theme in INKS:
        draw(theme).savefig(Path(sys.argv[1], f"block_{theme}.svg"), metadata={"Date": None})

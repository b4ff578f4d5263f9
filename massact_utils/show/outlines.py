"""Outlines: figures of masks, of the things in a picture, and of how well the ones fit the others.

As in `plots`, every function draws on `ax`, gives it back, never saves and never shows.
"""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from . import plots

THINGS = ("#F0E442", "#7B5EA7", "#4D4D4D", "#D9D9D9")  # subject, companion, shadow, ground: no colour of a channel set
NOTHING = "#FFFFFF"


def over_noise(lines: dict, noise, *, ax):
    """Means over images with their 95 % intervals from pure noise (left) to the picture: {name: scores (step, image)}.

    `noise` is the noise level of each step, from 1 down. A draw among the dims is averaged. The y axis is from 0 to 1,
    and a name has its colour.
    """
    for name, line in lines.items():
        plots.means(noise, line, ax=ax, label=name)
    ax.set(xlim=(1.04, min(noise) - 0.04), ylim=(0, 1), xlabel="noise level (1: pure noise)")
    return ax


def masks(pictures, rows: dict, *, ax, columns=(0, 1, 2, 3)):
    """Pictures and under each its masks: pictures (image, h, w, 3) uint8, rows {name: masks or heat (image, H, W)}.

    Masks are bool, white where they are. Heat is grey, from its least (black) to its largest (white) in each image.
    `columns` are the images shown.
    """
    sheet = {("image", column): pictures[i] for column, i in enumerate(columns)}
    for name, found in rows.items():
        for column, i in enumerate(columns):
            shade = np.asarray(found[i])
            if shade.dtype != bool:
                shade = np.uint8(255 * (shade - shade.min()) / max(np.ptp(shade), 1e-12))
            sheet[name, column] = shade
    plots.contact_sheet(sheet, ax=ax)
    ax.set_xticks([])
    return ax


def things(pictures, rows: dict, names, *, ax):
    """Pictures and under each the thing at every token: rows {name: ids (image, H, W) int}, a place in `names` or -1.

    Up to four names are told apart by colour, the last being the ground; -1 is white. `pictures` (image, h, w, 3) uint8
    are all shown.
    """
    shades = np.array([to_rgb(colour) for colour in (*THINGS[: len(names) - 1], THINGS[-1], NOTHING)])
    shades = np.uint8(255 * shades)  # the last is that of -1
    height, width = pictures.shape[1:3]
    sheet = {("image", i): picture for i, picture in enumerate(pictures)}
    for name, ids in rows.items():
        down, across = (np.arange(n) * m // n for n, m in zip((height, width), ids.shape[1:], strict=True))
        sheet |= {(name, i): shades[ids[i]][down[:, None], across] for i in range(len(pictures))}
    plots.contact_sheet(sheet, ax=ax)
    ax.set_xticks([])
    patches = [Patch(fc=fill / 255, ec="#AAAAAA", label=name) for fill, name in zip(shades, names, strict=False)]
    ax.legend(handles=patches, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0))
    return ax

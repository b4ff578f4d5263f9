"""The pictures of README and notebooks from the results of `make notebooks`, into docs/.

page_one.png, the README's figure, is what massive channels carry, by notebooks 02 and 04; first/NUMBER.png, what a
notebook saved as first.png for its top.

python docs/page_one.py runs/notebooks docs
"""

import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from massact_utils.measures.images import picture
from massact_utils.results import files
from massact_utils.show import plots

SHOWN = 4  # the first prompts, and the first pairs


def results_of(runs, name) -> Path:
    """The folder of a notebook's results, runs/02_disruption/DIGEST. Raises ValueError unless there is just one."""
    folders = [path.parent for path in Path(runs).glob(f"{name}/**/claims.json")]
    if len(folders) != 1:
        raise ValueError(
            f"{runs} holds {len(folders)} results of {name}; one is needed, so remove the others: {folders}"
        )
    return folders[0]


def disrupted(folder) -> dict:
    """Images of the first prompts by edit of the top channels."""
    k = files.read_json(folder / "parameters.json")["k"]
    arms = {"untouched": dict(beside="untouched"), f"top {k} channels\nzeroed": dict(set="top", k=k, edit="zero")}
    arms |= {"their level\nreplaced": dict(set="top", k=k, edit="average level")}
    arms |= {"their pattern\nremoved": dict(set="top", k=k, edit="flat")}
    paths = {
        (name, i): folder / files.picture_name(prompt=i, **arm) for name, arm in arms.items() for i in range(SHOWN)
    }
    return {at: np.asarray(Image.open(file).convert("RGB")) for at, file in paths.items()}


def transported(folder) -> dict:
    """Images of the first pairs: source, target, and the target with one part of the source's channels."""
    k = files.read_json(folder / "parameters.json")["k"]
    table = files.read(folder / "reported.parquet").set_index(["name", "pair"]).png
    rows = {"source": "source", "target": "target"}
    rows |= {f"target with the level of\nthe source's top {k}": "no mask, level"}
    rows |= {f"target with the pattern of\nthe source's top {k}": "no mask, pattern"}
    return {(name, i): picture(table[row, i]) for name, row in rows.items() for i in range(SHOWN)}


def draw(runs):
    """The figure, from a folder of the notebooks' results."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.7), layout="constrained")
    sheets = disrupted(results_of(runs, "02_disruption")), transported(results_of(runs, "04_transport"))
    titles = "Take a part of a few channels away", "Carry a part of them over, without a mask"
    for ax, pictures, title in zip(axes, sheets, titles, strict=True):
        plots.contact_sheet(pictures, ax=ax)
        ax.set_title(title, fontsize=12)
        ax.set_xticks([])
        ax.tick_params(labelsize=9)
    figure.supxlabel("Embedded toy model: it shows the mechanism, and is no evidence about large models", fontsize=9)
    return figure


if __name__ == "__main__":
    runs, out = map(Path, sys.argv[1:])
    files.write(out / "page_one.png", draw(runs))
    for notebook in sorted({picture.relative_to(runs).parts[0] for picture in runs.rglob("first.png")}):
        shutil.copyfile(results_of(runs, notebook) / "first.png", out / "first" / f"{notebook[:2]}.png")

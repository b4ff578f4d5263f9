"""The README's figure: the three claims, each with the first example in the results of its notebook.

python docs/three_claims.py runs/notebooks docs/three_claims.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from massact_utils.results import storage


def panels(runs):
    """Title and pictures by caption of the three claims, from folders like runs/02_disruption/DIGEST."""
    broken, mask, moved = (
        max(Path(runs).glob(f"{name}/**/claims.json"), key=lambda path: path.stat().st_mtime).parent
        for name in ("02_disruption", "03_spatial_clustering", "04_transport")
    )
    k, deep, many = (json.loads((at / "parameters.json").read_text())["k"] for at in (broken, mask, moved))
    arms = {"untouched": "untouched,k=0", f"top {k}\nzeroed": f"top,k={k}", f"random {k}\nzeroed": f"random,k={k}"}
    arms = {name: f"prompt=0,which={arm},mode=zero" for name, arm in arms.items()}
    yield "Functionally critical?", {name: opened(broken / f"explorer/{arm}.webp") for name, arm in arms.items()}

    images, i = storage.read(mask / "explorer/images.nc"), 1  # odd images were not chosen on
    pictures = {"image": images.picture.values[i].astype(np.uint8)}
    pictures[f"mask from\nthe top {deep}"] = opened(mask / f"masks/{i}.png")
    yield "Spatially organised?", pictures | {"exact mask": images.subject.values[i] > 0.5}

    first = min(path.name.partition(",")[0] for path in (moved / "explorer").glob("* same noise,strength=1.webp"))
    steps = {"source": "source", "target": "0", f"target with the\nsource's top {many}": "1"}
    yield "Transferable?", {at: opened(moved / f"explorer/{first},strength={a}.webp") for at, a in steps.items()}


def opened(path):
    return np.asarray(Image.open(path))


def draw(runs):
    """The figure, from a folder of the notebooks' results."""
    figure = plt.figure(figsize=(11, 2.1), layout="constrained")
    for part, (title, pictures) in zip(figure.subfigures(1, 3, wspace=0.04), panels(runs), strict=True):
        part.suptitle(title, fontsize=12)
        for ax, (name, picture) in zip(part.subplots(1, 3), pictures.items(), strict=True):
            ax.imshow(picture, cmap="gray", interpolation="nearest")
            ax.set_xlabel(name, fontsize=9)
            ax.set(xticks=[], yticks=[])
    figure.supxlabel("Embedded toy model: it shows the mechanism, and is no evidence about large models", fontsize=9)
    return figure


if __name__ == "__main__":
    storage.write(Path(sys.argv[2]), draw(sys.argv[1]))

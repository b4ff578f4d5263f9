"""Write the ToyWorld prompt sets beside this file: python data/prompts/make.py

toyworld.txt are captions of the test split, drawn at random. toyworld-pairs.csv are pairs of them for transport: the
same scene with another shape ("subject"), with another colour ("colour"), or scenes that differ in all six words
("several"). No caption stands in two pairs, so that the rows to tune on and the rows to report share nothing.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from massact_utils.toyworld import ATTRIBUTES, Scene, caption, sample, split_of

HERE = Path(__file__).parent


def captions(n: int = 256) -> str:
    """toyworld.txt: a caption a line."""
    return "".join(f"{caption(scene)}\n" for scene in sample(n, seed=0, split="test"))


def pairs(each: int = 32, seed: int = 0) -> str:
    """toyworld-pairs.csv: `each` pairs of every kind, alternately to tune on and to report."""
    scenes = [Scene(*words) for words in product(*ATTRIBUTES.values()) if words[1] != words[4]]
    scenes = [scene for scene in scenes if split_of(scene) == "test"]
    np.random.default_rng(seed).shuffle(scenes)
    words = np.array([list(vars(scene).values()) for scene in scenes])
    differ = words[:, None] != words[None]  # scene scene attribute
    wanted = {"subject": {"shape"}, "colour": {"colour"}, "several": set(ATTRIBUTES)}
    used, found = set(), {kind: [] for kind in wanted}
    for kind, names in wanted.items():
        as_wanted = differ == [name in names for name in ATTRIBUTES]
        for i, j in np.argwhere(as_wanted.all(-1)).tolist():
            if len(found[kind]) < each and not {i, j} & used:
                found[kind].append((caption(scenes[i]), caption(scenes[j]), kind))
                used |= {i, j}
    rows = [
        (*found[kind][2 * i + half], split)
        for i in range(each // 2)
        for kind in wanted
        for half, split in enumerate(("tune", "report"))
    ]
    return pd.DataFrame(rows, columns=["source", "target", "kind", "split"]).to_csv(index=False, lineterminator="\n")


if __name__ == "__main__":
    (HERE / "toyworld.txt").write_text(captions())
    (HERE / "toyworld-pairs.csv").write_text(pairs())

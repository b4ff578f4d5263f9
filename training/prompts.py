"""Write the worlds' prompt sets into data/prompts.

<world>.txt are captions, drawn at random (of the embedded worlds, of the test split), <world>-pairs.csv pairs for
transport, of which some are to tune on. Source and target differ in all that both name. ToyWorld's have kinds: source
and target of a pair differ in ground, pattern, place, light and style, so that neither returning the source nor pasting
it scores. Their subjects differ in shape ("shape"), in colour ("colour") or in both ("both"). Neither subject has the
colour of one of the two grounds, so that each can stand on the other's. No caption stands in two pairs, so that the
rows to tune on and the rows to report share nothing.
"""

import numpy as np
import pandas as pd

from massact_utils import places
from massact_utils.worlds import emojiworld, everyday
from massact_utils.worlds.toyworld import ATTRIBUTES, Scene, caption, sample, split_of

FOLDER = places.data("prompts")
KINDS = {"shape": ("shape",), "colour": ("colour",), "both": ("shape", "colour")}
ALWAYS = ("ground", "pattern", "place", "light", "style")  # in these source and target differ


def captions(n: int = 256) -> str:
    """toyworld.txt: a caption a line."""
    return "".join(f"{caption(scene)}\n" for scene in sample(n, seed=0, split="test"))


def pairs(tune: int = 8, report: int = 32, seed: int = 0) -> str:
    """toyworld-pairs.csv: so many pairs of every kind to tune on and to report, kinds in turn."""
    rng, used, rows = np.random.default_rng(seed), set(), []
    for split in ["tune"] * tune + ["report"] * report:
        for kind, subject in KINDS.items():
            while True:
                two = {name: rng.choice(allowed.words, 2, replace=False) for name, allowed in ATTRIBUTES.items()}
                words = {name: two[name] for name in ALWAYS}
                words |= {name: two[name] if name in subject else two[name][[0, 0]] for name in KINDS["both"]}
                source, target = ({name: str(word[i]) for name, word in words.items()} for i in (0, 1))
                if set(words["colour"]) & set(
                    words["ground"]
                ):  # also: a subject that would vanish in the other's ground
                    continue
                source, target = Scene(**source), Scene(**target)
                if {split_of(source), split_of(target)} == {"test"} and not {source, target} & used:
                    break
            used |= {source, target}
            rows.append((caption(source), caption(target), kind, split))
    return pd.DataFrame(rows, columns=["source", "target", "kind", "split"]).to_csv(index=False, lineterminator="\n")


def sets() -> dict[str, str]:
    """Every file's name and text."""
    drawn = {
        "everyday": (everyday, everyday.sample(400), 200),
        "emojiworld": (emojiworld, emojiworld.sample(256, split="test"), 120),
    }
    files = {"toyworld.txt": captions(), "toyworld-pairs.csv": pairs()}
    for name, (world, scenes, n) in drawn.items():
        files[f"{name}.txt"] = "".join(f"{world.caption(scene)}\n" for scene in scenes)
        table = pd.DataFrame([map(world.caption, pair) for pair in world.pairs(n)], columns=["source", "target"])
        table = table.assign(kind="all", split=["tune"] * (n // 5) + ["report"] * (n - n // 5))
        files[f"{name}-pairs.csv"] = table.to_csv(index=False, lineterminator="\n")
    return files


def make() -> None:
    """Write all sets."""
    for name, text in sets().items():
        (FOLDER / name).write_text(text)

"""The scenes that an embedded model and its evaluators learn from: drawn once, kept outside the repository."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from massact_utils import places
from massact_utils.worlds import emojiworld, toyworld

SIZE = 96  # pixels; the autoencoder halves twice and patches are 2 x 2, so the grid is 12 x 12
PARTS = ("subject", "companion", "shadow")
SEEDS = {"full": 2 * 10**6, "coarse": 10**6, "simple": 3 * 10**6}
BATCH = 128  # scenes that share a seed


class Embedded(NamedTuple):
    """An embedded model's world, and what its trainings have to know of it.

    - text_length: tokens of the longest caption, chat template included; chat: the template of one caption.
    - looks: the attributes that a patch of a thing shows -> the attribute that says the same of a companion, or None.
    - colours: attributes that a grey picture does not show; without any, no picture is made grey.
    """

    name: str
    world: object
    text_length: int
    chat: str
    looks: dict
    colours: tuple = ()

    @property
    def words(self) -> dict:
        """Attribute -> its words."""
        return {name: attribute.words for name, attribute in self.world.ATTRIBUTES.items()}

    def question(self, name: str, word: str) -> str:
        """The zero-shot prompt that asks an evaluator for a word."""
        return self.world.ATTRIBUTES[name].phrase.format(word)

    @property
    def published(self) -> Path:
        """The folder of the committed weights, from which --warm starts."""
        return Path(os.environ.get("MASSACT_WARM") or places.data(self.name))

    @property
    def state(self) -> Path:
        """The folder of training states: MASSACT_TRAINING, by default runs/<name>."""
        return Path(os.environ.get("MASSACT_TRAINING") or places.runs() / self.name)


EMBEDDED = {
    "toy": Embedded(
        *("toy", toyworld, 30, "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"),
        looks={"shape": None, "colour": "companion"},
        colours=("colour", "ground", "companion"),
    ),
    "emoji": Embedded(
        *("emoji", emojiworld, 26, "<|im_start|>{{ m.content }}<|im_end|>"), looks={"thing": "companion"}
    ),
}


def draw(embedded: Embedded, kind: str, n: int) -> None:
    """Draw n training scenes of a kind once: "full" at full size, "coarse" and "simple" at half of it."""
    to = embedded.state / f"renders-{kind}"
    if to.exists():
        return
    size = SIZE if kind == "full" else SIZE // 2
    beside = to.with_suffix(".tmp")
    beside.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(beside / "images.npy", "w+", np.uint8, (n, size, size, 3))
    classes = np.lib.format.open_memmap(beside / "classes.npy", "w+", np.uint8, (n, size, size))
    starts, render = range(0, n, BATCH), delayed(embedded.world.render)
    batches = Parallel(n_jobs=-1, return_as="generator")(
        render(scenes_of(embedded, kind, i)[: n - i], seed=SEEDS[kind] + i, size=size) for i in starts
    )
    drawn = []
    for i, (pictures, masks, scenes) in zip(starts, tqdm(batches, total=len(starts), desc=kind), strict=True):
        part = slice(i, i + len(pictures))
        images[part], drawn = pictures, drawn + scenes
        classes[part] = sum((k + 1) * (masks[name] >= 0.5).astype(np.uint8) for k, name in enumerate(PARTS))
    words = pd.DataFrame({name: [getattr(scene, name) or "" for scene in drawn] for name in embedded.words})
    words.to_parquet(beside / "words.parquet", index=False)
    images.flush(), classes.flush()
    beside.rename(to)


def scenes_of(embedded: Embedded, kind: str, i: int) -> list:
    """The scenes from number i on of a kind; simple ones stand alone on a plain ground."""
    world = embedded.world
    scenes = world.sample(BATCH if kind != "simple" else BATCH * 5 // 4, seed=SEEDS[kind] + i)
    if kind == "simple":
        plain = {"pattern": "plain", "companion": None}
        scenes = [scene for s in scenes if world.split_of(scene := replace(s, **plain)) == "train"]
    return scenes[:BATCH]


def load(embedded: Embedded, kind: str = "full") -> tuple[list[str], pd.DataFrame, np.ndarray, np.ndarray]:
    """What `draw` drew: captions, words as drawn ("" for none), images and classes (n, size, size) uint8, 0 the ground
    and 1 to 3 PARTS.
    """
    folder = embedded.state / f"renders-{kind}"
    images, classes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "classes"))
    starts = range(0, len(images), BATCH)
    captions = [embedded.world.caption(scene) for i in starts for scene in scenes_of(embedded, kind, i)]
    return captions[: len(images)], pd.read_parquet(folder / "words.parquet"), images, classes

"""Everyday: captions of common things in common places, for models that know the world; nothing here is drawn.

A caption names a subject and a ground always; its colour where one makes sense, a light and a style each in half.

    caption(sample(1, seed=0)[0])     # "watercolour of a red bicycle on a beach at sunset"
"""

import re
import zlib
from dataclasses import asdict, dataclass, replace

import numpy as np

from . import grammar
from .grammar import Attribute

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")
COLOURED = (  # things that come in any of the colours
    *("car", "bicycle", "balloon", "umbrella", "chair", "teapot", "boat", "bus", "kite", "backpack"),
    *("vase", "scooter", "tent", "armchair", "suitcase", "mailbox", "guitar", "hat", "lantern", "mug"),
)
NATURAL = (  # things that have a colour of their own
    *("fox", "owl", "elephant", "lion", "penguin", "zebra", "giraffe", "squirrel", "horse", "turtle"),
    *("dog", "cat", "rabbit", "bear", "rooster", "pineapple", "pumpkin", "cactus", "piano", "lighthouse"),
)
GROUNDS = (
    *("on a beach", "in the snow", "on a wooden table", "in a forest", "on a city street", "in a desert"),
    *("in a meadow", "on a rocky mountain", "in a kitchen", "in a library", "on a rooftop", "by a lake"),
    *("in a garden", "on a bridge", "in front of a brick wall", "on a red carpet"),
)
STYLES = ("photo", "watercolour", "pencil drawing", "oil painting", "cartoon", "pixel art", "mosaic", "woodcut")
LIGHTS = ("at night", "at sunset", "in fog", "in bright sunlight")
ATTRIBUTES = {
    "subject": Attribute(COLOURED + NATURAL, "subject", "a {}"),
    "colour": Attribute(COLOURS, "subject", "a {} thing"),
    "ground": Attribute(GROUNDS, "ground", "a scene {}"),
    "light": Attribute(LIGHTS, "whole", "a scene {}"),
    "style": Attribute(STYLES, "whole", "a {}"),
}
OWN = None  # no evaluator learnt it
OPEN = ("colour", "light", "style")  # what a caption may leave open
GRAMMAR = ("? {style} of", "a", "? {colour}", "{subject}", "{ground}", "? {light}")


@dataclass(frozen=True)
class Scene:
    """What a caption fixes; None is left open. Raises ValueError for an unknown word, with the nearest ones, and for a
    colour given to a thing that has its own.
    """

    subject: str
    ground: str
    colour: str | None = None
    light: str | None = None
    style: str | None = None

    def __post_init__(self):
        grammar.check(self, ATTRIBUTES, OPEN)
        if self.colour and self.subject in NATURAL:
            raise ValueError(f"a {self.subject} has a colour of its own, and this is to be {self.colour}")


def caption(scene: Scene) -> str:
    """The sentence that says what a scene fixes; `parse` is its inverse.

    >>> caption(Scene("umbrella", "on a beach", style="oil painting", light="at night"))
    'oil painting of an umbrella on a beach at night'
    """
    return re.sub(r"\ba (?=[aeiou])", "an ", grammar.say(GRAMMAR, asdict(scene)))


def parse(text: str) -> Scene:
    """What a caption fixes. Raises ValueError that names the first word out of place and what may stand there.

    >>> parse("photo of a red car in the snow").colour
    'red'
    """
    return Scene(**grammar.read(GRAMMAR, ATTRIBUTES, re.sub(r"\ban\b", "a", text)))


def split_of(scene: Scene) -> str:
    """A scene's split, by its caption: "test" (one in four) or "train"."""
    return "test" if zlib.crc32(caption(scene).encode()) % 4 == 0 else "train"


def sample(n: int, *, seed: int = 0, split: str = "all") -> list[Scene]:
    """n different scenes from one split ("train", "test" or "all"): words uniform, each of OPEN named in half.

    Raises ValueError for another split.
    """
    grammar.check_split(split, "train", "test", "all")
    rng, scenes = np.random.default_rng(seed), {}
    while len(scenes) < n:
        words = {name: str(rng.choice(attribute.words)) for name, attribute in ATTRIBUTES.items()}
        left_open = rng.random(len(OPEN)) < 0.5
        words |= {name: None for name, left in zip(OPEN, left_open, strict=True) if left}
        if words["subject"] in NATURAL:
            words["colour"] = None
        if split in ("all", split_of(scene := Scene(**words))):
            scenes[scene] = None
    return list(scenes)


def pairs(n: int, *, seed: int = 0) -> list[tuple[Scene, Scene]]:
    """n pairs of scenes, source and target, that name the same and differ in every word; none comes twice."""
    rng, scenes = np.random.default_rng(seed), sample(8 * n, seed=seed)
    pairs, used = [], set()
    for source in scenes:
        other = {
            name: None if word is None else str(rng.choice([w for w in ATTRIBUTES[name].words if w != word]))
            for name, word in asdict(source).items()
        }
        if (other["subject"] in NATURAL) != (source.subject in NATURAL):
            alike = NATURAL if source.subject in NATURAL else COLOURED
            other["subject"] = str(rng.choice([word for word in alike if word != source.subject]))
        target = replace(source, **other)
        if not {source, target} & used:
            used |= {source, target}
            pairs.append((source, target))
    return pairs[:n]


render = None  # nothing here is drawn

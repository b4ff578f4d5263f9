"""EmojiWorld: captioned scenes of things that three artists drew, with cast shadows and exact soft masks.

A scene is a thing on a ground, in half of the cases with a second, smaller thing beside it, under one light, in the
style of one artist. A caption always names the thing, the ground and its pattern; size, place, light and style each in
half of the captions; a companion where there is one. `render` draws from a seed what a caption leaves open.

    scenes = sample(4, seed=0)
    images, masks, drawn = render(scenes, seed=0)    # B H W 3 uint8; name -> B H W from 0 to 1; nothing left open
    caption(scenes[0])     # "a small fox at the left on a blue striped ground, in Noto style"
"""

import re
import sys
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from .. import places
from . import grammar, grounds
from .grammar import Attribute

N_THINGS = 128  # the most distinct ones of data/emoji/names.csv
STYLES = ("Noto", "Twemoji", "Fluent")  # the artists, in the order of the sheet
SIZES = {"small": (0.15, 0.19), "large": (0.25, 0.32)}  # share of the image that a whole thing covers
SIDE, ACROSS = 64, 8  # pixels of a sprite; things in a row of the sheet
NAMES = tuple(line.split(",")[0] for line in places.data("emoji", "names.csv").read_text().splitlines()[1:])


@cache
def _sprites() -> tuple[np.ndarray, np.ndarray]:
    """Every drawing with its colours multiplied by its alpha, (things, artists, 64, 64, 4) uint8, and how much of its
    square it fills, (things, artists).
    """
    path = places.data("emoji", "sprites.webp")
    try:
        sheet = np.asarray(Image.open(path).convert("RGBA"), np.float32)
        rows = -(-len(NAMES) // ACROSS)
        cells = sheet.reshape(rows, SIDE, ACROSS, len(STYLES), SIDE, 4).transpose(0, 2, 3, 1, 4, 5)
    except (OSError, ValueError) as error:
        raise OSError(
            f"the drawings in {path.name} cannot be read ({error}); restore data/emoji/{path.name} from the repository"
        ) from error
    cells = cells.reshape(-1, len(STYLES), SIDE, SIDE, 4)[: len(NAMES)]
    alpha = cells[..., 3:] / 255
    return (np.concatenate([cells[..., :3] * alpha, cells[..., 3:]], -1) + 0.5).astype(np.uint8), alpha.mean((2, 3, 4))


THINGS = NAMES[:N_THINGS]
# Pairs of a thing and an artist that no training ever sees: of every fourth thing one drawing.
HELD_OUT = frozenset((thing, STYLES[i % 3]) for i, thing in enumerate(THINGS[::4]))
ATTRIBUTES = {
    "thing": Attribute(THINGS, "subject", "a {}"),
    "ground": Attribute(tuple(grounds.COLOURS), "ground", "a {} ground"),
    "pattern": Attribute(grounds.PATTERNS, "ground", "a {} ground"),
    "size": Attribute(tuple(SIZES), "subject", "a {} thing"),
    "place": Attribute(tuple(grounds.PLACES), "subject", "a thing at the {}"),
    "light": Attribute(tuple(grounds.LIGHTS), "whole", "lit from {}"),
    "style": Attribute(STYLES, "whole", "in {} style"),
    "companion": Attribute(THINGS, "companion", "with a {}"),
}
OWN = "emoji"  # its evaluators' folder in data/
OPEN = ("size", "place", "light", "style")  # what a caption may leave open
SOME = (  # things that take no "a"
    *("bacon", "bread", "broccoli", "butter", "cheese", "cherries", "chocolate", "corn", "fire", "fries", "garlic"),
    *("grapes", "honey", "pancakes", "peanuts", "popcorn", "scissors", "shrimp", "socks", "sushi", "swords"),
)
GRAMMAR = (  # parts of a caption; one that begins with "?" may be missing
    "a",
    "? {size}",
    "{thing}",
    "? at the {place}",
    "? with a {companion}",
    "on a {ground} {pattern} ground",
    "? lit from {light}",
    "? , in {style} style",
)


@dataclass(frozen=True)
class Scene:
    """What a caption fixes; None is left open, and `companion` is None where there is none.

    Raises ValueError for an unknown word, with the nearest ones, and for a companion that is the subject once more.
    """

    thing: str
    ground: str
    pattern: str
    size: str | None = None
    place: str | None = None
    light: str | None = None
    style: str | None = None
    companion: str | None = None

    def __post_init__(self):
        grammar.check(self, ATTRIBUTES, (*OPEN, "companion"))
        if self.thing == self.companion:
            raise ValueError(f"subject and companion are both {self.thing!r}; they have to differ")


def caption(scene: Scene) -> str:
    """The sentence that says what a scene fixes; `parse` is its inverse.

    >>> caption(Scene("fox", "orange", "striped", place="left", companion="owl", style="Noto"))
    'a fox at the left with an owl on an orange striped ground, in Noto style'
    """
    text = grammar.say(GRAMMAR, asdict(scene)).replace(" ,", ",")
    text = re.sub(rf"\ba (?=((small|large) )?({'|'.join(SOME)})\b)", "some ", text)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def parse(text: str) -> Scene:
    """What a caption fixes. Raises ValueError that names the first word out of place and what may stand there.

    >>> parse("an owl on a blue striped ground, in Noto style").thing
    'owl'
    """
    return Scene(**grammar.read(GRAMMAR, ATTRIBUTES, re.sub(r"\b(an|some)\b", "a", text)))


def split_of(scene: Scene) -> str:
    """A scene's split: "held-out" where a drawing is in HELD_OUT, else "test" (one caption in 16) or "train"."""
    if {(scene.thing, scene.style), (scene.companion, scene.style)} & HELD_OUT:
        return "held-out"
    return "test" if zlib.crc32(caption(scene).encode()) % 16 == 0 else "train"


def sample(n: int, *, seed: int = 0, split: str = "train") -> list[Scene]:
    """n scenes from one split ("train", "test", "held-out", or "all" three): words uniform, half with a companion, and
    each of OPEN named in half. A held-out scene's subject is a held-out drawing, alone. Raises ValueError for another
    split.
    """
    grammar.check_split(split, "train", "test", "held-out", "all")
    rng, scenes, pairs = np.random.default_rng(seed), [], sorted(HELD_OUT)
    while len(scenes) < n:
        words = {name: str(rng.choice(allowed.words)) for name, allowed in ATTRIBUTES.items()}
        alone, left_open, pair = rng.random() < 0.5, rng.random(len(OPEN)) < 0.5, pairs[rng.integers(len(pairs))]
        words |= {name: None for name, left in zip(OPEN, left_open, strict=True) if left}
        if split == "held-out":
            words |= {"thing": pair[0], "style": pair[1], "companion": None}
        if alone or words["companion"] == words["thing"]:
            words["companion"] = None
        if split in ("all", split_of(scene := Scene(**words))):
            scenes.append(scene)
    return scenes


def pairs(n: int, *, seed: int = 0) -> list[tuple[Scene, Scene]]:
    """n pairs of scenes of the test split, source and target, that name thing, ground, pattern, place, light and style,
    have no companion, and differ in all six; no scene comes twice.
    """
    names = ("thing", "ground", "pattern", "place", "light", "style")
    return grammar.draw_pairs(sys.modules[__name__], n, names, seed)


def render(scenes: list[Scene], *, seed: int = 0, size: int = 96):
    """Draw scenes: images (B, size, size, 3) uint8; masks, "subject", "companion" and "shadow" -> (B, size, size)
    float32, the share of each pixel that a part covers, in sum 1 at most; and the scenes as they were drawn, with
    nothing left open.

    What a caption leaves open is drawn from `seed` and the place in the batch, and does not depend on `size`. Raises
    ValueError for no scenes, OSError for a damaged sheet of drawings.
    """
    if not scenes:
        raise ValueError("no scenes to render")
    drawn, u = zip(*(_settle(scene, np.random.default_rng([seed, i])) for i, scene in enumerate(scenes)), strict=True)
    u = np.stack(u).astype(np.float32)[..., None, None]  # B draws 1 1, each from -1 to 1
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1)[None]
    word = {name: np.array([getattr(scene, name) for scene in drawn], object) for name in ATTRIBUTES}

    def at(table, words):  # B C 1 1
        return np.array([table[w] for w in words], np.float32).reshape(len(words), -1, 1, 1)

    which = [(THINGS.index(scene.thing), STYLES.index(scene.style)) for scene in drawn]
    fill = np.array([_sprites()[1][i] for i in which], np.float32)
    share = at(SIZES, word["size"])[:, :, 0, 0]
    share = share.mean(1) + u[:, 0, 0, 0] * (share[:, 1] - share[:, 0]) / 2
    radius = np.sqrt(share / fill)[:, None, None]  # half the side of the sprite's square; the image's is 1
    centre = grounds.centre(at(grounds.PLACES, word["place"]), radius, u)
    small = 0.36 + 0.03 * u[:, 3]
    beside = grounds.beside(centre, radius, small, u)
    rays = at(grounds.LIGHTS, word["light"])[:, :, 0, 0]
    reach = 0.34 + 0.06 * u[:, 4, 0, 0]

    layers = np.zeros((2, len(scenes), size, size, 4), np.float32)  # subject and companion
    fallen = np.zeros((len(scenes), size, size), np.float32)
    for i, scene in enumerate(drawn):
        for k, (thing, middle, half) in enumerate(
            ((scene.thing, centre[i], radius[i]), (scene.companion, beside[i], small[i]))
        ):
            if thing is None:
                continue
            sprite, middle, half = _levels(thing, scene.style), middle[:, 0, 0], float(half[0, 0])
            layers[k, i] = _placed(sprite, middle, half, size)
            cast = reach[i] * rays[i] * min(half, 0.7) * (0.55 if k else 1)
            fallen[i] = np.maximum(fallen[i], _placed(sprite, middle + cast, half, size)[..., 3])

    tone, _ = grounds.tones(word["pattern"], axis[:, None, :], axis[:, :, None], u, 2 / size)
    ground = at(grounds.COLOURS, word["ground"]) + 0.04 * u[:, 7:10]
    ground = (ground * (grounds.DARK + (1 - grounds.DARK) * tone[:, None])).transpose(0, 2, 3, 1)
    image = ground * (1 - (1 - grounds.SHADE) * fallen[..., None])
    for layer in layers:  # the companion stands in front
        image = image * (1 - layer[..., 3:]) + layer[..., :3]
    subject, companion = layers[0, ..., 3] * (1 - layers[1, ..., 3]), layers[1, ..., 3]
    masks = {"subject": subject, "companion": companion, "shadow": fallen * (1 - subject - companion)}
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), masks, list(drawn)


@cache
def _levels(thing: str, style: str) -> list[Image.Image]:
    """A drawing at 64, 32 and 16 pixels a side, its colours multiplied by its alpha."""
    sprite = Image.fromarray(_sprites()[0][NAMES.index(thing), STYLES.index(style)], "RGBa")
    return [sprite, sprite.reduce(2), sprite.reduce(4)]


def _placed(levels, centre, half: float, size: int) -> np.ndarray:
    """A drawing on an empty picture, (size, size, 4) from 0 to 1: its square's centre and half side, the image's 1."""
    wide = half * size  # pixels
    level = levels[int(np.clip(np.round(np.log2(SIDE / wide) - 0.1), 0, 2))]
    scale = level.width / wide
    x, y = ((centre + 1) / 2 * size - wide / 2) * scale
    where = (scale, 0, -float(x), 0, scale, -float(y))
    placed = level.transform((size, size), Image.Transform.AFFINE, where, Image.Resampling.BICUBIC)
    return np.asarray(placed, np.float32) / 255


def _settle(scene: Scene, rng) -> tuple[Scene, np.ndarray]:
    """A scene with what its caption leaves open drawn, and the numbers from -1 to 1 that place and shade it. An artist
    that is left open is none whose drawing is in HELD_OUT.
    """
    words = {name: str(rng.choice(ATTRIBUTES[name].words)) for name in OPEN if name != "style"}
    styles = [str(style) for style in rng.permutation(STYLES)]  # always drawn, so that naming one moves no other
    things = (scene.thing, scene.companion)
    words["style"] = next(style for style in styles if not {(thing, style) for thing in things} & HELD_OUT)
    scene = replace(scene, **{name: word for name, word in words.items() if getattr(scene, name) is None})
    return scene, rng.uniform(-1, 1, 64)

"""ToyWorld: captioned scenes with light, shadow, style and company, and exact masks; the embedded model learnt them.

A scene is a subject on a ground, in half of the cases with a smaller companion, under one light, in one style. A
caption always names shape, colour, ground and pattern; size, place, light and style each in half of the captions;
of a companion its colour. `render` draws from a seed what a caption leaves open, so that the caption alone tells
little of the layout.

    scenes = sample(4, seed=0)
    images, masks, drawn = render(scenes, seed=0)    # B H W 3 uint8; name -> B H W bool; the scenes, nothing left open
    caption(scenes[0])     # "a red star at the left on a blue striped ground lit from above"
"""

import sys
import zlib
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from . import grammar, grounds
from .grammar import Attribute
from .grounds import COLOURS, DARK, LIGHTS, PATTERNS, PLACES, SHADE

SIZES = {"small": (0.12, 0.17), "large": (0.21, 0.30)}  # share of the image that the whole shape covers
STYLES = ("flat", "outlined", "soft")
INK = 0.12  # of the colour: an outline


def _regular(n: int, radii=(1.0,), turn: float = -np.pi / 2) -> np.ndarray:
    """Vertices of a polygon whose corners lie on `radii` in turn: (n, 2)."""
    angle = turn + 2 * np.pi * np.arange(n) / n
    return np.resize(radii, n)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _heart(n: int = 36) -> np.ndarray:
    t = 2 * np.pi * np.arange(n) / n
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([16 * np.sin(t) ** 3, y], 1) / 16.5


def _polygon(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon, negative inside: edge distances, sign by the even-odd rule."""
    nearest, inside = np.full_like(x, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - ex * t) ** 2 + (py - ey * t) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (px < ex * (y - ay) / ey)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_ARROW = [(0, -1), (0.85, -0.05), (0.36, -0.05), (0.36, 0.95), (-0.36, 0.95), (-0.36, -0.05), (-0.85, -0.05)]
_HOURGLASS = [(-0.75, -0.9), (0.75, -0.9), (0.14, 0), (0.75, 0.9), (-0.75, 0.9), (-0.14, 0)]
SHAPES = {  # signed distance in units of the circumradius, at points x (right) and y (down)
    "circle": lambda x, y: np.hypot(x, y) - 0.88,
    "square": partial(_polygon, _regular(4, turn=np.pi / 4)),
    "triangle": partial(_polygon, _regular(3) + np.array([0, 0.15])),
    "star": partial(_polygon, 1.08 * _regular(10, (1.0, 0.46))),
    "heart": partial(_polygon, _heart()),
    "cross": partial(_polygon, 0.32 * np.array(_CROSS)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.70) - 0.24,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.96, 0.74 - np.hypot(x - 0.5, y)),
    "arrow": partial(_polygon, np.array(_ARROW)),
    "hourglass": partial(_polygon, np.array(_HOURGLASS)),
}
_AXIS = np.linspace(-1.2, 1.2, 241)
_AREA = {name: float((shape(*np.meshgrid(_AXIS, _AXIS)) < 0).mean() * 2.4**2) for name, shape in SHAPES.items()}
# Eight pairs of shape and colour that no training ever sees, each shape and colour at most once.
HELD_OUT = frozenset(
    zip(list(SHAPES)[:8], ("green", "purple", "white", "blue", "yellow", "orange", "red", "cyan"), strict=True)
)
ATTRIBUTES = {
    "shape": Attribute(tuple(SHAPES), "subject", "a {}"),
    "colour": Attribute(tuple(COLOURS), "subject", "a {} subject"),
    "ground": Attribute(tuple(COLOURS), "ground", "a {} ground"),
    "pattern": Attribute(PATTERNS, "ground", "a {} ground"),
    "size": Attribute(tuple(SIZES), "subject", "a {} subject"),
    "place": Attribute(tuple(PLACES), "subject", "a subject at the {}"),
    "light": Attribute(tuple(LIGHTS), "whole", "lit from {}"),
    "style": Attribute(STYLES, "whole", "in {} style"),
    "companion": Attribute(tuple(COLOURS), "companion", "a small {} companion"),
}
OWN, SHADED = "toy", True  # its evaluators' folder in data/; a subject's own pixels show the light
OPEN = ("size", "place", "light", "style")  # what a caption may leave open
GRAMMAR = (  # parts of a caption; one that begins with "?" may be missing
    "a",
    "? {size}",
    "{colour} {shape}",
    "? at the {place}",
    "? with a small {companion} companion beside it",
    "on a {ground} {pattern} ground",
    "? lit from {light}",
    "? in {style} style",
)


@dataclass(frozen=True)
class Scene:
    """What a caption fixes; None is left open, and `companion`, its colour, is None where there is none.

    Raises ValueError for an unknown word, and for colours that have to differ and do not.
    """

    shape: str
    colour: str
    ground: str
    pattern: str
    size: str | None = None
    place: str | None = None
    light: str | None = None
    style: str | None = None
    companion: str | None = None

    def __post_init__(self):
        grammar.check(self, ATTRIBUTES, (*OPEN, "companion"))
        used = [self.colour, self.ground, *([self.companion] if self.companion else [])]
        if len(set(used)) < len(used):
            raise ValueError(f"the colours {', '.join(used)} of subject, ground and companion have to differ")


def caption(scene: Scene) -> str:
    """The sentence that says what a scene fixes; `parse` is its inverse.

    >>> caption(Scene("star", "red", "blue", "striped", place="left"))
    'a red star at the left on a blue striped ground'
    """
    return grammar.say(GRAMMAR, asdict(scene))


def parse(text: str) -> Scene:
    """What a caption fixes. Raises ValueError that names the first word out of place and what may stand there.

    >>> parse("a small red star on a blue striped ground in soft style").style
    'soft'
    """
    return Scene(**grammar.read(GRAMMAR, ATTRIBUTES, text))


def split_of(scene: Scene) -> str:
    """A scene's split: "held-out" where the subject is a HELD_OUT pair, else "test" (one caption in 16) or "train"."""
    if (scene.shape, scene.colour) in HELD_OUT:
        return "held-out"
    return "test" if zlib.crc32(caption(scene).encode()) % 16 == 0 else "train"


def sample(n: int, *, seed: int = 0, split: str = "train") -> list[Scene]:
    """n scenes from one split ("train", "test", "held-out", or "all" three): words uniform, half with a companion, and
    each of OPEN named in half. Raises ValueError for another split.
    """
    grammar.check_split(split, "train", "test", "held-out", "all")
    rng, scenes = np.random.default_rng(seed), []
    while len(scenes) < n:
        words = {name: str(rng.choice(allowed.words)) for name, allowed in ATTRIBUTES.items()}
        words |= zip(("colour", "ground", "companion"), map(str, rng.permutation(list(COLOURS))), strict=False)
        alone, left_open = rng.random() < 0.5, rng.random(len(OPEN)) < 0.5
        words |= {name: None for name, left in zip(OPEN, left_open, strict=True) if left}
        words |= {"companion": None} if alone else {}
        if split in ("all", split_of(scene := Scene(**words))):
            scenes.append(scene)
    return scenes


def pairs(n: int, *, seed: int = 0) -> list[tuple[Scene, Scene]]:
    """n pairs of scenes of the test split, source and target, that name all but size and companion, differ in all that
    they name, and whose subjects can stand on each other's ground; no scene comes twice.
    """
    return grammar.draw_pairs(
        sys.modules[__name__], n, ("shape", "colour", "ground", "pattern", "place", "light", "style"), seed
    )


def render(scenes: list[Scene], *, seed: int = 0, size: int = 96):
    """Draw scenes: images (B, size, size, 3) uint8; masks, "subject", "companion" and "shadow" -> (B, size, size) bool,
    no two of which meet; and the scenes as they were drawn, with nothing left open.

    What a caption leaves open is drawn from `seed` and the place in the batch, and does not depend on `size`. Raises
    ValueError for no scenes.
    """
    if not scenes:
        raise ValueError("no scenes to render")
    settled = (_settle(scene, np.random.default_rng([seed, i])) for i, scene in enumerate(scenes))
    drawn, company, u = zip(*settled, strict=True)
    u = np.stack(u).astype(np.float32)[..., None, None]  # B draws 1 1, each from -1 to 1
    word = {field.name: np.array([getattr(scene, field.name) for scene in drawn], object) for field in fields(Scene)}
    style = {name: (word["style"] == name)[:, None, None] for name in STYLES}
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1)[None]
    x, y, pixel = axis[:, None, :], axis[:, :, None], 2 / size

    def at(table, words):  # B C 1 1
        return np.array([table[w] for w in words], np.float32).reshape(len(words), -1, 1, 1)

    def distance(shape, centre, radius, turn, shift=(0.0, 0.0)):
        """Signed distance (B, H, W) to a shape, moved by a shift; far away where there is none."""
        px, py = (x - centre[:, 0] - shift[0]) / radius, (y - centre[:, 1] - shift[1]) / radius
        lx, ly = np.cos(turn) * px + np.sin(turn) * py, np.cos(turn) * py - np.sin(turn) * px
        out = np.full(lx.shape, 9.0, np.float32)
        for name in {name for name in shape if name}:
            out[shape == name] = SHAPES[name](lx[shape == name], ly[shape == name])
        return out * radius

    def coverage(d, edge=pixel):
        return np.clip(0.5 - d / edge, 0, 1)

    # where things are
    share = at(SIZES, word["size"])[:, :, 0, 0]
    share = share.mean(1) + u[:, 0, 0, 0] * (share[:, 1] - share[:, 0]) / 2
    radius = np.sqrt(4 * share / np.array([_AREA[s] for s in word["shape"]], np.float32))[:, None, None]
    centre = grounds.centre(at(PLACES, word["place"]), radius, u)
    small = 0.32 + 0.04 * u[:, 3]
    beside = grounds.beside(centre, radius, small, u)
    rays = at(LIGHTS, word["light"])
    cast = [(0.34 + 0.06 * u[:, 4]) * rays[:, i] * np.minimum(radius, 0.7) for i in (0, 1)]
    turns = np.deg2rad(20) * u[:, 5], np.deg2rad(40) * u[:, 6]
    parts = (
        ("subject", word["shape"], centre, radius, turns[0]),
        ("companion", np.array(company, object), beside, small, turns[1]),
    )
    near = {name: distance(*where) for name, *where in parts}
    cover = {name: coverage(d) for name, d in near.items()}
    fallen = [
        coverage(distance(*where, [c * (1 if name == "subject" else 0.55) for c in cast])) for name, *where in parts
    ]
    fallen = np.maximum(*fallen)

    # what things look like
    tone, edges = grounds.tones(word["pattern"], x, y, u, pixel)
    ground = (at(COLOURS, word["ground"]) + 0.04 * u[:, 7:10, :, :]) * (DARK + (1 - DARK) * tone[:, None])
    ground = np.where(style["outlined"][:, None], ground * (1 - (1 - INK) * 0.8 * edges[:, None]), ground)
    image = ground * (1 - (1 - SHADE) * fallen[:, None])
    for name, _, at_, r, _ in reversed(parts):
        lit = 1 - 0.22 * (rays[:, 0] * (x - at_[:, 0]) + rays[:, 1] * (y - at_[:, 1])) / r
        lit = 1 + np.select([style["flat"] | style["outlined"], style["soft"]], [0.35, 1.6], 1.0) * (lit - 1)
        colour = at(COLOURS, word["colour"] if name == "subject" else [w or "red" for w in word["companion"]])
        body = (colour + 0.04 * u[:, 10:13]) * lit[:, None]
        ink = np.where(style["outlined"], coverage(np.abs(near[name] + 0.02) - 0.028), 0)
        body = body * (1 - (1 - INK) * ink[:, None])
        image = image + cover[name][:, None] * (body - image)
    soft = word["style"] == "soft"
    image[soft] = gaussian_filter(image[soft], (0, 0, 0.022 * size, 0.022 * size), mode="nearest")
    image = np.clip(image, 0, 1)
    masks = {"subject": cover["subject"] >= 0.5}
    masks["companion"] = (cover["companion"] >= 0.5) & ~masks["subject"]
    masks["shadow"] = (fallen >= 0.5) & ~masks["subject"] & ~masks["companion"]
    return (image.transpose(0, 2, 3, 1) * 255 + 0.5).astype(np.uint8), masks, list(drawn)


def _settle(scene: Scene, rng) -> tuple[Scene, str | None, np.ndarray]:
    """A scene with what its caption leaves open drawn, its companion's shape, and the numbers from -1 to 1 that place
    and shade it. The companion is another shape than the subject, and no HELD_OUT pair.
    """
    # always drawn, so that naming one moves no other
    words = {name: str(rng.choice(ATTRIBUTES[name].words)) for name in OPEN}
    shapes = [s for s in map(str, rng.permutation(list(SHAPES))) if (s, scene.companion) not in HELD_OUT]
    company = next(s for s in shapes if s != scene.shape) if scene.companion else None
    scene = replace(scene, **{name: word for name, word in words.items() if getattr(scene, name) is None})
    return scene, company, rng.uniform(-1, 1, 64)

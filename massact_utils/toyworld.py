"""ToyWorld: captioned scenes with exact masks, the world the embedded model was trained on.

A scene is one subject on one background, described by six attributes. Everything a caption does not
say (rotation, offsets, colour jitter, shading, the phase of a pattern) is drawn from a seed.

    scenes = sample(4, seed=0)
    images, masks = render(scenes, seed=0)        # B H W 3 uint8, B H W bool
    caption(scenes[0])                            # "a large red star at the left on a blue striped background"
"""

import zlib
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np

SIZES = {"large": 0.46, "small": 0.28}  # circumradius, in half image widths
COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.97, 0.53, 0.06),
    "yellow": (0.97, 0.90, 0.15),
    "green": (0.13, 0.62, 0.22),
    "cyan": (0.16, 0.80, 0.86),
    "blue": (0.14, 0.24, 0.86),
    "purple": (0.56, 0.18, 0.70),
    "white": (0.95, 0.95, 0.95),
}
BACKGROUNDS = COLOURS
PATTERNS = ("plain", "striped", "checkered", "gradient")
POSITIONS = {
    "left": (-0.48, 0.0),
    "right": (0.48, 0.0),
    "top": (0.0, -0.48),
    "bottom": (0.0, 0.48),
    "centre": (0.0, 0.0),
}

DARK = 0.55  # a pattern alternates between its colour and this share of it


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


_CROSS = np.array(
    [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
)
_ARROW = np.array([(0, -1), (0.8, -0.1), (0.32, -0.1), (0.32, 0.95), (-0.32, 0.95), (-0.32, -0.1), (-0.8, -0.1)])
_HOURGLASS = np.array([(-0.75, -0.9), (0.75, -0.9), (0.14, 0), (0.75, 0.9), (-0.75, 0.9), (-0.14, 0)])
SHAPES = {  # signed distance in units of the circumradius, at points x (right) and y (down)
    "circle": lambda x, y: np.hypot(x, y) - 0.88,
    "square": partial(_polygon, _regular(4, turn=np.pi / 4)),
    "triangle": partial(_polygon, _regular(3) + np.array([0, 0.15])),
    "star": partial(_polygon, 1.08 * _regular(10, (1.0, 0.42))),
    "heart": partial(_polygon, _heart()),
    "cross": partial(_polygon, 0.32 * _CROSS),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.71) - 0.23,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.96, 0.78 - np.hypot(x - 0.46, y)),
    "arrow": partial(_polygon, _ARROW),
    "hourglass": partial(_polygon, _HOURGLASS),
}
# Eight pairs that no training ever sees, each shape and colour at most once.
HELD_OUT = frozenset(
    zip(list(SHAPES)[:8], ("green", "purple", "white", "blue", "yellow", "orange", "red", "cyan"), strict=True)
)
ATTRIBUTES = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "position": tuple(POSITIONS),
    "background": tuple(BACKGROUNDS),
    "pattern": PATTERNS,
}
QUESTIONS = {  # zero-shot prompts by which an evaluator reads one attribute
    "size": "a {} subject",
    "colour": "a {} subject",
    "shape": "a {}",
    "position": "a subject at the {}",
    "background": "a {} background",
    "pattern": "a {} background",
}
TEMPLATE = "a {size} {colour} {shape} at the {position} on a {background} {pattern} background"


@dataclass(frozen=True)
class Scene:
    """The six attributes a caption states. Raises ValueError for an unknown word, or one colour for both."""

    size: str
    colour: str
    shape: str
    position: str
    background: str
    pattern: str

    def __post_init__(self):
        for name, allowed in ATTRIBUTES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
        if self.colour == self.background:
            raise ValueError(
                f"a {self.colour} subject on a {self.background} background cannot be seen; choose two colours"
            )


def caption(scene: Scene) -> str:
    """The sentence that describes a scene; `parse` is its inverse.

    >>> caption(Scene("large", "red", "star", "left", "blue", "striped"))
    'a large red star at the left on a blue striped background'
    """
    return TEMPLATE.format(**vars(scene))


def question(attribute: str, word: str) -> str:
    """The zero-shot prompt that asks an evaluator for one attribute.

    >>> question("shape", "star")
    'a star'
    """
    return QUESTIONS[attribute].format(word)


def parse(text: str) -> Scene:
    """The scene a caption describes. Raises ValueError that names the first word out of place and what may stand there.

    >>> parse("a large red star at the left on a blue striped background").shape
    'star'
    """
    expected, words, found = TEMPLATE.split(), text.lower().split(), {}
    for i, slot in enumerate(expected):
        word = words[i] if i < len(words) else "(nothing)"
        name = slot.strip("{}")
        allowed = ATTRIBUTES[name] if slot != name else (slot,)
        if word not in allowed:
            raise ValueError(f"word {i + 1} of {text!r} is {word!r}; allowed there: {', '.join(allowed)}")
        if slot != name:
            found[name] = word
    if len(words) > len(expected):
        raise ValueError(f"{text!r} goes on after 'background' with {words[len(expected)]!r}; a caption ends there")
    return Scene(**found)


def split_of(scene: Scene) -> str:
    """A scene's split: "held-out" for a HELD_OUT shape-colour pair, else "test" (one caption in 16) or "train"."""
    if (scene.shape, scene.colour) in HELD_OUT:
        return "held-out"
    return "test" if zlib.crc32(caption(scene).encode()) % 16 == 0 else "train"


def sample(n: int, *, seed: int = 0, split: str = "train") -> list[Scene]:
    """n scenes with independent uniform attributes from one split: "train", "test", "held-out", or "all" three.

    Captions of "test" and pairs of "held-out" are in no training set. Raises ValueError for another split.
    """
    if split not in ("train", "test", "held-out", "all"):
        raise ValueError(f"split {split!r} is unknown; allowed: train, test, held-out, all")
    rng, scenes = np.random.default_rng(seed), []
    while len(scenes) < n:
        words = {name: str(rng.choice(words)) for name, words in ATTRIBUTES.items()}
        if words["colour"] != words["background"] and (scene := Scene(**words)) and split in ("all", split_of(scene)):
            scenes.append(scene)
    return scenes


def render(scenes: list[Scene], *, seed: int = 0, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes: images (B, size, size, 3) uint8 and exact subject masks (B, size, size) bool.

    What a caption leaves open is drawn from `seed` and the place in the batch, and does not depend on `size`.
    """
    if not scenes:
        raise ValueError("no scenes to render")
    rng = np.random.default_rng(seed)
    size_word, colour, shape, position, background, pattern = (
        np.array(words) for words in zip(*map(astuple, scenes), strict=True)
    )
    u = rng.uniform(-1, 1, (len(scenes), 16)).astype(np.float32)[..., None, None]  # B 16 1 1
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1)[None]
    x, y = axis[:, None, :], axis[:, :, None]  # 1 1 W, 1 H 1
    pixel = 2 / size

    def table(entries, words):  # B C 1 1
        return np.array([entries[w] for w in words], np.float32).reshape(len(words), -1, 1, 1)

    def coverage(distance):
        return np.clip(0.5 - distance / pixel, 0, 1)

    place = table(POSITIONS, position)
    radius = table(SIZES, size_word)[:, 0] * (1 + 0.08 * u[:, 0])
    px, py = (x - place[:, 0] - 0.05 * u[:, 1]) / radius, (y - place[:, 1] - 0.05 * u[:, 2]) / radius
    turn = np.deg2rad(20) * u[:, 3]
    lx, ly = np.cos(turn) * px + np.sin(turn) * py, np.cos(turn) * py - np.sin(turn) * px  # B H W
    alpha = np.empty(lx.shape, np.float32)
    for name in np.unique(shape):
        at = shape == name
        alpha[at] = coverage(SHAPES[name](lx[at], ly[at]) * radius[at])

    tilt = np.deg2rad(15) * u[:, 4]
    gx, gy = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x

    def bands(coordinate, phase, period):  # signed distance to the nearest edge of a square wave
        return period * (np.abs((coordinate / period + phase) % 1 - 0.5) - 0.25)

    stripes = coverage(bands(gx, u[:, 5], 0.40))
    a, b = coverage(bands(gx, u[:, 5], 0.62)), coverage(bands(gy, u[:, 6], 0.62))
    fall = np.cos(np.pi * u[:, 7]) * x + np.sin(np.pi * u[:, 7]) * y
    tone = np.select(
        [pattern[:, None, None] == p for p in ("striped", "checkered", "gradient")],
        [stripes, a * b + (1 - a) * (1 - b), np.clip(0.5 + 0.5 * fall, 0, 1)],
        1.0,
    )
    ground = table(BACKGROUNDS, background) + 0.04 * u[:, 8:11]
    ground = ground * (DARK + (1 - DARK) * tone[:, None])  # B 3 H W
    light = 1 + 0.14 * (np.cos(np.pi * u[:, 14]) * px + np.sin(np.pi * u[:, 14]) * py)
    subject = (table(COLOURS, colour) + 0.04 * u[:, 11:14]) * light[:, None]
    image = np.clip(ground + alpha[:, None] * (subject - ground), 0, 1)
    return (image.transpose(0, 2, 3, 1) * 255 + 0.5).astype(np.uint8), alpha >= 0.5

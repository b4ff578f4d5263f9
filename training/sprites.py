"""The drawings of EmojiWorld: a sheet of sprites is brought into data/emoji, the most distinct things first.

    python -m training sprites --folder FOLDER     # with sprites.png and names.csv, as in data/emoji/README.md

A thing is distinct when no drawing of it looks like a drawing of another thing. Two drawings are compared as 16 x 16
pixels on grey, by the root mean square over pixels and colours; two things are as far apart as their most alike
drawings. The things are ranked by taking away, again and again, from the nearest two the one whose next neighbour is
nearer; what is left longest comes first. Things that fill less than a third of their square in one of the drawings come
last, since they could not cover a quarter of the picture.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from massact_utils import places

ARTISTS, SIDE, ACROSS, FILL = 3, 64, 8, 1 / 3


def drawings(sheet: Image.Image, n: int) -> np.ndarray:
    """The sprites of a sheet, RGBA: (n things, 3 artists, 64, 64, 4) uint8."""
    cells = np.asarray(sheet).reshape(-1, SIDE, ACROSS, ARTISTS, SIDE, 4).transpose(0, 2, 3, 1, 4, 5)
    return cells.reshape(-1, ARTISTS, SIDE, SIDE, 4)[:n]


def distances(sprites: np.ndarray) -> np.ndarray:
    """How far things are apart, (n, n): the root mean square between their most alike drawings, from 0 to 1."""
    rgb, alpha = sprites[..., :3] / 255, sprites[..., 3:] / 255
    small = (rgb * alpha + 0.5 * (1 - alpha)).reshape(*sprites.shape[:2], 16, 4, 16, 4, 3).mean((3, 5))
    flat = small.reshape(-1, 16 * 16 * 3)  # n * 3 drawings
    squares = (flat**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0) / flat.shape[1])
    n = len(sprites)
    apart = apart.reshape(n, ARTISTS, n, ARTISTS).min((1, 3))
    np.fill_diagonal(apart, np.inf)
    return apart


def ranking(sprites: np.ndarray) -> np.ndarray:
    """The numbers of the things, the most distinct first."""
    apart = distances(sprites)
    thin = (sprites[..., 3] / 255).mean((2, 3)).min(1) < FILL
    order = []
    for group in (np.flatnonzero(thin), np.flatnonzero(~thin)):
        left = list(group)
        while len(left) > 1:
            near = np.sort(apart[np.ix_(left, left)], 1)
            pair = np.flatnonzero(near[:, 0] == near[:, 0].min())
            order.append(left.pop(pair[near[pair, 1].argmin()]))
        order += left
    return np.array(order[::-1])


def make(folder: Path) -> None:
    """Write data/emoji/sprites.webp and names.csv from a folder's sprites.png and names.csv."""
    names = pd.read_csv(folder / "names.csv")
    sprites = drawings(Image.open(folder / "sprites.png").convert("RGBA"), len(names))
    order = ranking(sprites)
    to = places.data("emoji")
    to.mkdir(parents=True, exist_ok=True)
    rows = -(-len(order) // ACROSS)
    cells = np.zeros((rows * ACROSS, ARTISTS, SIDE, SIDE, 4), np.uint8)
    cells[: len(order)] = sprites[order]
    sheet = cells.reshape(rows, ACROSS, ARTISTS, SIDE, SIDE, 4).transpose(0, 3, 1, 2, 4, 5)
    sheet = np.minimum((sheet + 2.0) // 4 * 4, 255).astype(np.uint8)  # two bits less: a third of the file
    Image.fromarray(sheet.reshape(rows * SIDE, -1, 4)).save(to / "sprites.webp", lossless=True, quality=100, method=6)
    names.iloc[order][["name", "codepoints", "category"]].to_csv(to / "names.csv", index=False)

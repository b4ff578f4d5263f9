"""Grounds: the colours, patterns and lights that the drawn worlds share."""

import numpy as np

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
PATTERNS = ("plain", "striped", "checkered", "textured")
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
LIGHTS = {
    "left": (1.0, 0.35),
    "right": (-1.0, 0.35),
    "above": (0.0, 1.0),
}  # where its rays go, and shadows fall
DARK, SHADE = 0.62, 0.45  # of the ground's colour: a pattern's other tone, a shadow


def centre(place, radius, u) -> np.ndarray:
    """Centres of subjects (B, 2, 1, 1): on the named side, nearer to it than to another, at times over the border."""
    most = np.maximum(1 - 0.72 * radius, 0.3)[:, None]
    side = np.clip(0.46 + 0.16 * u[:, 1:2], 0.3, most)
    along = 0.7 * u[:, 2:3] * np.minimum(side, most)
    off = np.concatenate([along, along], 1) * (1 - np.abs(place))
    middle = 0.12 * u[:, 1:3]
    return np.where(np.abs(place).sum(1, keepdims=True) > 0, place * side + off, middle).astype(np.float32)


def beside(centre, radius, small, u) -> np.ndarray:
    """Centres of companions (B, 2, 1, 1): of eight directions the first in which it stays inside, or the best."""
    angle = np.pi * u[:, 13:14] + np.pi / 4 * np.arange(8)[None, :, None, None]  # B 8 1 1
    reach = (0.8 + 0.2 * u[:, 14:15]) * radius[:, None] + 0.75 * small[:, None]
    way = np.stack([np.cos(angle), np.sin(angle)], -3)[..., 0, 0]  # B 8 2
    most = 1 - 0.8 * small  # B 1 1
    free = np.clip(centre[:, None, :, 0, 0] + reach[..., 0] * way, -most, most)
    apart = np.linalg.norm(free - centre[:, None, :, 0, 0], axis=-1)  # B 8
    stays = apart >= 0.95 * reach[..., 0, 0]
    best = np.where(stays.any(1), stays.argmax(1), apart.argmax(1))
    return free[np.arange(len(free)), best][..., None, None].astype(np.float32)


def tones(pattern, x, y, u, pixel) -> tuple[np.ndarray, np.ndarray]:
    """Tone of the ground from 0 to 1, and its lines, which an outline follows: (B, H, W) each."""
    turn = np.pi * u[:, 15]
    gx, gy = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x

    def bands(coordinate, phase, period):  # signed distance to the nearest edge of a square wave
        return period * (np.abs((coordinate / period + phase) % 1 - 0.5) - 0.25)

    period = 0.56 + 0.14 * u[:, 16]  # no line is finer than a token of the embedded model
    a, b = bands(gx, u[:, 17], period), bands(gy, u[:, 18], period)
    ca, cb = (np.clip(0.5 - d / pixel, 0, 1) for d in (a, b))
    pitch = 3 * 2.0 ** u[:, 19]  # waves over the picture; fewer would look like a plain ground
    waves = []
    for i in range(8):  # of any direction, frequency about the pitch, and phase
        way, often, phase = np.pi * u[:, 20 + i], np.pi * pitch * (0.7 + 0.3 * u[:, 30 + i]), np.pi * u[:, 40 + i]
        waves.append(np.cos(often * (np.cos(way) * x + np.sin(way) * y) + phase))
    smooth = sum(waves) / 2.8  # of deviation 0.7
    line = np.clip(0.5 - (np.abs(np.stack([a, np.minimum(np.abs(a), np.abs(b))])) - 0.018) / pixel, 0, 1)
    contour = np.clip(1.6 - np.abs(smooth) * 14, 0, 1)
    which = [pattern[:, None, None] == p for p in PATTERNS[1:]]
    tone = np.select(which, [ca, ca * cb + (1 - ca) * (1 - cb), 0.5 + 0.5 * np.tanh(smooth)], 1.0)
    return tone.astype(np.float32), np.select(which, [line[0], line[1], contour], 0.0).astype(np.float32)

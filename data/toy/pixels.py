"""Read shape and light off an image's pixels, without any trained evaluator: a second opinion on the ToyWorld CLIP.

The caption's colours part the pixels by hue: subject, companion and ground. The subject's shape is the one whose render
overlaps the subject's pixels most, over places, sizes and turns. The light comes from the side opposite to the darkest
stretch of ground beside the objects. Both know the world's rules and the caption's colours, and nothing else.
"""

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import binary_fill_holes, gaussian_filter, label, median_filter, shift

from massact_utils.toyworld import COLOURS, LIGHTS, SHAPES

SIDE = 48  # pixels in which shapes are compared
RADII = np.linspace(0.36, 0.86, 11)  # of a subject, in half image widths
TURNS = np.deg2rad(np.linspace(-20, 20, 5))


def parts(image, scene) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of the subject and of both objects, (H, W) bool each: by the caption's colour whose hue is nearest."""
    names = [scene.colour, scene.ground] + [scene.companion_colour] * (scene.companion_colour is not None)
    x = gaussian_filter(np.asarray(image, float), (0.6, 0.6, 0))
    hue = x / (x.sum(-1, keepdims=True) + 12)  # dark pixels say little
    wanted = np.array([COLOURS[name] for name in names])
    apart = np.linalg.norm(hue[:, :, None] - wanted / wanted.sum(-1, keepdims=True), axis=-1)
    nearest = median_filter(apart.argmin(-1), 5)
    return _largest(nearest == 0), nearest != 1


def _largest(mask):
    pieces, n = label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if n else mask


def _templates():
    """Every shape in every size and turn amid a field of 2 SIDE: the names (T,) and masks (T, 2 SIDE, 2 SIDE)."""
    axis = (np.arange(2 * SIDE) - SIDE) / SIDE * 2
    x, y = np.meshgrid(axis, axis)
    names, masks = [], []
    for name, shape in SHAPES.items():
        for radius in RADII:
            for turn in TURNS:
                lx, ly = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
                names.append(name)
                masks.append(shape(lx / radius, ly / radius) < 0)
    return np.array(names), np.stack(masks)


NAMES, TEMPLATES = _templates()
SPECTRA = rfft2(TEMPLATES.astype(np.float32)).conj()
INSIDE = irfft2(
    rfft2(np.pad(np.ones((SIDE, SIDE), np.float32), ((0, SIDE), (0, SIDE)))) * SPECTRA
)  # area in the picture


def shape_of(mask) -> str:
    """The shape whose template, anywhere in the picture, has the largest IoU with a mask (96, 96)."""
    small = np.asarray(mask, np.float32).reshape(SIDE, 2, SIDE, 2).mean((1, 3))
    both = irfft2(rfft2(np.pad(small, ((0, SIDE), (0, SIDE)))) * SPECTRA)  # T 2SIDE 2SIDE, by the template's place
    return str(NAMES[(both / (INSIDE + small.sum() - both + 1e-3)).max((1, 2)).argmax()])


def light_of(image, scene) -> str:
    """The light whose shadow zone on the ground is darkest beside the rest of the ground."""
    subject, objects = parts(image, scene)
    bright = np.asarray(image, float).sum(-1)
    bright = bright / gaussian_filter(bright, 12)
    reach = 0.13 * np.sqrt(max(subject.sum(), 1))
    solid = binary_fill_holes(subject)
    darkness = {}
    for name, (dx, dy) in LIGHTS.items():
        moved = (
            np.max([shift(solid.astype(np.float32), (s * reach * dy, s * reach * dx), order=0) for s in (1, 2)], 0)
            > 0.5
        )
        zone = moved & ~objects & ~solid
        darkness[name] = -bright[zone].mean() if zone.sum() > 8 else -np.inf
    return max(darkness, key=darkness.get)

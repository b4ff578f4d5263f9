"""Read shape, light and company off an image's pixels, without any trained evaluator: a second opinion on the CLIP.

The caption's colours part the pixels by hue: subject, companion and ground. A thing's shape is the one whose render
overlaps its pixels most, over places, sizes and turns. The light is the one whose cast shadows would lie where the
ground is dark. The companion is there if what has its colour is one piece of a companion's size. All of it knows the
world's rules and the caption's colours, and nothing else.
"""

from itertools import product

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter, label, median_filter, shift
from scipy.special import expit

from massact_utils.worlds.toyworld import COLOURS, LIGHTS, SHAPES

SIDE = 48  # pixels in which shapes are compared
RADII = np.linspace(0.36, 0.86, 9)  # of a subject, in half image widths
TURNS = np.deg2rad(np.linspace(-16, 16, 3))
COMPANION = (0.007, 0.09)  # shares of the image between which a piece is a companion


def parts(image, scene) -> np.ndarray:
    """Whose each pixel is, by the caption's colour whose hue is nearest: (H, W), 0 subject, 1 ground, 2 companion."""
    names = [scene.colour, scene.ground] + [scene.companion] * (scene.companion is not None)
    x = gaussian_filter(np.asarray(image, float), (0.6, 0.6, 0))
    hue = x / (x.sum(-1, keepdims=True) + 12)  # dark pixels say little
    wanted = np.array([COLOURS[name] for name in names])
    apart = np.linalg.norm(hue[:, :, None] - wanted / wanted.sum(-1, keepdims=True), axis=-1)
    return median_filter(apart.argmin(-1), 3)


def _largest(mask):
    pieces, n = label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if n else mask


def _templates():
    """Every shape in every size and turn amid a field of 2 SIDE: names (T,), spectra, and areas within the picture."""
    axis = (np.arange(2 * SIDE) - SIDE) / SIDE * 2
    x, y = np.meshgrid(axis, axis)
    names, masks = [], []
    for name, radius, turn in product(SHAPES, RADII, TURNS):
        lx, ly = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        names.append(name)
        masks.append(SHAPES[name](lx / radius, ly / radius) < 0)
    spectra = rfft2(np.stack(masks).astype(np.float32)).conj()
    return np.array(names), spectra, irfft2(_padded(np.ones((SIDE, SIDE))) * spectra)


def _padded(mask):
    return rfft2(np.pad(mask.astype(np.float32), ((0, SIDE), (0, SIDE))))


TEMPLATES = _templates()


def shape_of(mask) -> str:
    """The shape whose template, anywhere in the picture, has the largest IoU with a mask (96, 96)."""
    names, spectra, area = TEMPLATES
    small = np.asarray(mask, np.float32).reshape(SIDE, 2, SIDE, 2).mean((1, 3))
    both = irfft2(_padded(small) * spectra)  # T 2SIDE 2SIDE, by the template's place
    return str(names[(both / (area + small.sum() - both + 1e-3)).max((1, 2)).argmax()])


def one_companion(mask) -> bool:
    """Whether a mask (96, 96) is one piece of a companion's size; thin rims, where soft colours mix, are cut off.

    A second piece of a quarter of the first is one too many.
    """
    pieces, n = label(binary_opening(mask, iterations=2))
    sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1] / mask.size
    return bool(n and COMPANION[0] <= sizes[0] <= COMPANION[1] and sizes[1:2].sum() < sizes[0] / 4)


def read(image, scene) -> dict:
    """The subject's shape, the light, and the companion's colour: "" if it is not one piece of its size."""
    whose = parts(image, scene)
    return {
        "shape": shape_of(_largest(whose == 0)),
        "light": light_of(image, whose),
        "companion": scene.companion if one_companion(whose == 2) else "",
    }


def light_of(image, whose) -> str:
    """The light whose cast shadows, where they would fall on the ground, go best with its dark pixels; `whose` as from
    `parts`. Dark is what a shadow makes of the ground's bright tone; the dark tone of a pattern is brighter.
    """
    ground, bright = whose == 1, np.asarray(image, float).sum(-1)
    things = [binary_fill_holes(_largest(whose == i)) for i in (0, 2)]
    ground = ground & ~things[0] & ~things[1]
    if not ground.any():
        return next(iter(LIGHTS))
    dark = expit((0.55 - bright / np.percentile(bright[ground], 90)) / 0.08)[ground]
    agree = {}
    for name, (dx, dy) in LIGHTS.items():
        shadows = [
            shift(solid.astype(np.float32), (s * reach * dy, s * reach * dx), order=0)
            for solid, reach in ((thing, 0.13 * np.sqrt(thing.sum())) for thing in things)
            for s in (1, 2)
        ]
        fallen = (np.max(shadows, 0) > 0.5)[ground]
        agree[name] = np.cov(dark, fallen)[0, 1] / max(fallen.std(), 1e-3)  # dark has one deviation for all lights
    return max(agree, key=agree.get)

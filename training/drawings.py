"""Read the thing and its artist off an EmojiWorld image by pixels, without any trained evaluator: a second opinion.

Every drawing of the world is laid over the picture at every place and in several sizes. The nearest is the one whose
colours differ least from the picture's under the drawing's alpha, beside how much its own colours vary: a drawing of
many details is laid a little off by any grid of sizes, and a plain one is not.
"""

from functools import cache

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import irfft2, rfft2

from massact_utils.worlds import emojiworld as world

SIDE = 32  # pixels in which pictures are compared
SHARES = np.geomspace(world.SIZES["small"][0], world.SIZES["large"][1], 9)  # of the image, by the subject


@cache
def _templates():
    """Spectra of all drawings in all sizes amid a field of 2 SIDE: alpha (T, F), colours times alpha (3, T, F); their
    energies, areas and variances (T,); and their names [(thing, style)].
    """
    sprites, fill = world._sprites()
    names, alphas, colours = [], [], []
    for i, thing in enumerate(world.THINGS):
        for j, style in enumerate(world.STYLES):
            sprite = Image.fromarray(sprites[i, j], "RGBa")
            for share in SHARES:
                edge = max(4, round(float(np.sqrt(share / fill[i, j])) * SIDE))
                small = np.asarray(sprite.resize((edge, edge), Image.Resampling.BOX), np.float32) / 255
                field = np.zeros((2 * SIDE, 2 * SIDE, 4), np.float32)
                field[:edge, :edge] = small[: 2 * SIDE, : 2 * SIDE]
                names.append((thing, style))
                alphas.append(field[..., 3])
                colours.append(field[..., :3])
    alphas, colours = np.stack(alphas), np.stack(colours)
    area = alphas.sum((1, 2))
    energy = (colours**2 / np.maximum(alphas[..., None], 1e-3)).sum((1, 2, 3))
    variance = energy / area - ((colours.sum((1, 2)) / area[:, None]) ** 2).sum(1)
    spectra = rfft2(alphas).conj(), rfft2(colours.transpose(3, 0, 1, 2)).conj()
    return *spectra, energy, area, variance, names


def read(images) -> pd.DataFrame:
    """The nearest drawing in each image: one row an image, columns thing, style and error (root mean square, 0 to 1).

    A drawing may reach over the border by a third of its area.
    """
    alpha, colour, energy, area, variance, names = _templates()
    rows = []
    for image in images:
        small = Image.fromarray(np.asarray(image)).resize((SIDE, SIDE), Image.Resampling.BOX)
        x = np.zeros((4, 2 * SIDE, 2 * SIDE), np.float32)
        x[:3, :SIDE, :SIDE] = np.asarray(small, np.float32).transpose(2, 0, 1) / 255
        x[3, :SIDE, :SIDE] = 1
        r, g, b, inside = rfft2(x)
        squares = rfft2((x[:3] ** 2).sum(0))
        # under alpha: the picture's squares, minus twice its product with the drawing; what lies outside costs its own
        cost = irfft2(squares * alpha - 2 * (r * colour[0] + g * colour[1] + b * colour[2])) + energy[:, None, None]
        seen = irfft2(inside * alpha)
        error = np.where(seen > area[:, None, None] * 2 / 3, cost / area[:, None, None], np.inf).min((1, 2))
        best = int((error / (variance + 0.05)).argmin())
        rows.append((*names[best], float(np.sqrt(max(error[best], 0) / 3))))
    return pd.DataFrame(rows, columns=["thing", "style", "error"])

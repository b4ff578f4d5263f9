"""Read the thing and its artist off an EmojiWorld image by pixels, without any trained evaluator: a second opinion.

Every drawing of the world is laid over the picture at every place and in several sizes. The nearest is the one that
explains most of it: under the drawing's alpha, the error of the ground alone minus the error of the drawing. The ground
are the three colours that the picture's frame is made of.
"""

from functools import cache

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import irfft2, rfft2
from sklearn.cluster import KMeans

from massact_utils.worlds import emojiworld as world

SIDE = 32  # pixels in which pictures are compared
SHARES = np.geomspace(world.SIZES["small"][0], world.SIZES["large"][1], 11)  # of the image, by the subject


@cache
def _templates():
    """Spectra of all drawings in all sizes amid a field of 2 SIDE: alpha (T, F), colours times alpha (3, T, F); their
    energies and areas (T,); and their names [(thing, style)].
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
    spectra = rfft2(alphas).conj(), rfft2(colours.transpose(3, 0, 1, 2)).conj()
    return *spectra, energy, area, names


def read(images) -> pd.DataFrame:
    """The nearest drawing in each image: one row an image, columns thing and style.

    A drawing may reach over the border by a third of its area.
    """
    alpha, colour, energy, area, names = _templates()
    best = []
    for image in images:
        small = Image.fromarray(np.asarray(image)).resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float32) / 255
        frame = np.concatenate([*pixels[[0, 1, -2, -1]], *pixels[:, [0, 1, -2, -1]].swapaxes(0, 1)])
        ground = KMeans(min(3, len(np.unique(frame, axis=0))), n_init=1, random_state=0).fit(frame).cluster_centers_
        x = np.zeros((5, 2 * SIDE, 2 * SIDE), np.float32)
        x[:3, :SIDE, :SIDE] = pixels.transpose(2, 0, 1)
        x[3, :SIDE, :SIDE] = 1
        x[4, :SIDE, :SIDE] = ((pixels[:, :, None] - ground) ** 2).sum(-1).min(-1) - (pixels**2).sum(-1)
        r, g, b, inside, beside = rfft2(x)
        # the ground's error minus the drawing's; what lies outside the picture costs its own energy
        gain = irfft2(beside * alpha + 2 * (r * colour[0] + g * colour[1] + b * colour[2])) - energy[:, None, None]
        within = irfft2(inside * alpha) > area[:, None, None] * 2 / 3
        best.append(names[int(np.where(within, gain, -np.inf).max((1, 2)).argmax())])
    return pd.DataFrame(best, columns=["thing", "style"])

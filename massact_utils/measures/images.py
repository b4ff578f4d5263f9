"""Images to numbers: layout, detail, perceptual distance, and the side from which a subject is lit."""

import math
from io import BytesIO

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import binary_erosion

from ..worlds import grounds
from . import evaluators
from .evaluators import batches, check_pairs
from .masks import coverage


def band_errors(images, references, *, cutoff: float = 8) -> tuple[np.ndarray, np.ndarray]:
    """Relative error of each image against its reference in layout and in detail: (low, high), (B,) each.

    Both are split by their cosine transform at `cutoff` cycles over the image's shorter side: below is what a picture
    of 16 x 16 pixels could show, above is finer. In either band the error's norm is divided by the reference's: 0 for
    equal images, 1 where the band is erased, about 1.4 for an unrelated image of the same contrast. Values run from -1
    to 1, so that an image erased is mid-grey; a reference's norm counts as at least one grey level. Raises ValueError
    for images of unequal size.
    """
    check_pairs(images, references)
    errors = []
    for a, b in zip(images, references, strict=True):
        a, b = (np.asarray(x, np.float32) / 127.5 - 1 for x in (a, b))
        if a.shape != b.shape or a.ndim != 3:
            raise ValueError(f"an image of shape {a.shape} has a reference of shape {b.shape}; both have to be H W 3")
        h, w = b.shape[:2]
        v, u = np.arange(h)[:, None] / (2 * h), np.arange(w)[None] / (2 * w)  # cycles a pixel
        low = np.hypot(u, v) * min(h, w) < cutoff  # H W
        error, power = (dctn(x, axes=(0, 1), norm="ortho") ** 2 for x in (a - b, b))
        floor = b.size / 127.5**2
        errors.append([np.sqrt(error[band].sum() / max(power[band].sum(), floor)) for band in (low, ~low)])
    low, high = np.array(errors).T
    return low, high


def compare(images, references, prompts, *, others, evaluator: str = "toy", device=None) -> pd.DataFrame:
    """Images (B) against the intact images of the same prompts and noise: one row an image.

    Columns alignment, chance (the reference's mean alignment with the prompts in `others`), low_error (layout) and
    high_error (detail). Raises what `alignment` and `band_errors` do.
    """
    references, options = list(references), dict(evaluator=evaluator, device=device)
    foreign = evaluators.text_features(others, **options).mean(0)
    distinct = {id(image): image for image in references}  # arms share a reference
    chance = (evaluators.image_features(list(distinct.values()), **options) @ foreign).tolist()
    chance = dict(zip(distinct, chance, strict=True))
    table = pd.DataFrame({"alignment": evaluators.alignment(images, prompts, **options)})
    table["chance"] = [chance[id(image)] for image in references]
    table["low_error"], table["high_error"] = band_errors(images, references)
    return table


@torch.no_grad()
def perceptual_distance(images, references, *, evaluator: str = "toy", device=None) -> np.ndarray:
    """1 minus the cosine of two images' features at the same place, averaged over places and levels: (B,), 0 for equal
    images, about 1 for unrelated ones.

    LPIPS (arXiv 1801.03924) without its learnt weights: the levels are the hidden states of a vision model, whether it
    is convolutional (B, C, h, w) or made of tokens (B, N, C). To compare a part of the images alone, make the rest
    equal first (`transfer.blended`). Raises ValueError for another number of references, RuntimeError for an evaluator
    that cannot be loaded.
    """
    check_pairs(images, references)
    model, processor, _ = evaluators.clip(evaluator, evaluators.default_device(device))
    vision, distances = getattr(model, "vision_model", model), []

    def levels(pictures):
        pixels = processor(pictures, return_tensors="pt")["pixel_values"].to(model.device)
        return [_maps(x) for x in vision(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]]

    for part, wanted in zip(batches(images), batches(references), strict=True):
        distinct, which = np.unique(np.stack(wanted), axis=0, return_inverse=True)  # arms share a reference
        a, b = levels(part), levels(list(distinct))
        cosines = [(x * y[which.ravel()]).sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]  # level: (B,)
        distances.append(1 - torch.stack(cosines).mean(0).cpu().numpy())
    return np.concatenate(distances)


def error_outside(images, references, masks) -> np.ndarray:
    """Root mean square difference of images to references outside masks on tokens, in grey levels: (B, H, W) bool ->
    (B,), 0 to 255; nan where nothing is outside.
    """
    check_pairs(images, references)
    errors = [np.square(np.subtract(*map(np.float32, both))).mean(2) for both in zip(images, references, strict=True)]
    outside = ~np.asarray(masks, bool)
    within = np.where(outside, coverage(errors, outside.shape[1:]), 0)
    return np.sqrt(within.sum((1, 2)) / np.where(outside.any((1, 2)), outside.sum((1, 2)), np.nan))


def lit_from(images, masks) -> list[str]:
    """The light of a drawn world, "left", "right" or "above", in which each subject is drawn: the side to which its
    pixels get brighter, as the slope of a plane fitted to them. "" where the mask (B, H, W) is smaller than 16 pixels.

    No evaluator is asked: it is a second opinion on the CLIP's "light", and of the subject alone.
    """
    rays = {name: np.array(ray) / np.hypot(*ray) for name, ray in grounds.LIGHTS.items()}
    lights = []
    for image, mask in zip(images, masks, strict=True):
        inner = binary_erosion(mask, iterations=max(1, len(mask) // 32))  # without outline and soft border
        y, x = np.nonzero(inner if inner.sum() >= 16 else mask)
        if len(y) < 16:
            lights.append("")
            continue
        bright = np.asarray(image, float).sum(-1)[y, x]
        slope = np.linalg.lstsq(np.stack([x, y, np.ones(len(x))], 1), bright, rcond=None)[0][:2]
        lights.append(max(rays, key=lambda name: -(slope @ rays[name])))
    return lights


def _maps(x: torch.Tensor) -> torch.Tensor:
    """Hidden states as maps (B, C, h, w) of unit vectors; tokens beyond a square grid, such as a class token, are left
    out."""
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        x = x[:, -side * side :].mT.unflatten(2, (side, side))
    return torch.nn.functional.normalize(x.float(), dim=1)


def thumbnail(image, most: int = 192) -> bytes:
    """A PIL image as PNG, its longer side `most` pixels or fewer, for a column of a table; `picture` reads it."""
    file, scale = BytesIO(), min(1, most / max(image.size))
    image.resize([max(round(side * scale), 1) for side in image.size]).save(file, "PNG")
    return file.getvalue()


def picture(png: bytes) -> np.ndarray:
    """The image (H, W, 3) uint8 that `thumbnail` wrote."""
    return np.asarray(Image.open(BytesIO(png)))

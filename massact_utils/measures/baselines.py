"""Baselines: what a caption, a picture and its words tell of the tokens, without a look at any channel."""

from dataclasses import replace

import numpy as np
import xarray as xr

from ..models import guess, latents
from ..probes.words import where, words_seen
from ..worlds import toyworld
from .masks import colours, coverage, iou, typical


def of_pictures(pipe, images, grid: tuple[int, int]) -> dict:
    """Images (image, h, w, 3) uint8 as the tokens see them, "pixels" (image, N, 3) and "latents" (image, N, C), each as
    {0: tokens}, which is what `masks.compared` takes.
    """
    clean = guess.on_grid(latents.encode(pipe, [*images], *images.shape[1:3]), grid).float().cpu()
    return {"pixels": {0: colours(images, grid)}, "latents": {0: clean}}


def of_captions(texts, grid: tuple[int, int], n: int = 32) -> dict:
    """The mask that overlaps the subjects of n other renders of each ToyWorld caption most, "caption" (image, N).

    As {0: tokens}, as above; without texts nothing. Raises ValueError for a text that is no ToyWorld caption.
    """
    masks = []
    for text in texts:
        again = toyworld.render([toyworld.parse(text)] * n, seed=10**6, size=4 * grid[0])[1]["subject"]
        masks.append(typical(coverage(again, grid) > 0.5).ravel())
    return {"caption": {0: np.float32(masks)}} if masks else {}


def open_layout(text: str) -> str:
    """A ToyWorld caption that leaves size and place open; every other text as it is.

    >>> open_layout("a small red star at the left on a blue plain ground")
    'a red star on a blue plain ground'
    >>> open_layout("a dog in the rain")
    'a dog in the rain'
    """
    try:
        return toyworld.caption(replace(toyworld.parse(text), size=None, place=None))
    except ValueError:
        return text


def of_words(pipe, texts, steps=None):
    """`words_seen` for ToyWorld captions, one a row: attention to the subject's words, less that to the ground's."""
    places = []
    for text in texts:
        told = toyworld.parse(text)
        ground = f"{told.ground} {told.pattern} ground"
        places.append((where(pipe, text, f"{told.colour} {told.shape}"), where(pipe, text, ground)))
    return words_seen(pipe, places, steps)


def of_seeds(table: xr.DataArray, drawn) -> xr.DataArray:
    """A table of `masks.compared` for images of many seeds of each caption, with the arm "caption" and `sites`' halves.

    `drawn` are the subjects in the images (caption, seed, H, W) bool. The arm is the mask that overlaps the subjects of
    the caption's other seeds most. Even seeds choose, odd ones report; an image without a subject does neither. Raises
    ValueError where fewer than two captions have a subject to report on.
    """
    if (there := int(drawn[:, 1::2].any((1, 2, 3)).sum())) < 2:
        raise ValueError(f"the images of {there} captions show a subject; name another reference, or more prompts")
    n, seeds = drawn.shape[:2]
    likely = [[typical(np.delete(same, i, 0)) for i in range(seeds)] for same in drawn]
    alone = iou(likely, drawn).reshape(-1, 1, 1, 1, 1) + 0 * table[:, :, :1].assign_coords(arm=["caption"])
    half = np.where(drawn.any((2, 3)), np.where(np.arange(seeds) % 2, "report", "choose"), "no subject there")
    coords = dict(half=("image", half.ravel()), caption=("image", np.repeat(np.arange(n), seeds)))
    return xr.concat([table, alone], "arm").assign_coords(coords)

"""Spatial: what a caption, a picture and its words say of the tokens, without a look at any channel."""

from dataclasses import replace

import numpy as np

from ..measures.masks import best_consensus, coverage, token_colours
from ..models.noise import encode
from ..probes.attention import concept_attention, word_positions
from ..probes.predicted import to_tokens
from ..worlds import toyworld


def image_tokens(pipe, images, grid: tuple[int, int]) -> dict:
    """Images (image, h, w, 3) uint8 as the tokens see them, "pixels" (image, N, 3) and "latents" (image, N, C), each as
    {0: tokens}, which is what `masks.overlaps_with_baselines` takes.
    """
    clean = to_tokens(encode(pipe, [*images], *images.shape[1:3]), grid).float().cpu()
    return {"pixels": {0: token_colours(images, grid)}, "latents": {0: clean}}


def caption_masks(captions, grid: tuple[int, int], n: int = 32) -> np.ndarray:
    """The mask that overlaps the subjects of n other renders of each ToyWorld caption most: (image, H, W) bool.

    Raises ValueError for a text that is no ToyWorld caption.
    """
    masks = []
    for caption in captions:
        subjects = toyworld.render([toyworld.parse(caption)] * n, seed=10**6, size=4 * grid[0])[1]["subject"]
        masks.append(best_consensus(coverage(subjects, grid) > 0.5))
    return np.stack(masks)


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


def subject_attention(pipe, captions, steps=None):
    """`concept_attention` of ToyWorld captions, one a row: the subject's words against the ground's."""
    places = []
    for caption in captions:
        scene = toyworld.parse(caption)
        ground = f"{scene.ground} {scene.pattern} ground"
        subject = f"{scene.colour} {scene.shape}"
        places.append((word_positions(pipe, caption, subject), word_positions(pipe, caption, ground)))
    return concept_attention(pipe, places, steps)

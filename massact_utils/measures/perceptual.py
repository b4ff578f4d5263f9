"""Perceptual distance: how unlike two images are in an evaluator's feature maps, place by place."""

import math

import numpy as np
import torch

from .metrics import batches, check_pairs, chosen_device, encoder


@torch.no_grad()
def distance(images, references, *, evaluator: str = "toy", device=None) -> np.ndarray:
    """1 minus the cosine of two images' features at the same place, averaged over places and levels: (B,), 0 for equal
    images, about 1 for unrelated ones.

    LPIPS (arXiv 1801.03924) without its learnt weights: the levels are the hidden states of a vision model, whether it
    is convolutional (B, C, h, w) or made of tokens (B, N, C). To compare a part of the images alone, make the rest
    equal first (`transfer.blended`). Raises ValueError for another number of references, RuntimeError for an evaluator
    that cannot be loaded.
    """
    check_pairs(images, references)
    model, processor, _ = encoder(evaluator, chosen_device(device))
    vision, found = getattr(model, "vision_model", model), []

    def levels(pictures):
        pixels = processor(pictures, return_tensors="pt")["pixel_values"].to(model.device)
        return [_maps(x) for x in vision(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]]

    for part, wanted in zip(batches(images), batches(references), strict=True):
        distinct, which = np.unique(np.stack(wanted), axis=0, return_inverse=True)  # arms share a reference
        a, b = levels(part), levels(list(distinct))
        same = [(x * y[which.ravel()]).sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]  # level: (B,)
        found.append(1 - torch.stack(same).mean(0).cpu().numpy())
    return np.concatenate(found)


def _maps(x: torch.Tensor) -> torch.Tensor:
    """Hidden states as maps (B, C, h, w) of unit vectors; tokens beyond a square grid, such as a class token, are left
    out."""
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        x = x[:, -side * side :].mT.unflatten(2, (side, side))
    return torch.nn.functional.normalize(x.float(), dim=1)

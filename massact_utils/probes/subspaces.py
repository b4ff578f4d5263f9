"""Subspaces: a few directions of the tokens in the place of a few channels; a set (channel, rank) for every arm."""

import numpy as np
import torch
import xarray as xr


class Moments:
    """A probe that reads: second moments of the tokens, by layer, over all images, steps and evaluations it sees.

    Accumulated in float32 where the tokens are: 2 D^2 numbers a layer, whatever the number of images.
    """

    edits = False

    def __init__(self):
        self.sums, self.tokens = {}, {}  # layer -> (2, D, D), and over how many tokens

    def __call__(self, tokens, site):
        x = tokens.detach().float()
        parts = torch.stack([x, x - x.mean(1, keepdim=True)]).flatten(1, 2)  # 2 BN D
        self.sums[site.layer] = self.sums.get(site.layer, 0) + parts.mT @ parts
        self.tokens[site.layer] = self.tokens.get(site.layer, 0) + parts.shape[1]

    def dataset(self) -> xr.Dataset:
        """Means over tokens of x x^T: "state", and "pattern" of x less its image's level, (layer, channel, other)."""
        layers = sorted(self.sums)
        mean = np.stack([(self.sums[layer] / self.tokens[layer]).cpu().numpy() for layer in layers], 1).astype(float)
        dims = ("layer", "channel", "other")
        return xr.Dataset(
            {name: (dims, x) for name, x in zip(("state", "pattern"), mean, strict=True)}, {"layer": layers}
        )


def principal(moments: xr.DataArray, k: int, without: xr.DataArray | None = None) -> xr.DataArray:
    """The k orthonormal directions that hold the most of second moments (layer, channel, other), the most first:
    (layer, channel, rank). Channels `without` (layer, rank) are left out: there the directions are 0.
    """
    bases = []
    for i, x in enumerate(moments.values):
        kept = np.setdiff1d(np.arange(len(x)), [] if without is None else without[i])
        basis = np.zeros((len(x), k))
        basis[kept] = np.linalg.eigh(x[np.ix_(kept, kept)])[1][:, : -k - 1 : -1]
        bases.append(basis)
    return _basis(bases, moments)


def rotated(moments: xr.DataArray, channels: xr.DataArray, *, seed: int = 0) -> xr.DataArray:
    """As many orthonormal directions as `channels` (layer, rank) has ids, which hold as much of second moments (layer,
    channel, other): (layer, channel, rank).

    They are drawn at random, the same in every layer, and turned towards the principal ones until they hold as much.
    """
    k, width = channels.sizes["rank"], moments.sizes["channel"]
    start = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, k)))[0]
    bases = []
    for x, ids, end in zip(moments.values, channels.values, principal(moments, k).values, strict=True):
        low, high, wanted = 0.0, 1.0, x.diagonal()[ids].sum()
        for _ in range(40):  # halvings
            middle = (low + high) / 2
            basis = np.linalg.qr((1 - middle) * start + middle * end)[0]
            low, high = (low, middle) if np.vdot(basis, x @ basis) > wanted else (middle, high)
        bases.append(basis)
    return _basis(bases, moments)


def _basis(bases, moments) -> xr.DataArray:
    return xr.DataArray(np.stack(bases), {"layer": moments.layer}, ("layer", "channel", "rank"))

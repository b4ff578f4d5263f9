"""What a trained model's modulation does at its massive channels: no training, no edit, only a look."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import xarray as xr

import massact_utils as mu

from . import networks

PARTS = ("|shift|", "|1 + scale|", "|gate|")
COLUMNS = ["layer", "kind", "factor", "channel", "ratio", "as read", "low", "high"]


def read(pipe, prompts, seeds=0, **call) -> xr.Dataset:
    """Generate, and read of every block the size of its channels and its modulation of the image tokens.

    Gives `mean_abs` (image, layer, channel), the mean over tokens and steps; and, for a class of networks.CLASSES,
    `factor` (image, layer, part, channel), the mean of |shift|, |1 + scale| and |gate| over the calls, and over the
    parts of a block that have one each. A factor is the mean over the images that are generated together.
    """
    family, stats, calls = networks.CLASSES.get(type(pipe.transformer).__name__), mu.ChannelStats(), {}

    def keep(layer, factor):  # B sets 3 D
        factor = factor.detach().float() + torch.tensor([[0.0], [1.0], [0.0]], device=factor.device)
        calls.setdefault(layer, []).append(factor.abs().mean((0, 1)).cpu())

    net = SimpleNamespace(transformer=pipe.transformer, family=family)
    with networks.modulated(net, keep) if family else nullcontext(), mu.attach(pipe, stats):
        mu.generate(pipe, prompts, seeds=seeds, **call)
    data = stats.dataset()[["mean_abs"]].isel(branch=0, drop=True).mean("step")
    if family:
        factor = torch.stack([torch.stack(calls[layer]).mean(0) for layer in sorted(calls)]).numpy()
        factor = xr.DataArray(factor, {"part": list(PARTS)}, ["layer", "part", "channel"])
        data["factor"] = factor.expand_dims(image=data.sizes["image"])
    return data


def at_the_top(data, kinds, k: int) -> pd.DataFrame:
    """Factors of the k largest channels over the median of all others: a row for each block, factor and channel.

    `data` as `read` gives it, `kinds` a name for each block. Shift and scale meet the channels that enter a block, the
    gate those that leave it. `as read` is the ratio times the channel's size over the median channel's: how large it is
    after the factor. Between `low` and `high` lie 90 % of the other channels. Empty where no factor was read.
    """
    if "factor" not in data:
        return pd.DataFrame({name: pd.Series(dtype=float) for name in COLUMNS})
    scores, factors, rows = data.mean_abs.mean("image"), data.factor.mean("image"), []
    for layer, kind in enumerate(kinds):
        for part in PARTS:
            score = scores.sel(layer=layer if part == "|gate|" else max(layer - 1, 0)).values
            value = factors.sel(part=part).isel(layer=layer).values
            top = np.argsort(-score)[:k]
            others = np.delete(value, top)
            ratio, size = value / np.median(others), score / np.median(score)
            ends = np.quantile(others, [0.05, 0.95]) / np.median(others)
            rows += [(layer, kind, part, int(c), ratio[c], ratio[c] * size[c], *ends) for c in top]
    return pd.DataFrame(rows, columns=COLUMNS)

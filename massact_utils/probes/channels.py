"""Channels: streaming statistics of every channel at every layer and step, and the choice of a few of them."""

import warnings

import numpy as np
import torch
import xarray as xr

from ..ranges import SCORES, check  # noqa: F401  SCORES: what `score` knows
from .reading import Reading

STATISTICS = ("mean_abs", "mean", "max_abs", "mean_sq")


def _moments(tokens: torch.Tensor) -> torch.Tensor:
    """STATISTICS over the tokens, accumulated in float32 where the tokens are: (B, N, D) -> (4, B, D).

    On a CPU in parts that fit its cache, which is 7 times faster at width 1536; a GPU takes all tokens at once.
    """
    batch, n, width = tokens.shape
    rows = max(1, 2**19 // (batch * width)) if tokens.device.type == "cpu" else n
    sums, top = 0, 0
    for part in tokens.split(rows, dim=1):
        x = part.float()
        size = x.abs()
        sums = sums + torch.stack([size.sum(1), x.sum(1), x.square().sum(1)])
        top = torch.maximum(size.amax(1), top) if torch.is_tensor(top) else size.amax(1)
    mean_abs, mean, mean_sq = sums / n
    return torch.stack([mean_abs, mean, top, mean_sq])


def _quantile(tokens: torch.Tensor, q: float) -> torch.Tensor:
    """The q-quantile of |x| over the tokens, as numpy interpolates it, from the few largest: (B, N, D) -> (B, D)."""
    place = q * (tokens.shape[1] - 1)
    below = int(place)
    tail = tokens.abs().topk(tokens.shape[1] - below, dim=1).values[:, -2:].float()  # B 1|2 D
    return torch.lerp(tail[:, -1], tail[:, 0], place - below)


class ChannelStats(Reading):
    """A probe that reads: four statistics per channel over the image tokens, for every branch, step and layer it sees.

    They are reduced on the tokens' device, with float32 accumulation, and fetched once a generation. The paper
    (arXiv 2605.13974) selects by the "absolute channel mean across image tokens", which may be `mean_abs` or the
    absolute value of `mean`; both are here. `quantile`, as in 0.999, adds that quantile of the absolute values over an
    image's tokens, exactly, as `quantile_abs`; it needs a partial sort and is off by default. Of a step with several
    evaluations the first counts. One schedule to a table, else ValueError.
    """

    def __init__(self, quantile: float | None = None):
        super().__init__()
        if quantile is not None:
            check(quantile=quantile)
        self.quantile, self.dtype = quantile, None
        self.names = [*STATISTICS] if quantile is None else [*STATISTICS, "quantile_abs"]

    def __call__(self, tokens, site):
        tokens, key, self.dtype = tokens.detach(), (site.step, site.layer, site.branch), tokens.dtype
        last = next(reversed(self.generations.values()), None)
        cells = self.cells(site)
        if last is not None and last is not cells:
            _fetch(last)
        if key not in cells:  # gradient checkpointing runs a block again
            extra = [] if self.quantile is None else [_quantile(tokens, self.quantile)[None]]
            cells[key] = torch.cat([_moments(tokens), *extra])  # names B D

    def bytes_of(self, images: int, sites: int, tokens) -> int:
        """Bytes kept of so many images, at so many blocks x steps, of tokens like these (B, N, D)."""
        return 4 * tokens.shape[-1] * sites * images * len(self.names)

    def dataset(self) -> xr.Dataset:
        """The table: mean_abs, mean, max_abs, mean_sq over dims (image, branch, step, layer, channel), float32.

        Sites that were not visited are nan. Raises RuntimeError before any forward.
        """
        runs = self.finished()
        _fetch(next(reversed(self.generations.values())))
        steps, layers, branches = (
            sorted(set(names)) for names in zip(*(key for run in runs for key in run), strict=True)
        )
        batches = [next(iter(run.values())).shape[1] for run in runs]
        width = next(iter(runs[0].values())).shape[2]
        shape = len(self.names), sum(batches), len(branches), len(steps), len(layers), width
        values, first = np.full(shape, np.nan, np.float32), 0
        for run, batch in zip(runs, batches, strict=True):
            for (step, layer, branch), cell in run.items():
                at = branches.index(branch), steps.index(step), layers.index(layer)
                values[:, first : first + batch, *at] = cell.numpy()
            first += batch
        data = xr.Dataset(
            {
                name: (("image", "branch", "step", "layer", "channel"), x)
                for name, x in zip(self.names, values, strict=True)
            },
            {
                "image": np.arange(first),
                "branch": branches,
                "step": steps,
                "layer": layers,
                "channel": np.arange(width),
                "timestep": ("step", [self.timesteps[step] for step in steps]),
                "name": ("layer", [self.blocks[layer][0] for layer in layers]),
                "kind": ("layer", [self.blocks[layer][1] for layer in layers]),
            },
            {"dtype": str(self.dtype).removeprefix("torch.")} | ({"quantile": self.quantile} if self.quantile else {}),
        )
        if self.dtype == torch.float16:
            data.attrs["saturated"] = full = int((data.max_abs >= 65504).sum())
            if full:
                warnings.warn(
                    f"{full} of {data.max_abs.size} channel entries reached 65504, float16's limit; load with bfloat16",
                    stacklevel=2,
                )
        return data


def _fetch(cells) -> None:
    """Bring a generation's cells to the host in one transfer."""
    if cells:
        cells.update(zip(cells, torch.stack(list(cells.values())).cpu(), strict=True))


def score(data: xr.Dataset, name: str = "mean_abs") -> xr.DataArray:
    """One number by which channels are ranked: ChannelStats' table -> DataArray (..., channel).

    "mean_abs", "max_abs", "quantile_abs" and "mean_sq" (energy) stand in the table; "abs_mean" is the absolute value of
    the mean, for each image before any averaging. mean_abs is SPARK's score; arXiv 2605.13974's "absolute channel mean
    across image tokens" may be mean_abs or abs_mean. Raises ValueError for a name that is none of these, or not kept.
    """
    check(score=name)
    if name == "quantile_abs" and name not in data:
        raise ValueError("score 'quantile_abs' was not kept; record it with ChannelStats(quantile=0.999)")
    return abs(data["mean"]).rename("abs_mean") if name == "abs_mean" else data[name]


def gini(scores: xr.DataArray) -> xr.DataArray:
    """Gini coefficient over channels, 0 when all are alike, 1 - 1/D when one has all: (..., channel) -> (...).

    >>> float(gini(xr.DataArray([0.0, 0.0, 0.0, 8.0], dims="channel")))
    0.75
    """
    n = scores.sizes["channel"]

    def one(x):
        ranked = np.sort(x, -1)  # ... D
        return 2 * (ranked * np.arange(1, n + 1)).sum(-1) / (n * ranked.sum(-1)) - (n + 1) / n

    return xr.apply_ufunc(one, scores, input_core_dims=[["channel"]])


def select_channels(scores: xr.DataArray, k: int = 12, *, which: str = "top", seed: int = 0) -> xr.DataArray:
    """Ids of k channels for every leading index of a score: DataArray (..., channel) -> (..., rank).

    "top" and "bottom" have the largest and the smallest scores, most extreme first, chosen per layer as in
    arXiv 2605.13974. "outside" is a control: k channels drawn by `seed`, the same at every leading index, from those
    that are in the top k of none; seeds 0 to 7 are eight draws. Raises ValueError for an unknown `which`, a score
    without a channel dim, nan scores, and k below 1 or above the number of channels that can be chosen.

    >>> scores = xr.DataArray([[0.1, 9.0, 0.2, 5.0]], dims=("layer", "channel"))
    >>> select_channels(scores, k=2).values.tolist()
    [[1, 3]]
    """
    check(which=which, seed=seed)
    if "channel" not in getattr(scores, "dims", ()):
        raise ValueError(f"scores need a dim 'channel'; got {getattr(scores, 'dims', type(scores).__name__)}")
    scores = scores.transpose(..., "channel")
    width = scores.sizes["channel"]
    check(k=(k, 1, width))
    if scores.isnull().any():
        raise ValueError(
            "scores contain nan: layers or steps that were not visited, or tokens that were not finite; drop them first"
        )
    order = np.argsort(-scores.values if which != "bottom" else scores.values, axis=-1, kind="stable")[..., :k]
    if which == "outside":
        others = np.setdiff1d(np.arange(width), order)
        if len(others) < k:
            raise ValueError(
                f"k = {k} channels cannot be chosen outside the top {k} of all layers, which are {width - len(others)} "
                f"of {width} channels and leave {len(others)}; take a smaller k, or a score averaged over more"
            )
        order = np.broadcast_to(np.random.default_rng(seed).permutation(others)[:k], order.shape)
    ids = scores.coords["channel"].values[order] if "channel" in scores.coords else order.copy()
    coords = {name: c for name, c in scores.coords.items() if "channel" not in c.dims}
    return xr.DataArray(ids, coords | {"rank": np.arange(k)}, (*scores.dims[:-1], "rank"), name="channel")


def removed(mean_sq: xr.DataArray, channels: xr.DataArray) -> xr.DataArray:
    """Share of the squared norm of tokens that zeroing takes away: mean squares (..., channel) -> (...).

    `channels` are ids (..., rank) or doses (..., channel); a dose s takes s^2 of its channel.

    >>> mean_sq = xr.DataArray([1.0, 2.0, 5.0], dims="channel")
    >>> float(removed(mean_sq, xr.DataArray([2], dims="rank")))
    0.625
    """
    taken = mean_sq * channels**2 if "channel" in channels.dims else mean_sq.sel(channel=channels)
    return taken.sum(set(channels.dims) & {"rank", "channel"}) / mean_sq.sum("channel")


def matched_channels(mean_sq: xr.DataArray, top: xr.DataArray, *, seed: int = 0) -> xr.DataArray:
    """Doses of random channels outside a set that remove the set's squared norm: (..., channel), from 0 to 1.

    Channels are drawn in random order, anew for every leading index, until zeroing them takes as much squared norm as
    zeroing `top` (..., rank); the last one drawn gets the part of a dose that makes the two equal. `mean_sq`
    (..., channel) is as from `ChannelStats`. Where the set holds more than half of the squared norm all the others
    together cannot match it: they then all get dose 1, and `removed` tells how much that is.

    >>> doses = matched_channels(xr.DataArray([1.0, 1.0, 1.0, 2.0], dims="channel"), xr.DataArray([3], dims="rank"))
    >>> float(doses.sum()), float(doses[3])
    (2.0, 0.0)
    """
    mean_sq = mean_sq.transpose(..., "channel")
    inside = (mean_sq.channel == top).any("rank").transpose(*mean_sq.dims).values
    rank = np.random.default_rng(seed).permuted(np.broadcast_to(np.arange(inside.shape[-1]), inside.shape), axis=-1)
    order = np.argsort(np.where(inside, inside.shape[-1], rank), axis=-1)  # the set itself comes last
    drawn = np.take_along_axis(np.where(inside, 0, mean_sq.values), order, -1).astype(float)
    before = drawn.cumsum(-1) - drawn
    wanted = np.where(inside, mean_sq.values, 0).sum(-1, keepdims=True, dtype=float)
    left = np.clip(wanted - before, 0, None)
    dose = np.sqrt(np.clip(np.divide(left, drawn, out=np.zeros_like(drawn), where=drawn > 0), 0, 1))
    doses = np.zeros_like(dose)
    np.put_along_axis(doses, order, dose, -1)
    return mean_sq.copy(data=doses).rename("dose")

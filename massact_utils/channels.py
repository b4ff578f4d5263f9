"""Channels: streaming statistics of every channel at every layer and step, and the choice of a few of them."""

import warnings

import numpy as np
import torch
import xarray as xr

STATISTICS = ("mean_abs", "mean", "max_abs", "mean_sq")


def _moments(tokens: torch.Tensor) -> torch.Tensor:
    """STATISTICS over the tokens, accumulated in float32 where the tokens are: (B, N, D) -> (4, B, D).

    On a CPU in parts that fit its cache, which is 7 times faster at width 1536; a GPU takes all tokens at once.
    """
    batch, n, width = tokens.shape
    rows = n if tokens.is_cuda else max(1, 2**19 // (batch * width))
    sums, top = 0, 0
    for part in tokens.split(rows, dim=1):
        x = part.float()
        size = x.abs()
        sums = sums + torch.stack([size.sum(1), x.sum(1), x.square().sum(1)])
        top = torch.maximum(size.amax(1), top) if torch.is_tensor(top) else size.amax(1)
    mean_abs, mean, mean_sq = sums / n
    return torch.stack([mean_abs, mean, top, mean_sq])


class ChannelStats:
    """A probe that reads: four statistics per channel over the image tokens, for every layer and step it sees.

    They are reduced on the tokens' device, with float32 accumulation; `dataset()` makes the one transfer. With
    `per_image=False` images are not kept apart: memory then grows with steps, layers and channels alone, and the
    table gains the variance over images. The paper (arXiv 2605.13974) selects by the "absolute channel mean across
    image tokens", which may be `mean_abs` or the absolute value of `mean`; both are here. One branch and one schedule
    to a table, else ValueError.
    """

    edits = False

    def __init__(self, per_image: bool = True):
        self.per_image = per_image
        self.cells = {}  # (generation, step, layer) -> 4 B D, or (step, layer) -> [images, mean, spread, max]
        self.images, self.seen = {}, set()  # generation -> its batch
        self.timesteps, self.layers = {}, {}
        self.branch = self.dtype = None

    def __call__(self, tokens, site):
        self.branch, self.dtype = self.branch or site.branch, tokens.dtype
        if site.branch != self.branch:
            raise ValueError(
                f"ChannelStats saw branch {site.branch!r} after {self.branch!r}; attach one ChannelStats to each branch"
            )
        if self.timesteps.setdefault(site.step, site.timestep) != site.timestep:
            raise ValueError(
                f"step {site.step} was at timestep {self.timesteps[site.step]:g} and is now at {site.timestep:g}; "
                "take another ChannelStats for another schedule"
            )
        self.layers[site.layer] = site.name, site.kind
        self.images[site.generation] = len(tokens)
        if (site.generation, site.step, site.layer) in self.seen:  # gradient checkpointing runs a block again
            return
        self.seen.add((site.generation, site.step, site.layer))
        new = _moments(tokens.detach())  # 4 B D
        if self.per_image:
            self.cells[site.generation, site.step, site.layer] = new
            return
        batch, mean, top = new.shape[1], new.mean(1), new[2].amax(0)
        spread = (new - mean[:, None]).square().sum(1)
        if (site.step, site.layer) in self.cells:  # Chan's update of mean and squared deviations
            n, old, old_spread, old_top = self.cells[site.step, site.layer]
            step = mean - old
            spread = old_spread + spread + step.square() * (n * batch / (n + batch))
            mean, top, batch = old + step * (batch / (n + batch)), torch.maximum(old_top, top), n + batch
        self.cells[site.step, site.layer] = [batch, mean, spread, top]

    def dataset(self) -> xr.Dataset:
        """The table: mean_abs, mean, max_abs, mean_sq over dims (image, step, layer, channel), float32.

        With `per_image=False` there is no image dim: the means over images, the maximum of max_abs, and the variances
        over images of the other three (mean_abs_var ...). Sites that were not visited are nan. Raises RuntimeError
        before any forward.
        """
        if not self.cells:
            raise RuntimeError(
                "ChannelStats has seen no tokens: generate inside `with mu.attach(pipe, stats):` before .dataset()"
            )
        steps, layers = sorted(self.timesteps), sorted(self.layers)
        at = {site: (steps.index(site[-2]), layers.index(site[-1])) for site in self.cells}
        width = next(iter(self.cells.values()))[0 if self.per_image else 1].shape[-1]
        offset = dict(zip(self.images, np.cumsum([0, *self.images.values()]), strict=False))
        variables = [*STATISTICS] if self.per_image else [*STATISTICS, "mean_abs_var", "mean_var", "mean_sq_var"]
        shape = (sum(self.images.values()), len(steps), len(layers), width)
        values = np.full((len(variables), *shape[0 if self.per_image else 1 :]), np.nan, np.float32)
        sites = list(self.cells)
        if self.per_image:
            table = torch.cat([self.cells[site] for site in sites], dim=1).cpu().numpy()  # 4 rows D
            row = 0
            for site in sites:
                n, first = self.images[site[0]], offset[site[0]]
                values[:, first : first + n, *at[site]] = table[:, row : row + n]
                row += n
        else:
            table = (
                torch.stack([torch.cat([mean, spread, top[None]]) for _, mean, spread, top in self.cells.values()])
                .cpu()
                .numpy()
            )
            for site, cell in zip(sites, table, strict=True):  # 9 D
                values[[0, 1, 3], *at[site]], values[2, *at[site]] = cell[[0, 1, 3]], cell[8]
                freedom = self.cells[site][0] - 1
                values[4:, *at[site]] = cell[[4, 5, 7]] / freedom if freedom else np.nan
        dims = ("image", "step", "layer", "channel")[0 if self.per_image else 1 :]
        data = xr.Dataset(
            {name: (dims, value) for name, value in zip(variables, values, strict=True)},
            {
                "step": steps,
                "layer": layers,
                "channel": np.arange(width),
                "timestep": ("step", [self.timesteps[s] for s in steps]),
                "name": ("layer", [self.layers[i][0] for i in layers]),
                "kind": ("layer", [self.layers[i][1] for i in layers]),
            },
            {"images": shape[0], "branch": self.branch, "dtype": str(self.dtype).removeprefix("torch.")},
        )
        if self.dtype == torch.float16:
            data.attrs["saturated"] = full = int((data.max_abs >= 65504).sum())
            if full:
                warnings.warn(
                    f"{full} of {data.max_abs.size} channel entries reached 65504, float16's limit; load with bfloat16",
                    stacklevel=2,
                )
        return data.assign_coords(image=np.arange(shape[0])) if self.per_image else data


def select_channels(scores: xr.DataArray, k: int = 12, *, which: str = "top", seed: int = 0) -> xr.DataArray:
    """Ids of k channels for every leading index of a score: DataArray (..., channel) -> (..., rank).

    "top" and "bottom" have the largest and the smallest scores, most extreme first. "random" draws from all channels,
    "matched" from those outside the top k, so that a control never contains what it is compared with; both draw anew
    for every leading index, from `seed` alone. Selection per layer is the paper's (arXiv 2605.13974). Raises
    ValueError for an unknown `which`, a score without a channel dim, nan scores, and k below 1 or above the number of
    channels that can be chosen.

    >>> scores = xr.DataArray([[0.1, 9.0, 0.2, 5.0]], dims=("layer", "channel"))
    >>> select_channels(scores, k=2).values.tolist()
    [[1, 3]]
    """
    if which not in ("top", "bottom", "random", "matched"):
        raise ValueError(f"which {which!r} is unknown; allowed: top, bottom, random, matched")
    if "channel" not in getattr(scores, "dims", ()):
        raise ValueError(f"scores need a dim 'channel'; got {getattr(scores, 'dims', type(scores).__name__)}")
    scores = scores.transpose(..., "channel")
    width = scores.sizes["channel"]
    most = width // 2 if which == "matched" else width
    if not 1 <= k <= most:
        raise ValueError(f"k = {k} channels cannot be chosen as {which!r} from {width}; allowed: 1 to {most}")
    if scores.isnull().any():
        raise ValueError(
            "scores contain nan: layers or steps that were not visited, or tokens that were not finite; drop them first"
        )
    order = np.argsort(-scores.values if which != "bottom" else scores.values, axis=-1, kind="stable")  # ... channel
    if which in ("random", "matched"):
        pool = order[..., k:] if which == "matched" else order
        order = np.random.default_rng(seed).permuted(pool, axis=-1)
    ids = scores.coords["channel"].values[order[..., :k]] if "channel" in scores.coords else order[..., :k]
    kept = {name: c for name, c in scores.coords.items() if "channel" not in c.dims}
    return xr.DataArray(ids, kept | {"rank": np.arange(k)}, (*scores.dims[:-1], "rank"), name="channel")

"""Channels: streaming statistics of every channel at every layer and step, and the choice of a few of them."""

import warnings

import numpy as np
import torch
import xarray as xr

STATISTICS = ("mean_abs", "mean", "max_abs", "mean_sq")
SCORES = ("mean_abs", "abs_mean", "max_abs", "quantile_abs", "mean_sq")


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


def _quantile(tokens: torch.Tensor, q: float) -> torch.Tensor:
    """The q-quantile of |x| over the tokens, as numpy interpolates it, from the few largest: (B, N, D) -> (B, D)."""
    place = q * (tokens.shape[1] - 1)
    below = int(place)
    tail = tokens.abs().topk(tokens.shape[1] - below, dim=1).values[:, -2:].float()  # B 1|2 D
    return torch.lerp(tail[:, -1], tail[:, 0], place - below)


class EachImage:
    """Statistics of every image, the running generation's on the device; what is finished goes to the host."""

    dims = ("image", "step", "layer", "channel")

    def __init__(self, names):
        self.names, self.generations = names, {}  # generation -> {(step, layer): names B D}

    def add(self, site, new):
        if site.generation not in self.generations and self.generations:
            self.fetch(next(reversed(self.generations.values())))
        self.generations.setdefault(site.generation, {})[site.step, site.layer] = new

    def fetch(self, cells):
        """Bring a generation's cells to the host in one transfer."""
        cells.update(zip(cells, torch.stack(list(cells.values())).cpu(), strict=True))

    def table(self, steps, layers) -> tuple[list[str], np.ndarray]:
        """Names of variables, and their values (variable, image, step, layer, channel); nan where nothing was seen."""
        self.fetch(next(reversed(self.generations.values())))
        batches = [next(iter(cells.values())).shape[1:] for cells in self.generations.values()]  # B D
        values = np.full((len(self.names), sum(b for b, _ in batches), len(steps), len(layers), batches[0][1]), np.nan)
        values, first = values.astype(np.float32), 0
        for cells, (batch, _) in zip(self.generations.values(), batches, strict=True):
            for (step, layer), cell in cells.items():
                values[:, first : first + batch, steps.index(step), layers.index(layer)] = cell.numpy()
            first += batch
        return self.names, values


class Pooled:
    """Means and variances over images by Chan's update, so that memory does not grow with images or generations."""

    dims = ("step", "layer", "channel")

    def __init__(self, names):
        self.names, self.cells = names, {}  # (step, layer) -> images, means, squared deviations, maximum
        self.means = [i for i, name in enumerate(names) if name != "max_abs"]

    def add(self, site, new):
        batch, mean, top = new.shape[1], new.mean(1), new[self.names.index("max_abs")].amax(0)
        spread = (new - mean[:, None]).square().sum(1)
        if (site.step, site.layer) in self.cells:
            n, old, old_spread, old_top = self.cells[site.step, site.layer]
            step = mean - old
            spread = old_spread + spread + step.square() * (n * batch / (n + batch))
            mean, top, batch = old + step * (batch / (n + batch)), torch.maximum(old_top, top), n + batch
        self.cells[site.step, site.layer] = batch, mean, spread, top

    def table(self, steps, layers) -> tuple[list[str], np.ndarray]:
        """Names of variables, variances last, and their values (variable, step, layer, channel)."""
        names = self.names + [f"{self.names[i]}_var" for i in self.means]
        found = (
            torch.stack([torch.cat([m, spread, top[None]]) for _, m, spread, top in self.cells.values()]).cpu().numpy()
        )
        values = np.full((len(names), len(steps), len(layers), found.shape[-1]), np.nan, np.float32)
        n = len(self.names)
        for (step, layer), (images, *_), cell in zip(self.cells, self.cells.values(), found, strict=True):
            at = steps.index(step), layers.index(layer)
            values[:n, *at] = cell[:n]
            values[self.names.index("max_abs"), *at] = cell[-1]
            values[n:, *at] = cell[[n + i for i in self.means]] / (images - 1) if images > 1 else np.nan
        return names, values


class ChannelStats:
    """A probe that reads: four statistics per channel over the image tokens, for every layer and step it sees.

    They are reduced on the tokens' device, with float32 accumulation, and fetched once a generation. With
    `per_image=False` images are not kept apart: memory then grows with steps, layers and channels alone, and the
    table gains the variance over images. The paper (arXiv 2605.13974) selects by the "absolute channel mean across
    image tokens", which may be `mean_abs` or the absolute value of `mean`; both are here. `quantile`, as in 0.999, adds
    that quantile of the absolute values over an image's tokens, exactly, as `quantile_abs`; it needs a partial sort and
    is off by default. One branch and one schedule to a table, else ValueError.
    """

    edits = False

    def __init__(self, per_image: bool = True, quantile: float | None = None):
        if quantile is not None and not 0 < quantile < 1:
            raise ValueError(f"quantile {quantile!r} is not possible; allowed: between 0 and 1, as in 0.999")
        self.quantile = quantile
        names = [*STATISTICS] if quantile is None else [*STATISTICS, "quantile_abs"]
        self.kept = EachImage(names) if per_image else Pooled(names)
        self.generation, self.seen, self.images = None, set(), 0  # of the running generation: its sites
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
        if site.generation != self.generation:
            self.generation, self.seen, self.images = site.generation, set(), self.images + len(tokens)
        if (site.step, site.layer) in self.seen:  # gradient checkpointing runs a block again
            return
        self.seen.add((site.step, site.layer))
        new = _moments(tokens.detach())  # names B D
        if self.quantile is not None:
            new = torch.cat([new, _quantile(tokens.detach(), self.quantile)[None]])
        self.kept.add(site, new)

    def bytes_of(self, images: int, sites: int, tokens) -> int:
        """Bytes kept of so many images, at so many blocks x steps, of tokens like these (B, N, D)."""
        per_image, n = isinstance(self.kept, EachImage), len(self.kept.names)
        return 4 * tokens.shape[-1] * sites * (images * n if per_image else 2 * n - 1)

    def dataset(self) -> xr.Dataset:
        """The table: mean_abs, mean, max_abs, mean_sq over dims (image, step, layer, channel), float32.

        With `per_image=False` there is no image dim: the means over images, the maximum of max_abs, and the variances
        over images of the others (mean_abs_var ...). Sites that were not visited are nan. Raises RuntimeError
        before any forward.
        """
        if not self.images:
            raise RuntimeError(
                "ChannelStats has seen no tokens: generate inside `with mu.attach(pipe, stats):` before .dataset()"
            )
        steps, layers = sorted(self.timesteps), sorted(self.layers)
        names, values = self.kept.table(steps, layers)
        data = xr.Dataset(
            {name: (self.kept.dims, value) for name, value in zip(names, values, strict=True)},
            {
                "step": steps,
                "layer": layers,
                "channel": np.arange(values.shape[-1]),
                "timestep": ("step", [self.timesteps[s] for s in steps]),
                "name": ("layer", [self.layers[i][0] for i in layers]),
                "kind": ("layer", [self.layers[i][1] for i in layers]),
            },
            {"images": self.images, "branch": self.branch, "dtype": str(self.dtype).removeprefix("torch.")}
            | ({"quantile": self.quantile} if self.quantile else {}),
        )
        if self.dtype == torch.float16:
            data.attrs["saturated"] = full = int((data.max_abs >= 65504).sum())
            if full:
                warnings.warn(
                    f"{full} of {data.max_abs.size} channel entries reached 65504, float16's limit; load with bfloat16",
                    stacklevel=2,
                )
        return data.assign_coords(image=np.arange(self.images)) if "image" in data.dims else data


def score(data: xr.Dataset, name: str = "mean_abs") -> xr.DataArray:
    """One number by which channels are ranked: ChannelStats' table -> DataArray (..., channel).

    "mean_abs", "max_abs", "quantile_abs" and "mean_sq" (energy) stand in the table; "abs_mean" is the absolute value of
    the mean, for each image before any averaging. mean_abs is SPARK's score; arXiv 2605.13974's "absolute channel mean
    across image tokens" may be mean_abs or abs_mean. Raises ValueError for a name that is none of these, or not kept.
    """
    if name not in SCORES:
        raise ValueError(f"score {name!r} is unknown; allowed: {', '.join(SCORES)}")
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


def criteria(data: xr.Dataset, name: str = "mean_abs", threshold: float = 5.0) -> xr.DataArray:
    """Which channels the usual definitions call massive: ChannelStats' table -> bool (criterion, ..., channel).

    `threshold` and 10 times the layer's median; 3 standard deviations over its mean; a modified z-score over 3.5
    (Iglewicz and Hoaglin 1993); and arXiv 2402.17762's: an activation over 100 that is 1000 times the median one, here
    the median channel's mean_abs.
    """
    x = score(data, name)
    middle = x.median("channel")
    spread = abs(x - middle).median("channel")
    largest = data.max_abs / data.mean_abs.median("channel")
    rules = {
        f"over {threshold:g} x median": x > threshold * middle,
        "over 10 x median": x > 10 * middle,
        "z over 3": x - x.mean("channel") > 3 * x.std("channel"),
        "modified z over 3.5": 0.6745 * (x - middle) > 3.5 * spread,
        "2402.17762": (data.max_abs > 100) & (largest > 1000),
    }
    return xr.concat([rule.rename("massive") for rule in rules.values()], "criterion", coords="minimal").assign_coords(
        criterion=list(rules)
    )


def select_channels(scores: xr.DataArray, k: int = 12, *, which: str = "top", seed: int = 0) -> xr.DataArray:
    """Ids of k channels for every leading index of a score: DataArray (..., channel) -> (..., rank).

    "top" and "bottom" have the largest and the smallest scores, most extreme first. "random" draws from all channels,
    "outside" from all those outside the top k, so that a control never contains what it is compared with; both draw
    anew for every leading index, from `seed` alone: seeds 0 to 7 are eight draws. Selection per layer is the paper's
    (arXiv 2605.13974). Raises ValueError for an unknown `which`, a score without a channel dim, nan scores, and k below
    1 or above the number of channels that can be chosen.

    >>> scores = xr.DataArray([[0.1, 9.0, 0.2, 5.0]], dims=("layer", "channel"))
    >>> select_channels(scores, k=2).values.tolist()
    [[1, 3]]
    """
    if which not in ("top", "bottom", "random", "outside"):
        raise ValueError(f"which {which!r} is unknown; allowed: top, bottom, random, outside")
    if "channel" not in getattr(scores, "dims", ()):
        raise ValueError(f"scores need a dim 'channel'; got {getattr(scores, 'dims', type(scores).__name__)}")
    scores = scores.transpose(..., "channel")
    width = scores.sizes["channel"]
    most = width // 2 if which == "outside" else width
    if not 1 <= k <= most:
        raise ValueError(f"k = {k} channels cannot be chosen as {which!r} from {width}; allowed: 1 to {most}")
    if scores.isnull().any():
        raise ValueError(
            "scores contain nan: layers or steps that were not visited, or tokens that were not finite; drop them first"
        )
    order = np.argsort(-scores.values if which != "bottom" else scores.values, axis=-1, kind="stable")  # ... channel
    if which in ("random", "outside"):
        pool = order[..., k:] if which == "outside" else order
        order = np.random.default_rng(seed).permuted(pool, axis=-1)
    ids = scores.coords["channel"].values[order[..., :k]] if "channel" in scores.coords else order[..., :k]
    kept = {name: c for name, c in scores.coords.items() if "channel" not in c.dims}
    return xr.DataArray(ids, kept | {"rank": np.arange(k)}, (*scores.dims[:-1], "rank"), name="channel")

"""Disruption: change a few channels of the image tokens, by arms that share noise and batch."""

import numpy as np
import torch
import xarray as xr

MODES = ("zero", "mean")


class Disrupt:
    """A probe that edits: chosen channels move from x towards a target, x + strength * (target - x), at every site.

    The target is 0 ("zero") or the channel's mean over the image's own tokens ("mean"), so strength is a dose: 0
    changes nothing, 1 is the full edit. `channels`, as from `select_channels`, is a DataArray
    (rank), (layer, rank) or (step, layer, rank), or a list of channel ids; with the dim channel in rank's place it
    holds a dose for each channel, as from `matched_channels`. `arms` replaces it by one such set (or None: untouched)
    for each row of the batch, so that all arms of a comparison share noise and one forward. `strength` is a number, a
    DataArray (layer), (step) or (step, layer), or a list of one of these for each arm. Zeroing is claim 1 of arXiv
    2605.13974; the mean as a milder edit is from 2402.17762.

    Raises ValueError for an unknown mode, a dose outside 0 to 1, neither or both of channels and arms, a channel the
    tokens do not have, a layer or step the sets do not name, and for another number of rows or doses than arms.

    >>> Disrupt([3], mode="zero")(torch.ones(1, 2, 4), None)[0, 0].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """

    edits = True

    def __init__(self, channels=None, mode: str = "zero", strength=1.0, arms=None):
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is unknown; allowed: {', '.join(MODES)}")
        if (channels is None) == (arms is None):
            raise ValueError("give either channels, for every row, or arms, one set for each row of the batch")
        self.mode, self.shared = mode, arms is None
        self.sets = [_as_set(ids) for ids in ([channels] if self.shared else arms)]
        strengths = strength if isinstance(strength, (list, tuple)) else [strength] * len(self.sets)
        if len(strengths) != len(self.sets):
            raise ValueError(f"{len(strengths)} strengths for {len(self.sets)} sets; give one number, or one for each")
        self.strengths = [_as_strength(s) for s in strengths]
        self.named = {dim for array in [*self.sets, *self.strengths] if array is not None for dim in array.dims}
        self.doses = {}  # (layer, step, device, dtype, width) -> rows 1 D
        self.generation, self.moved = None, []  # of the last generation: shares (rows,), one for each site

    def __call__(self, tokens, site):
        if not self.shared and len(tokens) != len(self.sets):
            raise ValueError(f"{len(tokens)} rows in the batch for {len(self.sets)} arms; give one arm for each row")
        dose = self._dose(tokens, site)  # rows 1 D
        if self.mode == "zero":
            edited = tokens * (1 - dose)
        else:
            edited = torch.lerp(tokens, tokens.mean(1, keepdim=True), dose)
        norm = torch.linalg.vector_norm
        changed, whole = (norm(x.detach(), dim=(1, 2), dtype=torch.float32).square() for x in (edited - tokens, tokens))
        generation = getattr(site, "generation", None)
        if generation != self.generation:
            self.generation, self.moved = generation, []
        self.moved.append(changed / whole)
        return edited

    def changed(self) -> np.ndarray:
        """Share of its squared norm by which each row of the last generation was moved, averaged over sites: (rows,).

        By this the doses of two arms can be compared as they happened, with all earlier edits in effect. Raises
        RuntimeError before any forward.
        """
        if not self.moved:
            raise RuntimeError("Disrupt has seen no tokens: generate inside `with mu.attach(pipe, disrupt):` first")
        return torch.stack(self.moved).mean(0).cpu().numpy()

    def _dose(self, tokens, site) -> torch.Tensor:
        """The dose of every channel in each row: (rows, 1, D), made once for each site that the sets tell apart."""
        here = {dim: getattr(site, dim) for dim in ("layer", "step") if dim in self.named}
        key = *here.values(), tokens.device, tokens.dtype, tokens.shape[-1]
        if key not in self.doses:
            rows = [
                np.zeros(tokens.shape[-1]) if ids is None else _at(ids, here, tokens.shape[-1]) * _named(strength, here)
                for ids, strength in zip(self.sets, self.strengths, strict=True)
            ]
            self.doses[key] = torch.as_tensor(np.stack(rows)[:, None]).to(tokens)
        return self.doses[key]


def _as_set(ids):
    """Channel ids (..., rank) or doses (..., channel) as a DataArray; None stays None."""
    if ids is None:
        return None
    array = ids if isinstance(ids, xr.DataArray) else xr.DataArray(list(ids), dims="rank")
    if len({"rank", "channel"} & set(array.dims)) != 1 or set(array.dims) - {"step", "layer", "rank", "channel"}:
        raise ValueError(f"channels need the dims ([step,] [layer,] rank or channel); got {array.dims}")
    if not array.size:
        raise ValueError("a set needs at least one channel id; None leaves a row untouched")
    return _as_strength(array, "channel") if "channel" in array.dims else array


def _as_strength(strength, *more):
    array = strength if isinstance(strength, xr.DataArray) else xr.DataArray(strength)
    if set(array.dims) - {"step", "layer", *more}:
        raise ValueError(f"a strength is one number, or has the dims step and layer; got {array.dims}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"strength {np.asarray(strength).tolist()!r} is no dose from 0 to 1")
    return array


def _named(array: xr.DataArray, here: dict):
    """The part of an array that belongs to one site. Raises ValueError when it names other layers or steps."""
    for dim in set(here) & set(array.dims):
        if here[dim] not in array[dim].values:
            raise ValueError(f"the channels name no {dim} {here[dim]}; they name {array[dim].values.tolist()}")
        array = array.sel({dim: here[dim]})
    return array.values


def _at(ids: xr.DataArray, here: dict, width: int) -> np.ndarray:
    """The dose of every channel at one site: (D,)."""
    chosen = _named(ids, here)
    if "channel" in ids.dims:
        if len(chosen) != width:
            raise ValueError(f"doses for {len(chosen)} channels; there are {width}")
        return chosen
    if chosen.min() < 0 or chosen.max() >= width:
        wrong = chosen[(chosen < 0) | (chosen >= width)][0]
        raise ValueError(f"channel {wrong} does not exist; there are {width}")
    dose = np.zeros(width)
    dose[chosen] = 1
    return dose


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

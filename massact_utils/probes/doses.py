"""Doses: by how much each channel of each arm is edited, at every layer and step, and what that takes away."""

import numpy as np
import xarray as xr


def one_each(what: str, value, n: int) -> list:
    """A value for each of n arms, from a list of them or from one for all. Raises ValueError for another number."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * n
    if len(values) != n:
        raise ValueError(f"{len(values)} {what} for {n} sets; give one, or one for each")
    return values


def as_set(ids):
    """Channel ids (..., rank) or doses (..., channel) as a DataArray; None stays None."""
    if ids is None:
        return None
    array = ids if isinstance(ids, xr.DataArray) else xr.DataArray(list(ids), dims="rank")
    if len({"rank", "channel"} & set(array.dims)) != 1 or set(array.dims) - {"step", "layer", "rank", "channel"}:
        raise ValueError(f"channels need the dims ([step,] [layer,] rank or channel); got {array.dims}")
    if not array.size:
        raise ValueError("a set needs at least one channel id; None leaves a row untouched")
    return as_strength(array, "channel") if "channel" in array.dims else array


def as_strength(strength, *more):
    """A dose from 0 to 1, or an array of doses over step and layer, as a DataArray."""
    array = strength if isinstance(strength, xr.DataArray) else xr.DataArray(strength)
    if set(array.dims) - {"step", "layer", *more}:
        raise ValueError(f"a strength is one number, or has the dims step and layer; got {array.dims}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"strength {np.asarray(strength).tolist()!r} is no dose from 0 to 1")
    return array


def as_levels(levels: xr.DataArray, level: str) -> xr.DataArray:
    """The data set's levels with the dims branch, step, layer and channel; without a branch they are cond's."""
    if not isinstance(levels, xr.DataArray) or set(levels.dims) - {"branch"} != {"step", "layer", "channel"}:
        raise ValueError(
            "levels have to be a DataArray ([branch,] step, layer, channel), averaged over images; got "
            f"{type(levels).__name__} {tuple(getattr(levels, 'dims', ()))}"
        )
    if levels.attrs.get("level", level) != level:
        raise ValueError(
            f"the levels were measured as {levels.attrs['level']!r} and the edit has level={level!r}; take one of them"
        )
    if "branch" not in levels.coords:
        levels = levels.assign_coords(branch="cond")
    return levels if "branch" in levels.dims else levels.expand_dims("branch")


def doses_at(sets, strengths, here: dict, width: int) -> np.ndarray:
    """The dose of every channel of every set at one site: (sets, D)."""
    rows = [
        np.zeros(width) if ids is None else _of_set(ids, here, width) * _named("channels", strength, here)
        for ids, strength in zip(sets, strengths, strict=True)
    ]
    return np.stack(rows)


def levels_at(levels: xr.DataArray, here: dict, width: int) -> np.ndarray:
    """The data set's level of every channel at one site: (D,)."""
    found = _named("levels", levels, here)
    if len(found) != width or np.isnan(found).any():
        raise ValueError(
            f"the levels at {here} are of {len(found)} channels, {np.isnan(found).sum()} of them nan, and there are "
            f"{width}: measure them with this model, at these steps and layers"
        )
    return found


def _named(what: str, array: xr.DataArray, here: dict):
    """The part of an array that belongs to one site. Raises ValueError when it names other layers or steps."""
    for dim in set(here) & set(array.dims):
        if here[dim] not in array[dim].values:
            more = "; attach Levels with branch='both'" if dim == "branch" else ""
            raise ValueError(f"the {what} name no {dim} {here[dim]}; they name {array[dim].values.tolist()}{more}")
        array = array.sel({dim: here[dim]})
    return array.values


def _of_set(ids: xr.DataArray, here: dict, width: int) -> np.ndarray:
    """The dose of every channel of one set at one site: (D,)."""
    chosen = _named("channels", ids, here)
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

"""Stability: are the same channels massive everywhere, and what does their activation follow?"""

from itertools import combinations

import numpy as np
import xarray as xr
from scipy.stats import t as student

from .spatial import Record


def overlap(ids: xr.DataArray, dim: str) -> xr.DataArray:
    """Mean Jaccard index over all pairs of channel sets along a dim: DataArray (..., dim, rank) -> (...).

    Two random sets of k of D channels have about k / (2 D - k).

    >>> float(overlap(xr.DataArray([[1, 2], [2, 5]], dims=("prompt", "rank")), "prompt"))
    0.333...
    """
    n, k = ids.sizes[dim], ids.sizes["rank"]

    def one(sets):  # n k
        member = np.zeros((n, sets.max() + 1), np.float32)
        np.put_along_axis(member, sets, 1, axis=1)
        common = member @ member.T
        return ((common / (2 * k - common)).sum() - n) / (n * (n - 1))

    return xr.apply_ufunc(one, ids, input_core_dims=[[dim, "rank"]], vectorize=True)


def variance_components(values: xr.DataArray, factors=("prompt", "seed", "step")) -> xr.DataArray:
    """Where a crossed design's second moment comes from: DataArray (*factors, ...) -> (component, ...).

    Every value is a constant plus a random effect of each set of factors; the full set's holds what is left. With n_i
    levels, mean squares MS_B and the factors' subsets A and B, the analysis of variance's unbiased estimate is

        sigma_A^2 = sum over B containing A of (-1)^(|B| - |A|) MS_B  /  product of n_i for i outside A

    (Searle, Casella and McCulloch 1992, balanced crossed data). The empty set's is the "constant": the squared mean, so
    that all components add up to the expected square of a value. Estimates may fall below 0. Raises ValueError for a
    factor of one level.
    """
    short = [factor for factor in factors if values.sizes[factor] < 2]
    if short:
        raise ValueError(f"{', '.join(short)} has one level; a variance needs 2 or more")
    subsets = [set(chosen) for r in range(len(factors) + 1) for chosen in combinations(factors, r)]
    effects, squares = [], []
    for subset in subsets:
        effect = values.mean([f for f in factors if f not in subset])
        for smaller, known in zip(subsets, effects, strict=False):
            effect = effect - known if smaller < subset else effect
        effects.append(effect)
        times = np.prod([values.sizes[f] for f in factors if f not in subset])
        freedom = np.prod([values.sizes[f] - 1 for f in subset])
        squares.append((effect**2).sum(list(subset)) * times / freedom)
    found = []
    for subset in subsets:
        signed = [(-1) ** len(b - subset) * ms for b, ms in zip(subsets, squares, strict=True) if b >= subset]
        found.append(sum(signed) / np.prod([values.sizes[f] for f in factors if f not in subset]))
    names = [" x ".join(f for f in factors if f in subset) or "constant" for subset in subsets]
    return xr.concat(found, "component").assign_coords(component=names)


def jackknife(statistic, values, dim: str = "prompt") -> tuple:
    """A statistic of all levels of a dim, and its 95 % interval: value, low, high.

    Leaves out one level at a time (Tukey 1958), Student's t with n - 1 degrees of freedom. For overlaps and variances
    over prompts: a bootstrap draws a prompt twice, finds it like itself, and so makes the variance too small.
    """
    n = values.sizes[dim]
    value = statistic(values)
    left = np.stack([statistic(values.drop_isel({dim: i})) for i in range(n)])
    error = student.ppf(0.975, n - 1) * np.sqrt((n - 1) * left.var(axis=0))
    return value, value - error, value + error


def recorded(record: Record, most: int = 4) -> xr.Dataset:
    """A Record as a table: ids (image, map_step, map_layer, rank), values (image, map_step, map_layer, rank, token).

    Of many steps, `most` of them, evenly spread. The grid is the attribute `grid`.
    """
    steps = [record.steps[i] for i in np.unique(np.linspace(0, len(record.steps) - 1, most).astype(int))]
    cells = [[record[step, layer] for layer in record.layers] for step in steps]
    ids, values = (
        np.stack([[pair[i].float().cpu().numpy() for pair in row] for row in cells], axis=0) for i in (0, 1)
    )  # step layer image K, step layer image N K
    dims = ("image", "map_step", "map_layer", "rank")
    return xr.Dataset(
        {
            "ids": (dims, ids.transpose(2, 0, 1, 3).astype(int)),
            "values": ((*dims, "token"), values.transpose(2, 0, 1, 4, 3)),
        },
        {"map_step": steps, "map_layer": record.layers},
        {"grid": list(record.grid)},
    )


def maps(table: xr.Dataset, channels) -> xr.DataArray:
    """Maps of the same channels in every image: (image, map_step, map_layer, channel, token).

    `table` as from `recorded`. nan where an image's own largest channels did not hold the one asked for.
    """
    wanted = xr.DataArray(list(channels), dims="channel", coords={"channel": list(channels)})
    found = table.ids == wanted  # image map_step map_layer rank channel
    maps = xr.dot(table["values"], found.astype("float32"), dim="rank")
    return maps.where(found.any("rank")).transpose(..., "channel", "token").rename("maps")

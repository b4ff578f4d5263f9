"""Statistics: are the same channels massive everywhere, what do they follow, and what can be read off them?

A crossed design draws every prompt with every seed: (prompt, seed, step, layer, channel).
"""

from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..probes.channels import gini, select_channels


def share_above(maps: xr.DataArray, level: xr.DataArray) -> np.ndarray:
    """Share of the tokens on which |activation| is over a level, per prompt: (prompt, ..., token) -> (prompt).

    `level` (prompt, seed, step, layer) is looked up at the maps' own steps and layers.
    """
    above = abs(maps) > level.sel(step=maps.step, layer=maps.layer)
    return above.mean([dim for dim in maps.dims if dim != "prompt"]).values


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


def jaccard(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    """Jaccard index of two families of channel sets: two DataArrays (..., rank) -> (...)."""
    return overlap(xr.concat([a, b], "pair", coords="minimal", compat="override"), "pair")


def by_layer(scores: xr.DataArray, k: int = 12) -> pd.DataFrame:
    """A row for each layer: its largest channel, the three largest as multiples of the median, Gini, persistence.

    scores (layer, channel); persistence is the share of the top k that was in the top k of the layer before.
    """
    top = select_channels(scores, k).values
    ranked = np.sort(scores.transpose("layer", "channel").values.astype(float))[:, ::-1]
    table = pd.DataFrame({"largest channel": top[:, 0]}, index=pd.Index(scores.layer.values, name="layer"))
    table[["times the median", "the second", "the third"]] = ranked[:, :3] / np.median(ranked, axis=1)[:, None]
    table["Gini"] = gini(scores).values.astype(float)
    table["kept"] = [np.nan, *(np.isin(now, before).mean() for before, now in pairwise(top))]
    return table


def held_out_share(scores: xr.DataArray, energy: xr.DataArray, k: int, which: str = "top", seed: int = 0):
    """Share of the energy in k channels per layer, chosen on other prompts: (prompt, ..., layer, channel) -> (prompt).

    Channels are chosen on every second prompt and measured on the others, and the other way round; the mean over layers
    and whatever else the arrays have. `energy` is ChannelStats' mean_sq, `which` as in `select_channels`.
    """
    parts, prompts = [], np.arange(scores.sizes["prompt"])
    for half in (0, 1):
        choosing, measured = (slice(i, None, 2) for i in (half, 1 - half))
        chosen = scores.isel(prompt=choosing)
        chosen = chosen.mean([dim for dim in chosen.dims if dim not in ("layer", "channel")])
        ids = select_channels(chosen, k, which=which, seed=seed)
        power = energy.assign_coords(prompt=prompts).isel(prompt=measured)
        parts.append(power.sel(channel=ids).sum("rank") / power.sum("channel"))
    share = xr.concat(parts, "prompt").sortby("prompt")
    return share.mean([d for d in share.dims if d != "prompt"]).values


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
        for smaller, part in zip(subsets, effects, strict=False):
            effect = effect - part if smaller < subset else effect
        effects.append(effect)
        times = np.prod([values.sizes[f] for f in factors if f not in subset])
        freedom = np.prod([values.sizes[f] - 1 for f in subset])
        squares.append((effect**2).sum(list(subset)) * times / freedom)
    components = []
    for subset in subsets:
        signed = [(-1) ** len(b - subset) * ms for b, ms in zip(subsets, squares, strict=True) if b >= subset]
        components.append(sum(signed) / np.prod([values.sizes[f] for f in factors if f not in subset]))
    names = [" x ".join(f for f in factors if f in subset) or "constant" for subset in subsets]
    return xr.concat(components, "component").assign_coords(component=names)


def shares(values: xr.DataArray, factors=("prompt", "seed", "step")) -> xr.DataArray:
    """The components as shares of their sum, none below 0, tokens added up where there are any: (component, ...)."""
    parts = variance_components(values, factors).clip(0)
    parts = parts.sum("token", skipna=False) if "token" in parts.dims else parts
    return parts / parts.sum("component", skipna=False)


def prompt_over_step(values: xr.DataArray) -> float:
    """The prompt's share less the step's, mean over layers and channels: which of the two the values follow."""
    share = shares(values).mean([dim for dim in ("layer", "channel") if dim in values.dims])
    return float(share.sel(component="prompt") - share.sel(component="step"))


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


def linear_probe_accuracy(x, labels, *, groups=None, folds: int = 5) -> float:
    """Balanced accuracy with which a logistic regression reads labels (n,) off x (n, K), cross-validated: 0 to 1.

    Chance is one over the number of labels. Rows of one group, such as the tokens of an image, stay in one fold. Raises
    ValueError for labels of fewer than two kinds.

    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> linear_probe_accuracy(x, x[:, 0] > 0) > 0.9
    True
    """
    x, labels = np.asarray(x, float), np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are {labels[0]!r}: there is nothing to read")
    splits = StratifiedKFold(folds, shuffle=True, random_state=0) if groups is None else GroupKFold(folds)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(cross_val_score(model, x, labels, groups=groups, cv=splits, scoring="balanced_accuracy").mean())

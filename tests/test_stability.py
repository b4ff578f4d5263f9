"""Agreement of channel sets and variance components, against pairs counted by hand and effects that were planted."""

import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils import stability


def test_overlap_is_the_mean_over_pairs_of_sets():
    rng = np.random.default_rng(0)
    sets = np.array([[rng.permutation(20)[:5] for _ in range(4)] for _ in range(3)])
    found = stability.overlap(xr.DataArray(sets, dims=("layer", "prompt", "rank")), "prompt")
    for at, group in zip(found, sets, strict=True):
        pairs = [(set(a.tolist()), set(b.tolist())) for a, b in itertools.combinations(group, 2)]
        assert float(at) == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]), abs=1e-6)


def test_random_sets_overlap_by_chance():
    rng, k, width = np.random.default_rng(0), 12, 192
    sets = xr.DataArray([rng.permutation(width)[:k] for _ in range(200)], dims=("prompt", "rank"))
    assert float(stability.overlap(sets, "prompt")) == pytest.approx(k / (2 * width - k), rel=0.1)


def planted(sizes, variances, constant=2.0, columns=40_000):
    """Crossed data with a random effect of known variance for every named set of factors."""
    rng, total = np.random.default_rng(0), np.full((*sizes.values(), columns), constant)
    for name, variance in variances.items():
        shape = [n if f in name.split(" x ") else 1 for f, n in sizes.items()]
        total = total + rng.normal(0, variance**0.5, (*shape, columns))
    return xr.DataArray(total, dims=(*sizes, "column"))


def test_planted_variances_are_found_again():
    sizes = {"prompt": 4, "seed": 3, "step": 5}
    variances = {"prompt": 3.0, "step": 1.5, "prompt x seed": 0.7, "prompt x seed x step": 0.4}
    found = stability.variance_components(planted(sizes, variances)).mean("column")
    wanted = {"constant": 4.0, "seed": 0.0, "prompt x step": 0.0, "seed x step": 0.0} | variances
    assert set(found.component.values.tolist()) == set(wanted)
    for name, value in wanted.items():
        assert float(found.sel(component=name)) == pytest.approx(value, abs=0.06), name


def test_two_factors_are_the_textbook_formula():
    y = np.random.default_rng(1).normal(size=(4, 6))
    found = stability.variance_components(xr.DataArray(y, dims=("a", "b")), ("a", "b"))
    rows, columns = y.mean(1), y.mean(0)
    rest = ((y - rows[:, None] - columns + y.mean()) ** 2).sum() / 15
    assert float(found.sel(component="a x b")) == pytest.approx(rest)
    assert float(found.sel(component="a")) == pytest.approx((6 * rows.var(ddof=1) - rest) / 6)
    assert float(found.sel(component="b")) == pytest.approx((4 * columns.var(ddof=1) - rest) / 4)
    with pytest.raises(ValueError, match="b has one level"):
        stability.variance_components(xr.DataArray(y[:, :1], dims=("a", "b")), ("a", "b"))


def test_the_jackknife_of_a_mean_is_students_interval():
    x = np.random.default_rng(2).normal(size=9)
    found = stability.jackknife(lambda values: values.mean("prompt"), xr.DataArray(x, dims="prompt"))
    low, high = scipy.stats.t.interval(0.95, 8, x.mean(), scipy.stats.sem(x))
    np.testing.assert_allclose(found, (x.mean(), low, high))


def test_maps_are_the_channels_tokens(klein):
    kept, record = {}, mu.spatial.Record(k=10)

    def keep(tokens, site):
        kept[site.step, site.layer] = tokens.numpy().copy()

    with mu.attach(klein, record, keep, layers=[1, 4], branch="cond"):
        mu.generate(klein, ["a red star", "a blue circle"], seeds=[0, 1], **tiny.KLEIN)
    table = stability.recorded(record, most=2)
    assert table.map_step.values.tolist() == [0, 3] and table.map_layer.values.tolist() == [1, 4]
    found = stability.maps(table, range(32))
    assert found.dims == ("image", "map_step", "map_layer", "channel", "token")
    for step, layer in itertools.product([0, 3], [1, 4]):
        at, tokens = found.sel(map_step=step, map_layer=layer), kept[step, layer].transpose(0, 2, 1)
        largest = np.abs(tokens).mean(2).argsort(1)[:, -10:]
        there = np.array([[c in row for c in range(32)] for row in largest])
        np.testing.assert_array_equal(at.notnull().all("token"), there)
        np.testing.assert_allclose(at.values[there], tokens[there], atol=2e-3, rtol=1e-3)

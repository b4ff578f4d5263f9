"""Agreement of channel sets, variance components and read-outs, against pairs counted by hand and planted effects."""

import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from massact_utils.measures import statistics


def test_overlap_is_the_mean_over_pairs_of_sets():
    rng = np.random.default_rng(0)
    sets = np.array([[rng.permutation(20)[:5] for _ in range(4)] for _ in range(3)])
    found = statistics.overlap(xr.DataArray(sets, dims=("layer", "prompt", "rank")), "prompt")
    for at, group in zip(found, sets, strict=True):
        pairs = [(set(a.tolist()), set(b.tolist())) for a, b in itertools.combinations(group, 2)]
        assert float(at) == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]), abs=1e-6)


def test_random_sets_overlap_by_chance():
    rng, k, width = np.random.default_rng(0), 12, 192
    sets = xr.DataArray([rng.permutation(width)[:k] for _ in range(200)], dims=("prompt", "rank"))
    assert float(statistics.overlap(sets, "prompt")) == pytest.approx(k / (2 * width - k), rel=0.1)


def test_jaccard_counts_each_layer_by_itself():
    a, b = (xr.DataArray(sets, dims=("layer", "rank")) for sets in ([[1, 2, 3], [4, 5, 6]], [[3, 2, 9], [6, 5, 4]]))
    np.testing.assert_allclose(statistics.jaccard(a, b), [0.5, 1.0])
    np.testing.assert_allclose(statistics.jaccard(a, b.isel(layer=0)), [0.5, 0.0])


def test_a_layers_row_is_its_sorted_channels():
    x = np.array([[1.0, 8.0, 2.0, 4.0, 3.0], [1.0, 9.0, 2.0, 6.0, 1.5]])
    found = statistics.by_layer(xr.DataArray(x, {"layer": [2, 5]}, ("layer", "channel")), k=3)
    assert found.index.tolist() == [2, 5] and found["largest channel"].tolist() == [1, 1]
    np.testing.assert_allclose(found.iloc[:, 1:4], [[8 / 3, 4 / 3, 1], [4.5, 3, 1]])
    np.testing.assert_array_equal(found["kept"], [np.nan, 2 / 3])


def test_channels_are_chosen_on_other_prompts_than_they_are_measured_on():
    """A channel that is large on even prompts alone looks good there, and holds nothing on the odd ones."""
    energy = np.ones((6, 2, 10))
    energy[::2, :, 3], energy[1::2, :, 7] = 90.0, 40.0
    energy = xr.DataArray(energy, dims=("prompt", "layer", "channel"))
    found = statistics.held_out_share(energy, energy, 1)
    np.testing.assert_allclose(found, [1 / 99, 1 / 49] * 3, rtol=1e-6)
    everywhere = energy + 1000.0 * (xr.DataArray(np.arange(10), dims="channel") == 5)
    assert statistics.held_out_share(everywhere, everywhere, 1).min() > 0.9


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
    found = statistics.variance_components(planted(sizes, variances)).mean("column")
    wanted = {"constant": 4.0, "seed": 0.0, "prompt x step": 0.0, "seed x step": 0.0} | variances
    assert set(found.component.values.tolist()) == set(wanted)
    for name, value in wanted.items():
        assert float(found.sel(component=name)) == pytest.approx(value, abs=0.06), name


def test_shares_say_which_factor_values_follow():
    sizes = {"prompt": 6, "seed": 3, "step": 4}
    by_prompt = planted(sizes, {"prompt": 3.0, "step": 0.5}, columns=300).rename(column="token")
    shares = statistics.shares(by_prompt)
    assert float(shares.sum()) == pytest.approx(1) and shares.dims == ("component",)
    assert float(shares.sel(component="prompt")) == pytest.approx(3 / 7.5, abs=0.05)
    assert statistics.prompt_over_step(by_prompt) == pytest.approx(2.5 / 7.5, abs=0.05)
    assert statistics.prompt_over_step(by_prompt.rename(prompt="step", step="prompt")) < 0


def test_two_factors_are_the_textbook_formula():
    y = np.random.default_rng(1).normal(size=(4, 6))
    found = statistics.variance_components(xr.DataArray(y, dims=("a", "b")), ("a", "b"))
    rows, columns = y.mean(1), y.mean(0)
    rest = ((y - rows[:, None] - columns + y.mean()) ** 2).sum() / 15
    assert float(found.sel(component="a x b")) == pytest.approx(rest)
    assert float(found.sel(component="a")) == pytest.approx((6 * rows.var(ddof=1) - rest) / 6)
    assert float(found.sel(component="b")) == pytest.approx((4 * columns.var(ddof=1) - rest) / 4)
    with pytest.raises(ValueError, match="b has one level"):
        statistics.variance_components(xr.DataArray(y[:, :1], dims=("a", "b")), ("a", "b"))


def test_the_jackknife_of_a_mean_is_students_interval():
    x = np.random.default_rng(2).normal(size=9)
    found = statistics.jackknife(lambda values: values.mean("prompt"), xr.DataArray(x, dims="prompt"))
    low, high = scipy.stats.t.interval(0.95, 8, x.mean(), scipy.stats.sem(x))
    np.testing.assert_allclose(found, (x.mean(), low, high))


def test_coverage_counts_the_tokens_over_the_level_at_the_maps_own_sites():
    maps = xr.DataArray(
        [[[[[[1.0, -3.0, 5.0, 0.0]]]]]],
        dims=("prompt", "seed", "step", "layer", "channel", "token"),
        coords={"step": [3], "layer": [1]},
    )
    level = xr.DataArray(np.full((1, 1, 4, 2), 9.0), dims=("prompt", "seed", "step", "layer"))
    level[:, :, 3, 1] = 2.0
    level = level.assign_coords(step=range(4), layer=range(2))
    np.testing.assert_allclose(statistics.share_above(maps, level), [0.5])


RNG = np.random.default_rng(0)


def words_in(n=400, classes=4, size=2.0):
    labels = RNG.integers(0, classes, n)
    x = RNG.normal(size=(n, 5))
    x[:, 2] += size * labels
    return x, labels


def test_a_planted_word_is_read_and_another_is_not():
    x, labels = words_in()
    assert statistics.linear_probe_accuracy(x, labels) > 0.7
    assert abs(statistics.linear_probe_accuracy(x, RNG.permutation(labels)) - 1 / 4) < 0.1


def test_groups_stay_together():
    """Every group has a code of its own, which a fold that splits groups could learn by heart."""
    groups = np.repeat(np.arange(40), 10)
    labels, code = RNG.integers(0, 2, 40)[groups], RNG.normal(size=(40, 30))[groups]
    assert statistics.linear_probe_accuracy(code, labels) > 0.95
    assert abs(statistics.linear_probe_accuracy(code, labels, groups=groups) - 0.5) < 0.25


def test_one_label_is_an_error():
    with pytest.raises(ValueError, match="nothing to read"):
        statistics.linear_probe_accuracy(np.zeros((4, 1)), ["a"] * 4)

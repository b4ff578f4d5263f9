"""ChannelStats against sums written out by hand, and the choice of channels."""

from contextlib import suppress

import numpy as np
import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.probes import channels
from massact_utils.probes.channels import _moments

PROMPTS = ["a red star", "a blue circle", "a small star"]


def generate(pipe, prompts=PROMPTS, **call):
    return mu.generate(pipe, prompts, seeds=list(range(len(prompts))), **tiny.KLEIN | call)


def test_statistics_equal_sums_over_kept_tokens(klein):
    kept = {}

    def keep(tokens, site):
        kept[site.step, site.layer] = tokens.double().numpy()

    with mu.attach(klein, mu.ChannelStats(), keep, branch="cond") as (stats, _):
        generate(klein)
    data = stats.dataset()
    assert dict(data.sizes) == {"image": 3, "branch": 1, "step": 4, "layer": 5, "channel": 32}
    for (step, layer), x in kept.items():
        at = data.sel(branch="cond", step=step, layer=layer)
        for name, value in (
            ("mean", x.mean(1)),
            ("mean_abs", np.abs(x).mean(1)),
            ("max_abs", np.abs(x).max(1)),
            ("mean_sq", (x**2).mean(1)),
        ):
            np.testing.assert_allclose(at[name], value, rtol=1e-5, atol=1e-6)
    assert data.timestep.values.tolist() == klein.scheduler.timesteps.tolist()
    assert data.name.values.tolist() == [b.name for b in mu.blocks(klein)]
    assert data.kind.values.tolist() == ["dual"] * 2 + ["single"] * 3


@pytest.mark.parametrize("n", [1, 512, 1300])  # one part, just one, and several with a rest
def test_statistics_of_large_states_are_taken_in_parts(n):
    tokens = torch.randn(2, n, 512, generator=torch.Generator().manual_seed(n))
    exact = tokens.double()
    oracle = [exact.abs().mean(1), exact.mean(1), exact.abs().amax(1), exact.square().mean(1)]
    torch.testing.assert_close(_moments(tokens).double(), torch.stack(oracle), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n, q", [(6, 0.999), (1, 0.5), (4096, 0.999), (501, 0.99), (5, 0.5), (1001, 0.999)])
def test_the_quantile_is_numpys(n, q):
    tokens = torch.randn(2, n, 7, generator=torch.Generator().manual_seed(n))
    stats = mu.ChannelStats(quantile=q)
    stats(tokens, mu.Site(0, "blocks.0", "dual", 0, 1.0, "cond", (1, n), range(2), 0))
    found = stats.dataset().quantile_abs.isel(branch=0, step=0, layer=0)
    np.testing.assert_allclose(found, np.quantile(np.abs(tokens.numpy()), q, axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"quantile = 99\.9 is not possible; allowed: 1e-06 to 0.999999"):
        mu.ChannelStats(quantile=99.9)


def test_images_of_several_generations_stand_one_after_the_other(klein):
    apart, together = mu.ChannelStats(), mu.ChannelStats()
    with mu.attach(klein, apart):
        for i, prompt in enumerate(PROMPTS):
            mu.generate(klein, prompt, seeds=i, **tiny.KLEIN)
    with mu.attach(klein, together):
        generate(klein)
    xr.testing.assert_allclose(apart.dataset(), together.dataset(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_planted_massive_channel_is_found_in_the_right_layers(layer):
    """A bias of 50 on two channels of what one block returns stays in the residual stream from that block on."""
    pipe, planted = tiny.klein(), [5, 19]
    tiny.plant(
        [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks][layer], planted, 50.0
    )
    with mu.attach(pipe, mu.ChannelStats()) as stats:
        generate(pipe)
    scores = stats.dataset().mean_abs.sel(branch="cond").mean("image")
    top = mu.select_channels(scores, k=2)
    for at in range(5):
        found = {tuple(sorted(ids)) for ids in top.sel(layer=at).values.tolist()}
        assert (found == {(5, 19)}) == (at >= layer)
    assert float(scores.sel(layer=layer, channel=planted).min()) > 25


def test_branches_are_kept_apart_and_schedules_are_not_mixed(klein):
    recipe, watch, stats = tiny.sd3(), {}, mu.ChannelStats()

    def keep(tokens, site):
        watch[site.branch, site.step, site.layer] = tokens.double().numpy()

    with mu.attach(recipe.pipe, stats, keep, branch="both"):
        tiny.run(recipe)
    data = stats.dataset()
    assert data.branch.values.tolist() == ["cond", "uncond"]
    for (branch, step, layer), x in watch.items():
        found = data.mean_abs.sel(branch=branch, step=step, layer=layer)
        np.testing.assert_allclose(found, np.abs(x).mean(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"generate inside `with mu.attach"):
        mu.ChannelStats().dataset()
    with pytest.raises(ValueError, match=r"another ChannelStats for another schedule"), mu.attach(klein, stats):
        generate(klein)


@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_half_of_an_interrupted_generation_counts_for_nothing(klein, place):
    def bomb(tokens, site):
        if site.step == 2 and site.layer == 3:
            raise KeyboardInterrupt

    stats, record, runs = mu.ChannelStats(), mu.Record(k=2), {"before": "xab", "after": "abx", "between": "axb"}[place]
    for run in runs:
        with suppress(KeyboardInterrupt), mu.attach(klein, stats, record, *([bomb] if run == "x" else [])):
            generate(klein, PROMPTS[: 1 + (run == "b")])
    data = stats.dataset()
    assert data.sizes["image"] == 3 and data.to_array().notnull().all()
    assert {len(record[site][0]) for site in record.sites} == {3} and len(record.sites) == 20


def test_an_error_after_a_generation_costs_nothing_and_one_caught_inside_attach_counts_for_nothing(klein):
    record = mu.Record(k=2)
    with suppress(ZeroDivisionError), mu.attach(klein, record):
        generate(klein)
        raise ZeroDivisionError
    assert len(record[3, 4][0]) == 3
    record = mu.Record(k=2)
    with mu.attach(klein, record, lambda tokens, site: 1 / (site.step < 2) and None):
        with suppress(ZeroDivisionError):
            generate(klein)
        assert record.steps == [0, 1, 2]
    with mu.attach(klein, record):
        generate(klein, PROMPTS[:2])
    assert {len(record[site][0]) for site in record.sites} == {2}


def test_sites_that_were_not_visited_are_nan_and_refused_by_the_choice(klein):
    stats = mu.ChannelStats()
    with mu.attach(klein, stats, layers=0, steps=0):
        generate(klein)
    with mu.attach(klein, stats, layers=1, steps=1):
        generate(klein)
    data = stats.dataset()
    assert dict(data.sizes) == {"image": 6, "branch": 1, "step": 2, "layer": 2, "channel": 32}
    assert int(data["mean"].notnull().sum()) == 2 * 3 * 32
    with pytest.raises(ValueError, match=r"nan"):
        mu.select_channels(data["mean"])


def test_float16_saturation_is_counted():
    stats, site = mu.ChannelStats(), mu.Site(0, "blocks.0", "dual", 0, 1.0, "cond", (1, 4), range(1), 0)
    tokens = torch.zeros(1, 4, 3, dtype=torch.float16)
    tokens[0, 0, 1] = 65504
    stats(tokens, site)
    with pytest.warns(UserWarning, match=r"1 of 3 channel.*65504.*bfloat16"):
        assert stats.dataset().attrs["saturated"] == 1


SCORES = xr.DataArray(
    np.random.default_rng(0).random((3, 4, 20)), dims=("step", "layer", "channel"), coords={"layer": [2, 3, 5, 7]}
)


def test_selection_by_score():
    top, bottom = (mu.select_channels(SCORES, k=5, which=which) for which in ("top", "bottom"))
    assert top.dims == ("step", "layer", "rank") and top.layer.values.tolist() == [2, 3, 5, 7]
    ordered = np.sort(SCORES.values, -1)
    np.testing.assert_array_equal(np.take_along_axis(SCORES.values, top.values, -1), ordered[..., :-6:-1])
    np.testing.assert_array_equal(np.take_along_axis(SCORES.values, bottom.values, -1), ordered[..., :5])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_outside_is_the_same_ids_everywhere_from_all_that_are_top_nowhere(k):
    """Over many draws each channel outside the top k of all steps and layers comes up, and no other."""
    draws = [mu.select_channels(SCORES, k, which="outside", seed=seed) for seed in range(160)]
    assert draws[0].equals(mu.select_channels(SCORES, k, which="outside", seed=0))
    top = {c for x in SCORES.values.reshape(-1, 20) for c in range(20) if (x > x[c]).sum() < k}
    assert {int(c) for ids in draws for c in ids.values.ravel()} == set(range(20)) - top
    for ids in draws:
        assert ids.dims == ("step", "layer", "rank") and (ids == ids[0, 0]).all()
        assert len(set(ids.values[0, 0].tolist())) == k
    assert len({tuple(ids.values[0, 0]) for ids in draws[:8]}) > 3


def test_too_few_channels_outside_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"k = 8 .* outside the top 8 of all layers, which are \d+ of 20 .* leave \d"):
        mu.select_channels(SCORES, 8, which="outside")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=21), "k = 21 .* allowed: 1 to 20"),
        (dict(k=0), "k = 0 .* allowed: 1 to 20"),
        (dict(which="best"), "'best' is not possible; allowed: top, bottom, outside"),
    ],
)
def test_impossible_choices_name_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        mu.select_channels(SCORES, **arguments)
    with pytest.raises(ValueError, match=r"dim 'channel'"):
        mu.select_channels(SCORES.rename(channel="c"))


def a_table(**statistics):
    """ChannelStats' table of one image, step and layer, from lists over channels."""
    return xr.Dataset({name: (("image", "layer", "channel"), [[values]]) for name, values in statistics.items()})


def test_scores_part_where_a_channel_changes_its_sign():
    data = a_table(mean_abs=[1.0, 3.0], mean=[-1.0, 0.5], max_abs=[2.0, 2.0], mean_sq=[9.0, 4.0])
    names = "mean_abs", "abs_mean", "mean_sq"
    largest = {name: int(channels.score(data, name).squeeze().argmax("channel")) for name in names}
    assert largest == {"mean_abs": 1, "abs_mean": 0, "mean_sq": 0}
    with pytest.raises(ValueError, match=r"'median' is not possible; allowed: mean_abs, abs_mean"):
        channels.score(data, "median")
    with pytest.raises(ValueError, match=r"ChannelStats\(quantile=0.999\)"):
        channels.score(data, "quantile_abs")


def test_gini_is_half_the_relative_mean_difference():
    found = channels.gini(SCORES)
    assert found.dims == ("step", "layer")
    x = SCORES.values
    difference = np.abs(x[..., :, None] - x[..., None, :]).mean((-1, -2))
    np.testing.assert_allclose(found, difference / (2 * x.mean(-1)))

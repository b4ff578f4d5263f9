"""Tables of a crossed design against the tokens and images they were made from."""

import itertools

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.experiments import statistics


def test_maps_are_the_channels_tokens(klein):
    kept, wanted = {}, [7, 30, 2]
    record, own = mu.Record(xr.DataArray(wanted, dims="rank")), mu.Record(k=3)

    def keep(tokens, site):
        kept[site.step, site.layer] = tokens.numpy().copy()

    with mu.attach(klein, record, own, keep, layers=[1, 4], branch="cond"):
        mu.generate(klein, ["a red star", "a blue circle"], seeds=[0, 1], **tiny.KLEIN)
    found = statistics.channel_maps(record, most=2)
    assert found.dims == ("image", "map_step", "map_layer", "map_channel", "token")
    assert found.map_step.values.tolist() == [0, 3] and found.map_layer.values.tolist() == [1, 4]
    for step, layer, channel in itertools.product([0, 3], [1, 4], wanted):
        tokens = kept[step, layer][:, :, channel]
        at = found.sel(map_step=step, map_layer=layer, map_channel=channel)
        np.testing.assert_allclose(at, tokens, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="same channels at every site"):
        statistics.channel_maps(own)


def test_a_crossed_design_is_taken_apart_by_prompt_and_seed(klein):
    stats, record = mu.ChannelStats(), mu.Record(xr.DataArray([4, 9], dims="rank"))
    drawn = [(prompt, seed) for seed in (5, 6) for prompt in ("a red star", "a blue circle", "a small star")]
    with mu.attach(klein, stats, record):
        images = mu.generate(klein, [p for p, _ in drawn], seeds=[s for _, s in drawn], **tiny.KLEIN)
    table = statistics.batch_table(stats, record, images)
    data = statistics.design(table, 3, 2)
    assert data.sizes["prompt"] == 3 and data.sizes["seed"] == 2 and "image" not in data.dims
    at = data.isel(prompt=1, seed=1)  # the fifth of the design
    for name in ("mean_abs", "maps"):
        np.testing.assert_array_equal(at[name].transpose(*table[name].dims[1:]), table[name][4])
    np.testing.assert_array_equal(at.picture, np.asarray(images[4].convert("RGB")))
    assert tuple(data.grid) == record.grid


def test_the_callers_images_keep_their_size(klein):
    stats, record = mu.ChannelStats(), mu.Record(xr.DataArray([4, 9], dims="rank"))
    with mu.attach(klein, stats, record):
        mu.generate(klein, ["a red star"], **tiny.KLEIN)
    images = [Image.new("RGB", (300, 200))]
    statistics.batch_table(stats, record, images)
    assert images[0].size == (300, 200)

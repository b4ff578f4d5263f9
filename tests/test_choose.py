"""Layers and steps chosen on some images and reported on others; a caption's own mask is from its other seeds."""

import numpy as np
import pytest
import torch
import xarray as xr

from massact_utils.measures import choose
from massact_utils.measures.masks import as_record, token_masks

DIMS = ("image", "rule", "arm", "layer", "step")


def table(draws=2):
    """Six images, of which the last is left out: on the choosing half the arms do best at sites of their own."""
    arms = ["top", "top, border", *(f"outside {i}" for i in range(draws)), *(f"outside, border {i}" for i in range(2))]
    value = np.full((6, 2, len(arms), 3, 2), 0.1)
    made = xr.DataArray(value, dict(rule=["heat", "oracle"], arm=arms, layer=[0, 4, 9], step=[0, 7]), DIMS)
    made = made.assign_coords(half=("image", ["choose", "report"] * 2 + ["report", "neither"]), image=range(6))
    made[::2].loc[dict(arm="top", layer=4, step=7, rule="heat")] = 0.8
    made[::2].loc[dict(arm="top", layer=4, step=0, rule="heat")] = 0.5
    made[::2].loc[dict(arm="top", layer=9, rule="oracle")] = 0.9
    made[1::2].loc[dict(arm="top", layer=0)] = 1.0  # what the reporting half would choose
    made[::2].loc[dict(arm="outside 0", layer=0, step=7)] = 0.9
    made[::2].loc[dict(arm="outside 1", layer=0, step=7)] = 0.3
    made[::2].loc[dict(arm="outside 1", layer=9, step=7)] = 0.8
    return made


def test_a_site_is_found_on_the_choosing_half_alone():
    made = table()
    made[5] = 5.0  # left out
    assert choose.choose_site(made, "top", ["heat"]) == dict(arm="top", rule="heat", layer=4, step=7)
    assert choose.choose_site(made, "top", ["heat"], [0]) == dict(arm="top", rule="heat", layer=4, step=0)
    assert choose.choose_site(made, ["top, border", "top"], ["heat", "oracle"])["rule"] == "oracle"
    found = choose.report_site(made, choose.choose_site(made, "top", ["heat"]))
    assert found.dims == ("image",) and found.image.values.tolist() == [1, 3, 4]


def test_the_draws_of_a_control_share_a_site():
    made = table()
    site = choose.choose_site(made, "outside", ["heat"])
    assert site == dict(arm="outside", rule="heat", layer=0, step=7)  # 0.6 on average, against 0.45
    found = choose.report_site(made, site)
    assert sorted(found.dims) == ["draw", "image"] and found.sizes["draw"] == 2
    assert choose.report_site(made, site, "top").dims == ("image",)
    assert choose.arm_scores(made, "outside, border", "choose").sizes["draw"] == 2
    assert choose.arm_names(made) == ["top", "top, border", "outside", "outside, border"]


def test_every_step_has_a_site_of_its_own():
    made = table()
    line = choose.over_steps(made, "top", ["heat"])
    assert line.dims[0] == "step" and line.step.values.tolist() == [0, 7] and line.sizes["image"] == 3
    made[1::2].loc[dict(arm="top", layer=4, step=0, rule="heat")] = 0.7
    np.testing.assert_allclose(choose.over_steps(made, "top", ["heat"]).sel(step=0, image=[1, 3]), 0.7)
    assert "draw" not in choose.over_steps(made, "outside", ["heat"]).dims


def test_images_without_a_value_do_not_choose():
    made = table()
    made[0].loc[dict(arm="top", layer=4)] = np.nan
    assert choose.choose_site(made, "top", ["heat"])["layer"] == 4
    made.loc[dict(arm="top, border")] = np.nan
    assert choose.choose_site(made, ["top, border", "top"], ["heat"])["arm"] == "top"


def test_an_unknown_arm_is_named():
    with pytest.raises(KeyError, match=r"no arm 'bottom'; there are top, top, border, outside"):
        choose.choose_site(table(), "bottom", ["heat"])


def test_masks_at_a_site_are_those_of_every_file_in_order(tmp_path):
    tokens = torch.rand(5, 12, 4, generator=torch.Generator().manual_seed(0))
    whole = as_record({(3, 1): tokens, (0, 1): tokens.flip(1)}, (3, 4))
    for name, part in (("0", slice(2)), ("1", slice(2, 5))):
        as_record({(3, 1): tokens[part], (0, 1): tokens[part].flip(1)}, (3, 4)).save(tmp_path / name)
    files, site = [tmp_path / "0", tmp_path / "1"], dict(arm="top", rule="border", layer=1, step=3)
    found = choose.masks_at(files, site, ranks=range(2))
    wanted = token_masks(whole, layer=1, step=3, ranks=range(2), polarity="border")[0]
    assert found.dtype == bool and found.shape == (5, 3, 4) and (found == wanted).all()
    with pytest.raises(ValueError, match="oracle"):
        choose.masks_at(files, site | dict(rule="oracle"))


def seeds_table(drawn):
    captions, seeds = drawn.shape[:2]
    dims = dict(rule=["heat", "oracle"], arm=["top"], layer=[0, 3], step=[0, 7])
    return xr.DataArray(np.zeros((captions * seeds, 2, 1, 2, 2)), dims, ("image", *dims))


def test_a_captions_mask_is_from_its_other_seeds_alone():
    drawn = np.zeros((2, 6, 4, 4), bool)
    drawn[0, :, :2], drawn[1, [0, 2, 3, 4], 2:] = True, True  # the last of the second caption has no subject
    drawn[1, 1, 0, 0] = True  # unlike its other seeds
    found = choose.with_caption_prior(seeds_table(drawn), drawn)
    alone = found.sel(arm="caption").isel(rule=0, layer=1, step=1)
    np.testing.assert_allclose(alone, [1] * 6 + [1, 0, 1, 1, 1, 0])
    assert (found.sel(arm="caption") == found.sel(arm="caption", layer=0, step=0, rule="heat")).all()
    assert found.half.values.tolist() == ["choose", "report"] * 5 + ["choose", "no subject there"]
    assert found.caption.values.tolist() == [0] * 6 + [1] * 6


def test_captions_without_subjects_are_an_error_that_says_what_to_do():
    drawn = np.zeros((3, 4, 4, 4), bool)
    drawn[1, 1] = True
    with pytest.raises(ValueError, match="1 captions show a subject; name another reference"):
        choose.with_caption_prior(seeds_table(drawn), drawn)

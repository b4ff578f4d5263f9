"""What a caption, a picture and words tell of the tokens; and images of many seeds beside their caption."""

import numpy as np
import pytest
import xarray as xr

from massact_utils.measures import baselines
from massact_utils.measures.masks import coverage, iou
from massact_utils.worlds import toyworld

GRID = (6, 9)


def test_the_captions_mask_is_nearer_to_its_own_renders_than_to_anothers():
    texts = [f"a large red square at the {place} on a blue plain ground" for place in ("left", "right")]
    drawn = [toyworld.render([toyworld.parse(text)] * 8, seed=5)[1]["subject"] for text in texts]
    drawn = [coverage(mask, GRID) > 0.5 for mask in drawn]
    likely = baselines.of_captions(texts, GRID)["caption"][0].reshape(2, *GRID)
    overlap = [[np.mean([iou(mask, one) for one in some]) for some in drawn] for mask in likely]
    assert min(overlap[0][0], overlap[1][1]) > 0.5 > max(overlap[0][1], overlap[1][0])


@pytest.mark.parametrize("text", ["a small red star at the left on a blue plain ground lit from above", "a wet dog"])
def test_an_open_layout_names_neither_size_nor_place_and_the_rest_as_it_was(text):
    told = baselines.open_layout(text)
    assert told == text.replace("small ", "").replace("at the left ", "") == baselines.open_layout(told)


def table(drawn):
    captions, seeds = drawn.shape[:2]
    dims = dict(rule=["heat", "oracle"], arm=["top"], layer=[0, 3], step=[0, 7])
    return xr.DataArray(np.zeros((captions * seeds, 2, 1, 2, 2)), dims, ("image", *dims))


def test_a_captions_mask_is_from_its_other_seeds_alone():
    drawn = np.zeros((2, 6, 4, 4), bool)
    drawn[0, :, :2], drawn[1, [0, 2, 3, 4], 2:] = True, True  # the last of the second caption has no subject
    drawn[1, 1, 0, 0] = True  # unlike its other seeds
    found = baselines.of_seeds(table(drawn), drawn)
    alone = found.sel(arm="caption").isel(rule=0, layer=1, step=1)
    np.testing.assert_allclose(alone, [1] * 6 + [1, 0, 1, 1, 1, 0])
    assert (found.sel(arm="caption") == found.sel(arm="caption", layer=0, step=0, rule="heat")).all()
    assert found.half.values.tolist() == ["choose", "report"] * 5 + ["choose", "no subject there"]
    assert found.caption.values.tolist() == [0] * 6 + [1] * 6


def test_captions_without_subjects_are_an_error_that_says_what_to_do():
    drawn = np.zeros((3, 4, 4, 4), bool)
    drawn[1, 1] = True
    with pytest.raises(ValueError, match="1 captions show a subject; name another reference"):
        baselines.of_seeds(table(drawn), drawn)

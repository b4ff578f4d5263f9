"""What a caption says of the tokens, without a look at any channel."""

import numpy as np
import pytest

from massact_utils.experiments import spatial
from massact_utils.measures.masks import coverage, iou
from massact_utils.worlds import toyworld

GRID = (6, 9)


def test_the_captions_mask_is_nearer_to_its_own_renders_than_to_anothers():
    texts = [f"a large red square at the {place} on a blue plain ground" for place in ("left", "right")]
    drawn = [toyworld.render([toyworld.parse(text)] * 8, seed=5)[1]["subject"] for text in texts]
    drawn = [coverage(mask, GRID) > 0.5 for mask in drawn]
    likely = spatial.caption_masks(texts, GRID)
    overlap = [[np.mean([iou(mask, one) for one in some]) for some in drawn] for mask in likely]
    assert min(overlap[0][0], overlap[1][1]) > 0.5 > max(overlap[0][1], overlap[1][0])


@pytest.mark.parametrize("text", ["a small red star at the left on a blue plain ground lit from above", "a wet dog"])
def test_an_open_layout_names_neither_size_nor_place_and_the_rest_as_it_was(text):
    told = spatial.open_layout(text)
    assert told == text.replace("small ", "").replace("at the left ", "") == spatial.open_layout(told)

"""What the measures of transport promise, on rendered scenes whose words are known."""

import numpy as np
import pytest
from PIL import Image

from massact_utils import toyworld
from massact_utils.measures import transfer
from massact_utils.toyworld import Scene, caption

SAME = dict(place="centre", size="large")
SOURCE = Scene("circle", "red", "blue", "plain", light="left", style="flat", **SAME)
TARGET = Scene("cross", "yellow", "green", "striped", light="right", style="outlined", **SAME)
SWAPPED = Scene("circle", "red", "green", "striped", light="right", style="outlined", **SAME)


def render(*scenes):
    images, masks, _ = toyworld.render(list(scenes))
    return [Image.fromarray(image) for image in images], masks["subject"]


def test_attributes_of_rendered_scenes():
    """An untouched target gains nothing, the source keeps nothing, and the swapped scene has both."""
    images, _ = render(TARGET, SOURCE, SWAPPED)
    table = transfer.by_attributes(images, [caption(SOURCE)] * 3, [caption(TARGET)] * 3)
    assert table.gain.tolist() == [0, 1, 1]
    assert table.keep.tolist() == [1, 0, 1]
    assert table.stays.tolist() == [1, 0, 0] and table.along.tolist() == [0, 1, 0]
    assert table.coherent.tolist() == [1, 0, 1]
    assert table.read.tolist() == [1, 1, 1]


def test_captions_that_do_not_differ_are_refused():
    images, _ = render(TARGET)
    with pytest.raises(ValueError, match="nothing to gain"):
        transfer.by_attributes(images, [caption(TARGET)], [caption(TARGET)])
    with pytest.raises(ValueError, match="nothing to keep"):
        transfer.by_attributes(images, [caption(SWAPPED)], [caption(TARGET)])


def test_features_of_rendered_scenes():
    """An untouched target has gain 0, keep 1; a pasted subject the source's gain, keep 1; a flat one is not read."""
    (source, target), masks = render(SOURCE, TARGET)
    union = masks.any(0, keepdims=True).repeat(4, 0)
    pasted = transfer.blended([target], [source], union[:1])[0]
    flat = Image.new("RGB", (96, 96), (90, 90, 90))
    captions = [caption(SOURCE)] * 4, [caption(TARGET)] * 4
    others = [caption(scene) for scene in toyworld.sample(32, seed=1)]
    pictures = [target, pasted, source, flat]
    table = transfer.by_features(pictures, [source] * 4, [target] * 4, union, captions, others=others)
    assert table.gain[0] == pytest.approx(0, abs=1e-5) and table.gain[1] == pytest.approx(table.gain[2], abs=1e-5)
    assert table.gain[1] > max(0.05, table.gain[3])
    assert table.keep[:2].tolist() == pytest.approx([1, 1], abs=1e-5) and table.keep[2:].max() < 0.95
    assert table.read.tolist() == [1, 1, 1, 0]


def test_pixels_are_blended_under_the_mask_alone():
    black, white = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), "white")
    mask = np.array([[[1, 0]]], bool)  # coarser than the image
    assert np.asarray(transfer.blended([black], [white], mask)[0])[..., 0].tolist() == [[255, 255, 0, 0]] * 2
    assert np.asarray(transfer.blended([black], [white], mask, 0.4)[0])[0, :, 0].tolist() == [102, 102, 0, 0]

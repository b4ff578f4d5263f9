"""What the measures of transport promise, on rendered scenes whose words are known."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

import massact_utils as mu
from massact_utils.experiments.transport import offset
from massact_utils.measures import transfer
from massact_utils.measures.images import lit_from
from massact_utils.worlds import everyday, toyworld
from massact_utils.worlds.toyworld import Scene, caption

SAME = dict(place="centre", size="large")
SOURCE = Scene("circle", "red", "blue", "plain", light="left", style="flat", **SAME)
TARGET = Scene("cross", "yellow", "green", "striped", light="right", style="outlined", **SAME)
SWAPPED = Scene("circle", "red", "green", "striped", light="right", style="outlined", **SAME)


def render(*scenes, seed=0):
    images, masks, _ = toyworld.render(list(scenes), seed=seed)
    return [Image.fromarray(image) for image in images], masks["subject"]


def test_attributes_of_rendered_scenes():
    """An untouched target gains nothing, the source keeps nothing, and the swapped scene has both."""
    images, _ = render(TARGET, SOURCE, SWAPPED)
    table = transfer.by_attributes(images, [caption(SOURCE)] * 3, [caption(TARGET)] * 3, images[:1] * 3, toyworld)
    assert table.gain.tolist() == [0, 1, 1]
    assert table.keep.tolist() == [1, 0, 1]
    assert table.stays.tolist() == [1, 0, 0] and table.along.tolist() == [0, 1, 0]
    assert table.coherent.tolist() == [1, 0, 1] == (table.whole * table.lit).tolist()
    assert table.exchange.tolist() == [0, 0, 1]
    assert table.place.isna().all()


@pytest.fixture(scope="module")
def bundled():
    """Bundled pairs rendered: texts, parsed scenes, images, and masks of source, target and what is asked for."""
    pairs = mu.prompts.read_pairs("toyworld-pairs")
    texts = {"source": pairs.source.tolist(), "target": pairs.target.tolist()}
    texts["asked"] = [transfer.asked(*pair, toyworld) for pair in zip(*texts.values(), strict=True)]
    made = {name: render(*map(toyworld.parse, some), seed=1) for name, some in texts.items()}
    return texts, {name: images for name, (images, _) in made.items()}, {name: mask for name, (_, mask) in made.items()}


def test_only_an_exchange_scores(bundled):
    """Returning the source or the target scores nothing, and pasting hardly anything: a pasted subject brings its own
    light and style, however exact the mask and wherever it is put.
    """
    texts, images, masks = bundled
    grid = masks["source"].shape[1:]
    ways = [offset(a, b) for a, b in zip(masks["source"], masks["target"], strict=True)]
    there = transfer.moved([Image.fromarray(mask).convert("RGB") for mask in masks["source"]], ways, grid)
    there = np.stack([np.asarray(mask)[..., 0] == 255 for mask in there])
    arms = dict(images) | {
        "pasted": transfer.blended(images["target"], images["source"], masks["source"] | masks["target"]),
        "pasted there": transfer.blended(
            images["target"], transfer.moved(images["source"], ways, grid), masks["target"] | there
        ),
    }
    subject, score = {"pasted": masks["source"], "pasted there": there}, {}
    wanted = [toyworld.parse(text).light for text in texts["target"]]
    for name, some in arms.items():
        table = transfer.by_attributes(some, texts["source"], texts["target"], images["target"], toyworld)
        score[name] = table.exchange.mean()
        if name.startswith("pasted"):
            own = [a == b for a, b in zip(lit_from(some, subject[name]), wanted, strict=True)]
            assert np.mean(own) < 0.05, "a pasted subject is lit from its own side"
            by_chance = binomtest(int(table.lit.sum()), len(table), 1 / 3, "less").pvalue
            assert by_chance < 0.01, "of what the segmenter takes for it: a patch of the target's shape is in it, too"
    assert score["source"] == score["target"] == 0
    assert max(score["pasted"], score["pasted there"]) < 0.1
    assert score["asked"] > 0.9, "what is asked for in words, rendered, is a perfect exchange"


def test_an_exchange_asked_in_words_gives_up_what_the_new_subject_cannot_have():
    assert transfer.asked("a fox in a meadow", "a red car on a beach", everyday) == "a fox on a beach"
    assert transfer.asked("a blue car in a meadow", "a red mug on a beach", everyday) == "a blue car on a beach"


def test_captions_that_do_not_differ_are_refused():
    images, _ = render(TARGET)
    with pytest.raises(ValueError, match="nothing to gain"):
        transfer.by_attributes(images, [caption(TARGET)], [caption(TARGET)], images, toyworld)
    with pytest.raises(ValueError, match="nothing to keep"):
        transfer.by_attributes(images, [caption(SWAPPED)], [caption(TARGET)], images, toyworld)


def test_features_of_rendered_scenes():
    """An untouched target has gain 0, keep 1; a pasted subject the source's gain, keep 1; a flat one neither."""
    (source, target), masks = render(SOURCE, TARGET)
    union = masks.any(0, keepdims=True).repeat(4, 0)
    pasted = transfer.blended([target], [source], union[:1])[0]
    flat = Image.new("RGB", (96, 96), (90, 90, 90))
    table = transfer.by_features([target, pasted, source, flat], [source] * 4, [target] * 4, union)
    assert table.gain[0] == pytest.approx(0, abs=1e-5) and table.gain[1] == pytest.approx(table.gain[2], abs=1e-5)
    assert table.gain[1] > max(0.05, table.gain[3])
    assert table.keep[:2].tolist() == pytest.approx([1, 1], abs=1e-5) and table.keep[2:].max() < 0.95


def test_detail_counts_outside_the_mask_alone():
    """0 for what is pasted under the mask, more for a little noise outside, most for another picture."""
    (source, target), masks = render(SOURCE, TARGET)
    union = masks.any(0, keepdims=True).repeat(3, 0)
    pasted = transfer.blended([target], [source], union[:1])[0]
    noise = np.random.default_rng(0).normal(0, 12, (96, 96, 3))
    noisy = Image.fromarray(np.clip(np.asarray(pasted) + noise, 0, 255).astype(np.uint8))
    captions = [caption(SOURCE)] * 3, [caption(TARGET)] * 3
    pictures = [pasted, noisy, source]
    table = transfer.measure(pictures, captions, ([source] * 3, [target] * 3), union, world=toyworld)
    assert table.detail[0] == pytest.approx(0, abs=1e-5) and 0.01 < table.detail[1] < table.detail[2]


def test_pixels_are_blended_under_the_mask_alone():
    black, white = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), "white")
    mask = np.array([[[1, 0]]], bool)  # coarser than the image
    assert np.asarray(transfer.blended([black], [white], mask)[0])[..., 0].tolist() == [[255, 255, 0, 0]] * 2
    assert np.asarray(transfer.blended([black], [white], mask, 0.4)[0])[0, :, 0].tolist() == [102, 102, 0, 0]


def test_pixels_are_moved_by_tokens():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    (new,) = map(np.asarray, transfer.moved([image], [(1, -1)], (2, 2)))
    assert (new[2:, :2] == np.asarray(image)[:2, 2:]).all() and (new[:2] == 127).all() and (new[:, 2:] == 127).all()

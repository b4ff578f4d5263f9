"""The evaluators against exact renders: what they read is what was drawn."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from massact_utils import metrics, toyworld


@pytest.fixture(scope="module", params=["test", "held-out"])
def renders(request):
    scenes = toyworld.sample(128, seed=10**9 + 31, split=request.param)
    recorded = json.loads((metrics.TOY / "metrics.json").read_text())["renders"][request.param]
    return recorded, scenes, *toyworld.render(scenes, seed=10**9 + 31)


def test_attributes_are_read_as_well_as_the_card_says(renders):
    recorded, scenes, images, _ = renders
    read = metrics.read_attributes(images)
    right = (read[list(toyworld.ATTRIBUTES)] == pd.DataFrame(map(vars, scenes))[list(toyworld.ATTRIBUTES)]).mean()
    assert all(right[name] > recorded[name] - 0.06 for name in right.index), right.to_dict()  # 128 images
    assert right.min() > 0.8
    assert read.confidence.between(0, 1).all()


def test_a_batch_is_read_like_its_images(renders):
    _, _, images, _ = renders
    one_by_one = pd.concat([metrics.read_attributes([image]) for image in images[:4]], ignore_index=True)
    together = metrics.read_attributes(images[:4])
    assert one_by_one.drop(columns="confidence").equals(together.drop(columns="confidence"))


def test_noise_is_read_without_confidence():
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    images, _ = toyworld.render(toyworld.sample(8, seed=3), seed=3)
    assert metrics.read_attributes(noise).confidence.mean() < metrics.read_attributes(images).confidence.mean()


def test_subject_masks_agree_with_exact_ones(renders):
    recorded, _, images, masks = renders
    found = metrics.subject_masks(images)
    iou = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
    assert found.shape == masks.shape and iou.mean() > recorded["segmenter mIoU"] - 0.01 > 0.94


@pytest.mark.parametrize("evaluator", [metrics.read_attributes, metrics.subject_masks])
def test_no_images_is_an_error(evaluator):
    with pytest.raises(ValueError, match="no images"):
        evaluator([])


def test_intervals_agree_with_students_on_normal_values_and_cover_the_truth():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 400), rng.normal(1, 1, 400)
    mean, low, high = metrics.paired_interval(a, b)
    d = a - b
    wanted = t.interval(0.95, len(d) - 1, d.mean(), d.std(ddof=1) / len(d) ** 0.5)
    assert mean == pytest.approx(d.mean()) and (low, high) == pytest.approx(wanted, abs=0.02)
    inside = [low < 0 < high for _, low, high in (metrics.paired_interval(rng.normal(0, 1, 20)) for _ in range(100))]
    assert 86 <= sum(inside) <= 99


def test_pairing_cancels_what_a_prompt_does_to_both():
    rng = np.random.default_rng(1)
    prompt, effect = rng.normal(0, 10, 30), rng.normal(1, 0.1, 30)
    _, low, high = metrics.paired_interval(prompt + effect, prompt)
    assert 0.9 < low < high < 1.1
    assert metrics.paired_interval(prompt) == metrics.paired_interval(prompt, np.zeros(30))
    assert metrics.paired_interval(prompt, seed=3) == metrics.paired_interval(prompt, seed=3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[0.3] * 5, [0.0] * 4, [0.1 + 0.2, 0.3, 0.3], [1e9] * 3])
def test_equal_differences_have_no_width(values):
    mean, low, high = metrics.paired_interval(values)
    assert mean == low == high == pytest.approx(values[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[0, 1], [0] * 9 + [1], [1] * 7 + [0.999]])
def test_few_or_lopsided_values_still_have_an_interval(values):
    mean, low, high = metrics.paired_interval(values)
    assert min(values) <= low <= mean <= high <= max(values) and low < high


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        ([1.0], None, "two prompts or more"),
        ([1.0, 2.0], [1.0], r"\(2,\) and \(1,\)"),
        ([1.0, np.nan, 2.0], None, "1 of 3 values are not finite"),
        (np.zeros((2, 2)), None, "one value a prompt"),
    ],
)
def test_values_that_make_no_interval(a, b, named):
    with pytest.raises(ValueError, match=named):
        metrics.paired_interval(a, b)

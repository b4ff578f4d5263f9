"""The evaluators against exact renders: what they read is what was drawn."""

import json

import numpy as np
import pandas as pd
import pytest

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

"""The evaluators against exact renders: what they read is what was drawn."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, Dinov2Config, Dinov2Model, VisionTextDualEncoderModel

from massact_utils import places
from massact_utils.measures import metrics, readout
from massact_utils.worlds import toyworld


@pytest.fixture(scope="module", params=["test", "held-out"])
def renders(request):
    scenes = toyworld.sample(128, seed=10**9 + 31, split=request.param)
    recorded = json.loads((places.data("toy") / "metrics.json").read_text())["renders"][request.param]
    images, masks, drawn = toyworld.render(scenes, seed=10**9 + 31)
    return recorded, drawn, images, masks


def test_attributes_are_read_as_well_as_the_card_says(renders):
    recorded, scenes, images, _ = renders
    read, said = readout.read_attributes(images), pd.DataFrame(map(vars, scenes))[list(readout.WORDS)]
    right = (read[list(said)] == said).mean()  # a drawn scene leaves nothing open
    assert all(right[name] > recorded[name] - 0.06 for name in right.index), right.to_dict()  # 128 images
    assert right.min() > 0.8
    assert read.confidence.between(0, 1).all()


def test_a_batch_is_read_like_its_images(renders):
    _, _, images, _ = renders
    one_by_one = pd.concat([readout.read_attributes([image]) for image in images[:4]], ignore_index=True)
    together = readout.read_attributes(images[:4])
    assert one_by_one.drop(columns="confidence").equals(together.drop(columns="confidence"))


def test_noise_is_read_without_confidence():
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    images = toyworld.render(toyworld.sample(8, seed=3), seed=3)[0]
    assert readout.read_attributes(noise).confidence.mean() < readout.read_attributes(images).confidence.mean()


def test_masks_agree_with_exact_ones(renders):
    recorded, _, images, masks = renders
    found = readout.segment(images)
    assert set(found) == set(masks) and max(sum(mask.astype(int) for mask in found.values()).ravel()) == 1
    for name, mask in masks.items():
        there = mask.any((1, 2))
        iou = (found[name] & mask)[there].sum((1, 2)) / (found[name] | mask)[there].sum((1, 2))
        assert iou.mean() > recorded[f"IoU of the {name}"] - 0.03


@pytest.mark.parametrize("evaluator", [readout.read_attributes, readout.segment])
def test_no_images_is_an_error(evaluator):
    with pytest.raises(ValueError, match="no images"):
        evaluator([])


def sample(n=16, seed=5):
    scenes = toyworld.sample(n, seed=seed, split="test")
    return list(toyworld.render(scenes, seed=seed)[0]), [toyworld.caption(scene) for scene in scenes]


def noise(n, size=96):
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def test_alignment_is_the_cosine_of_the_clip_and_finds_the_prompt():
    images, prompts = sample()
    found = metrics.alignment(images, prompts)
    folder = places.data("toy") / "clip"
    model = VisionTextDualEncoderModel.from_pretrained(folder, dtype=torch.float32)
    text = AutoTokenizer.from_pretrained(folder)(prompts, return_tensors="pt", padding=True)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.no_grad():
        out = model(**text, **pixels)
    cosines = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    np.testing.assert_allclose(found, cosines, atol=1e-5)
    assert (found > metrics.alignment(images, prompts[1:] + prompts[:1])).all()
    assert found.mean() > metrics.alignment(noise(16), prompts).mean() + 0.2


def test_measures_of_an_image_and_itself():
    images, _ = sample(3)
    np.testing.assert_allclose(metrics.similarity(images, images), 1, atol=1e-5)
    np.testing.assert_allclose(metrics.ssim(images, images), 1)
    np.testing.assert_allclose(metrics.psnr(images, images), 10 * np.log10(255**2 * 96 * 96 * 3))
    assert np.abs(metrics.band_errors(images, images)).max() == 0


def test_every_measure_falls_as_noise_grows():
    images, prompts = sample(8)
    rng = np.random.default_rng(0)
    tables = [
        metrics.compare(
            [np.clip(image + rng.normal(0, level, image.shape), 0, 255).astype(np.uint8) for image in images],
            images,
            prompts,
            others=sample(8, seed=6)[1],
        ).mean()
        for level in (5, 20, 80)
    ]
    for name in ("ssim", "psnr", "similarity"):
        assert tables[0][name] > tables[1][name] > tables[2][name]
    for name in ("low_error", "high_error"):
        assert tables[0][name] < tables[1][name] < tables[2][name]
    assert tables[1].high_error > tables[1].low_error  # white noise lies in the fine band, the scene in the coarse one


def test_psnr_is_the_decibels_of_the_squared_error():
    a, b = noise(2)
    error = ((a / 255.0 - b / 255.0) ** 2).mean()
    assert metrics.psnr([a], [b])[0] == pytest.approx(-10 * np.log10(error))


@pytest.mark.parametrize(("cycles", "band"), [(3, 0), (7, 0), (9, 1), (30, 1)])
def test_a_wave_is_an_error_of_its_own_band(cycles, band):
    """Erasing a wave of known frequency erases that band alone, whatever the size of the image."""
    for h, w in ((96, 96), (64, 128)):
        x = (np.arange(w) + 0.5) / min(h, w)
        coarse, fine = (60 * np.cos(2 * np.pi * c * x) for c in ((cycles, 20) if band == 0 else (2, cycles)))
        whole, without = coarse + fine, (fine if band == 0 else coarse)
        picture, blank = (np.tile((127.5 + v)[None, :, None], (h, 1, 3)).astype(np.float32) for v in (whole, without))
        errors = metrics.band_errors([blank], [picture])
        assert errors[band][0] == pytest.approx(1, abs=0.01) and errors[1 - band][0] == pytest.approx(0, abs=0.01)


def test_the_bands_hold_the_whole_error():
    (a,), (reference,) = noise(1), sample(1)[0]
    low, high = metrics.band_errors([a], [reference], cutoff=1e9)
    x, y = a / 127.5 - 1, reference / 127.5 - 1
    assert low[0] == pytest.approx(np.sqrt(((x - y) ** 2).sum() / (y**2).sum()), rel=1e-4) and high[0] == 0


def test_collapsed_images():
    images, prompts = sample(8)
    others = sample(8, seed=6)[1]
    flat = [np.full((96, 96, 3), 90, np.uint8)] * 8
    for made, share in ((images, 0), (flat, 1)):
        table = metrics.compare(made, images, prompts, others=others)
        assert table.collapsed.mean() == share
    many, texts = sample(192)
    for made, share in ((many, 0), (many[1:] + many[:1], 0.5), (noise(192), 0.5)):  # at chance: half lie under it
        found = metrics.compare(made, many, texts, others=sample(64, seed=6)[1]).collapsed.mean()
        assert abs(found - share) < 0.11, "three standard errors of 192 images"
    assert not metrics.collapsed(images, [0.5] * 8, [0.4] * 8).any()
    assert metrics.collapsed(images, [0.3] * 8, [0.4] * 8).all()


def test_attributes_that_are_right():
    images, prompts = sample(32)
    assert readout.attributes_right(images, prompts).mean()[["shape", "colour", "ground", "pattern"]].min() > 0.8
    blue = toyworld.parse("a large red star at the left on a blue striped ground")
    drawn = list(toyworld.render([blue], seed=0)[0])
    right = readout.attributes_right(drawn, ["a large green star at the left on a blue striped ground"]).iloc[0]
    assert right.colour == 0 and right[["size", "shape", "place", "ground", "pattern"]].sum() >= 4
    assert right[["light", "style"]].isna().all(), "the caption leaves it open"


def test_words_right_are_counted_by_what_they_are_about():
    right = pd.DataFrame([[1, 0, 1, 1, np.nan, np.nan, np.nan, np.nan], [1, 1, 0, 1, 1, 0, 0, np.nan]], dtype=float)
    found = readout.by_subject(right.set_axis(list(readout.WORDS), axis=1))
    assert found.round(6).fillna(-1).values.tolist() == [[0.5, 1, -1], [0.75, 0.5, 0]]


def test_an_image_encoder_by_folder(tmp_path):
    """A DINOv2 compares images but reads no text."""
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28})
    )
    images, prompts = sample(3)
    same = metrics.similarity(images, images, evaluator=str(tmp_path))
    other = metrics.similarity(images, noise(3), evaluator=str(tmp_path))
    np.testing.assert_allclose(same, 1, atol=1e-5)
    assert (other < same).all()
    with pytest.raises(ValueError, match="reads images alone"):
        metrics.alignment(images, prompts, evaluator=str(tmp_path))


def test_an_evaluator_that_cannot_be_had(tmp_path):
    images, _ = sample(1)
    with pytest.raises(RuntimeError, match=r"evaluator '.*nothing-here' was not loaded; allowed: 'toy'"):
        metrics.similarity(images, images, evaluator=str(tmp_path / "nothing-here"))


@pytest.mark.parametrize("measure", [metrics.ssim, metrics.psnr, metrics.band_errors])
def test_images_that_cannot_be_compared(measure):
    with pytest.raises(ValueError, match=r"\(96, 96, 3\) has a reference of shape \(32, 32, 3\)"):
        measure(noise(1), noise(1, 32))
    with pytest.raises(ValueError, match="2 images for 1 references"):
        measure(noise(2), noise(1))
    with pytest.raises(ValueError, match="no images"):
        measure([], [])


def test_evaluators_are_kept_until_they_are_unloaded():
    image = [np.zeros((96, 96, 3), np.uint8)]
    readout.segment(image), metrics.image_features(image)
    kept = [load for load in metrics.LOADED if load.cache_info().currsize]
    assert {load.__name__ for load in kept} >= {"encoder", "_segmenter"}
    metrics.unload()
    assert not any(load.cache_info().currsize for load in metrics.LOADED)
    assert len(metrics.image_features(image)) == 1


def test_an_evaluator_of_the_hub_may_carry_its_revision(monkeypatch):
    asked = {}

    def refuse(name, **options):
        asked[name] = options
        raise OSError("offline")

    monkeypatch.setattr(metrics.AutoModel, "from_pretrained", refuse)
    with pytest.raises(RuntimeError, match="evaluator 'owner/clip@0123abc' was not loaded"):
        metrics.image_features([np.zeros((8, 8, 3), np.uint8)], evaluator="owner/clip@0123abc")
    assert asked["owner/clip"]["revision"] == "0123abc"

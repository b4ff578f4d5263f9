"""Layout and detail against waves of known frequency; what is told of an image beside its reference."""

import numpy as np
import pytest
from PIL import Image

from massact_utils.measures import images as measures
from massact_utils.worlds import toyworld


def sample(n=16, seed=5):
    scenes = toyworld.sample(n, seed=seed, split="test")
    return list(toyworld.render(scenes, seed=seed)[0]), [toyworld.caption(scene) for scene in scenes]


def noise(n, size=96):
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def test_errors_grow_with_noise_and_alignment_falls():
    images, prompts = sample(8)
    rng, others = np.random.default_rng(0), sample(8, seed=6)[1]
    tables = []
    for level in (0, 5, 20, 80):
        noisy = [np.clip(image + rng.normal(0, level, image.shape), 0, 255).astype(np.uint8) for image in images]
        tables.append(measures.compare(noisy, images, prompts, others=others).mean())
    for name in ("low_error", "high_error"):
        errors = [table[name] for table in tables]
        assert errors == sorted(errors) and errors[0] == 0
    assert tables[2].high_error > tables[2].low_error  # white noise lies in the fine band, the scene in the coarse one
    assert tables[0].alignment > tables[3].alignment and tables[0].alignment > tables[0].chance == tables[3].chance


@pytest.mark.parametrize(("cycles", "band"), [(3, 0), (7, 0), (9, 1), (30, 1)])
def test_a_wave_is_an_error_of_its_own_band(cycles, band):
    """Erasing a wave of known frequency erases that band alone, whatever the size of the image."""
    for h, w in ((96, 96), (64, 128)):
        x = (np.arange(w) + 0.5) / min(h, w)
        coarse, fine = (60 * np.cos(2 * np.pi * c * x) for c in ((cycles, 20) if band == 0 else (2, cycles)))
        whole, without = coarse + fine, (fine if band == 0 else coarse)
        picture, blank = (np.tile((127.5 + v)[None, :, None], (h, 1, 3)).astype(np.float32) for v in (whole, without))
        errors = measures.band_errors([blank], [picture])
        assert errors[band][0] == pytest.approx(1, abs=0.01) and errors[1 - band][0] == pytest.approx(0, abs=0.01)


def test_the_bands_hold_the_whole_error():
    (a,), (reference,) = noise(1), sample(1)[0]
    low, high = measures.band_errors([a], [reference], cutoff=1e9)
    x, y = a / 127.5 - 1, reference / 127.5 - 1
    assert low[0] == pytest.approx(np.sqrt(((x - y) ** 2).sum() / (y**2).sum()), rel=1e-4) and high[0] == 0


def test_images_that_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\(96, 96, 3\) has a reference of shape \(32, 32, 3\)"):
        measures.band_errors(noise(1), noise(1, 32))
    for measure in (measures.band_errors, measures.perceptual_distance):
        with pytest.raises(ValueError, match="2 images for 1 references"):
            measure(noise(2), noise(1))
        with pytest.raises(ValueError, match="no images"):
            measure([], [])


def test_the_perceptual_distance_is_symmetric_and_knows_no_batch():
    a, b = map(Image.fromarray, sample(2)[0])
    both = measures.perceptual_distance([a, b, a], [b, a, a])
    assert both[0] == pytest.approx(both[1], abs=1e-5) and abs(both[2]) < 1e-5 < 0.1 < both[0]


def test_the_light_of_a_subject_is_read_off_its_pixels():
    images, masks, scenes = toyworld.render(toyworld.sample(64, seed=7), seed=7)
    found = measures.lit_from(images, masks["subject"])
    assert np.mean([light == scene.light for light, scene in zip(found, scenes, strict=True)]) > 0.9
    assert measures.lit_from(images[:1], np.zeros((1, 96, 96), bool)) == [""]

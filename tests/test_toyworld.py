"""ToyWorld: what captions, seeds and masks promise."""

import numpy as np
import pytest
from matplotlib.path import Path

from massact_utils.toyworld import ATTRIBUTES, HELD_OUT, SHAPES, SIZES, Scene, caption, parse, render, sample


def scene(**changes) -> Scene:
    words = dict(size="large", colour="red", shape="star", position="centre", background="blue", pattern="plain")
    return Scene(**words | changes)


def test_parse_inverts_caption():
    scenes = sample(300, seed=1, split="all")
    assert [parse(caption(s)) for s in scenes] == scenes
    assert parse("A LARGE red star at the centre on a blue plain background") == scene()


@pytest.mark.parametrize(
    "place, attribute", [(1, "size"), (2, "colour"), (3, "shape"), (6, "position"), (10, "pattern")]
)
def test_an_unknown_word_is_named_with_the_allowed_ones(place, attribute):
    words = caption(scene()).split()
    words[place if attribute != "pattern" else -2] = "blurple"
    with pytest.raises(ValueError, match=r"'blurple'") as error:
        parse(" ".join(words))
    assert all(word in str(error.value) for word in ATTRIBUTES[attribute])


@pytest.mark.parametrize("text", ["", "a large red star", caption(scene()) + " please", "the " + caption(scene())])
def test_a_caption_of_another_form_is_an_error(text):
    with pytest.raises(ValueError):
        parse(text)


def test_a_subject_never_has_its_backgrounds_colour():
    assert all(s.colour != s.background for s in sample(2000, seed=2, split="all"))
    with pytest.raises(ValueError, match=r"blue"):
        scene(colour="blue")
    with pytest.raises(ValueError, match=r"blue"):
        parse("a large blue star at the centre on a blue plain background")


def test_held_out_pairs_stay_out_of_training():
    assert len(HELD_OUT) == 8
    assert not {(s.shape, s.colour) for s in sample(2000, seed=3)} & HELD_OUT
    assert {(s.shape, s.colour) for s in sample(200, seed=3, split="held-out")} == HELD_OUT
    assert {(s.shape, s.colour) for s in sample(2000, seed=3, split="all")} > HELD_OUT


def test_the_splits_are_disjoint():
    captions = {split: set(map(caption, sample(3000, seed=3, split=split))) for split in ("train", "test", "held-out")}
    assert not captions["train"] & captions["test"]
    assert not captions["held-out"] & (captions["train"] | captions["test"])
    assert not {(s.shape, s.colour) for s in sample(2000, seed=3, split="test")} & HELD_OUT
    with pytest.raises(ValueError, match=r"'validation'.*train, test, held-out, all"):
        sample(1, split="validation")


def test_a_sample_uses_every_word_and_its_seed():
    scenes = sample(500, seed=4)
    for attribute, words in ATTRIBUTES.items():
        assert {getattr(s, attribute) for s in scenes} == set(words)
    assert sample(5, seed=4) == scenes[:5]
    assert sample(5, seed=5) != scenes[:5]


def test_the_world_is_as_large_as_promised():
    promised = dict(shape=10, colour=8, background=8, pattern=4, size=2, position=5)
    assert all(len(ATTRIBUTES[name]) >= n for name, n in promised.items())


def test_the_same_seed_draws_the_same_picture():
    scenes = sample(8, seed=6)
    (images, masks), (again, masks_again), (other, _) = (render(scenes, seed=seed) for seed in (7, 7, 8))
    assert images.shape == (8, 96, 96, 3) and images.dtype == np.uint8
    assert masks.shape == (8, 96, 96) and masks.dtype == bool
    assert (images == again).all() and (masks == masks_again).all()
    assert all((a != b).any() for a, b in zip(images, other, strict=True))


def test_a_picture_does_not_depend_on_those_after_it():
    scenes = sample(8, seed=6)
    assert (render(scenes, seed=7)[0][:3] == render(scenes[:3], seed=7)[0]).all()


def test_no_scenes_is_an_error():
    with pytest.raises(ValueError, match=r"no scenes"):
        render([])


@pytest.mark.parametrize("size", [48, 64, 96])
def test_other_sizes_draw_the_same_scene(size):
    scenes = sample(40, seed=9)
    small, large = (render(scenes, seed=9, size=s)[1] for s in (size, 4 * size))
    shrunk = large.reshape(len(scenes), size, 4, size, 4).mean((2, 4)) >= 0.5
    iou = (small & shrunk).sum((1, 2)) / (small | shrunk).sum((1, 2))
    assert iou.min() > (0.93 if size > 48 else 0.85)


def exact(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Inside or not, told without distances: polygons by matplotlib, round shapes by their discs."""

    def disc(cx, radius):
        return (x - cx) ** 2 + y**2 <= radius**2

    round_shapes = {
        "circle": disc(0, 0.88),
        "ring": disc(0, 0.94) & ~disc(0, 0.48),
        "crescent": disc(0, 0.96) & ~disc(0.46, 0.78),
    }
    if name in round_shapes:
        return round_shapes[name]
    (corners,) = SHAPES[name].args
    return Path(corners).contains_points(np.stack([x, y], -1).reshape(-1, 2)).reshape(x.shape)


@pytest.mark.parametrize("name", SHAPES)
def test_distances_against_point_in_shape(name):
    axis = (np.arange(400) + 0.5) / 400 * 2.4 - 1.2
    x, y = np.meshgrid(axis, axis)
    distance, inside = SHAPES[name](x, y), exact(name, x, y)
    assert ((distance < 0) != inside).mean() < 1e-4
    slope = np.hypot(*np.gradient(distance, axis, axis))
    assert np.quantile(slope, 0.99) < 1.02  # one pixel outwards is one pixel more, so edges are one pixel soft


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SHAPES)
def test_mask_area(name, size):
    axis = (np.arange(400) + 0.5) / 400 * 2.4 - 1.2
    area = exact(name, *np.meshgrid(axis, axis)).mean() * 2.4**2 * SIZES[size] ** 2 / 4  # share of the image
    masks = render([scene(shape=name, size=size)] * 64, seed=10)[1]
    assert masks.mean() == pytest.approx(area, rel=0.08)  # radii vary by up to 8 %, their mean by 1 %


@pytest.mark.parametrize("name", SHAPES)
def test_mask_against_the_picture_with_another_background(name):
    """With one seed a subject hides the same share of any background: the difference gives the exact coverage."""
    scenes = [scene(shape=name, size=size, position=at) for size in SIZES for at in ATTRIBUTES["position"]]
    on_blue, mask = render(scenes, seed=11)
    on_green, mask_again = render([Scene(**vars(s) | {"background": "green"}) for s in scenes], seed=11)
    blue = (on_blue.astype(float) - on_green)[..., 2]  # subjects cancel
    shown = blue / np.quantile(blue, 0.99, axis=(1, 2), keepdims=True)
    assert (mask == mask_again).all()
    assert (mask == (shown <= 0.5))[np.abs(shown - 0.5) > 0.02].all()
    assert (mask.mean((1, 2)) > 0.005).all()


def test_a_mask_holds_the_subjects_colour():
    images, masks = render([scene(colour="green", background="white", shape=name) for name in SHAPES], seed=12)
    greener = images[..., 1].astype(int) - images[..., 0] > 60
    assert ((greener & masks).sum((1, 2)) / (greener | masks).sum((1, 2))).min() > 0.95


def test_positions_and_sizes_are_where_they_say():
    scenes = [scene(shape="circle", position=at) for at in ("left", "right", "top", "bottom", "centre")]
    y, x = (axis / 96 * 2 - 1 for axis in np.mgrid[:96, :96] + 0.5)
    centres = [(x[m].mean(), y[m].mean()) for m in render(scenes, seed=13)[1]]
    expected = [(-0.48, 0), (0.48, 0), (0, -0.48), (0, 0.48), (0, 0)]
    assert np.abs(np.subtract(centres, expected)).max() < 0.08
    areas = render([scene(size=s) for s in ("large", "small")] * 20, seed=13)[1].mean((1, 2)).reshape(20, 2)
    assert areas[:, 0].min() > 1.5 * areas[:, 1].max()


@pytest.mark.parametrize("pattern", ATTRIBUTES["pattern"])
def test_patterns_vary_the_background_alone(pattern):
    images, masks = render([scene(pattern=pattern)] * 8, seed=14)
    assert (masks == render([scene()] * 8, seed=14)[1]).all()
    spread = np.array([image[~mask].std(0).max() for image, mask in zip(images, masks, strict=True)])
    assert (spread > 15).all() if pattern != "plain" else (spread < 15).all()

"""ToyWorld: what its captions, seeds and masks promise."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from massact_utils.worlds import toyworld as world
from training import evaluate, pixels
from training.renders import EMBEDDED

SCENES = world.sample(96, seed=1)
IMAGES, MASKS, DRAWN = world.render(SCENES, seed=2)


def test_a_caption_says_what_a_scene_fixes_and_no_more():
    many = world.sample(400, seed=3, split="all")
    assert [world.parse(world.caption(scene)) for scene in many] == many
    for name in (*world.OPEN, "companion"):
        named = np.mean([getattr(scene, name) is not None for scene in many])
        assert 0.4 < named < 0.6, f"{name} is named in {named:.0%} of the captions"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red sttar on a blue plain ground", "word 3 of .* is 'sttar'; allowed there: circle, .*hourglass"),
        ("a tiny red star on a blue plain ground", "word 2 of .* is 'tiny'; allowed there: small, large, red"),
        ("a red star on a blue plain ground lit from below", "is 'below'; allowed there: left, right, above"),
        ("a red star on a blue plain ground please", "is 'please'; allowed there: lit, in, or nothing"),
        ("a red star on a red plain ground", "have to differ"),
        ("a red star with a small blue star beside it on a green plain ground", "word 8 .* allowed there: companion"),
        ("a red star with a small red companion beside it on a green plain ground", "have to differ"),
        ("a red star", r"is '\(nothing\)'"),
    ],
)
def test_other_captions_are_errors_that_name_the_word(text, message):
    with pytest.raises(ValueError, match=message):
        world.parse(text)


def test_splits_share_no_caption_and_training_sees_no_held_out_pair():
    splits = {split: world.sample(300, seed=4, split=split) for split in ("train", "test", "held-out")}
    for split, scenes in splits.items():
        assert {world.split_of(scene) for scene in scenes} == {split}
    assert not {(s.shape, s.colour) for s in splits["train"]} & world.HELD_OUT
    drawn = [world._settle(scene, np.random.default_rng(i)) for i, scene in enumerate(splits["train"])]
    company = {(shape, scene.companion) for scene, shape, _ in drawn if shape}
    assert len(company) > 50 and not company & world.HELD_OUT
    assert all(shape != scene.shape and (shape is None) == (scene.companion is None) for scene, shape, _ in drawn)
    assert not {*map(world.caption, splits["train"])} & {*map(world.caption, splits["test"])}


def test_what_is_drawn_is_what_was_said():
    for scene, drawn in zip(SCENES, DRAWN, strict=True):
        said = {name: word for name, word in vars(scene).items() if word is not None}
        assert said.items() <= vars(drawn).items()
        assert all(getattr(drawn, name) is not None for name in world.OPEN)


def test_masks_do_not_meet_and_subjects_have_their_size():
    assert max(sum(mask.astype(int) for mask in MASKS.values()).ravel()) == 1
    share = MASKS["subject"].mean((1, 2))
    assert 0.08 <= share.min() and share.max() <= 0.35
    small = np.array([scene.size == "small" for scene in DRAWN])
    assert share[small].max() < share[~small].min() + 0.03
    company = np.array([scene.companion is not None for scene in SCENES])
    assert (MASKS["companion"].any((1, 2)) == company).all() and MASKS["shadow"].any((1, 2)).all()


def test_a_draw_depends_on_seed_and_place_in_the_batch_and_not_on_size_or_company():
    again, masks, drawn = world.render(SCENES[:6], seed=2)
    assert (again == IMAGES[:6]).all() and drawn == DRAWN[:6]
    assert not (world.render(SCENES[:6], seed=3)[0] == again).all()
    fine, fine_masks, _ = world.render(SCENES[:6], seed=2, size=192)
    coarse = fine.reshape(6, 96, 2, 96, 2, 3).mean((2, 4))
    assert np.abs(coarse - again).mean() < 4
    for name, mask in masks.items():
        share = fine_masks[name].reshape(6, 96, 2, 96, 2).mean((2, 4))
        assert np.abs(share - mask).mean() < 0.02


def test_naming_what_was_drawn_changes_nothing():
    named, _, _ = world.render(DRAWN[:8], seed=2)
    assert (named == IMAGES[:8]).all()


def test_places_are_where_they_say():
    """By the middle of the mask; a shape that is heavier on one side, or cut off, may miss a place next to its own."""
    right = []
    for mask, scene in zip(MASKS["subject"], DRAWN, strict=True):
        y, x = (float(axis.mean()) / 48 - 1 for axis in np.nonzero(mask))
        far = max((abs(x), ("left", "right")[x > 0]), (abs(y), ("top", "bottom")[y > 0]))
        right.append(scene.place == ("centre" if far[0] < 0.2 else far[1]))
    assert np.mean(right) > 0.95


@pytest.mark.parametrize("light", world.LIGHTS)
def test_shadows_fall_away_from_the_light(light):
    """The objects' mask, moved along each light's rays: along the scene's own it meets the shadow most."""
    _, masks, _ = world.render([replace(scene, light=light) for scene in SCENES], seed=5)
    objects, shadow = masks["subject"] | masks["companion"], masks["shadow"]
    met = {}
    for name, (dx, dy) in world.LIGHTS.items():
        moved = np.roll(objects, (round(8 * dy), round(8 * dx)), (1, 2))
        met[name] = (moved & shadow).sum((1, 2))
    assert (np.array([met[light] >= other for other in met.values()]).all(0)).mean() > 0.95


def test_a_caption_leaves_most_of_the_layout_open():
    assert evaluate.known_by_caption(EMBEDDED["toy"], 24) < 0.45


def exact(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Inside or not, told without distances: polygons by matplotlib, round shapes by their discs."""

    def disc(cx, radius):
        return (x - cx) ** 2 + y**2 <= radius**2

    round_shapes = {
        "circle": disc(0, 0.88),
        "ring": disc(0, 0.94) & ~disc(0, 0.46),
        "crescent": disc(0, 0.96) & ~disc(0.5, 0.74),
    }
    if name in round_shapes:
        return round_shapes[name]
    (corners,) = world.SHAPES[name].args
    return Outline(corners).contains_points(np.stack([x, y], -1).reshape(-1, 2)).reshape(x.shape)


@pytest.mark.parametrize("name", world.SHAPES)
def test_distances_against_point_in_shape(name):
    axis = (np.arange(400) + 0.5) / 400 * 2.4 - 1.2
    x, y = np.meshgrid(axis, axis)
    distance, inside = world.SHAPES[name](x, y), exact(name, x, y)
    assert ((distance < 0) != inside).mean() < 1e-4
    slope = np.hypot(*np.gradient(distance, axis, axis))
    assert np.quantile(slope, 0.99) < 1.02  # one pixel outwards is one pixel more, so edges are one pixel soft


@pytest.mark.parametrize("name", world.SHAPES)
def test_a_mask_is_where_the_picture_follows_the_subjects_colour(name):
    """Two scenes that differ in the subject's colour alone differ where its mask is, and nowhere else."""
    same = dict(ground="blue", pattern="checkered", style="flat", light="left")
    white, orange = (world.Scene(name, colour, **same) for colour in ("white", "orange"))
    (a, masks, _), (b, _, _) = world.render([white] * 8, seed=11), world.render([orange] * 8, seed=11)
    differ = np.abs(a.astype(int) - b).max(-1) > 0.5 * np.abs(a.astype(int) - b).max((1, 2, 3), keepdims=True)[..., 0]
    assert ((differ & masks["subject"]).sum() / (differ | masks["subject"]).sum()) > 0.97


def test_the_second_opinion_reads_a_renders_pixels():
    """Shape, light and companion, without a trained evaluator; where no companion is drawn, none is read."""
    read = [pixels.read(image, scene) for image, scene in zip(IMAGES, DRAWN, strict=True)]
    for name in ("shape", "light"):
        assert np.mean([found[name] == getattr(scene, name) for found, scene in zip(read, DRAWN, strict=True)]) > 0.97
    with_one = [i for i, scene in enumerate(DRAWN) if scene.companion]
    assert np.mean([read[i]["companion"] == DRAWN[i].companion for i in with_one]) > 0.97
    alone, _, _ = world.render([replace(DRAWN[i], companion=None) for i in with_one], seed=2)
    assert not any(pixels.read(image, DRAWN[i])["companion"] for image, i in zip(alone, with_one, strict=True))


def test_no_scenes_and_another_split_are_errors():
    with pytest.raises(ValueError, match=r"no scenes"):
        world.render([])
    with pytest.raises(ValueError, match=r"'validation'.*train, test, held-out, all"):
        world.sample(1, split="validation")

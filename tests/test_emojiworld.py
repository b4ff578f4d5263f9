"""EmojiWorld: what its captions, seeds, masks and drawings promise."""

import numpy as np
import pytest
from PIL import Image

from massact_utils import places
from massact_utils.worlds import emojiworld as world

SCENES = world.sample(128, seed=1)
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
        ("a foks on a blue plain ground", r"word 2 of .* is 'foks'; allowed there: .*fox.* in all"),
        ("a fox on a blue plain ground, in Picasso style", "is 'picasso'; allowed there: noto, twemoji, fluent"),
        ("a fox with a fox on a blue plain ground", "have to differ"),
        ("a fox", r"is '\(nothing\)'"),
    ],
)
def test_other_captions_are_errors_that_name_the_word(text, message):
    with pytest.raises(ValueError, match=message):
        world.parse(text)


def test_an_unknown_thing_or_artist_names_the_nearest():
    with pytest.raises(ValueError, match="thing 'foxx' is unknown; allowed: fox"):
        world.Scene("foxx", "blue", "plain")
    with pytest.raises(ValueError, match="style 'Nota' is unknown; allowed: Noto, Twemoji, Fluent"):
        world.Scene("fox", "blue", "plain", style="Nota")


def test_a_damaged_sheet_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "sprites.webp").write_bytes(places.data("emoji", "sprites.webp").read_bytes()[:1000])
    monkeypatch.setattr(world.places, "data", lambda *names: tmp_path / names[-1])
    world._sprites.cache_clear()
    try:
        with pytest.raises(OSError, match=r"sprites.webp cannot be read .* restore data/emoji/sprites.webp"):
            world.render(SCENES[:1])
    finally:
        world._sprites.cache_clear()


def test_no_training_scene_shows_a_held_out_drawing():
    assert len(world.HELD_OUT) >= 30 and {style for _, style in world.HELD_OUT} == set(world.STYLES)
    for scene in DRAWN:
        assert not {(scene.thing, scene.style), (scene.companion, scene.style)} & world.HELD_OUT
    held_out = world.sample(64, seed=4, split="held-out")
    assert all((scene.thing, scene.style) in world.HELD_OUT for scene in held_out)
    captions = {split: {*map(world.caption, world.sample(300, seed=4, split=split))} for split in ("train", "test")}
    assert not captions["train"] & captions["test"]


def test_masks_are_soft_disjoint_and_of_the_promised_size():
    subject, companion, shadow = (MASKS[name] for name in ("subject", "companion", "shadow"))
    share = subject.mean((1, 2))
    assert share.min() >= 0.12 and share.max() <= 0.35
    assert ((subject > 0.1) & (subject < 0.9)).any(), "an edge covers a part of a pixel"
    total = subject + companion + shadow
    assert total.min() >= 0 and total.max() <= 1 + 1e-5
    there = np.array([scene.companion is not None for scene in DRAWN])
    assert (companion[~there] == 0).all() and (companion[there].mean((1, 2)) < share[there]).mean() > 0.9


def test_the_subject_is_its_artist_s_drawing():
    """Pasting the sprite by its alpha, an independent way, gives the picture under the mask."""
    scene = world.Scene("fox", "blue", "plain", place="centre", size="large", style="Noto", light="above")
    images, masks, _ = world.render([scene], seed=5)
    rows, columns = np.nonzero(masks["subject"][0] > 0.5)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    sheet, at = Image.open(places.data("emoji", "sprites.webp")).convert("RGBA"), world.NAMES.index("fox")
    sprite = sheet.crop((3 * (at % 8) * 64, at // 8 * 64, 3 * (at % 8) * 64 + 64, at // 8 * 64 + 64))
    sprite = sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())
    sprite = np.asarray(sprite.resize((box[2] - box[0], box[3] - box[1])), float)
    shown = np.asarray(Image.fromarray(images[0]).crop(box), float)
    solid = sprite[..., 3] > 250
    assert np.corrcoef(shown[solid].ravel(), sprite[solid][:, :3].ravel())[0, 1] > 0.9


def test_a_seed_draws_the_same_picture_at_any_size():
    again, _, _ = world.render(SCENES[:4], seed=2)
    assert (again == IMAGES[:4]).all()
    _, small, drawn = world.render(SCENES[:16], seed=2, size=48)
    assert drawn == DRAWN[:16]
    coarse = MASKS["subject"][:16].reshape(16, 48, 2, 48, 2).mean((2, 4))
    assert np.abs(coarse - small["subject"]).mean() < 0.02


def test_the_light_is_where_the_shadow_says():
    """The centre of the shadow lies off the subject's in the direction of the rays."""
    for name, (dx, _) in world.grounds.LIGHTS.items():
        scenes = [world.Scene(thing, "green", "plain", light=name, place="centre") for thing in world.THINGS[:16]]
        _, masks, _ = world.render(scenes, seed=6)
        y, x = np.mgrid[:96, :96]
        offset = [
            np.average(z, weights=s) - np.average(z, weights=m)
            for z in (x, y)
            for m, s in zip(masks["subject"], masks["shadow"], strict=True)
        ]
        assert (np.sign(np.round(np.array(offset).reshape(2, -1).mean(1) / 4)) == [np.sign(dx), 1]).all(), name

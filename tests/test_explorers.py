"""Explorers answer their controls: every control changes the picture, and errors are words, not dead widgets."""

import base64
import html
import io
import re

import ipywidgets
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import massact_utils as mu
import tiny
from massact_utils.show import explorers

PROMPTS = ["a red star", "a blue circle"]


@pytest.fixture(scope="module")
def saved(klein):
    """Statistics, a record and images of two prompts."""
    stats, record = mu.ChannelStats(), mu.Record(k=4)
    with mu.attach(klein, stats, record):
        images = mu.generate(klein, PROMPTS, seeds=[0, 1], **tiny.KLEIN)
    return stats.dataset(), record, images


def controls(box):
    """{name: control}; a tick has its name beside it, a choice what is chosen."""
    rows = [row.children if isinstance(row, ipywidgets.HBox) else (row,) for row in box.children[:-3]]
    found = [next(part for part in row if not isinstance(part, ipywidgets.Label)) for row in rows]
    return {control.description or row[0].value: control for control, row in zip(found, rows, strict=True)}


def shown(box):
    """The picture, after making sure that no error is shown in its place."""
    note, picture, _ = box.children[-3:]
    assert note.value == ""
    return np.asarray(Image.open(io.BytesIO(picture.value)).convert("RGB"))


def another(widget):
    """A value the widget does not have now."""
    if isinstance(widget, ipywidgets.SelectionSlider):
        return next(value for value in widget.options if value != widget.value)
    if isinstance(widget, ipywidgets.Checkbox):
        return not widget.value
    if isinstance(widget.value, tuple):
        return widget.min, widget.min
    return widget.min if widget.value != widget.min else widget.max


def check_every_control_changes_the_picture(box):
    for name, control in controls(box).items():
        before, old = shown(box), control.value
        control.value = another(control)
        after = shown(box)
        assert before.shape != after.shape or (before != after).any(), name
        control.value = old
        assert (shown(box) == before).all(), name


def test_the_line_below_a_picture_draws_it_again_and_the_link_holds_it(saved):
    _, record, images = saved
    names = dict(mu=mu, record=record, images=images, references=None)
    box = explorers.masks(record, images)
    for name, control in controls(box).items():
        control.value = another(control)
        foot = box.children[-1].children[0].value
        line = html.unescape(re.search(r"<code>(.*)</code>", foot)[1])
        again = eval(line, names)
        again.savefig(file := io.BytesIO(), format="png", dpi=100)
        assert (np.asarray(Image.open(file).convert("RGB")) == shown(box)).all(), (name, line)
        held = base64.b64decode(re.search(r"base64,([^\"]+)", foot)[1])
        assert held == box.children[-2].value and re.search(rf'download="[^"/]*{name}=[^"/]*\.png"', foot)


def test_atlas(saved):
    check_every_control_changes_the_picture(explorers.atlas(*saved))


def test_masks(saved):
    _, record, images = saved
    references = np.zeros((2, *np.asarray(images[0]).shape[:2]), bool)
    references[:, :16, :16] = True
    box = explorers.masks(record, images, references)
    assert {"image", "layer", "step", "k"} == set(controls(box))
    check_every_control_changes_the_picture(box)


def test_gallery_needs_no_model():
    shades = {("top", 1): 10, ("top", 2): 20, ("random", 1): 30, ("random", 2): 40}
    box = explorers.gallery({key: Image.new("RGB", (8, 8), (s, s, s)) for key, s in shades.items()}, ("channels", "k"))
    controls(box)["k"].value = 2
    controls(box)["channels"].value = "random"
    assert (shown(box) == 40).all()


def test_a_gallery_moves_to_a_picture_that_was_saved():
    shades = {("top", 1, "zero"): 10, ("top", 2, "zero"): 20, ("top", 2, "mean"): 30, ("untouched", 0, "zero"): 40}
    pictures = {key: Image.new("RGB", (8, 8), (shade, shade, shade)) for key, shade in shades.items()}
    box = explorers.gallery(pictures, ("which", "k", "mode"))
    for name, value, shade in (("mode", "mean", 30), ("which", "untouched", 40), ("k", 1, 10), ("k", 2, 20)):
        controls(box)[name].value = value
        assert (shown(box) == shade).all() and controls(box)[name].value == value


def test_saved_opens_what_a_folder_holds_without_a_model(saved, tmp_path, monkeypatch):
    stats, record, images = saved
    run = mu.Run(tmp_path, {})
    record.save(run.path("explorer/record.safetensors"))
    pictures = ("image", "y", "x", "rgb"), np.stack([np.asarray(image) for image in images])
    monkeypatch.setattr(explorers, "generate", None)
    run.save("explorer/images", stats[["mean_abs"]].assign(picture=pictures))
    assert (shown(explorers.saved(tmp_path)) == shown(explorers.atlas(*saved))).all()
    subject = np.zeros((2, *record.grid), bool)
    subject[:, 1] = True
    run.save("explorer/images", xr.Dataset({"picture": pictures, "subject": (("image", "row", "column"), subject)}))
    assert (shown(explorers.saved(tmp_path)) == shown(explorers.masks(record, images, subject))).all()


def test_saved_pictures_are_chosen_by_what_their_names_say(tmp_path):
    run = mu.Run(tmp_path, {})
    with pytest.raises(FileNotFoundError, match=r"neither images\.nc nor pictures"):
        explorers.saved(tmp_path)
    for k in (12, 2, 32):
        run.save(f"explorer/which=top,k={k}.webp", Image.new("RGB", (8, 8), (k, k, k)))
    box = explorers.saved(tmp_path)
    assert controls(box)["k"].options == ("2", "12", "32")
    controls(box)["k"].value = "32"
    assert (shown(box) == 32).all() and [row.children[1].value for row in box.children[:-3]] == ["top", "32"]


def test_the_line_of_a_live_explorer_generates_its_picture_again(klein, saved):
    scores = saved[0].mean_abs.mean(("image", "step"))
    for box in (
        explorers.disruption(klein, scores, PROMPTS[0], **tiny.KLEIN),
        explorers.transport(klein, PROMPTS, k=2, layer=-1, **tiny.KLEIN),
    ):
        controls(box)["strength"].value = 0.5
        line = html.unescape(re.search(r"<code>(.*)</code>", box.children[-1].children[0].value)[1])
        again = eval(line, dict(mu=mu, pipe=klein, scores=scores))
        assert (np.asarray(again.convert("RGB")) == shown(box)).all(), line


def test_disruption_at_no_strength_shows_the_image_twice(klein, saved):
    scores = saved[0].mean_abs.mean(("image", "step"))
    box = explorers.disruption(klein, scores, PROMPTS[0], **tiny.KLEIN)
    check_every_control_changes_the_picture(box)
    controls(box)["strength"].value = 0
    left, right = np.split(shown(box), 2, axis=1)
    assert (left == right).all()


def test_transport_at_no_strength_shows_the_target(klein):
    box = explorers.transport(klein, PROMPTS, k=4, **tiny.KLEIN)
    controls(box)["under a mask"].value = False
    _, target, mixed = np.split(shown(box), 3, axis=1)
    assert (target != mixed).any()
    controls(box)["strength"].value = 0
    _, target, mixed = np.split(shown(box), 3, axis=1)
    assert (target == mixed).all()


@pytest.mark.parametrize("error", [ValueError("k = 2 is not possible"), KeyboardInterrupt()])
def test_an_error_or_an_interrupt_is_shown_and_the_controls_stay_alive(error):
    def draw(k):
        if k == 2:
            raise error
        return Image.new("RGB", (4, 4))

    box = explorers.explorer(draw, k=(1, 3))
    controls(box)["k"].value = 2
    assert box.children[-3].value == f"{type(error).__name__}: {error}"
    controls(box)["k"].value = 3
    shown(box)

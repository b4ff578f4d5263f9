"""The trainings: what they draw, and how the figures of a card are made."""

import json

import numpy as np
import pandas as pd
import pytest

from massact_utils.worlds import emojiworld, toyworld
from training import evaluate
from training.renders import EMBEDDED


def test_the_pixels_of_renders_are_read_right():
    scenes = emojiworld.sample(8, seed=3, split="all")
    images, _, drawn = emojiworld.render(scenes, seed=4)
    read = evaluate.emoji_pixels(images, drawn)
    assert np.mean([row.thing == scene.thing for row, scene in zip(read.itertuples(), drawn, strict=True)]) >= 0.75


def test_a_word_counts_where_it_is_named_and_only_there():
    scenes = toyworld.sample(12, seed=5, split="test")
    images, _, drawn = toyworld.render(scenes, seed=6)
    named, settled = evaluate.right(EMBEDDED["toy"], images, scenes), evaluate.right(EMBEDDED["toy"], images, drawn)
    assert named.ground.mean() == 1 and named["shape, by pixels"].mean() > 0.9
    open_light = np.array([scene.light is None for scene in scenes])
    assert 0 < open_light.sum() < 12 and (named.light.isna() == open_light).all() and settled.light.notna().all()


@pytest.mark.slow
def test_the_card_is_made_of_what_is_measured(tmp_path, monkeypatch):
    for name in ("clip", "segmenter"):
        (tmp_path / name).symlink_to(EMBEDDED["toy"].published / name)
    (tmp_path / "README.md").write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    monkeypatch.setenv("MASSACT_WARM", str(tmp_path))
    evaluate.make("toy", 24)
    figures, card = json.loads((tmp_path / "metrics.json").read_text()), (tmp_path / "README.md").read_text()
    assert card.startswith("before\n") and card.endswith("after\n") and "old" not in card
    assert figures["generated"]["test"]["ground"] > 0.9 and figures["renders"]["test"]["IoU of the subject"] > 0.9
    assert pd.Series(figures["goals met"]).index.tolist() == list(figures["goals"])
    assert {path.stem for path in tmp_path.glob("*.webp")} >= {"renders", "contact_sheet", "contact_sheet_worst"}

"""Worlds without a renderer: Everyday, and a table of one's own."""

import pandas as pd
import pytest

from massact_utils.worlds import everyday
from massact_utils.worlds.table import TableWorld


def test_captions_read_back_and_splits_share_none():
    scenes = everyday.sample(400, seed=1)
    assert [everyday.parse(everyday.caption(scene)) for scene in scenes] == scenes
    assert len({*map(everyday.caption, scenes)}) == 400
    train, test = ({*everyday.sample(200, seed=2, split=split)} for split in ("train", "test"))
    assert not train & test


def test_pairs_differ_in_every_word_and_share_none():
    pairs = everyday.pairs(200, seed=3)
    for source, target in pairs:
        a, b = vars(source), vars(target)
        assert all((a[name] is None) == (b[name] is None) for name in a)
        assert all(a[name] != b[name] for name in a if a[name] is not None)
    assert len({scene for pair in pairs for scene in pair}) == 400


def test_a_word_that_is_none_names_the_nearest():
    with pytest.raises(ValueError, match="subject 'bycicle' is unknown; allowed: bicycle"):
        everyday.Scene("bycicle", "on a beach")
    with pytest.raises(ValueError, match="a fox has a colour of its own"):
        everyday.Scene("fox", "on a beach", colour="blue")
    with pytest.raises(ValueError, match="word 3 of 'a fox nowhere' is 'nowhere'"):
        everyday.parse("a fox nowhere")


def test_a_table_of_one_s_own_is_a_world():
    rows = [("a fox in the snow", "fox", "in the snow"), ("an owl", "owl", None)]
    world = TableWorld(pd.DataFrame(rows, columns=["caption", "subject", "ground"]))
    assert world.ATTRIBUTES["subject"].words == ("fox", "owl") and world.ATTRIBUTES["ground"].part == "ground"
    assert world.parse("an owl").ground is None and world.render is None
    assert {world.caption(scene) for scene in world.sample(2)} == {caption for caption, _, _ in rows}


def test_a_table_s_words_have_to_stand_in_its_captions():
    with pytest.raises(ValueError, match="row 1: the caption 'a fox' does not contain its subject, 'wolf'"):
        TableWorld(pd.DataFrame({"caption": ["a fox"], "subject": ["wolf"]}))
    with pytest.raises(ValueError, match="no column of words"):
        TableWorld(pd.DataFrame({"caption": ["a fox"]}))

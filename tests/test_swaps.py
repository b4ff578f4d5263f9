"""Swapping a word changes that word alone, and a channel that follows a word is found."""

import numpy as np
import pandas as pd
import pytest

from massact_utils.experiments import swaps
from massact_utils.worlds import emojiworld, everyday, grammar, toyworld

WORDS = [*grammar.readable(toyworld)]


@pytest.fixture(scope="module")
def some():
    return swaps.swap_words(toyworld.sample(2, seed=3, split="test"), toyworld, seed=3)


def test_every_row_differs_from_its_base_in_one_word(some):
    table, images, masks = some
    assert len(table) == len(images) == len(masks) and not table.caption.duplicated().any()
    for _, rows in table.groupby("base"):
        base = vars(toyworld.parse(rows.caption.iloc[0]))
        for row in rows[1:].itertuples():
            words = vars(toyworld.parse(row.caption))
            assert [name for name in words if words[name] != base[name]] == [row.attribute]
            assert toyworld.split_of(toyworld.parse(row.caption)) != "held-out"
    assert set(table.attribute) == {"", *WORDS}


def test_any_world_that_draws_is_swapped_and_none_that_does_not():
    """EmojiWorld has 128 things; of each word MOST others are tried at most, and none is a held-out drawing."""
    (scene,) = emojiworld.sample(1, seed=1, split="test")
    table, images, masks = swaps.swap_words([scene], emojiworld, seed=1)
    assert len(images) == len(masks) == len(table) and set(table.attribute) == {"", *grammar.readable(emojiworld)}
    assert table.attribute.value_counts()["thing"] <= swaps.MOST
    assert {emojiworld.split_of(emojiworld.parse(text)) for text in table.caption[1:]} <= {"train", "test"}
    with pytest.raises(ValueError, match="draws nothing"):
        swaps.swap_words(everyday.sample(1), everyday)


def test_only_what_was_swapped_is_drawn_anew(some):
    """Another ground leaves the subject's mask, and its pixels but for the rim; another colour leaves the ground."""
    table, images, masks = some
    first = table.base == 0
    for name, inside in (("ground", True), ("colour", False)):
        for i in table.index[first & (table.attribute == name)]:
            assert (masks[i] == masks[0]).all()
            changed = (images[i].astype(int) != images[0]).any(-1)
            assert changed[masks[0] ^ inside].mean() > 0.5 > 0.15 > changed[masks[0] == inside].mean()


def test_a_planted_word_explains_its_channel(some):
    """A channel that follows the ground, one that follows light and half as much style, and one that never changes."""
    table, *_ = some
    words = [vars(toyworld.parse(text)) for text in table.caption]
    code = {name: np.array([toyworld.ATTRIBUTES[name].words.index(w[name]) for w in words], float) for name in WORDS}
    found = swaps.word_shares(np.stack([code["ground"], code["light"] * 2 + code["style"], 0 * code["size"]], 1), table)
    assert found[0].round(6).to_dict() == {name: float(name == "ground") for name in WORDS}
    assert found[1].light > found[1].style > 0 and found[1].sum() == pytest.approx(1)
    assert (found[2] == 0).all()


def test_words_are_read_off_levels_and_the_subject_off_patterns():
    """Channel 0 has a word as its level, channel 1 the subject as its pattern, without a level; channel 2 is noise."""
    rng = np.random.default_rng(0)
    words = pd.DataFrame({"ground": rng.integers(0, 3, 60), "shape": rng.integers(0, 3, 60)})
    subject = np.array([rng.permutation(12) < 4 for _ in range(60)])  # as many in each scene
    seen = rng.normal(size=(60, 12, 3))
    seen[..., 0] += 5 * words.ground.values[:, None]
    seen[..., 1] += 5 * subject
    found = swaps.read_words(seen, words, subject)
    assert list(found.index) == ["ground", "shape", "a token: subject?"]
    every = swaps.read_words(seen, words.assign(shape=range(60)), subject)
    assert np.isnan(every["shape"]) and every["ground"] == found["ground"], "a scene a word cannot be cross-validated"
    assert found["ground"] > 0.95 and found["a token: subject?"] > 0.95 and found["shape"] < 0.6
    planted = seen.copy()
    planted[..., 1] -= planted[..., 1].mean(1, keepdims=True)
    assert swaps.read_words(planted, words, subject)["a token: subject?"] == found["a token: subject?"]

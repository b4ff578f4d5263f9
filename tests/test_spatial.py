"""What a caption says of the tokens, without a look at any channel."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import massact_utils as mu
from massact_utils.experiments import spatial
from massact_utils.measures.masks import coverage, iou
from massact_utils.probes.attention import word_positions
from massact_utils.worlds import emojiworld, everyday, grammar, toyworld
from massact_utils.worlds.table import TableWorld
from tiny import pixart

GRID = (6, 9)


def test_the_captions_mask_is_nearer_to_its_own_renders_than_to_anothers():
    texts = [f"a large red square at the {place} on a blue plain ground" for place in ("left", "right")]
    drawn = [toyworld.render([toyworld.parse(text)] * 8, seed=5)[1]["subject"] for text in texts]
    drawn = [coverage(mask, GRID) > 0.5 for mask in drawn]
    likely = spatial.caption_masks(texts, toyworld, GRID)
    overlap = [[np.mean([iou(mask, one) for one in some]) for some in drawn] for mask in likely]
    assert min(overlap[0][0], overlap[1][1]) > 0.5 > max(overlap[0][1], overlap[1][0])


@pytest.mark.parametrize(
    "text, world",
    [
        ("a small red star at the left on a blue plain ground lit from above", toyworld),
        ("a small fox at the left on a blue plain ground, in Noto style", emojiworld),
        ("a fox on a beach", everyday),
        ("a wet dog", None),
    ],
)
def test_an_open_layout_names_neither_size_nor_place_and_the_rest_as_it_was(text, world):
    told = spatial.open_layout(text, world)
    assert told == text.replace("small ", "").replace("at the left ", "") == spatial.open_layout(told, world)


def test_words_of_subject_and_ground_are_found_in_captions_of_any_world():
    table = pd.DataFrame({"caption": ["A Fox in the snow"], "subject": ["fox"], "ground": ["in the snow"]})
    texts = {
        "a small red star at the left on a blue plain ground": (toyworld, "red star", "blue plain ground"),
        "an owl with a fox on an orange plain ground": (emojiworld, "owl", "orange plain ground"),
        "A Fox in the snow": (TableWorld(table), "Fox", "in the snow"),
    }
    pipe = mu.load("toy", device="cpu")
    for text, (world, *words) in texts.items():
        scene = world.parse(text)
        for part, said in zip(("subject", "ground"), words, strict=True):
            found = spatial._positions(pipe, text, grammar.phrases(world, scene, part))
            assert found == word_positions(pipe, text, said), text
    scene = everyday.parse("photo of a red car in the snow at night")
    assert grammar.phrases(everyday, scene, "subject") == ["red", "car"]
    assert grammar.phrases(everyday, scene, "ground") == ["in the snow"]


def test_a_model_or_a_caption_that_tells_of_no_words_has_no_attention():
    table = TableWorld(pd.DataFrame({"caption": ["an owl"], "subject": ["owl"], "ground": [None]}))
    for pipe, text, world in ((mu.load("toy"), "an owl", table), (pixart().pipe, "a fox on a beach", everyday)):
        with spatial.subject_attention(pipe, [text], world) as heat:
            assert heat == {}


def test_tokens_of_one_thing_lie_together_where_channels_tell_of_it(tmp_path):
    """Two channels are planted in the subject's tokens, two are noise; a second call reads what the first left."""
    rng = np.random.default_rng(0)
    subject = np.zeros((6, 24, 36), bool)
    subject[:, 4:16, 8:24] = True
    tokens = rng.normal(size=(6, 54, 8)).astype(np.float32)
    tokens[:, :, :2] += 9 * (coverage(subject, GRID) > 0.5).reshape(6, 54, 1)

    def look(batch, read, steps):
        for layer in (0, 1):
            read(torch.as_tensor(layer * tokens), SimpleNamespace(layer=layer, branch="cond", grid=GRID))
        return None, {"subject": subject}

    run, sets = mu.Run(tmp_path, {"model": "toy"}), {"seeing": [0, 1], "blind": [5, 6]}
    points, purity = spatial.embedded(run, look, ["a"] * 6, sets, layer=1, step=0)
    found = purity.set_index(["set", "by"])
    assert found.purity["seeing", "channels"] == 1 and found.purity["blind", "channels"] < 0.65
    assert found.purity["seeing", "UMAP"] == 1 and found.trustworthiness.between(0.5, 1).all()
    assert set(points.thing) == {"subject", "ground"} and points.groupby(["set", "by"]).size().nunique() == 1
    assert spatial.embedded(run, None, ["a"] * 6, sets, layer=1, step=0)[1].equals(purity)

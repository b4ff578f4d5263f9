"""The embedded model: what its card says, and what a user relies on when he loads it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import massact_utils as mu
from massact_utils.worlds import toyworld

TOY = Path(__file__).parents[1] / "data" / "toy"
FAST = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def pipe():
    return mu.load("toy")


def hooks(pipe):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules())


def test_it_loads_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(mu.load("toy")).__name__ == "Flux2KleinPipeline"


def test_its_grid_and_blocks(pipe):
    seen = []
    with mu.attach(pipe, lambda tokens, site: seen.append((tokens.shape[1:], site.grid)), layers=0, branch="cond"):
        mu.generate(pipe, "a large red star at the left on a blue striped ground", num_inference_steps=2)
    assert set(seen) == {((144, 192), (12, 12))}
    assert [block.kind for block in mu.blocks(pipe)] == ["dual"] * 2 + ["single"] * 6


def test_an_identity_probe_leaves_every_image_bit_identical(pipe):
    prompts = [toyworld.caption(scene) for scene in toyworld.sample(4, seed=9)]
    plain = mu.generate(pipe, prompts, seeds=[0, 1, 2, 3], **FAST)
    with mu.attach(pipe, lambda tokens, site: tokens.clone(), mu.ChannelStats()):
        probed = mu.generate(pipe, prompts, seeds=[0, 1, 2, 3], **FAST)
    assert all(np.array_equal(a, b) for a, b in zip(plain, probed, strict=True))


def test_no_hook_remains_after_an_error_in_a_probe(pipe):
    def broken(tokens, site):
        raise ZeroDivisionError

    before = hooks(pipe)
    with pytest.raises(ZeroDivisionError), mu.attach(pipe, broken):
        assert hooks(pipe) > before
        mu.generate(pipe, "a small green cross at the top on a red plain ground", **FAST)
    assert hooks(pipe) == before


def test_the_caption_decides_the_picture(pipe):
    """Same noise, two captions: the ground's colour is the one asked for."""
    ask = "a small white ring at the centre on a {} plain ground in flat style"
    red, blue = (np.asarray(i, float).mean((0, 1)) for i in mu.generate(pipe, [ask.format(c) for c in ("red", "blue")]))
    assert red.argmax() == 0 and blue.argmax() == 2


def test_the_card_holds_what_was_measured():
    figures, card = json.loads((TOY / "metrics.json").read_text()), (TOY / "README.md").read_text()
    for name, met in figures["goals met"].items():
        split, word = ("held-out", "shape") if name.endswith("pairs") else ("test", name)
        value = figures["generated"][split][word]
        assert met == (value >= figures["goals"][name])
        assert split == "held-out" or f"| {name} | {figures['goals'][name]:.3f} | {value:.3f} |" in card
    assert f"mIoU {figures['mIoU of the caption alone']:.2f}" in card


def test_training_left_its_records():
    emergence = pd.read_parquet(TOY / "emergence.parquet")
    assert list(emergence.columns) == ["step", "layer", "sigma", "channel", "mean_abs"]
    assert emergence.step.nunique() >= 30 and emergence.layer.nunique() == 8 and emergence.channel.nunique() == 192
    assert not emergence.duplicated(["step", "layer", "sigma", "channel"]).any() and emergence.mean_abs.notna().all()
    losses = pd.read_parquet(TOY / "losses.parquet")
    assert losses.step.is_monotonic_increasing and losses.loss.tail(20).mean() < losses.loss.head(20).mean() / 2


def test_it_is_small():
    sizes = {path: path.stat().st_size for path in TOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert sum(sizes.values()) <= 30 * 2**20
    assert sizes[TOY / "emergence.parquet"] <= 3 * 2**20
    assert not [path for path in sizes if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]


def test_no_local_path_is_published():
    configs = [path for path in TOY.rglob("*.json") if path.is_file()]
    assert configs and not [path for path in configs if '_or_path": "/' in path.read_text()]

"""The four notebooks run to the end on a model's true width with random weights, and say what that takes."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import massact_utils as mu

ROOT = Path(__file__).parents[1]
MODELS = ["flux.1-dev", "flux.1-schnell", "flux.2-klein-4b", "qwen-image", "sana-1.5-1.6b", "sd3.5-medium"]
LONG = [pytest.mark.slow, pytest.mark.rehearsal]
SMALL = [  # two streams at width 3072, 7 minutes of one core; a doubled batch and linear attention
    pytest.param("flux.2-klein-4b", 2, 64, marks=LONG),
    pytest.param("sana-1.5-1.6b", 2, 64, marks=LONG),
]


@pytest.mark.parametrize("model, depth, tokens", SMALL)
def test_a_rehearsal_runs_all_four_notebooks(tmp_path, model, depth, tokens):
    command = [
        sys.executable,
        "benchmarks/rehearsal.py",
        model,
        "--depth",
        depth,
        "--tokens",
        tokens,
        "--out",
        tmp_path,
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "rehearsal.csv")
    assert table.notebook.str[:2].tolist() == ["01", "02", "03", "04"] and set(table.tokens) == {tokens}
    assert (table["peak bytes"] > table.parameters * 2).all(), "a notebook held less than the weights it ran on"
    for notebook in table.notebook:
        folder = tmp_path / "runs" / notebook
        claims = json.loads((folder / "claims.json").read_text())
        assert claims and {row["model"] for row in claims} == {model}
        assert (folder / f"{notebook}.html").exists()
    index = json.loads((tmp_path / model / "model_index.json").read_text())
    config = json.loads((tmp_path / model / "transformer" / "config.json").read_text())
    assert config["_class_name"] == index["transformer"][1]


WIDTHS = dict(zip(MODELS, [3072, 3072, 3072, 3072, 2240, 1536], strict=True))
BLOCKS = dict(zip(MODELS, [57, 57, 25, 60, 20, 24], strict=True))
BILLIONS = dict(zip(MODELS, [11.9, 11.9, 3.9, 20.4, 1.6, 2.2], strict=True))  # as commonly given


@pytest.mark.parametrize("model", MODELS)
def test_stand_ins_have_the_true_shape(model, monkeypatch):
    """Built without memory: blocks, widths and the number of parameters that are commonly given."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import standins

    pipe = standins.build(model, device="meta")
    found = mu.blocks(pipe)
    assert len(found) == BLOCKS[model] and {block.width for block in found} == {WIDTHS[model]}
    assert sum(p.numel() for p in pipe.transformer.parameters()) / 1e9 == pytest.approx(BILLIONS[model], rel=0.03)
    reduced = mu.blocks(standins.build(model, 2, device="meta"))
    assert len(reduced) == 4 and {block.width for block in reduced} == {WIDTHS[model]}

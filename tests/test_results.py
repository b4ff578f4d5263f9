"""docs/results.md is what the notebooks write: every file, table and column."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image

import massact_utils as mu
from massact_utils.measures import evaluators, statistics, transfer
from massact_utils.measures import images as measures_of_images
from massact_utils.results import claims
from massact_utils.worlds import toyworld

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs/evidence/toy"
sys.path.insert(0, str(EVIDENCE.parent))
import digest  # noqa: E402

GUIDE = (ROOT / "docs" / "results.md").read_text()
SECTIONS = dict(re.findall(r"^## (0\d_\w+)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb") if "mu.Run(" in path.read_text())


def columns(section):
    """The guide's tables: {file: ({columns always there}, {those of toy only})}, `...` for any."""
    found = {}
    for heading, table in re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL):
        rows = [re.match(r"\| (.*?) \|", line)[1] for line in table.splitlines() if re.match(r"\| (`|\.\.\.)", line)]
        always = {name for row in rows if "toy only" not in row for name in re.findall(r"`(.+?)`|(\.\.\.)", row)}
        toy = {name for row in rows if "toy only" in row for name in re.findall(r"`(.+?)`", row)}
        for file in re.findall(r"`([\w/]+\.(?:parquet|nc))`", heading):
            found[file] = {a or b for a, b in always}, toy
    return found


def code(stem):
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return re.sub(r"^( *)%.*", r"\1pass", source, flags=re.MULTILINE)


def saved(source):
    """The names under which code saves, as far as they are fixed, and the names of its loops."""
    names, loops = set(), set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        done = ast.unparse(call.func)
        if done in ("run.save", "run.path", "results.save", "results.path"):
            words = [part.value for part in ast.walk(call.args[0]) if isinstance(part, ast.Constant)]
            names |= set(words[:1])  # none: a variable, for figures in a loop
        elif done.endswith(".pending"):
            given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg == "name"}
            loops.add(given.get("name", "part"))
    return names, loops


def experiments(source):
    """The names of the experiments that code uses."""
    imported = re.findall(r"from massact_utils\.experiments import (.*)", source)
    return {*re.findall(r"experiments\.(\w+)\.", source), *re.findall(r"\w+", " ".join(imported))}


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_file_that_a_notebook_saves_is_in_the_guide(stem):
    names, loops = saved(code(stem))
    for room in experiments(code(stem)):
        more = saved((ROOT / f"massact_utils/experiments/{room}.py").read_text())
        names, loops = names | more[0], loops | more[1]
    told = set(re.findall(r"`([\w/=.,{} -]+)`", SECTIONS[stem] + GUIDE.partition("## 01")[0]))
    stems = {re.sub(r"\.\w+$", "", name) for name in told}
    for name in names:
        fixed = re.split(r"[{.]", name)[0]
        assert any(word.startswith(fixed) for word in stems), f"{stem} saves {name}: tell of it in docs/results.md"
    assert loops == set(re.findall(r"`(\w+)`", re.search(r"Loops: (.*?)\.", SECTIONS[stem])[1]))


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_figure_of_the_guide_is_named_in_the_notebook(stem):
    words = re.sub("[_-]", " ", code(stem).lower())
    figures = re.findall(r"`(\w+)\.png`", SECTIONS[stem])
    assert figures and [name for name in figures if name.replace("_", " ") not in words] == []


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_published_tables_have_the_columns_of_the_guide(stem):
    """Evidence has the tables as Parquet, the axes of NetCDF as columns, and no pictures."""
    entry = json.loads((EVIDENCE / "provenance.json").read_text())[stem]
    if digest.digest(ROOT / "notebooks" / f"{stem}.ipynb", entry["parameters"]) != entry["digest"]:
        pytest.skip(f"the evidence of {stem} is of older code; `make evidence` computes it")
    tables = columns(SECTIONS[stem])
    for file in EVIDENCE.joinpath(stem).glob("*.parquet"):
        always, toy = tables.get(file.name) or tables[f"{file.stem}.nc"]
        here = set(pd.read_parquet(file).columns)
        assert always - {"...", "png"} <= here, file
        assert "..." in always or here <= always | toy, (file, here - always - toy)


def test_the_view_of_03_shows_the_masks_of_its_own_images():
    """One in ten of all layers, steps and sets fits its subject by half; with other images' record by a third."""
    page = (ROOT / "notebooks/03_spatial_clustering.ipynb").read_text()
    fits = [float(fit) for fit in re.findall(r"the hotter of two clusters: IoU (\d\.\d+)", page)]
    if not fits:
        pytest.skip("the committed notebook was executed before it had this view; run `make notebooks`")
    assert np.quantile(fits, 0.9) > 0.5


def test_tables_that_the_package_makes_have_the_columns_of_the_guide(tmp_path):
    words = [
        "a large red star at the left on a blue plain ground",
        "a small green circle at the top on a red plain ground",
    ]
    pictures, masks, _ = toyworld.render([toyworld.parse(text) for text in words], seed=0)
    masks = masks["subject"]
    images = [Image.fromarray(picture) for picture in pictures]
    scores = xr.DataArray(
        np.random.default_rng(0).random((3, 24)), dims=("layer", "channel"), coords={"layer": range(3)}
    )
    always, toy = columns(SECTIONS["02_disruption"])["arms.parquet"]
    renamed = {"low_error": "layout lost", "high_error": "detail lost"}
    assert set(measures_of_images.compare(images, images, words, others=words).rename(columns=renamed)) <= always
    assert set(evaluators.attributes_right(images, words, toyworld)) | set(evaluators.TOPICS) == toy
    table = transfer.measure(images, (words, words[::-1]), (images, images[::-1]), masks, world=toyworld)
    assert set(table) | {"name", "pair", "png", "share"} == set.union(
        *columns(SECTIONS["04_transport"])["reported.parquet"]
    )
    assert (
        set(statistics.by_layer(scores, 4).assign(kind="dual").reset_index())
        == columns(SECTIONS["01_statistics"])["layers.parquet"][0]
    )
    run = mu.Run(tmp_path, {"model": "toy"})
    run.claim("03.a", 0.5, 0.4, 0.6, threshold=0)
    fields = re.search(r"^### `claims.json`.*?(?=^A record)", GUIDE, re.MULTILINE | re.DOTALL)[0]
    named = [
        name for line in re.findall(r"^\| (`.*?) \|", fields, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    ]
    assert list(pd.read_json(tmp_path / "claims.json").columns) == claims.FIELDS
    assert set(named) == set(claims.FIELDS)


def test_the_guides_example_reads_results(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    run = mu.Run(tmp_path / "runs/workbook/03_spatial_clustering", {"model": "toy"})
    run.claim("03.a", threshold=0)
    run.claim("03.a", 0.5, 0.4, 0.6, n=20)
    (run.folder / "provenance.json").write_text('{"model": {"name": "toy"}}')
    dims = {"image": [0, 1], "rule": ["heat", "oracle"], "arm": ["top"], "layer": [0, 3], "step": [5]}
    run.save("overlaps", xr.DataArray(np.ones((2, 2, 1, 2, 1)), dims, name="iou"))
    run.save("masks/0", Image.fromarray(np.eye(4, dtype=bool)))
    run.save("purity", pd.DataFrame({"set": ["top 12"], "purity": [0.5]}))
    record = mu.Record(k=2)
    record(torch.randn(1, 16, 8), mu.Site(3, "blocks.3", "single", 5, 1.0, "cond", (4, 4), range(1), 0))
    record.save(run.path("records/0.safetensors"))
    exec(example, names := {})
    assert names["best"].shape == (2, 1) and names["mask"].size == (4, 4) and names["model"] == {"name": "toy"}
    assert names["record"]["values.5.3"].shape == (1, 16, 2)
    assert names["record"]["ids.5.3"].shape == (1, 2)
    assert Path("purity.csv").read_text() == "set,purity\ntop 12,0.5\n"

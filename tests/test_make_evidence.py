"""`make evidence` leaves the same tables whatever happens between, and checks those that are there."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nbformat.v4 import new_code_cell, new_notebook

import massact_utils as mu
import tiny
from massact_utils.results import files as results_files
from massact_utils.results import sweep

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "docs" / "evidence")]
import check  # noqa: E402
import ledger  # noqa: E402
import make  # noqa: E402

MAKE = ROOT / "docs" / "evidence" / "make.py"
PARAMETERS = """model: str = "toy"  # a model
n_prompts: int = 4  # prompts
seed: int = 0  # noise
out_dir: str = ""  # results"""
RUN = """import time
import numpy as np
import pandas as pd
import xarray as xr
import massact_utils as mu
parameters = mu.parameters.read(globals())
run = mu.Run(out_dir, parameters)
run.claim("02.above", measure="a number", sentence="It is above.", threshold=0)
scale = 1
for batch in run.pending([f"map {i}" for i in range(n_prompts)], 2, name="maps"):
    maps = np.stack([np.random.default_rng(seed).normal(size=(3, 5)) for seed in batch.seeds])
    run.add(batch, xr.Dataset({"maps": (("image", "layer", "token"), scale * maps)}))
# next cell
for batch in run.pending([f"prompt {i}" for i in range(n_prompts)], 2):
    time.sleep(0.3)
    numbers = [np.random.default_rng(seed).normal(5) for seed in batch.seeds]
    run.add(batch, pd.DataFrame({"image": batch.indices, "number": numbers, "png": [b"picture"] * len(batch)}))
# next cell
table = run.results()
run.save("table", table)
run.claim("02.above", *mu.measures.evidence.paired_interval(table.number), n=n_prompts)
print(run.compare_with_evidence())"""


def folder_with(tmp_path, n=16):
    """A repository with a stand-in for a notebook and its sizes."""
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in RUN.split("# next cell\n")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (tmp_path / "notebooks").mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / "02_stand_in.ipynb")
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    size = {"parameters": {"n_prompts": n}, "tables": {"part": "table"}}
    (tmp_path / "docs" / "evidence" / "sizes.json").write_text(
        json.dumps({"notebooks": {"02_stand_in": size}, "models": {}})
    )
    return tmp_path


def execute(notebook, out, n):
    """Its code in this process, where papermill and a kernel take a minute."""
    names = {"In": [PARAMETERS]}
    exec(PARAMETERS, names)
    names |= {"n_prompts": int(n), "out_dir": str(out)}
    for cell in nbformat.read(notebook, as_version=4).cells[1:]:
        exec(cell.source.replace("time.sleep(0.3)", ""), names)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Such a folder to work in, with its notebook executed in this process."""

    def main(words):
        notebook, _, out, *given = words
        try:
            execute(notebook, f"{out}/02_stand_in", given[given.index("n_prompts") + 1])
        except ZeroDivisionError:
            return 1
        return 0

    def again(job, folder, drawn, whole):
        try:
            execute(job.notebook, folder, job.given["n_prompts"])
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    monkeypatch.chdir(folder_with(tmp_path))
    monkeypatch.setattr(sweep, "main", main)
    monkeypatch.setattr(check, "_execute", again)
    return tmp_path


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entry(here):
    return results_files.read_json(here / "docs" / "evidence" / "toy" / "provenance.json")["02_stand_in"]


def changed(here, old, new):
    path = here / "notebooks" / "02_stand_in.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert any(old in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)


def test_a_second_time_does_nothing_and_says_so(here, monkeypatch, capfd):
    assert make.main(["toy"]) == 0
    folder = here / "docs" / "evidence" / "toy"
    before = files(here / "docs")
    table = pd.read_parquet(folder / "02_stand_in" / "table.parquet")
    assert list(table) == ["image", "number"] and len(table) == 16, "all rows, and no pictures"
    short = pd.read_parquet(folder / "02_stand_in" / "maps.parquet").set_index(["image", "layer"])
    expected = [np.random.default_rng(i).normal(size=(3, 5)).mean(1) for i in range(16)]
    np.testing.assert_allclose(short.maps.unstack(), expected, rtol=1e-5)
    (row,) = results_files.read_json(folder / "claims.json")
    assert (row["id"], row["n"], row["verdict"], row["model"]) == ("02.above", 16, "holds", "toy")
    made = entry(here)
    assert (made["parameters"]["n_prompts"], made["n"]) == (16, [16])
    assert made["tables"] == ["maps.parquet", "table.parquet"]
    assert made["libraries"]["torch"] and str(here) not in json.dumps(made)
    monkeypatch.setattr(sweep, "main", None)  # nothing is executed
    capfd.readouterr()
    assert make.main(["toy"]) == 0
    assert "Evidence on toy to make: none" in capfd.readouterr().out and files(here / "docs") == before


def test_code_that_computes_the_same_is_stamped(here, capfd):
    assert make.main(["toy"]) == 0
    before = entry(here)
    changed(here, "numbers = ", "values = numbers = ")
    assert [row["stale"] for row in ledger.rows(here)] == [True]
    assert make.main(["toy", "--check"]) == 0
    assert re.search(r"02_stand_in: 6 of 16 batches in \d.\d min, they agree", capfd.readouterr().out)
    assert entry(here) == before | {"digest": entry(here)["digest"], "checked": "6 of 16 batches"} != before
    assert [row["stale"] for row in ledger.rows(here)] == [False]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("normal(5)", "normal(5.1)", "batch part-00000, column 'number': 2 of 2 rows differ, as "),
        ("size=(3, 5)", "size=(5, 3)", "batch maps-00000, 4 of 10 rows have no counterpart, the first: {'image': '0'"),
        ("scale = 1", "scale = 2", "batch maps-00000, column 'maps': 6 of 6 rows differ"),
        ("batch.indices,", "[i + 90 for i in batch.indices],", "batch part-00000, 2 of 2 rows have no counterpart"),
        (
            "numbers = [",
            "numbers = 1 / 0 or [",
            "batch part-00000 was not computed: ZeroDivisionError: division by zero",
        ),
    ],
)
def test_what_computes_something_else_is_named_and_stays_stale(here, capfd, old, new, words):
    assert make.main(["toy"]) == 0
    before = entry(here)
    changed(here, old, new)
    assert make.main(["toy", "--check"]) == 1
    assert words in capfd.readouterr().out
    assert entry(here) == before and [row["stale"] for row in ledger.rows(here)] == [True]


def test_other_parameters_and_tables_without_rows_are_no_agreement(here, capfd):
    assert make.main(["toy"]) == 0
    sizes = here / "docs" / "evidence" / "sizes.json"
    sizes.write_text(sizes.read_text().replace('"n_prompts": 16', '"n_prompts": 20'))
    assert make.main(["toy", "--check"]) == 1 and "n_prompts = 16 then, 20 now" in capfd.readouterr().out
    sizes.write_text(sizes.read_text().replace('"n_prompts": 20', '"n_prompts": 16'))
    for table in here.glob("docs/evidence/toy/*/*.parquet"):
        table.unlink()
    assert make.main(["toy", "--check"]) == 1
    assert "no table holds its batches row by row" in capfd.readouterr().out


def test_rounding_is_no_difference_and_a_row_in_two_hundred_may_flip():
    known = pd.DataFrame(
        {"image": range(1000), "which": ["top", "bottom"] * 500, "right": 0.0, "lost": np.linspace(-1, 1, 1000)}
    )
    flipped = known.assign(right=[1.0] * 5 + [0.0] * 995, lost=known.lost + 5e-4).sample(frac=1, random_state=0)
    known.loc[999, "right"] = flipped.loc[999, "right"] = 1.0
    assert check.differences(known, flipped) == [] == check.differences(known, known.head(10))
    assert check.differences(known, flipped.assign(lost=known.lost + 0.01))[0].startswith("column 'lost': 1000 of 1000")
    flipped.loc[5, "right"] = 1.0
    assert check.differences(known, flipped) == ["column 'right': 6 of 1000 rows differ, as 1 from the table's 0"]
    assert "rows have no counterpart" in check.differences(known, known.assign(which="top"))[0]
    assert check.differences(known, known.assign(lost=np.nan))[0].startswith("column 'lost': 1000 of 1000")


@pytest.mark.slow
def test_a_check_executes_the_notebook_until_the_drawn_batches_are_there(tmp_path, monkeypatch):
    """With a kernel: a cell that fails on the others' empty parts is passed over, and what follows is not begun."""
    monkeypatch.chdir(folder_with(tmp_path))
    assert make.main(["toy"]) == 0
    path = tmp_path / "notebooks" / "02_stand_in.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(2, new_code_cell('assert run.results("maps").maps.shape == (16, 3, 5)'))
    nbformat.write(notebook, path)
    assert make.main(["toy", "--check"]) == 0
    (folder,) = tmp_path.glob("runs/evidence/toy/*/02_stand_in-check")
    assert entry(tmp_path)["checked"] == "6 of 16 batches"
    assert len(list(folder.glob("parts/maps-*.nc"))) == 3 and not list(folder.glob("table.*"))


@pytest.mark.faults
def test_killed_at_random_moments_it_ends_with_the_same_tables(tmp_path):
    """The whole command is killed twice, and its papermill and kernel die with it; then it runs to the end."""
    undisturbed, disturbed = (folder_with(tmp_path / name, n=12) for name in ("undisturbed", "disturbed"))
    command, moments = [sys.executable, str(MAKE), "toy"], random.Random(5)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=undisturbed, env=environment, check=True, capture_output=True)
    for more_than in (0, 2):
        process = subprocess.Popen(
            command, cwd=disturbed, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 600
        while len(list(disturbed.glob("runs/evidence/toy/*/02_stand_in/parts/*.parquet"))) <= more_than:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(moments.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (disturbed / "docs" / "evidence" / "toy").exists(), "it was over before the kill"
    before = len(list(disturbed.glob("runs/evidence/toy/*/02_stand_in/parts/*.parquet")))
    assert 3 <= before
    subprocess.run(command, cwd=disturbed, env=environment, check=True, capture_output=True)
    assert files(disturbed / "docs") == files(undisturbed / "docs")
    (table,) = disturbed.glob("docs/evidence/toy/02_stand_in/table.parquet")
    expected = [np.float32(np.random.default_rng(i).normal(5)) for i in range(12)]
    assert pd.read_parquet(table).number.tolist() == expected


def test_killed_while_it_keeps_there_is_no_evidence_and_then_there_is(here, monkeypatch):
    write = results_files.write
    with monkeypatch.context() as killed:
        killed.setattr(
            results_files,
            "write",
            lambda path, thing, **options: (
                1 / 0 if path.parts[-1:] == ("claims.json",) and "docs" in path.parts else write(path, thing, **options)
            ),
        )
        with pytest.raises(ZeroDivisionError):
            make.main(["toy"])
    assert ledger.rows(here) == []
    assert make.main(["toy"]) == 0 and [row["stale"] for row in ledger.rows(here)] == [False]


def test_tables_that_are_too_large_are_left_out_and_named(here, monkeypatch):
    monkeypatch.setattr(make, "EACH", 1000)
    assert make.main(["toy"]) == 0
    assert list((here / "docs" / "evidence" / "toy" / "02_stand_in").iterdir()) == []
    assert entry(here)["tables"] == [] and entry(here)["left out (bytes)"]["table.parquet"] > 1000
    assert ledger.rows(here)[0]["n"] == 16


def test_another_code_is_computed_anew_and_not_mixed(here):
    assert make.main(["toy"]) == 0
    changed(here, "normal(5)", "normal(9)")
    assert make.main(["toy"]) == 0
    (row,) = ledger.rows(here)
    assert not row["stale"] and row["value"] > 7 and len(list(here.glob("runs/evidence/toy/*"))) == 2


def test_a_notebook_that_fails_leaves_no_evidence_and_is_named(here, capfd):
    changed(here, "print(run.compare_with_evidence())", "1 / 0")
    assert make.main(["toy", "--to", "build"]) == 1
    assert "The evidence on toy in build/toy without 02_stand_in" in capfd.readouterr().out
    assert not list(here.glob("build/toy/*"))


@pytest.mark.slow
def test_a_column_for_a_tiny_flux_pipeline(tmp_path):
    """Notebooks themselves on a folder of FLUX.1, at sizes that show the way and nothing else."""
    (tmp_path / "notebooks").mkdir()
    call = {"call": {"height": 64, "width": 64, "num_inference_steps": 2}}
    tiny.random_clip(tmp_path / "clip")
    judge = {"evaluator": str(tmp_path / "clip")}
    sizes = {  # prompts and pairs are the model's own: everyday
        "01_statistics": call | {"n_prompts": 4, "n_seeds": 2},
        "02_disruption": call | judge | {"n_prompts": 8, "n_seeds": 2, "n_layers": 2},
        "04_transport": call | judge | {"n_report": 2},
    }
    for stem in sizes:
        shutil.copy(ROOT / "notebooks" / f"{stem}.ipynb", tmp_path / "notebooks")
    sizes = {stem: {"parameters": given | {"k": 4}} for stem, given in sizes.items()}
    (tmp_path / "sizes.json").write_text(json.dumps({"notebooks": sizes, "models": {}}))
    tiny.flux_whole().save_pretrained(tmp_path / "models" / "tiny-flux")
    command = [sys.executable, str(MAKE), str(tmp_path / "models" / "tiny-flux"), "--sizes", "sizes.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = tmp_path.glob("docs/evidence/tiny-flux*")
    made = results_files.read_json(folder / "provenance.json")
    assert list(made) == list(sizes) and str(tmp_path) not in json.dumps(made)
    for entry in made.values():
        assert entry["model"]["class"] == "FluxPipeline" and entry["model"]["weights"] and entry["tables"]
    arms = pd.read_parquet(folder / "02_disruption" / "arms.parquet")
    assert arms.groupby("image").seed.nunique().ge(2).all(), "two seeds of every prompt"
    rows = [row for row in results_files.read_json(folder / "claims.json") if row["id"] == "02.top-above-outside"]
    assert [(row["model"], row["n"]) for row in rows] == [(folder.name, 4)]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"02_stand_in": {"n_promts": 4}}, "02_stand_in has no parameter n_promts; .* may name: model, n_prompts"),
        ({"09_none": {}}, "sizes.json names 09_none, and there is no notebooks/09_none.ipynb"),
    ],
)
def test_sizes_that_are_none_are_named_before_anything_starts(tmp_path, monkeypatch, sizes, words):
    monkeypatch.chdir(folder_with(tmp_path))
    sizes = {stem: {"parameters": given} for stem, given in sizes.items()}
    with pytest.raises(ValueError, match=words):
        make.planned("toy", {"notebooks": sizes, "models": {}}, Path("runs"))


def test_the_sizes_decide_and_the_bundled_prompts_are_enough(monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = make.planned("toy", results_files.read_json(MAKE.with_name("sizes.json")), Path("runs"))
    asked = {job.stem: job.given for job in jobs}
    texts = {path.stem: path.read_text() for path in ROOT.glob("notebooks/*.ipynb")}
    claiming = {stem for stem, text in texts.items() if re.search(r"run\.(claim|answer)\b", text)}
    assert claiming == set(asked), "a notebook with claims has its size in docs/evidence/sizes.json"
    first, second = asked["01_statistics"], asked["02_disruption"]
    assert first["n_prompts"] >= 24 and first["n_seeds"] >= 4
    assert second["n_prompts"] >= 128 and second["n_seeds"] >= 3
    assert asked["03_spatial_clustering"]["n_prompts"] >= 160 and asked["04_transport"]["n_report"] >= 96
    for given in asked.values():
        assert len(mu.prompts.read(given.get("prompts", "toyworld"))) >= given.get("n_prompts", 1)
    pairs = mu.prompts.read_pairs("toyworld-pairs").split.value_counts()
    assert pairs["report"] >= asked["04_transport"]["n_report"]


def test_tables_are_long_and_without_pictures(tmp_path):
    run = mu.Run(tmp_path, {})
    arms = ["top", "outside", "bottom"]
    iou = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("image", "arm"), coords={"arm": arms})
    picture = xr.DataArray(np.zeros((2, 4, 4, 3)), dims=("image", "y", "x", "rgb"))
    table = check.tidy(run.save("overlaps", xr.Dataset({"iou": iou, "picture": picture})))
    assert list(table) == ["image", "arm", "iou"] and table.iou.tolist() == [0, 1, 2, 3, 4, 5]
    assert table.iou.dtype == np.float32 and table.arm.tolist() == arms * 2
    why = pd.DataFrame({"lost": [0.5]}, index=pd.Index(["top"], name="which"))
    assert list(check.tidy(run.save("why", why))) == ["which", "lost"]

"""`make evidence` leaves the same tables whatever happens between, and does nothing when they are there."""

import importlib.util
import json
import os
import random
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
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import massact_utils as mu
import tiny
from massact_utils.results import published, sweep

ROOT = Path(__file__).parents[1]
MAKE = ROOT / "docs" / "evidence" / "make.py"
SIZES = json.loads((MAKE.parent / "sizes.json").read_text())
specification = importlib.util.spec_from_file_location("make_evidence", MAKE)
make = importlib.util.module_from_spec(specification)
sys.modules["make_evidence"] = make  # dataclasses look there
specification.loader.exec_module(make)

PARAMETERS = """model: str = "toy"  # a model
n_prompts: int = 4  # prompts
seed: int = 0  # noise
out_dir: str = ""  # results"""
RUN = """import time
import numpy as np
import pandas as pd
import massact_utils as mu
parameters = mu.parameters.read(globals())
run = mu.Run(out_dir, parameters)
run.claim("02.above", measure="a number", sentence="It is above.", threshold=0)
for batch in run.pending([f"prompt {i}" for i in range(n_prompts)], 2):
    time.sleep(0.3)
    numbers = [np.random.default_rng(seed).normal(5) for seed in batch.seeds]
    run.add(batch, pd.DataFrame({"at": batch.indices, "number": numbers, "png": [b"picture"] * len(batch)}))
table = run.results()
run.save("table", table)
run.claim("02.above", *mu.evidence.paired_interval(table.number), n=n_prompts)
print(run.beside())"""


def folder_with(tmp_path, n=16):
    """A repository with a stand-in for a notebook, its sizes, and a README with a place for the table."""
    cells = [new_markdown_cell("# Does it run?"), new_markdown_cell("".join(published.BOX))]
    cells += [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(RUN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (tmp_path / "notebooks").mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / "02_stand_in.ipynb")
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    sizes = {"notebooks": {"02_stand_in": {"parameters": {"n_prompts": n}, "minutes": 1}}, "models": {}}
    (tmp_path / "docs" / "evidence" / "sizes.json").write_text(json.dumps(sizes))
    (tmp_path / "README.md").write_text("".join(published.TABLE))
    return tmp_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Such a folder to work in, where the stand-in's code runs in this process: papermill takes a minute for it."""

    def main(words):
        notebook, _, out, *given = words
        given = dict(zip(given[1::3], given[2::3], strict=True))
        cells = nbformat.read(notebook, as_version=4).cells
        names = {"In": [PARAMETERS]}
        exec(PARAMETERS, names)
        names |= {"model": given["model"], "n_prompts": int(given["n_prompts"]), "out_dir": f"{out}/02_stand_in"}
        try:
            exec(cells[3].source.replace("time.sleep(0.3)", ""), names)
        except ZeroDivisionError:
            return 1
        return 0

    monkeypatch.chdir(folder_with(tmp_path))
    monkeypatch.setattr(sweep, "main", main)
    return tmp_path


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_time_does_nothing_and_says_so(here, monkeypatch, capfd):
    assert make.main(["toy"]) == 0
    folder = here / "docs" / "evidence" / "toy"
    before = files(here / "docs")
    table = pd.read_parquet(folder / "02_stand_in" / "table.parquet")
    assert list(table) == ["at", "number"] and len(table) == 16, "all rows, and no pictures"
    (row,) = json.loads((folder / "claims.json").read_text())
    assert (row["id"], row["n"], row["verdict"], row["model"]) == ("02.above", 16, "holds", "toy")
    entry = json.loads((folder / "provenance.json").read_text())["02_stand_in"]
    assert (entry["parameters"]["n_prompts"], entry["n"], entry["tables"]) == (16, [16], ["table.parquet"])
    assert entry["libraries"]["torch"] and str(here) not in json.dumps(entry)
    page = (here / "docs" / "ledger.md").read_text()
    assert "The numbers on toy are from evidence." in page and "n = 16: holds |" in page
    box = nbformat.read(here / "notebooks" / "02_stand_in.ipynb", as_version=4).cells[1].source
    assert "It is above" in box and "n = 16: holds" in box

    monkeypatch.setattr(sweep, "main", None)  # nothing is executed
    capfd.readouterr()
    assert make.main(["toy"]) == 0
    assert capfd.readouterr().out.startswith("Nothing to do: the evidence on toy in docs/evidence/toy is of this code")
    assert files(here / "docs") == before


@pytest.mark.faults
def test_killed_at_random_moments_it_ends_with_the_same_tables(tmp_path):
    """The whole command is killed twice, and its papermill and kernel die with it; then it runs to the end."""
    undisturbed, disturbed = (folder_with(tmp_path / name, n=24) for name in ("undisturbed", "disturbed"))
    command, moments = [sys.executable, str(MAKE), "toy"], random.Random(5)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=undisturbed, env=environment, check=True, capture_output=True)
    for more_than in (0, 3):
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
    assert 4 <= before < 12
    subprocess.run(command, cwd=disturbed, env=environment, check=True, capture_output=True)
    assert files(disturbed / "docs") == files(undisturbed / "docs")
    (table,) = disturbed.glob("docs/evidence/toy/02_stand_in/table.parquet")
    expected = [np.float32(np.random.default_rng(i).normal(5)) for i in range(24)]
    assert pd.read_parquet(table).number.tolist() == expected


def test_killed_while_it_keeps_there_is_no_evidence_and_then_there_is(here, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(make.claims, "collect", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make.main(["toy"])
    assert published.evidence(here) == []
    assert make.main(["toy"]) == 0
    assert [row["made"] for row in published.evidence(here)] == ["evidence"]


def test_tables_that_are_too_large_are_left_out_and_named(here, monkeypatch):
    monkeypatch.setattr(make, "EACH", 1000)
    assert make.main(["toy"]) == 0
    folder = here / "docs" / "evidence" / "toy"
    assert list((folder / "02_stand_in").iterdir()) == []
    entry = json.loads((folder / "provenance.json").read_text())["02_stand_in"]
    assert entry["tables"] == [] and entry["left out (bytes)"]["table.parquet"] > 1000
    assert published.evidence(here)[0]["n"] == 16


def test_another_code_is_computed_anew_and_not_mixed(here):
    assert make.main(["toy"]) == 0
    path = here / "notebooks" / "02_stand_in.ipynb"
    path.write_text(path.read_text().replace("normal(5)", "normal(9)"))
    assert [row["made"] for row in published.evidence(here)] == ["stale"]
    assert make.main(["toy"]) == 0
    (row,) = published.evidence(here)
    assert row["made"] == "evidence" and row["value"] > 7
    assert len(list(here.glob("runs/evidence/toy/*"))) == 2


def test_a_notebook_that_fails_leaves_no_evidence_and_is_named(here, capfd):
    path = here / "notebooks" / "02_stand_in.ipynb"
    path.write_text(path.read_text().replace("print(run.beside())", "1 / 0"))
    assert make.main(["toy", "--to", "build"]) == 1
    assert "Failed: 02_stand_in; the others are in build/toy" in capfd.readouterr().out
    assert not list(here.glob("build/toy/*")) and (here / "README.md").read_text() == "".join(published.TABLE)


@pytest.mark.slow
def test_a_column_for_a_tiny_flux_pipeline(tmp_path):
    """Notebooks themselves on a folder of FLUX.1, at sizes that show the way and nothing else."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    known = [{name: row[name] for name in row if name != "made"} for row in published.ledger()]
    (tmp_path / "docs" / "claims.json").write_text(json.dumps(known))
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    call = {"call": {"height": 64, "width": 64, "num_inference_steps": 2}}
    sizes = {
        "01_statistics": call | {"n_prompts": 4, "n_seeds": 2},
        "02_disruption": call | {"n_prompts": 8, "n_seeds": 2, "n_layers": 2},
        "04_transport": call | {"n_tune": 2, "n_report": 2},
    }
    for stem in sizes:
        shutil.copy(ROOT / "notebooks" / f"{stem}.ipynb", tmp_path / "notebooks")
    sizes = {stem: {"parameters": given | {"k": 4}, "minutes": 1} for stem, given in sizes.items()}
    (tmp_path / "docs" / "evidence" / "sizes.json").write_text(json.dumps({"notebooks": sizes, "models": {}}))
    tiny.flux_whole().save_pretrained(tmp_path / "models" / "tiny-flux")
    command, one = [sys.executable, str(MAKE), str(tmp_path / "models" / "tiny-flux")], {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | one, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "docs" / "evidence" / "tiny-flux"
    made = json.loads((folder / "provenance.json").read_text())
    assert list(made) == list(sizes) and str(tmp_path) not in json.dumps(made)
    for entry in made.values():
        assert entry["model"]["class"] == "FluxPipeline" and entry["model"]["weights"] and entry["tables"]
    arms = pd.read_parquet(folder / "02_disruption" / "arms.parquet")
    assert arms.groupby("image").seed.nunique().ge(2).all(), "two seeds of every prompt"
    rows = [row for row in json.loads((folder / "claims.json").read_text()) if row["id"] == "02.top-above-outside"]
    assert [(row["model"], row["n"]) for row in rows] == [("tiny-flux", 4)]
    assert "| claim | whose | measured | toy | tiny-flux |" in (tmp_path / "README.md").read_text()
    assert "on tiny-flux: " in (tmp_path / "notebooks" / "02_disruption.ipynb").read_text()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout.startswith("Nothing to do: the evidence on tiny-flux")


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (
            {"02_stand_in": {"n_promts": 4}},
            "02_stand_in has no parameter n_promts; .* may name: model, n_prompts",
        ),
        ({"09_none": {}}, "sizes.json names 09_none, and there is no notebooks/09_none.ipynb"),
    ],
)
def test_sizes_that_are_none_are_named_before_anything_starts(tmp_path, monkeypatch, sizes, told):
    monkeypatch.chdir(folder_with(tmp_path))
    sizes = {stem: {"parameters": given, "minutes": 1} for stem, given in sizes.items()}
    with pytest.raises(ValueError, match=told):
        make.planned("toy", {"notebooks": sizes, "models": {}}, Path("runs"))


def test_the_sizes_decide_and_the_bundled_prompts_are_enough(monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = {job.notebook.stem: job for job in make.planned("toy", SIZES, Path("runs"))}
    claiming = {path.stem for path in ROOT.glob("notebooks/*.ipynb") if "run.claim(" in path.read_text()}
    assert claiming == set(jobs), "a notebook with claims has its size in docs/evidence/sizes.json"
    asked = {stem: job.given for stem, job in jobs.items()}
    first, second = asked["01_statistics"], asked["02_disruption"]
    assert first["n_prompts"] >= 24 and first["n_seeds"] >= 4
    assert second["n_prompts"] >= 128 and second["n_seeds"] >= 3
    assert asked["03_spatial_clustering"]["n_prompts"] >= 160 and asked["04_transport"]["n_report"] >= 96
    for given in asked.values():
        assert len(mu.prompts.read(given.get("prompts", "toyworld"))) >= given.get("n_prompts", 1)
    pairs = mu.prompts.read_pairs("toyworld-pairs").split.value_counts()
    assert pairs["report"] >= asked["04_transport"]["n_report"]
    assert sum(job.minutes for job in jobs.values()) <= 120


def test_the_time_left_counts_what_is_done_and_what_comes():
    job, later = (make.Job(Path(name), {}, "", minutes, Path()) for name, minutes in (("02.ipynb", 10), ("03", 30)))
    assert make.told(job, [later], 120, 0, 0, 0, None) == "02: 0 of 0 batches so far, 2 min; then 1 more"
    slow = make.told(job, [later], 300, 5, 10, 20, None)  # 5 min for a quarter of 10: twice as slow as planned
    assert slow == "02: 10 of 20 batches so far, 5 min; about 70 min left of all"
    assert make.told(job, [later], 0, 0, 10, 20, 3.0).endswith("about 105 min left of all")


def test_tables_are_long_and_without_pictures(tmp_path):
    run = mu.Run(tmp_path, {})
    arms = ["top", "outside", "bottom"]
    iou = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("image", "arm"), coords={"arm": arms})
    picture = xr.DataArray(np.zeros((2, 4, 4, 3)), dims=("image", "y", "x", "rgb"))
    table = make.tidy(run.save("overlaps", xr.Dataset({"iou": iou, "picture": picture})))
    assert list(table) == ["image", "arm", "iou"] and table.iou.tolist() == [0, 1, 2, 3, 4, 5]
    assert table.iou.dtype == np.float32 and table.arm.tolist() == arms * 2
    why = pd.DataFrame({"lost": [0.5]}, index=pd.Index(["top"], name="which"))
    assert list(make.tidy(run.save("why", why))) == ["which", "lost"]

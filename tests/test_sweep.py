"""Executing notebooks: parameters are checked before, results appear when complete."""

import json
import re
import subprocess
import sys

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from massact_utils.results import parameters, sweep

PARAMETERS = 'k: int = 12  # channels kept\nlayers: list[int] | None = None  # all\nout_dir: str = "out"  # results'
GUARD = "import massact_utils as mu\nparameters = mu.parameters.read(globals())"
RESULT = 'import json, pathlib\npathlib.Path(out_dir, "result.json").write_text(json.dumps(parameters))'


def write_notebook(path, *sources):
    """A notebook of a title, a parameters cell, and `sources`."""
    cells = [new_markdown_cell("# Does it run?"), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources], metadata=kernel), path)
    return str(path)


def listed(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_notebook_gets_its_parameters_a_folder_and_a_page(folder, capfd):
    notebook = write_notebook(folder / "good.ipynb", GUARD, RESULT, "1/0 if k == 0 else print('k is', k)")
    assert sweep.main([notebook, "--out", "runs", "-p", "k", "3"]) == 0
    out = folder / "runs" / "good"
    assert listed(out) == ["good.html", "good.ipynb", "result.json"]
    assert json.loads((out / "result.json").read_text()) == {"k": 3, "layers": None, "out_dir": "runs/good"}
    assert "k is 3" in (out / "good.html").read_text()
    assert "runs/good/good.html" in capfd.readouterr().out

    # A failure takes the old result away, names the notebook, and does not keep the others from running.
    other = write_notebook(folder / "other.ipynb", "out_dir")
    failing = write_notebook(folder / "good.ipynb", "raise RuntimeError('no such thing')")
    assert sweep.main([failing, other, "--out", "runs"]) == 1
    assert listed(out) == ["good.unfinished.ipynb", "result.json"]
    assert (folder / "runs" / "other" / "other.html").exists()
    assert "good.ipynb failed: RuntimeError: no such thing" in capfd.readouterr().out


def test_pictures_and_links_of_a_notebook_are_found_from_its_page(folder):
    (folder / "notebooks").mkdir(), (folder / "docs").mkdir()
    (folder / "docs" / "a.png").touch()
    path = write_notebook(folder / "notebooks" / "a.ipynb")
    notebook = nbformat.read(path, as_version=4)
    text = "![a picture](../docs/a.png) [b](b.ipynb#top) [paper](https://arxiv.org/abs/2605.13974) [here](#there)"
    notebook.cells.append(new_markdown_cell(text))
    nbformat.write(notebook, path)
    assert sweep.main(["notebooks/a.ipynb", "--out", "runs", "--grid", "k", "1"]) == 0
    (page,) = folder.glob("runs/a/*/a.html")
    (picture,) = re.findall(r'<img[^>]* src="([^"]+)"', page.read_text())
    assert (page.parent / picture).resolve() == folder / "docs" / "a.png"
    assert 'href="../../../notebooks/b.ipynb#top"' in page.read_text()
    assert 'href="https://arxiv.org/abs/2605.13974"' in page.read_text() and 'href="#there"' in page.read_text()


def test_a_list_is_a_parameter_too(folder):
    notebook = write_notebook(folder / "a.ipynb", GUARD, RESULT)
    assert sweep.main([notebook, "--out", "runs", "-p", "layers", "[1, 2]"]) == 0
    assert json.loads((folder / "runs" / "a" / "result.json").read_text())["layers"] == [1, 2]


def test_a_parameter_goes_to_the_notebooks_that_have_it(folder, capfd):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell("print('by itself')")], metadata=kernel), folder / "c.ipynb")
    notebook = write_notebook(folder / "a.ipynb", "print('k is', k)")
    assert sweep.main([notebook, "c.ipynb", "--out", "runs", "-p", "k", "3"]) == 0
    assert "c.ipynb has no parameter k and runs without it" in capfd.readouterr().out
    assert "k is 3" in (folder / "runs" / "a" / "a.html").read_text()


def test_a_killed_kernel_is_a_failure(folder, capfd):
    notebook = write_notebook(folder / "killed.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert sweep.main([notebook, "--out", "runs"]) == 1
    assert listed(folder / "runs" / "killed") == ["killed.unfinished.ipynb"]
    told = capfd.readouterr().out
    assert "killed.ipynb failed: exit code" in told and "runs/killed/killed.unfinished.ipynb" in told


def test_a_folder_that_takes_nothing_is_a_failure(folder, capfd):
    (folder / "runs").touch()
    assert sweep.main([write_notebook(folder / "a.ipynb", "k"), "--out", "runs"]) == 1
    assert "a.ipynb failed: NotADirectoryError" in capfd.readouterr().out


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["a.ipynb", "-p", "kk", "3"], "a.ipynb has no parameter kk; it has: k, layers, out_dir"),
        (["a.ipynb", "-p", "out_dir", "x"], "out_dir follows from --out"),
        (["a.ipynb", "b.ipynb"], "b.ipynb: no such notebook"),
        (["a.ipynb", "broken.ipynb"], "broken.ipynb: not a readable notebook"),
        (["a.ipynb", "sub/a.ipynb"], "two notebooks are called a.ipynb"),
        (["a.ipynb", "-p", "shard", "1/2"], "shard follows from --out and --shards"),
        (["a.ipynb", "-p", "k", "3", "--grid", "k", "1,2"], "k is given twice"),
        (["a.ipynb", "--grid", "kk", "1,2"], "a.ipynb has no parameter kk"),
        (["c.ipynb", "a.ipynb", "--grid", "k", "1,2"], "c.ipynb has no parameter k; it has: none"),
        (["c.ipynb", "a.ipynb", "-p", "kk", "3"], "c.ipynb has no parameter kk; it has: none"),
        (["a.ipynb", "--shards", "0"], "--shards and --workers take 1 or more"),
        (["a.ipynb", "--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], "--scheduler has workers of its own"),
    ],
)
def test_bad_input_starts_nothing(folder, capsys, words, complaint):
    write_notebook(folder / "a.ipynb", "k")
    nbformat.write(new_notebook(), folder / "c.ipynb")
    (folder / "broken.ipynb").write_text("{")
    (folder / "sub").mkdir()
    write_notebook(folder / "sub" / "a.ipynb", "k")
    with pytest.raises(SystemExit) as stop:
        sweep.main([*words, "--out", "runs"])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_parameters_are_the_declared_names_with_their_present_values():
    cells = ["", "import numpy", "k: int = 12\nseed: int = 0", "# Parameters\nk = 4\n", "def broken(", "width = 3"]
    assert parameters.read({"In": cells, "k": 4, "seed": 0, "width": 3}) == {"k": 4, "seed": 0}


def test_an_unknown_parameter_is_named_with_the_declared_ones():
    cells = ["", "k: int = 12\nseed: int = 0", "# Parameters\nkk = 4\nseed = 1"]
    with pytest.raises(ValueError, match=r"unknown parameter kk; this notebook declares: k, seed"):
        parameters.read({"In": cells, "k": 12, "kk": 4, "seed": 1})


def test_parameters_needs_a_notebook_and_a_parameters_cell():
    with pytest.raises(RuntimeError, match=r"in a notebook"):
        parameters.read({"k": 12})
    with pytest.raises(RuntimeError, match=r"run the parameters cell first"):
        parameters.read({"In": ["", "k = 12"], "k": 12})


def test_papermill_itself_stops_at_a_misspelt_parameter(folder):
    notebook = write_notebook(folder / "a.ipynb", GUARD, "print(parameters)")
    with pytest.raises(papermill.PapermillExecutionError, match=r"unknown parameter kk; this notebook declares: k,"):
        papermill.execute_notebook(notebook, "out.ipynb", parameters={"kk": 3}, progress_bar=False)
    done = papermill.execute_notebook(notebook, "out.ipynb", parameters={"k": 3}, progress_bar=False)
    assert done.cells[-1].outputs[0].text == "{'k': 3, 'layers': None, 'out_dir': 'out'}\n"


def test_parameters_where_in_recalls_nothing():
    """nbval runs cells without history; their annotations still stand in the namespace."""
    namespace = {"In": [""], "__annotations__": {"k": int}, "k": 3}
    assert parameters.read(namespace) == {"k": 3}


LOOPS = """import massact_utils as mu
import pandas as pd
run = mu.Run(out_dir, parameters)
for batch in run.pending([f"prompt {i}" for i in range(9)], 2, name="first"):
    run.add(batch, pd.DataFrame({"at": batch.indices}))
shift = run.results("first")["at"].sum() * k  # needs every shard's part
for batch in run.pending([f"prompt {i}" for i in range(9)], 3, name="second"):
    run.add(batch, pd.DataFrame({"at": batch.indices, "value": [i + shift for i in batch.indices]}))
run.results("second").to_csv(run.path("table.csv"))"""


def test_shards_of_a_notebook_with_two_loops_are_the_whole(folder):
    """The second loop of every shard needs the first one's table, so shards go in rounds."""
    notebook = write_notebook(folder / "two.ipynb", GUARD, LOOPS)
    assert sweep.main([notebook, "--out", "runs", "--grid", "k", "2", "--shards", "2"]) == 0
    out = folder / "runs" / "two" / "k=2"
    lines = [f"{i},{i},{i + 2 * 36}" for i in range(9)]
    assert (out / "table.csv").read_text().split() == [",at,value", *lines]
    assert listed(out / "shards") == ["two.1-of-2.ipynb", "two.2-of-2.ipynb"] and (out / "two.html").exists()


def test_executed_to_the_end_without_all_results_is_a_failure(folder, capfd):
    notebook = write_notebook(
        folder / "lazy.ipynb", GUARD, LOOPS.replace("    run.add(batch", "    batch.index or run.add(batch", 1)
    )
    assert sweep.main([notebook, "--out", "runs"]) == 1
    told = capfd.readouterr().out
    assert "lazy.ipynb failed" in told and "1 of 5 batches of 'first' are on disk: run the loop to its end" in told


def test_without_dask_several_workers_are_refused_and_one_does_its_work(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit):
        sweep.main([write_notebook(folder / "a.ipynb", "k"), "--out", "runs", "--workers", "2"])
    assert "pip install 'massact[batch]'" in capsys.readouterr().err


def test_nothing_imports_dask_unless_asked():
    code = "import sys, massact_utils.sweep; print({'dask', 'distributed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_grid_on_two_local_workers(folder, capfd):
    pytest.importorskip("distributed")
    notebook = write_notebook(folder / "a.ipynb", "print('k is', k)", "1 / (k - 3)")
    assert sweep.main([notebook, "--out", "runs", "--grid", "k", "1,2,3", "--workers", "2", "--retries", "1"]) == 1
    told = capfd.readouterr().out
    assert "Dask dashboard: http" in told
    assert "a.ipynb k=3 failed (2 times): ZeroDivisionError: division by zero" in told
    assert "runs/a/k=3/a.unfinished.ipynb" in told
    for k in (1, 2):
        assert f"k is {k}" in (folder / "runs" / "a" / f"k={k}" / "a.html").read_text()


def test_an_error_whose_name_begins_alike_is_no_waiting_shard(folder, capfd):
    code = "import http.client\nraise http.client.IncompleteRead(b'')"
    notebook = write_notebook(folder / "read.ipynb", code)
    assert sweep.execute(notebook, "runs", [], shard="1/2", quiet=True).state == "failed"
    waits = write_notebook(folder / "waits.ipynb", "import massact_utils as mu\nraise mu.results.Incomplete('others')")
    assert sweep.execute(waits, "runs", [], shard="1/2", quiet=True).state == "waiting"
    assert sweep.execute(waits, "runs", [], quiet=True).state == "failed"

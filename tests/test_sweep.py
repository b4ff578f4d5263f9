"""Executing notebooks: parameters are checked before, results appear when complete."""

import json

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from massact_utils import runs, sweep

PARAMETERS = 'k: int = 12  # channels kept\nlayers: list[int] | None = None  # all\nout_dir: str = "out"  # results'
GUARD = "from massact_utils import runs\nparameters = runs.parameters(globals())"
RESULT = 'import json, pathlib\npathlib.Path(out_dir, "result.json").write_text(json.dumps(parameters))'


def write_notebook(path, *sources):
    """A notebook of a title, a parameters cell, and `sources`."""
    cells = [new_markdown_cell("# Does it run?"), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources], metadata=kernel), path)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_notebook_gets_its_parameters_a_folder_and_a_page(folder, capfd):
    notebook = write_notebook(folder / "good.ipynb", GUARD, RESULT, "1/0 if k == 0 else print('k is', k)")
    assert sweep.main([notebook, "--out", "runs", "-p", "k", "3"]) == 0
    out = folder / "runs" / "good"
    assert sorted(p.name for p in out.iterdir()) == ["good.html", "good.ipynb", "result.json"]
    assert json.loads((out / "result.json").read_text()) == {"k": 3, "layers": None, "out_dir": "runs/good"}
    assert "k is 3" in (out / "good.html").read_text()
    assert "runs/good/good.html" in capfd.readouterr().out

    # A failure takes the old result away, names the notebook, and does not keep the others from running.
    other = write_notebook(folder / "other.ipynb", "out_dir")
    failing = write_notebook(folder / "good.ipynb", "raise RuntimeError('no such thing')")
    assert sweep.main([failing, other, "--out", "runs"]) == 1
    assert sorted(p.name for p in out.iterdir()) == ["good.unfinished.ipynb", "result.json"]
    assert (folder / "runs" / "other" / "other.html").exists()
    assert "good.ipynb failed (exit code 1)" in capfd.readouterr().out


def test_a_killed_kernel_is_a_failure(folder, capfd):
    notebook = write_notebook(folder / "killed.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert sweep.main([notebook, "--out", "runs"]) == 1
    assert [p.name for p in (folder / "runs" / "killed").iterdir()] == ["killed.unfinished.ipynb"]


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["a.ipynb", "-p", "kk", "3"], "a.ipynb has no parameter kk; it has: k, layers, out_dir"),
        (["a.ipynb", "-p", "out_dir", "x"], "out_dir follows from --out"),
        (["a.ipynb", "b.ipynb"], "b.ipynb: no such notebook"),
        (["a.ipynb", "broken.ipynb"], "broken.ipynb: not a readable notebook"),
        (["a.ipynb", "sub/a.ipynb"], "two notebooks are called a.ipynb"),
    ],
)
def test_bad_input_starts_nothing(folder, capsys, words, complaint):
    write_notebook(folder / "a.ipynb", "k")
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
    assert runs.parameters({"In": cells, "k": 4, "seed": 0, "width": 3}) == {"k": 4, "seed": 0}


def test_an_unknown_parameter_is_named_with_the_declared_ones():
    cells = ["", "k: int = 12\nseed: int = 0", "# Parameters\nkk = 4\nseed = 1"]
    with pytest.raises(ValueError, match=r"unknown parameter kk; this notebook declares: k, seed"):
        runs.parameters({"In": cells, "k": 12, "kk": 4, "seed": 1})


def test_parameters_needs_a_notebook_and_a_parameters_cell():
    with pytest.raises(RuntimeError, match=r"in a notebook"):
        runs.parameters({"k": 12})
    with pytest.raises(RuntimeError, match=r"run the parameters cell first"):
        runs.parameters({"In": ["", "k = 12"], "k": 12})


def test_papermill_itself_stops_at_a_misspelt_parameter(folder):
    notebook = write_notebook(folder / "a.ipynb", GUARD, "print(parameters)")
    with pytest.raises(papermill.PapermillExecutionError, match=r"unknown parameter kk; this notebook declares: k,"):
        papermill.execute_notebook(notebook, "out.ipynb", parameters={"kk": 3}, progress_bar=False)
    done = papermill.execute_notebook(notebook, "out.ipynb", parameters={"k": 3}, progress_bar=False)
    assert done.cells[-1].outputs[0].text == "{'k': 3, 'layers': None, 'out_dir': 'out'}\n"


def test_parameters_where_in_recalls_nothing():
    """nbval runs cells without history; their annotations still stand in the namespace."""
    namespace = {"In": [""], "__annotations__": {"k": int}, "k": 3}
    assert runs.parameters(namespace) == {"k": 3}

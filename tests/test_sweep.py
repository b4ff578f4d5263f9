"""Executing notebooks: parameters are checked before, results appear when complete, pages lead to pages."""

import json
import signal
import subprocess
import sys
import time
from functools import partial

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from massact_utils.results import pages, parameters, sweep

PARAMETERS = 'k: int = 12  # channels kept\npicks: list[int] | None = None  # all\nout_dir: str = "out"  # results'
GUARD = "import massact_utils as mu\nparameters = mu.parameters.read(globals())"
RESULT = 'import json, pathlib\npathlib.Path(out_dir, "result.json").write_text(json.dumps(parameters))'
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def write_notebook(path, *sources, declare=PARAMETERS, text="# Does it run?"):
    """A notebook of a title, a parameters cell, and `sources`."""
    cells = [new_markdown_cell(text), new_code_cell(declare, metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources], metadata=KERNEL), path)
    return str(path)


def listed(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_notebook_gets_its_parameters_a_folder_and_a_page(folder, capfd):
    notebook = write_notebook(folder / "good.ipynb", GUARD, RESULT, "print('k is', k)")
    failing = write_notebook(folder / "bad.ipynb", "raise RuntimeError('no such thing')")
    killed = write_notebook(folder / "killed.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert sweep.main([notebook, failing, killed, "--out", "runs", "-p", "k", "3", "--workers", "2"]) == 1
    printed, bar = capfd.readouterr()
    out = folder / "runs" / "good"
    assert "2 running, 1 waiting, 0 done: " in bar and "papermill" not in bar.lower()
    assert listed(out) == ["good.html", "good.ipynb", "result.json"]
    assert json.loads((out / "result.json").read_text()) == {"k": 3, "picks": None, "out_dir": "runs/good"}
    assert "k is 3" in (out / "good.html").read_text()
    assert "good.ipynb -> runs/good/good.html" in printed and "index.html" not in printed
    # A failure names the notebook and does not keep the others from running; a killed kernel is one, too.
    assert listed(folder / "runs" / "bad") == ["bad.failed.ipynb"]
    assert "bad.ipynb failed: RuntimeError: no such thing" in printed
    assert "killed.ipynb failed: exit code" in printed and "runs/killed/killed.failed.ipynb" in printed


LOOPS = """import massact_utils as mu
import pandas as pd, os, time
run = mu.Run(out_dir, parameters)
for batch in run.pending([f"prompt {i}" for i in range(9)], 2, name="first"):
    time.sleep(1)
    run.add(batch, pd.DataFrame({"at": batch.indices, "by": os.getpid()}))
shift = run.results("first")["at"].sum() * k  # needs every process's part
for batch in run.pending([f"prompt {i}" for i in range(9)], 3, name="second"):
    run.add(batch, pd.DataFrame({"at": batch.indices, "value": [i + shift for i in batch.indices]}))
run.results("second").to_csv(run.path("table.csv"))"""


def test_two_processes_on_one_notebook_share_its_batches(folder):
    notebook = write_notebook(folder / "two.ipynb", GUARD, LOOPS)
    assert sweep.main([notebook, "--out", "runs", "--grid", "k", "2", "--workers", "2"]) == 0
    out = folder / "runs" / "two" / "k=2"
    lines = [f"{i},{i},{i + 2 * 36}" for i in range(9)]
    assert (out / "table.csv").read_text().split() == [",at,value", *lines]
    assert (out / "two.html").exists() and not list(out.glob("*unfinished*"))
    assert "../../index.html" in (out / "two.html").read_text() and (folder / "runs/index.html").exists()


def test_a_page_has_a_title_model_and_date_and_leads_to_pages(folder):
    """Made from a notebook that is executed already; no kernel runs."""
    for name in ("notebooks", "docs", "runs/b", "runs/a/k=1"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "docs" / "a.png")
    Image.new("RGB", (8, 8), "blue").save(folder / "runs/a/k=1/first.png")
    text = "# What is it?\n![a](../docs/a.png) [b](b.ipynb#top) [c](../docs/c.md) [p](https://arxiv.org/abs/1) [h](#h)"
    write_notebook(folder / "notebooks" / "a.ipynb", "1", text=text)
    notebook = nbformat.read(folder / "notebooks" / "a.ipynb", as_version=4)
    notebook.cells.append(new_code_cell("%pip install massact", metadata={"tags": ["remove-cell"]}))
    out = folder / "runs" / "a" / "k=1"
    nbformat.write(notebook, out / "a.123.unfinished.ipynb")
    given = {"model": "<img src=x>", "k": 1, "out_dir": "runs/a"}
    pages.write(out / "a.123.unfinished.ipynb", out, folder / "notebooks" / "a.ipynb", folder / "runs", given)
    page = (out / "a.html").read_text()
    assert "<title>What is it?</title>" in page and "pip install" not in page
    assert (
        "On &lt;img src=x&gt;" in page and "<img src=x>" not in page and time.strftime("%Y") in page and "k = 1" in page
    )
    assert 'src="data:image/png;base64' in page and 'href="../../b/b.html#top"' in page and 'href="#h"' in page
    assert (
        'href="https://github.com/massact/massact/blob/main/docs/c.md"' in page
        and 'href="https://arxiv.org/abs/1"' in page
    )
    saved = "".join(cell.source for cell in nbformat.read(out / "a.ipynb", as_version=4).cells)
    assert "(../../../notebooks/b.ipynb#top)" in saved and "(../../../docs/a.png)" in saved
    index = pages.index(folder / "runs").read_text()
    assert 'href="a/k=1/a.html">What is it? (k=1)' in index and 'src="a/k=1/first.png"' in index


def test_bad_input_starts_nothing(folder, capsys):
    write_notebook(
        folder / "a.ipynb", "mu.parameters.read(globals(), n_prompts=8)", declare=PARAMETERS + "\nn_prompts: int = 9"
    )
    nbformat.write(new_notebook(), folder / "c.ipynb")
    (folder / "broken.ipynb").write_text("{")
    (folder / "sub").mkdir()
    write_notebook(folder / "sub" / "a.ipynb", "k")
    cases = {
        "a.ipynb -p kk 3": "a.ipynb has no parameter kk; did you mean k, of a?",
        "c.ipynb a.ipynb -p n_promts 9": "did you mean n_prompts, of a?",
        "a.ipynb -p zzzz 3": "a.ipynb has no parameter zzzz; it has: k, picks, out_dir, n_prompts",
        "a.ipynb -p out_dir x": "out_dir follows from --out",
        "a.ipynb b.ipynb": "b.ipynb: no such notebook",
        "a.ipynb broken.ipynb": "broken.ipynb: not a readable notebook",
        "a.ipynb sub/a.ipynb": "two notebooks are called a.ipynb",
        "a.ipynb -p k 3 --grid k 1,2": "k is given twice",
        "a.ipynb --grid k 1,1": "two notebooks are called a.ipynb",
        "c.ipynb a.ipynb --grid k 1,2": "c.ipynb has no parameter k",
        "a.ipynb --workers 0": "--workers takes 1 or more",
        "a.ipynb -p k 1.5": "a.ipynb: k = 1.5 is not possible; it has to be int",
        "a.ipynb -p k 0": "a.ipynb: k = 0 is not possible; allowed: 1 to 100000",
        "a.ipynb -p n_prompts 4": "n_prompts = 4 is not possible; allowed: 8 to",
        "a.ipynb --grid picks [1],[x]": "picks = ['x'] is not possible; it has to be list[int] | None",
        "a.ipynb --scheduler tcp://127.0.0.1:1": "no Dask scheduler answers at tcp://127.0.0.1:1",
    }
    for words, complaint in cases.items():
        with pytest.raises(SystemExit) as stop:
            sweep.main([*words.split(), "--out", "runs"])
        assert stop.value.code == 2 and complaint in (said := capsys.readouterr().err), (words, said)
    assert not (folder / "runs").exists()


def test_without_dask_a_scheduler_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit):
        sweep.main([write_notebook(folder / "a.ipynb", "k"), "--out", "runs", "--scheduler", "tcp://127.0.0.1:1"])
    assert "pip install 'massact[batch]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--out", "x"], ["a.ipynb", "--out", "x", "-p", "kk", "1"]])
def test_a_first_answer_loads_nothing_that_takes_seconds(folder, words):
    write_notebook(folder / "a.ipynb", "k")
    code = "import sys\ntry:\n from massact_utils.results import sweep; sweep.main(sys.argv[1:])\n"
    code += "finally: print({'torch', 'dask', 'distributed', 'pandas', 'papermill', 'nbconvert'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_parameters_are_the_declared_names_with_their_present_values():
    cells = ["", "import numpy", "k: int = 12\nseed: int = 0", "# Parameters\nk = 4\n", "def broken(", "width = 3"]
    assert parameters.read({"In": cells, "k": 4, "seed": 0, "width": 3}) == {"k": 4, "seed": 0}
    namespace = {"In": [""], "__annotations__": {"k": int}, "k": 3}  # nbval runs cells without history
    assert parameters.read(namespace) == {"k": 3}
    with pytest.raises(ValueError, match=r"unknown parameter kk; this notebook declares: k, seed; did you mean k\?"):
        parameters.read({"In": [*cells, "# Parameters\nkk = 4"], "k": 12, "kk": 4, "seed": 1})
    with pytest.raises(RuntimeError, match=r"in a notebook"):
        parameters.read({"k": 12})
    with pytest.raises(RuntimeError, match=r"run the parameters cell first"):
        parameters.read({"In": ["", "k = 12"], "k": 12})


@pytest.mark.parametrize(
    "name, kind, value, complaint",
    [
        ("k", "int", 1.5, "k = 1.5 is not possible; it has to be int"),
        ("k", "int", True, "k = True is not possible; it has to be int"),
        ("k", "int", "12", "k = '12' is not possible; it has to be int"),
        ("k", "int", 0, "k = 0 is not possible; allowed: 1 to"),
        ("seed", "int", -1, "seed = -1 is not possible; allowed: 0 to"),
        (
            "evaluator",
            "str",
            "nope",
            "evaluator = 'nope' is not possible; allowed: a bundled name, a folder or a Hub id",
        ),
        ("mask", "str", "x", "mask = 'x' is not possible; allowed: source, target, union"),
        ("branch", "str", "x", "branch = 'x' is not possible; allowed: cond, uncond, both"),
        ("layers", "list", [2, 3], r"layers = [2, 3] is not possible; allowed: two shares from 0 to 1"),
        ("layers", "list", [1, 0], "allowed: two shares from 0 to 1, as in [0.0, 0.5]"),
        ("window", "list", [0, 1, 2], "allowed: two shares"),
        ("window", "list", None, "window = None is not possible; it has to be list"),
        ("call", "dict", [1], "call = [1] is not possible; it has to be dict"),
    ],
)
def test_a_bad_value_is_named_with_the_remedy(name, kind, value, complaint):
    assert complaint in parameters.wrong({name: value}, {name: kind})[0]


def test_good_values_pass_and_choices_are_those_of_the_package():
    good = {"k": 3, "layers": [0.0, 1.0], "evaluator": "toy", "features": "", "reference": "openai/clip", "dose": 1}
    kinds = {"k": "int", "layers": "list", "evaluator": "str", "features": "str", "reference": "str", "dose": "float"}
    assert parameters.wrong(good, kinds) == []
    with pytest.raises(ValueError, match="k = '3' is not possible; allowed: 1 to 96"):
        parameters.check(k=("3", 1, 96))


@pytest.mark.parametrize(
    "path", sorted((sweep.Path(__file__).parents[1] / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_the_notebooks_own_values_are_possible(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    smallest = {name: n for cell in cells for name, n in parameters.least(cell.source).items()}
    exec(cell.source, namespace := {})
    kinds = parameters.declared(cell.source)
    assert parameters.wrong({name: namespace[name] for name in kinds}, kinds, smallest) == []
    assert any("mu.parameters.read(globals()" in cell.source for cell in cells), "a bad value is noticed late, or never"


def test_papermill_itself_stops_at_a_misspelt_parameter(folder):
    notebook = write_notebook(folder / "a.ipynb", GUARD, "print(parameters)")
    with pytest.raises(papermill.PapermillExecutionError, match=r"unknown parameter kk; this notebook declares: k,"):
        papermill.execute_notebook(notebook, "out.ipynb", parameters={"kk": 3}, progress_bar=False)


def test_ctrl_c_says_in_one_line_what_is_kept(folder):
    notebook = write_notebook(folder / "a.ipynb", "import time; time.sleep(600)")
    command = [sys.executable, "-m", "massact_utils.sweep", notebook, "--out", "runs"]
    with open(folder / "printed.txt", "w") as printed:  # what it started may hold a pipe a moment longer
        heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test in the background may ignore it
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL, preexec_fn=heeded)
    deadline = time.monotonic() + 120
    while not list((folder / "runs").glob("a/*.unfinished.ipynb")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(2)
    assert process.wait(timeout=300) == 130
    lines = [line for line in (folder / "printed.txt").read_text().splitlines() if line]
    assert lines == ["Stopped; finished batches are kept in runs, and the same command goes on with the rest."]

"""Every command and every example of the README and of the guides does what it says.

The commands run as written, in a folder that looks like the repository, with `toy` for models that are downloaded. Two
notebooks hold the real parameters and little else, to save minutes: what their cells compute is compared by nbval.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell

import massact_utils as mu

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("models", "scale")}
PAGES = [README, *GUIDES.values()]
BLOCKS = [(token.info, token.content) for page in PAGES for token in MarkdownIt().parse(page) if token.type == "fence"]
COMMANDS = [line.partition("  #")[0].strip() for info, text in BLOCKS if info == "sh" for line in text.splitlines()]
EXAMPLES = [text for info, text in BLOCKS if info == "python"]

EXPECTED = {  # what a command leaves behind, by its beginning
    "make workbook": ["runs/workbook/0?_*/0?_*.html"] * 2,
    "make test": [],
    "make lab": [],
    ".venv/bin/papermill notebooks/01_statistics.ipynb": ["runs/klein.ipynb"],
    ".venv/bin/python -m massact_utils.sweep notebooks/*.ipynb": ["runs/klein/0?_*/0?_*.html"] * 2,
    ".venv/bin/python -c": ["my-model"],
    ".venv/bin/papermill notebooks/02_disruption.ipynb": ["mine.ipynb"],
    ".venv/bin/python -m massact_utils.sweep notebooks/0[12]_*.ipynb": ["runs/mine/0?_*/0?_*.html"] * 2,
    ".venv/bin/python -m massact_utils.sweep notebooks/01_statistics.ipynb --out runs/scale": [
        "runs/scale/01_statistics/k=[14]*/01_statistics.html"
    ]
    * 2,
}


def opened(path):
    """A notebook up to the cell that opens its run."""
    notebook = nbformat.read(path, as_version=4)
    last = next(i for i, cell in enumerate(notebook.cells) if "mu.Run(" in cell.source and cell.cell_type == "code")
    notebook.cells = notebook.cells[: last + 1]
    return notebook


def bare(path):
    """A notebook's parameters, and a cell that prints some of them."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells = [*cells, new_code_cell("print(f'{model = }, {out_dir = }')")]
    return notebook


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder in which the README's commands work and leave the repository alone."""
    folder = tmp_path_factory.mktemp("massact")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "massact_utils", "tests", "data", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "notebooks").mkdir()
    for path in sorted(ROOT.glob("notebooks/0[12]_*.ipynb")):
        nbformat.write(bare(path), folder / "notebooks" / path.name)
    (folder / "my-model").symlink_to(ROOT / "data" / "toy" / "klein")
    return folder


def run(command, folder, **variables):
    """Run a command in a folder, its environment taken as made; what it printed."""
    command = re.sub(r"^make", "make -o .venv/.installed", command).replace("flux.2-klein-4b", "toy")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASSACT_RUNS": str(folder / "runs")} | variables
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_block_of_the_readme_is_a_command_or_an_example():
    assert {info for info, _ in BLOCKS} == {"sh", "python"}, "mark a code block as sh or python, and test it here"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("make test", "make lab")])
def test_a_command_of_the_readme(command, repository):
    (begin,) = [words for words in EXPECTED if command.startswith(words)]
    run(command, repository)
    (pattern,) = set(EXPECTED[begin])
    assert len(list(repository.glob(pattern))) == len(EXPECTED[begin])


def test_make_gpu_on_the_toy_model(repository):
    """One notebook, as far as its run: its numbers need minutes."""
    nbformat.write(opened(ROOT / "notebooks" / "02_disruption.ipynb"), repository / "02_disruption.ipynb")
    words = "make gpu MODEL=toy DEVICE=cpu NOTEBOOKS=02_disruption.ipynb N_PROMPTS=9"
    told = run(words, repository, PYTEST_ADDOPTS="-p no:cacheprovider")
    folder = repository / "runs" / "gpu" / "02_disruption"
    parameters = json.loads((folder / "parameters.json").read_text())
    assert (parameters["model"], parameters["n_prompts"]) == ("toy", 9)
    assert re.search(r"\b\d+ passed", told)
    assert len(list(repository.rglob("parameters.json"))) == 1, "nbval looked for the results in another folder"


def test_the_example_of_probes():
    (example,) = [text for text in EXAMPLES if "mu.attach" in text]
    names = {}
    exec(example, names)
    broken, image = (np.asarray(names[name][0], float) for name in ("broken", "images"))
    assert names["top"].sizes == {"layer": 8, "rank": 12} and abs(broken - image).mean() > 20, "nothing was silenced"


def test_the_example_of_words_in_columns(tmp_path, monkeypatch, capsys):
    (example,) = [text for text in EXAMPLES if "world_of" in text]
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out == "on a branch ('fox', 'owl')\n"


def test_the_example_of_reading_results(tmp_path, monkeypatch):
    (example,) = [text for text in EXAMPLES if "read_parquet" in text]
    monkeypatch.chdir(tmp_path)
    results = mu.Run(tmp_path / "runs/workbook/03_spatial_clustering", {"model": "toy"})
    results.save("purity", pd.DataFrame({"set": ["top 12"], "purity": [0.5]}))
    results.claim("03.top-above-random", 0.4, 0.3, 0.5, threshold=0)
    exec(example, names := {})
    assert names["claims"].id.tolist() == ["03.top-above-random"]
    assert (tmp_path / "runs/purity.csv").read_text() == "set,purity\ntop 12,0.5\n"


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{name}.md" for name in ("models", "scale", "results"))])
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(\s*((?!http)[^)#]+)", (ROOT / path).read_text())
    assert [link for link in links if not (ROOT / path).parent.joinpath(link).exists()] == []

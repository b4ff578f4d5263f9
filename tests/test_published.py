"""README, ledger page and the notebooks' boxes show the ledger, and evidence of older code is marked stale."""

import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import massact_utils as mu
from massact_utils.results import claims, published
from test_claims import row

ROOT = Path(__file__).parents[1]
REMEDY = "run `make ledger`: the ledger, or the code that made its evidence, has changed"
PARAMETERS = {"model": "big", "k": 12}


def test_the_readme_shows_the_ledger():
    text = (ROOT / "README.md").read_text()
    assert text == published.filled(text, published.TABLE, published.shown(published.ledger())), REMEDY


def test_the_page_shows_the_ledger():
    assert (ROOT / "docs" / "ledger.md").read_text() == claims.page(published.ledger()), REMEDY


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_has_a_box_that_agrees_with_the_ledger(path):
    rows = published.ledger()
    boxes = [cell.source for cell in nbformat.read(path, as_version=4).cells if published.BOX[0] in cell.source]
    if any(row["notebook"] == path.stem[:2] for row in rows) or boxes:
        (box,) = boxes
        assert box == published.filled(box, published.BOX, claims.box(rows, path.stem[:2])), REMEDY


def test_every_claim_on_a_model_stands_in_one_file():
    covered = {(row["id"], row["model"]) for row in published.evidence()}
    others = [(row["id"], row["model"]) for row in json.loads((ROOT / "docs" / "claims.json").read_text())]
    assert not covered & set(others), "run `make ledger`"
    assert len(others) == len(set(others))


def test_the_evidence_is_small_and_holds_no_pictures():
    for folder in (path.parent for path in ROOT.glob("docs/evidence/*/provenance.json")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".json", ".parquet"}
        assert sum(path.stat().st_size for path in files) < 5_500_000


@pytest.fixture
def root(tmp_path):
    """A repository with one notebook, a ledger of default runs, and evidence on a model called big."""
    cells = [new_markdown_cell("# Why?"), new_markdown_cell("".join(published.BOX))]
    cells += [new_code_cell("k: int = 12  # channels", metadata={"tags": ["parameters"]}), new_code_cell("x = 1")]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "02_disruption.ipynb")
    (tmp_path / "README.md").write_text("before\n" + published.TABLE[0] + "gone\n" + published.TABLE[1] + "\nafter\n")
    folder = tmp_path / "docs" / "evidence" / "big"
    folder.mkdir(parents=True)
    entry = {"digest": published.digest(tmp_path / "notebooks" / "02_disruption.ipynb", PARAMETERS)}
    (folder / "provenance.json").write_text(json.dumps({"02_disruption": entry | {"parameters": PARAMETERS}}))
    proven = [row(claims.HEADLINES[0], "big", n=64), row("02.told", "big", n=64), row("03.not-finished", "big")]
    (folder / "claims.json").write_text(json.dumps(proven))
    others = [row(claims.HEADLINES[0]), row(claims.HEADLINES[0], "big"), row("02.new", "big")]
    (tmp_path / "docs" / "claims.json").write_text(json.dumps(others))
    return tmp_path


def change(root, edit):
    path = root / "notebooks" / "02_disruption.ipynb"
    notebook = nbformat.read(path, as_version=4)
    edit(notebook.cells)
    nbformat.write(notebook, path)


def test_evidence_covers_default_runs_and_a_notebook_without_provenance_has_none(root):
    rows = {(row["id"], row["model"]): (row["n"], row["made"]) for row in published.ledger(root)}
    assert rows == {
        (claims.HEADLINES[0], "big"): (64, "evidence"),
        (claims.HEADLINES[0], "toy"): (12, "default run"),
        ("02.told", "big"): (64, "evidence"),
        ("02.new", "big"): (12, "default run"),
    }


def test_the_newest_first_picture_of_a_notebook_is_published(root):
    for at, (name, number, words) in enumerate((("a", "03", b"old"), ("b", "02", b"its"), ("c", "03", b"new"))):
        folder = root / "runs" / name
        folder.mkdir(parents=True)
        (folder / "claims.json").write_text(json.dumps([row(f"{number}.told")]))
        (folder / published.PICTURE).write_bytes(words)
        os.utime(folder / published.PICTURE, (at, at))
    published.publish(root=root)
    assert not (root / "docs" / "first").exists()
    published.publish(root / "runs", root=root)
    found = {path.name: path.read_bytes() for path in (root / "docs" / "first").iterdir()}
    assert found == {"02.png": b"its", "03.png": b"new"}


def test_publishing_fills_readme_page_and_box_and_then_changes_nothing(root):
    published.publish(root=root)
    readme, rows = (root / "README.md").read_text(), published.ledger(root)
    assert readme.startswith("before\n") and readme.endswith(f"{published.TABLE[1]}\nafter\n") and "gone" not in readme
    assert "| toy | big |" in readme and published.shown(rows) in readme
    assert (root / "docs" / "ledger.md").read_text() == claims.page(rows)
    cells = nbformat.read(root / "notebooks" / "02_disruption.ipynb", as_version=4).cells
    assert claims.box(rows, "02") in cells[1].source and "on big: 0.5 (0.4 to 0.6), n = 64: holds" in cells[1].source
    left = json.loads((root / "docs" / "claims.json").read_text())
    assert [(row["id"], row["model"]) for row in left] == [("02.new", "big"), (claims.HEADLINES[0], "toy")]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    published.publish(root=root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == before


def test_publishing_replaces_a_notebooks_rows_and_keeps_other_models(root, tmp_path):
    run = mu.Run(tmp_path / "runs" / "02_disruption" / "ab12", {"model": "toy"})
    run.claim("02.top-above-bottom", measure="a share", threshold=0)
    run.claim("02.top-above-bottom", 1.0, 0.9, 1.1, n=64)
    run.claim("02.told", 1.0, 0.9, 1.1, True, "a share")
    published.publish(tmp_path / "runs", root)
    left = json.loads((root / "docs" / "claims.json").read_text())
    assert [(row["id"], row["model"]) for row in left] == [
        ("02.new", "big"),
        ("02.told", "toy"),
        ("02.top-above-bottom", "toy"),
    ]
    assert all(list(row) == claims.FIELDS for row in left)
    assert "1 (0.9 to 1.1), n = 64: holds" in (root / "README.md").read_text()


def test_evidence_of_older_code_is_marked_stale_everywhere(root):
    change(root, lambda cells: cells[3].update(source="x = 2"))
    published.publish(root=root)
    readme, page = (root / "README.md").read_text(), (root / "docs" / "ledger.md").read_text()
    box = nbformat.read(root / "notebooks" / "02_disruption.ipynb", as_version=4).cells[1].source
    for text in (readme, page, box):
        assert "n = 64: holds, stale" in text and "The numbers on big are from stale evidence" in text
    change(root, lambda cells: cells[3].update(source="x = 3"))
    published.publish(root=root)
    assert (root / "README.md").read_text() == readme, "more commits change nothing"
    change(root, lambda cells: cells[3].update(source="x = 1"))
    assert {row["made"] for row in published.evidence(root)} == {"evidence"}


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (lambda cells: cells[0].update(source="# Another title?"), True),
        (lambda cells: cells[2].update(source="k: int = 4  # channels"), True),  # the evidence says its own values
        (lambda cells: cells[3].update(execution_count=3), True),
        (lambda cells: cells[3].update(source="# why\nx = 1\n\n"), True),
        (lambda cells: cells[3].update(source='"""Doc."""\nx = 1'), True),
        (lambda cells: cells[3].update(source="%pip install x\nx = 1"), False),
        (lambda cells: cells[3].update(source="x = 1.5"), False),
    ],
)
def test_the_digest_is_of_code_that_does_something(root, edit, same):
    path = root / "notebooks" / "02_disruption.ipynb"
    before = published.digest(path, PARAMETERS)
    change(root, edit)
    assert (published.digest(path, PARAMETERS) == before) == same
    assert published.digest(path, PARAMETERS | {"k": 4}) != before
    assert published.digest(path, PARAMETERS | {"model": "toy"}) != published.digest(
        path, PARAMETERS | {"model": "toi"}
    )


@pytest.mark.parametrize(("name", "same"), [("trained.parquet", False), ("README.md", True)])
def test_the_digest_is_of_the_tables_in_a_folder_that_cells_open(root, tmp_path, monkeypatch, name, same):
    path, data = root / "notebooks" / "02_disruption.ipynb", tmp_path / "data" / "origins"
    data.mkdir(parents=True)
    (data / name).write_text("one")
    monkeypatch.setattr(mu.places, "data", lambda *names: tmp_path.joinpath("data", *names))
    plain = published.digest(path, PARAMETERS)
    change(root, lambda cells: cells[3].update(source='x = mu.places.data("origins")'))
    before = published.digest(path, PARAMETERS)
    (data / name).write_text("two")
    assert (published.digest(path, PARAMETERS) == before) == same and before != plain


@pytest.mark.parametrize(("name", "same"), [("measures/masks.py", False), ("show/plots.py", True)])
def test_the_digest_is_of_the_package_as_far_as_it_decides(root, tmp_path, monkeypatch, name, same):
    path = root / "notebooks" / "02_disruption.ipynb"
    before = published.digest(path, PARAMETERS)
    monkeypatch.setattr(mu.places, "PACKAGE", tmp_path / "package")
    shutil.copytree(ROOT / "massact_utils", tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    published._package.cache_clear()
    assert published.digest(path, PARAMETERS) == before
    with open(tmp_path / "package" / name, "a") as file:
        file.write("\nx = 1\n")
    published._package.cache_clear()
    assert (published.digest(path, PARAMETERS) == before) == same
    published._package.cache_clear()


def test_a_run_stands_beside_the_evidence(root):
    words = {"sentence": "A hurts more than B.", "measure": "PSNR, dB"}
    rows = [
        row(claims.HEADLINES[0], "big", 0.45),
        row("02.told", "big", 0.9),
        row("02.new", "big"),
        row("02.told", "big", 0.5, **words | {"measure": "dB at k = 4"}),
        row("02.told", "big", value=None, n=None),
    ]
    lines = published.beside(rows, "big", root).splitlines()
    assert lines[0].split() == ["claim", "this", "run", "evidence"]
    here, there = "0.45 (0.35 to 0.55), n = 12: holds", "0.50 (0.40 to 0.60), n = 64: holds"
    assert lines[1].split("  ")[1:] == [here, there, "agrees"]
    assert [line.rpartition("  ")[2] for line in lines[2:5]] == ["differs", "none", "other parameters"]
    assert "not measured" in lines[5] and lines[5].endswith("n = 64: holds")
    assert lines[-1] == "The evidence is that of docs/evidence/big, at the size that decides."
    change(root, lambda cells: cells[3].update(source="x = 2"))
    last = published.beside(rows, "big", root).splitlines()[-1]
    assert last == "The evidence on big is stale: the code that made it has changed since."


def test_a_run_without_evidence_says_so_in_one_line(root):
    lines = published.beside([row()], "toy", root).splitlines()
    assert lines[1].split("  ") == ["02.a-b", "0.50 (0.40 to 0.60), n = 12: holds"]
    assert lines[2:] == ["No evidence on toy is published here: these are the numbers of this run alone."]


def test_marks_that_are_gone_are_named():
    with pytest.raises(ValueError, match="<!-- results --> and <!-- end of results --> have to be there once"):
        published.filled("no marks", published.TABLE, "words")

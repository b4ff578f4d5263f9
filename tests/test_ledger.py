"""README and the ledger's page show the evidence, stale once what decides its numbers has changed."""

import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from massact_utils import places
from test_claims import row

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "docs" / "evidence")]
import digest  # noqa: E402
import ledger  # noqa: E402

REMEDY = "run `make ledger`: the evidence, or the code that made it, has changed"
PARAMETERS = {"model": "big", "prompts": "words", "k": 12}


def test_code_that_does_the_same_has_the_same_digest():
    plain = 'x = 7\ntext = "# no comment"\nif x:\n    pass\nprint(\n    "%d"\n    % x\n)'
    noted = plain.replace("pass", "%pip install massact").replace("x = 7", "x = 7  # as ever")
    assert digest.code(noted) == digest.code(plain) != digest.code(plain.replace("7", "8"))


def test_readme_and_page_show_the_ledger():
    rows, readme = ledger.rows(), (ROOT / "README.md").read_text()
    assert readme == ledger.filled(readme, rows), REMEDY
    assert (ROOT / "docs" / "ledger.md").read_text() == ledger.page(rows), REMEDY


def test_the_readmes_findings_rest_on_claims_that_hold():
    """Another verdict asks for another sentence."""
    verdicts = {row["id"]: row["verdict"] for row in ledger.rows() if row["model"] == "toy"}
    assert {verdicts[id] for id in ledger.FINDINGS} == {"holds"}
    assert {"02", "03", "04"} <= {id[:2] for id in ledger.FINDINGS} and len(ledger.FINDINGS) <= 6


def test_the_evidence_is_small_and_holds_no_pictures():
    for folder in (path.parent for path in places.evidence().glob("*/provenance.json")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".json", ".parquet"}
        assert sum(path.stat().st_size for path in files) < 5_500_000


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository: the package, a model and prompts, a notebook that imports a training, and its evidence."""
    shutil.copytree(places.PACKAGE, tmp_path / "massact_utils", ignore=shutil.ignore_patterns("__pycache__", "data"))
    for file, text in {
        "README.md": f"before\n{ledger.MARKS[0]}gone\n{ledger.MARKS[1]}\nafter\n",
        "data/prompts/words.txt": "a red star\n",
        "data/prompts/others.txt": "a blue star\n",
        "data/big/scheduler_config.json": '{"shift": 3.0}',
        "data/small/losses.csv": "1\n",
        "training/small/train.py": "steps = 100\n",
        "training/small/figures.py": "colour = 'red'\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    cells = [new_markdown_cell("# Why?"), new_code_cell("k: int = 12", metadata={"tags": ["parameters"]})]
    cells += [new_code_cell('"""Words."""\nfrom training.small import train\nx = 1  # a number\n')]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "02_disruption.ipynb")
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "massact_utils")
    for module in (digest, ledger):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (folder := tmp_path / "docs" / "evidence" / "big").mkdir(parents=True)
    entry = {"digest": digest.digest(tmp_path / "notebooks" / "02_disruption.ipynb", PARAMETERS)}
    (folder / "provenance.json").write_text(json.dumps({"02_disruption": entry | {"parameters": PARAMETERS}}))
    monkeypatch.setattr(ledger, "FINDINGS", {"02.a-b": "A hurts more."})
    monkeypatch.setattr(ledger, "EMBEDDED", ("big", "emoji"))
    rows = [row("02.a-b", "big", n=64), row("02.c", "big", owner="2510.11538"), row("03.unfinished", "big")]
    (folder / "claims.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("notebooks/02_disruption.ipynb", "x = 1", "x = 2", True),
        ("notebooks/02_disruption.ipynb", "a number", "another word", False),
        ("notebooks/02_disruption.ipynb", "Words.", "Others.", False),
        ("notebooks/02_disruption.ipynb", "# Why?", "# How?", False),
        ("data/prompts/words.txt", "red", "green", True),
        ("data/prompts/others.txt", "blue", "green", False),
        ("data/big/scheduler_config.json", "3.0", "1.0", True),
        ("data/small/losses.csv", "1", "2", True),
        ("training/small/train.py", "100", "200", True),
        ("training/small/figures.py", "red", "blue", False),
        ("massact_utils/results/run.py", "self.seed + j", "self.seed + 2 * j", True),
        ("massact_utils/results/files.py", "pd.concat(results,", "pd.concat(results[::-1],", True),
        ("massact_utils/show/plots.py", "\n", "\nx = 1\n", False),
    ],
)
def test_evidence_is_stale_once_what_decides_its_numbers_changes(root, file, old, new, stale):
    assert [row["stale"] for row in ledger.rows(root)] == [False, False]
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    assert [row["stale"] for row in ledger.rows(root)] == [stale, stale]
    ledger.main(root)
    found = {"README.md": "holds, n = 64, stale |", "docs/ledger.md": "n = 64: holds, stale |"}
    for page, said in ((root / name, said) for name, said in found.items()):
        assert (said in page.read_text()) == stale
        assert ("The evidence on big is stale for 02: code has changed since." in page.read_text()) == stale


def test_prompts_that_are_the_models_own_decide_where_none_are_named(root):
    notebook, file = root / "notebooks" / "02_disruption.ipynb", root / "data" / "prompts" / "everyday.txt"
    made = []
    for text in ("a dog\n", "a cat\n"):
        file.write_text(text)
        made.append([digest.digest(notebook, PARAMETERS | {"prompts": prompts}) for prompts in ("", "words")])
    assert made[0][0] != made[1][0] and made[0][1] == made[1][1]


def test_pages_are_filled_and_then_nothing_changes(root):
    ledger.main(root)
    readme, rows = (root / "README.md").read_text(), ledger.rows(root)
    assert readme.startswith("before\n") and readme.endswith(f"{ledger.MARKS[1]}\nafter\n") and "gone" not in readme
    assert ledger.table(rows) in readme and "02.c" not in readme
    page = (root / "docs" / "ledger.md").read_text()
    assert "2 rows: 2 holds, 0 contradicted, 0 undecided." in page and "03.unfinished" not in page
    assert page.index("## Other papers") < page.index("## Ours") and "## The paper" not in page
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    ledger.main(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == before
    with pytest.raises(ValueError, match="<!-- results --> and <!-- end of results --> have to be there once"):
        ledger.filled("no marks", rows)


def test_a_line_for_each_finding_and_a_column_for_each_embedded_model(monkeypatch):
    monkeypatch.setattr(ledger, "FINDINGS", {"03.d": "D hurts.", "02.a-b": "A hurts more.", "04.none": "Nobody asked."})
    rows = [row(model=model, value=value) for model, value in (("big", 0.25), ("emoji", -1.234567), ("toy", 0.05))]
    rows.append(row("03.d", "toy", owner="paper", value=None, n=None, note="D cost 3 %."))
    lines = ledger.table([row | {"stale": row["id"] == "03.d", "holm": ""} for row in rows]).splitlines()
    assert lines[0] == "| what was found | toy | emoji |" and len(lines) == 4
    link = "(notebooks/03_spatial_clustering.ipynb))"
    assert lines[2] == f"| D hurts. *D cost 3 %.* ([03]{link} | **undecided**, stale | not yet |"
    assert lines[3].endswith("| **undecided**, n = 12 | **contradicted**, n = 12 |")
    assert "0.05 (-0.05 to 0.15), n = 12: **undecided**, about 41 would decide" in ledger.page(
        [row | {"stale": False, "holm": ""} for row in rows]
    )


def test_what_a_claim_says_is_text_and_no_markup(monkeypatch):
    bad = "<script>alert(1)</script>\n|a| <!-- end of results -->"
    rows = [row(model=bad, sentence=bad, measure=bad, note=bad) | {"stale": True, "holm": ""}]
    monkeypatch.setattr(ledger, "FINDINGS", {"02.a-b": "A hurts more."})
    rows[0] |= {"note": f"{bad}.", "model": "toy"}
    for text in (ledger.table(rows), ledger.page(rows)):
        assert "<" not in text and "&lt;script&gt;" in text

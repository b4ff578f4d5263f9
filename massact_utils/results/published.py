"""What is published under docs/: the evidence, whether its code has changed since, and all pages that are made from it.

docs/evidence/MODEL/ holds what the notebooks found at the size that decides, as docs/evidence/make.py leaves it:
claims.json, provenance.json, and a folder of tables for each notebook. docs/claims.json holds what their default runs
found, as far as no evidence covers it. Both together are the ledger, from which come the README's table, docs/ledger.md
and the box at the top of every notebook. docs/first/ holds the picture below that box, of notebooks that save one.
"""

import ast
import json
import re
import shutil
from functools import cache
from pathlib import Path

from .. import places
from . import claims, provenance

ROOT = places.PACKAGE.parent
DECIDE = ("worlds", "prompts.py", "models", "probes", "measures")  # of the package: what numbers are made by
TABLE = "<!-- results -->\n", "<!-- end of results -->"
BOX = "<!-- verdict -->\n", "<!-- end of verdict -->"
PICTURE = "first.png"  # in a folder of results: what its notebook shows below the box, as docs/first/NUMBER.png


def digest(notebook: Path, parameters: dict) -> str:
    """A short name for what a notebook's numbers are made by.

    That is its code cells and `DECIDE` of the package, without docstrings, whole lines of comment and empty lines; the
    values of all its parameters; where one of them is "toy", the files of the embedded model and its evaluators; and
    the tables and code in a folder of data that a cell opens whole, as in `places.data("origins")`. Not in it: text and
    outputs of the notebook, and how results are kept and shown (results/, show/).
    """
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    cells = [cell for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]
    code = [_code("".join(cell["source"])) for cell in cells]
    toy = _toy() if "toy" in parameters.values() else ""
    opened = sorted(set(re.findall(r'places\.data\("(\w+)"\)', "\n".join(map("\n".join, code)))))
    files = [file for folder in opened for file in sorted(places.data(folder).glob("*"))]
    made = [provenance.content(file) for file in files if file.suffix in (".parquet", ".py", ".toml")]
    return provenance.digest([code, _package(), provenance.public(parameters), toy, *made])


def evidence(root: Path = ROOT) -> list[dict]:
    """The rows of all evidence, as in claims.json, and `made`: "evidence", or "stale" for that of older code."""
    rows = []
    for file in sorted(Path(root).glob("docs/evidence/*/provenance.json")):
        made = {stem[:2]: _state(root, stem, entry) for stem, entry in json.loads(file.read_text()).items()}
        found = json.loads(file.with_name("claims.json").read_text())
        rows += [row | {"made": made[row["notebook"]]} for row in found if row["notebook"] in made]
    return rows


def ledger(root: Path = ROOT) -> list[dict]:
    """All rows, by id and model: those of evidence, and for claims without it those of default runs."""
    rows, file = evidence(root), Path(root, "docs", "claims.json")
    covered = {(row["id"], row["model"]) for row in rows}
    others = json.loads(file.read_text()) if file.exists() else []
    rows += [row | {"made": "default run"} for row in others if (row["id"], row["model"]) not in covered]
    return sorted(rows, key=lambda row: (row["id"], row["model"] != "toy", row["model"]))


def publish(folder=None, root: Path = ROOT) -> None:
    """Bring the default runs under a folder into docs/claims.json; then make README's table, page and boxes anew.

    What evidence covers is left out of docs/claims.json, so that every claim on a model stands in one file. A file in
    which nothing changes is not written. The newest first picture of every notebook goes to docs/first/.
    """
    import nbformat

    root = Path(root)
    file, readme = root / "docs" / "claims.json", root / "README.md"
    covered = {(row["id"], row["model"]) for row in evidence(root)}
    rows = claims.merge(json.loads(file.read_text()) if file.exists() else [], claims.collect(folder) if folder else [])
    rows = [row for row in rows if (row["id"], row["model"]) not in covered]
    _write(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    rows = ledger(root)
    _write(file.with_name("ledger.md"), claims.page(rows))
    _write(readme, filled(readme.read_text(), TABLE, shown(rows)))
    for path in root.glob("notebooks/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown" and BOX[0] in cell.source:
                cell.source = filled(cell.source, BOX, claims.box(rows, path.stem[:2]))
        _write(path, nbformat.writes(notebook) + "\n")
    if folder:
        _pictures(Path(folder), root / "docs" / "first")


def shown(rows: list[dict]) -> str:
    """The README's table and, below, where its numbers are from."""
    return f"{claims.table(rows)}\n{claims.sources(rows)}\n"


def filled(text: str, marks: tuple[str, str], words: str) -> str:
    """The text with `words` between the two marks. Raises ValueError where the marks are not there once each."""
    if [text.count(mark) for mark in marks] != [1, 1]:
        raise ValueError(f"{marks[0].strip()} and {marks[1]} have to be there once each; put them back, in this order")
    before, rest = text.split(marks[0])
    return before + marks[0] + words + marks[1] + rest.split(marks[1])[1]


def beside(rows: list[dict], model: str, root: Path = ROOT) -> str:
    """A run's claims and what is published of the same on its model, as text, and whether they agree.

    They agree when the published value lies in the run's interval (to two digits, where the run has none). Other
    parameters measure something else, and that is said instead. The last line says what the published numbers are.
    """
    known = {row["id"]: row for row in evidence(root) if row["model"] == model}
    told = [(row["id"], _told(row), *_compared(row, known.get(row["id"]))) for row in rows]
    columns = list(zip(("claim", "this run", "evidence", ""), *told, strict=True))[: 4 if known else 2]
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in zip(*columns, strict=True)]
    old = sorted({row["notebook"] for row in known.values() if row["made"] == "stale"} & {r["notebook"] for r in rows})
    if not known:
        lines.append(f"No evidence on {model} is published here: these are the numbers of this run alone.")
    elif old:
        lines.append(f"The evidence on {model} is stale: the code that made it has changed since.")
    else:
        lines.append(f"The evidence is that of docs/evidence/{folder(model)}, at the size that decides.")
    return "\n".join(lines)


def folder(model: str) -> str:
    """The name of a model's folder under docs/evidence.

    >>> folder("black-forest-labs/FLUX.1-dev")
    'black-forest-labs-FLUX.1-dev'
    """
    return re.sub(r"[^\w.-]", "-", model)


def _compared(row: dict, known: dict | None) -> tuple[str, str]:
    """What is published of a claim, and how this run's row stands to it."""
    if known is None or known["value"] is None:
        return "none", ""
    if row["value"] is None or (row["measure"], row["threshold"]) != (known["measure"], known["threshold"]):
        return _told(known), "other parameters" if row["value"] is not None else ""
    if row["low"] is None:
        same = f"{row['value']:.2g}" == f"{known['value']:.2g}"
    else:
        same = row["low"] <= known["value"] <= row["high"]
    return _told(known), "agrees" if same else "differs"


def _told(row: dict) -> str:
    """A finding in one line, rounded so that it is the same on every CPU."""
    if row["value"] is None:
        return "not measured"
    numbers = [
        f"{row[part]:.2f}".replace("-0.00", "0.00") for part in ("value", "low", "high") if row[part] is not None
    ]
    interval = f" ({numbers[1]} to {numbers[2]})" if len(numbers) == 3 else ""
    size = "" if row["n"] is None else f", n = {row['n']}"
    return f"{numbers[0]}{interval}{size}: {row['verdict']}"


def _state(root: Path, stem: str, entry: dict) -> str:
    notebook = Path(root, "notebooks", f"{stem}.ipynb")
    same = notebook.exists() and digest(notebook, entry["parameters"]) == entry["digest"]
    return "evidence" if same else "stale"


def _code(source: str) -> list[str]:
    """The lines of a source that do something: the same for every Python, unlike a syntax tree."""
    source = re.sub(r"^( *)[%!].*", r"\1pass", source, flags=re.MULTILINE)  # magics of a notebook
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [""] * (last - first)
    return [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


@cache
def _package() -> str:
    files = [places.PACKAGE / name for name in DECIDE]
    files = [file for path in files for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
    return provenance.digest([[file.name, _code(file.read_text())] for file in files])


@cache
def _toy() -> str:
    return provenance.content(places.data("toy"))


def _pictures(folder: Path, to: Path) -> None:
    """Copy the newest first picture of every notebook under a folder; its number stands in the claims beside it."""
    for file in sorted(folder.rglob(PICTURE), key=lambda file: file.stat().st_mtime_ns):
        number = json.loads(file.with_name("claims.json").read_text())[0]["notebook"]
        to.mkdir(parents=True, exist_ok=True)
        with places.whole(to / f"{number}.png") as beside:
            shutil.copyfile(file, beside)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        with places.whole(path) as beside:
            beside.write_text(text)

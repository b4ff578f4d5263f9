"""A short name for what a notebook's numbers are made by; words and looks do not change it."""

import ast
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path

from massact_utils import places
from massact_utils.models import settings
from massact_utils.results import provenance

ROOT = Path(__file__).resolve().parents[2]
LOOKS = ("show", "figures.py")  # of the package and of the trainings: colours and figures, which decide no number


def digest(notebook: Path, parameters: dict) -> str:
    """The digest of a notebook's numbers: what decides them, as `deciding` lists it, in 16 hexadecimal digits."""
    return provenance.digest(deciding(notebook, parameters))


def deciding(notebook: Path, parameters: dict) -> dict:
    """What decides a notebook's numbers, each with its own digest.

    That is the code of its cells; the package without show/, hence also the rule of seeds and the order of rows; the
    values of the parameters; what a parameter names in data/, a whole model's folder ("toy") or a bundled prompt set,
    the model's own where none is named; and of a training that a cell imports its data and its code without figures.
    Of code only what is executed counts: no comments, docstrings, blank lines.
    """
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    cells = [cell for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    trainings = set(re.findall(r"^\s*(?:from|import) training\.?(\w*)", source, flags=re.MULTILINE))
    named = {value for value in parameters.values() if isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value)}
    if "" in (parameters.get("prompts"), parameters.get("pairs")):
        own = settings(parameters["model"]).prompts
        named |= {own, f"{own}-pairs"}
    data = [places.data(name) for name in sorted(named | trainings - {""})]
    data += [file for name in sorted(named) for file in sorted(places.data("prompts").glob(f"{name}.*"))]
    return {
        "cells": provenance.digest(code(source)),
        "package": _programs(places.PACKAGE),
        "parameters": provenance.public(parameters),
        "data": [
            [str(file.relative_to(places.data())), provenance.content(file)] for path in data for file in _files(path)
        ],
        "trainings": {name: _programs(ROOT / "training" / name) for name in sorted(trainings)},
    }


@cache
def code(source: str) -> str:
    """The lines of a source that do something: the same for every Python, unlike a syntax tree."""
    source = re.sub(r"^( *)[%!]\w.*", r"\1pass", source, flags=re.MULTILINE)  # magics of a notebook
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [""] * (last - first)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _files(path: Path) -> list[Path]:
    """A file, or all below a folder but the hidden ones and those to be read."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if file.is_file() and file.suffix != ".md" and not file.name.startswith(".")]


def _programs(folder: Path) -> str:
    files = {file.relative_to(folder): file for file in sorted(folder.rglob("*.py"))}
    return provenance.digest(
        [[name.as_posix(), code(file.read_text())] for name, file in files.items() if not {*name.parts} & {*LOOKS}]
    )

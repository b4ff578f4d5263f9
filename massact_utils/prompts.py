"""Prompts: a bundled set, a file, or a data set of the Hub, read in order and checked line by line."""

import csv
import inspect
import io
import json
import re
from pathlib import Path, PurePosixPath

import pandas as pd
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from . import places
from .models.load import check_lengths, defaults

BUNDLED = places.data("prompts")
COLUMNS = ("prompt", "Prompt", "text", "caption")
FORMATS = (".txt", ".csv", ".jsonl", ".parquet")


def read(source, n: int | None = None, *, pipe=None) -> list[str]:
    """The first n prompts of a source, None for all: a bundled set's name, a file, or a data set of the Hub.

    A .txt holds a prompt a line; .csv, .jsonl and .parquet a column called prompt, Prompt, text or caption. A Hub data
    set is owner/name, or owner/name/config/split where there are several. With `pipe`, prompts its tokenizer would cut
    are refused. Raises ValueError or FileNotFoundError naming the file and the line: an unknown name, a wrong column,
    an empty file or line (seeds go by position, so none is skipped), text that is not UTF-8, fewer than n prompts.

    >>> read("toyworld", 1)
    ['a large yellow star at the bottom on a cyan checkered ground in outlined style']
    """
    prompts = []
    for where, row in _first(source, n):
        column = next((name for name in COLUMNS if name in row), None)
        if column is None:
            raise ValueError(f"{where}: no column {', '.join(COLUMNS)}; there are: {', '.join(map(str, row))}")
        prompts.append(_text(where, row, column, pipe))
    return prompts


def read_pairs(source, n: int | None = None, *, pipe=None) -> pd.DataFrame:
    """The first n pairs of a source as a table with columns source, target, kind, and split where the source has one.

    Sources and errors are those of `read`, with columns source and target. In the bundled sets `split` says which
    are to tune on: every other one of the everyday pairs, the first 24 of ToyWorld's.
    """
    pairs = []
    for where, row in _first(source, n):
        missing = [name for name in ("source", "target") if name not in row]
        if missing:
            raise ValueError(f"{where}: no column {', '.join(missing)}; there are: {', '.join(map(str, row))}")
        pair = {name: _text(where, row, name, pipe) for name in ("source", "target")}
        pairs.append(pair | {"kind": row.get("kind") or ""} | ({"split": row["split"]} if "split" in row else {}))
    return pd.DataFrame(pairs)


def _first(source, n: int | None) -> list[tuple[str, dict]]:
    """The first n rows, each with the words that say where it stands."""
    if n is not None and n < 1:
        raise ValueError(f"{n} prompts of {str(source)!r}; ask for at least one")
    rows = [row for file in _files(str(source)) for row in _rows(file)]
    if n is not None and n > len(rows):
        raise ValueError(f"{n} prompts asked of {str(source)!r}, which holds {len(rows)}")
    return rows[:n]


def _files(source: str) -> list[Path]:
    """The files behind a source."""
    known = sorted(path.stem for path in BUNDLED.iterdir() if path.suffix in FORMATS)
    if source in known:
        return [path for path in BUNDLED.glob(f"{source}.*") if path.suffix in FORMATS]
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.suffix in FORMATS:
        raise FileNotFoundError(f"prompts {source!r}: no such file")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w./-]+)?", source):
        return _from_hub(source)
    raise ValueError(
        f"prompts {source!r} is no bundled set ({', '.join(known)}), no file ({', '.join(FORMATS)}) and no data set of "
        "the Hub (owner/name)"
    )


def _from_hub(source: str) -> list[Path]:
    """Download the files of one split: the Hub's own Parquet copy of a data set, else what its owner put there."""
    name, under = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    api, problem = HfApi(), None
    for revision in ("refs/convert/parquet", None):
        try:
            found = api.list_repo_files(name, repo_type="dataset", revision=revision)
        except (HfHubHTTPError, OSError) as error:
            problem = problem or error
            continue
        found = sorted(file for file in found if PurePosixPath(file).suffix in FORMATS and file.startswith(under))
        splits = sorted({str(PurePosixPath(file).parent) for file in found})
        if len(splits) > 1:
            raise ValueError(
                f"data set {name!r} has several parts; name one: {', '.join(f'{name}/{s}' for s in splits)}"
            )
        if found:
            options = dict(repo_type="dataset", revision=revision)
            return [Path(hf_hub_download(name, file, **options)) for file in found]
    raise ValueError(
        f"data set {source!r} holds no {', '.join(FORMATS)} the Hub hands over ({problem or 'none there'})"
    )


def _rows(path: Path) -> list[tuple[str, dict]]:
    """The rows of a file as dicts, each with "file, line 3"."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        rows = [(i, row) for i, row in enumerate(table.to_dict("records"), 1)]
    else:
        rows = list(_READERS.get(path.suffix, _plain)(path, _decoded(path)))
    if not rows:
        raise ValueError(f"{path.name} is empty; it has to hold at least one prompt")
    return [(f"{path.name}, {'row' if path.suffix == '.parquet' else 'line'} {line}", row) for line, row in rows]


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path.name}, line {line}: not UTF-8; save the file as UTF-8") from None


def _lines(text: str):
    return enumerate(text.rstrip().split("\n"), 1) if text.strip() else []


def _plain(path: Path, text: str):
    for line, prompt in _lines(text):
        yield line, {"prompt": prompt}


def _csv(path: Path, text: str):
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise csv.Error(f"{len(reader.fieldnames)} columns in the first line, and not as many here")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.reader.line_num}: {error}") from None


def _jsonl(path: Path, text: str):
    for line, words in _lines(text):
        try:
            row = json.loads(words)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, line {line}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path.name}, line {line}: not an object, as in {{"prompt": "a red star"}}')
        yield line, row


_READERS = {".csv": _csv, ".jsonl": _jsonl}


def _text(where: str, row: dict, column: str, pipe) -> str:
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {column} is {text!r}; every line needs some words")
    if pipe is not None:
        default = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
        limit = defaults(pipe).get("max_sequence_length", getattr(default, "default", None))
        try:
            check_lengths(pipe, [text], limit)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return text.strip()

"""Prompts: a bundled set, a file, or a data set of the Hub, read in order; a bad row is an error that names it."""

import inspect
import re
import warnings
from pathlib import Path, PurePosixPath

import pandas as pd
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from . import places, worlds
from .models.load import check_lengths, defaults
from .worlds.table import PARTS, TableWorld

BUNDLED = places.data("prompts")
COLUMNS = ("prompt", "Prompt", "text", "caption")
FORMATS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read(source, n: int | None = None, *, pipe=None) -> list[str]:
    """The first n prompts of a source, None for all: a bundled set's name, a file, or a data set of the Hub.

    A .txt holds a prompt a line; a .csv, .tsv, .json, .jsonl or .parquet a column called prompt, Prompt, text or
    caption. A Hub data set is owner/name, or owner/name/config/split where there are several. With `pipe`, prompts its
    tokenizer would cut are refused. Raises ValueError or FileNotFoundError naming the file and the row: an unknown name
    or format, a wrong column, an empty file or row (seeds go by position, so none is skipped), text that is not UTF-8,
    fewer than n prompts.

    >>> read("toyworld", 1)
    ['a large yellow star at the bottom on a cyan checkered ground in outlined style']
    """
    table = _first(source, n)
    column = next((name for name in COLUMNS if name in table), None)
    return _texts(source, table, [column] if column else COLUMNS[:1], pipe)[0]


def read_pairs(source, n: int | None = None, *, pipe=None) -> pd.DataFrame:
    """The first n pairs of a source as a table with columns source, target, kind, and split where the source has one.

    Sources and errors are those of `read`, with columns source and target. In the bundled sets `split` says which
    are to tune on: the first fifth.
    """
    table = _first(source, n)
    columns = dict(zip(("source", "target"), _texts(source, table, ("source", "target"), pipe), strict=True))
    columns["kind"] = table["kind"].fillna("").tolist() if "kind" in table else ""
    return pd.DataFrame(columns | ({"split": table["split"].tolist()} if "split" in table else {}))


def world_of(source):
    """The world (`worlds`) whose words a set of prompts or pairs uses, or None; sources are those of `read`.

    A file with columns of words (`worlds.table.PARTS`: subject, ground, style, ...) is a world of its own. Else it is
    the world in which every prompt can be parsed, so that captions of a bundled world are known in any file. Raises
    ValueError for a row whose caption does not contain its words, and warns of a set that leaves its world half-way.

    >>> world_of("toyworld-pairs").__name__
    'massact_utils.worlds.toyworld'
    """
    table = _first(source, None)
    column = next((name for name in COLUMNS if name in table), None)
    columns = [name for name in (column, "source", "target") if name in table]
    texts = [[str(text).strip() for text in table[name]] for name in columns]
    if column and any(name in table for name in PARTS):
        try:
            return TableWorld(table.assign(caption=texts[0]))
        except ValueError as error:
            raise ValueError(f"{source}: {error}; mend the row, or rename a column that holds no words") from None
    for world in columns and (worlds.everyday, worlds.emojiworld, worlds.toyworld):
        for i, row in enumerate(zip(*texts, strict=True), 1):
            try:
                _ = [world.parse(text) for text in row]
            except ValueError as error:
                if i > 1:
                    name = world.__name__.rpartition(".")[2]
                    warnings.warn(f"{source}, row {i} is no caption of {name}, as those before: {error}", stacklevel=2)
                break
        else:
            return world
    return None


def _first(source, n: int | None) -> pd.DataFrame:
    """The first n rows, each file's after the other's."""
    if n is not None and n < 1:
        raise ValueError(f"{n} prompts of {str(source)!r}; ask for at least one")
    table = pd.concat([_table(file) for file in _files(str(source))], ignore_index=True)
    if n is not None and n > len(table):
        raise ValueError(f"{n} prompts asked of {str(source)!r}, which holds {len(table)}")
    return table[:n]


def _files(source: str) -> list[Path]:
    """The files behind a source."""
    paths = sorted(BUNDLED.iterdir(), key=lambda path: path.stem)
    bundled = {path.stem: path for path in paths if path.suffix in FORMATS}
    path = Path(source).expanduser()
    if source in bundled or path.is_file():
        return [bundled.get(source, path)]
    if path.suffix.lower() in FORMATS:
        raise FileNotFoundError(f"prompts {source!r}: no such file")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w./-]+)?", source):
        return _from_hub(source)
    raise ValueError(
        f"prompts {source!r} is no bundled set ({', '.join(bundled)}), no file ({', '.join(FORMATS)}) and no data set "
        "of the Hub (owner/name)"
    )


def _from_hub(source: str) -> list[Path]:
    """Download the files of one split: the Hub's own Parquet copy of a data set, else what its owner put there."""
    name, under = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    api, problem = HfApi(), None
    for revision in ("refs/convert/parquet", None):
        try:
            files = api.list_repo_files(name, repo_type="dataset", revision=revision)
        except (HfHubHTTPError, OSError) as error:
            problem = problem or error
            continue
        files = sorted(file for file in files if PurePosixPath(file).suffix in FORMATS and file.startswith(under))
        splits = sorted({str(PurePosixPath(file).parent) for file in files})
        if len(splits) > 1:
            raise ValueError(
                f"data set {name!r} has several parts; name one: {', '.join(f'{name}/{s}' for s in splits)}"
            )
        if files:
            options = dict(repo_type="dataset", revision=revision)
            return [Path(hf_hub_download(name, file, **options)) for file in files]
    raise ValueError(
        f"data set {source!r} holds no {', '.join(FORMATS)} the Hub hands over ({problem or 'none there'})"
    )


def _table(path: Path) -> pd.DataFrame:
    """The rows of a file."""
    kind = path.suffix.lower()
    words = dict(encoding="utf-8-sig")
    try:
        if kind == ".parquet":
            table = pd.read_parquet(path)
        elif kind in (".csv", ".tsv"):
            how = dict(sep="\t" if kind == ".tsv" else ",", dtype=str, keep_default_na=False, skip_blank_lines=False)
            table = pd.read_csv(path, index_col=False, **how, **words)
        elif kind in (".json", ".jsonl"):
            table = pd.read_json(path, lines=kind == ".jsonl", dtype=False, convert_dates=False, **words)
        elif kind in (".txt", ""):
            text = path.read_text(**words).rstrip()  # universal newlines
            table = pd.DataFrame({"prompt": text.split("\n") if text else []})
        else:
            raise ValueError(f"{kind} is no format of prompts; save it as one of {', '.join(FORMATS)}")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8; save the file as UTF-8") from None
    except (ValueError, AttributeError) as error:  # pandas' errors of parsing are ValueErrors
        empty = not path.read_bytes().strip()
        raise ValueError(f"{path.name} is empty" if empty else f"{path.name} does not read: {error}") from error
    if table.empty:
        raise ValueError(f"{path.name} is empty; it has to hold at least one prompt")
    return table


def _texts(source, table: pd.DataFrame, columns, pipe) -> list[list[str]]:
    """The words of some columns, each checked. A row's number counts the first below a header as 1."""
    missing = [name for name in columns if name not in table]
    if missing:
        wanted = ", ".join(COLUMNS if missing == ["prompt"] else missing)
        raise ValueError(f"{source}: no column {wanted}; there are: {', '.join(map(str, table.columns))}")
    limit = None
    if pipe is not None:
        default = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
        limit = defaults(pipe).get("max_sequence_length", getattr(default, "default", None))
    for column in columns:
        for i, text in enumerate(table[column], 1):
            where = f"{source}, row {i}"
            if not isinstance(text, str) or not text.strip() or "\0" in text:
                raise ValueError(f"{where}: {column} is {text!r}; every row needs some words, in UTF-8")
            if pipe is not None:
                try:
                    check_lengths(pipe, [text], limit)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None
    return [[text.strip() for text in table[column]] for column in columns]

"""Results on disk: the result of every finished batch is a file, and a killed run continues with the missing ones.

run = mu.Run(out_dir, parameters, pipe=pipe)
for batch in run.pending(prompts, size=4):  # only what is not on disk yet
    images = mu.generate(pipe, batch.prompts, seeds=batch.seeds)
    run.add(batch, measure(images))  # a DataFrame or Dataset; the batch is done once this returns
table = run.results()  # all batches, in order
"""

import json
import os
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import xarray as xr
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from tqdm.auto import tqdm

from .. import places
from . import claims, provenance, storage


def folder(out_dir: str | None, name: str, parameters: dict | None = None) -> Path:
    """The folder for a notebook's results, made when it is not there.

    Empty is runs/<name>/<digest of parameters and of the files they name>, so that another parameter gets another
    folder; the environment variable MASSACT_RUNS stands in for runs. Raises NotADirectoryError or PermissionError,
    before any work, where nothing can be written.
    """
    path = Path(out_dir) if out_dir else places.runs() / name
    if not out_dir and parameters is not None:
        path /= provenance.digest([provenance.public(parameters), provenance.files(parameters)])[:8]
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"out_dir {str(out_dir)!r} is a file; name a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"the results' folder {path} cannot be made ({error.strerror}); name another out_dir, or set MASSACT_RUNS"
        ) from error
    if not os.access(path, os.W_OK):
        raise PermissionError(
            f"the results' folder {path} is not writable; name another out_dir, or set MASSACT_RUNS to a folder that is"
        )
    return path


class Incomplete(RuntimeError):
    """Batches of a loop are missing: another shard's, or the loop did not reach its end."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated together; `indices` are their positions in the whole list, `seeds` seed + position."""

    name: str
    index: int
    indices: list[int]
    prompts: list
    seeds: list[int]

    def __len__(self):
        return len(self.indices)

    def split(self, size: int) -> list["Batch"]:
        """The same prompts in batches of `size` at most."""
        cuts = [slice(i, i + size) for i in range(0, len(self), size)]
        return [replace(self, indices=self.indices[c], prompts=self.prompts[c], seeds=self.seeds[c]) for c in cuts]


class Run:
    """Results in a folder: a part for every finished batch, written beside and renamed, and where they come from.

    The folder belongs to one set of parameters, one model revision and one list of prompts. Any number of processes may
    share it: each locks the batch it computes, and the lock is released when that process ends or dies. `shard` as in
    "3/16" takes every 16th batch from the third on. Its default is parameters["shard"], else the environment variable
    MASSACT_SHARD, else all. Batches are the same whatever the shard, and so is the table.

    Raises ValueError, with the differences, for a folder that holds other results; NotADirectoryError or
    PermissionError where nothing can be written.
    """

    def __init__(self, out_dir, parameters: dict, *, pipe=None, shard: str | None = None):
        if not str(out_dir):
            raise ValueError("out_dir is empty; take one from mu.results.folder(out_dir, name, parameters)")
        self.folder = folder(str(out_dir), "")
        told = [parameters.get("shard"), os.environ.get("MASSACT_SHARD")]
        self.shard = part_of(shard or next((words for words in told if words not in (None, "", "1/1")), "1/1"))
        self.seed = int(parameters.get("seed") or 0)
        self.model = provenance.public(parameters).get("model", "")
        self.most = None  # prompts at once that fitted into memory, once they did not
        self.provenance = provenance.of(parameters, pipe)
        self.parts.mkdir(exist_ok=True)
        with storage.locked(self.folder / ".lock"):
            self._hold("parameters.json", provenance.public(parameters))
            there = self._known("provenance.json")
            held = [key for key in ("model", "dtype", "files") if key in there and key in self.provenance]
            self._refuse({key: there[key] for key in held}, {key: self.provenance[key] for key in held})
            changed = provenance.differences({key: there.get(key) for key in self.provenance}, self.provenance)
            if changed and set(self.provenance) <= set(there):
                warnings.warn(f"{self.folder.name} was begun otherwise: {'; '.join(changed)}", stacklevel=2)
            self.provenance = self.provenance | there
            storage.write(self.folder / "provenance.json", self.provenance)

    @property
    def parts(self) -> Path:
        """Where the batches lie."""
        return self.folder / "parts"

    def pending(self, prompts, size: int = 4, *, name: str = "part"):
        """Iterate over the batches of `size` prompts which are not on disk: each a Batch with index, prompts and seeds.

        `prompts` is a list of texts, of tuples, or a DataFrame (its rows come as dicts). A loop of its own needs a
        `name` of its own. A part that does not read is set aside and pending again. Batches another process has
        claimed come last: finished by then, or free because that process died.

        Raises ValueError for no prompts, for a name that is none, and for a folder that holds results of other prompts
        or another size.
        """
        prompts = prompts.to_dict("records") if isinstance(prompts, pd.DataFrame) else list(prompts)
        if not prompts or size < 1:
            raise ValueError(f"{len(prompts)} prompts in batches of {size}; give at least one of each")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"the name {name!r} of a loop becomes part of file names; take letters, digits, _ . -")
        asked = {"prompts": len(prompts), "of content": provenance.digest(prompts), "in batches of": size}
        with storage.locked(self.folder / ".lock"):
            self.provenance = self._known("provenance.json")
            self._refuse(self.provenance.setdefault("prompts", {}).setdefault(name, asked), asked)
            storage.write(self.folder / "provenance.json", self.provenance)
        indices = [list(range(i, min(i + size, len(prompts)))) for i in range(0, len(prompts), size)]
        batches = [
            Batch(name, i, at, [prompts[j] for j in at], [self.seed + j for j in at]) for i, at in enumerate(indices)
        ]
        number, of = self.shard
        return self._claim(batches[number - 1 :: of])

    def _claim(self, batches):
        """Yield those that are not on disk and that nobody else holds; then wait for the rest."""
        done = {batch.index for batch in batches if self._reads(batch)}
        for lock in (self._lock(batch) for batch in batches if batch.index in done):
            if lock.exists():  # its process was killed after the part was written
                with storage.claimed(lock, wait=False):
                    pass
        total, before = sum(map(len, batches)), sum(len(batch) for batch in batches if batch.index in done)
        with tqdm(total=total, initial=before, unit="prompt", leave=False, disable=not watched()) as bar:
            for wait in (False, True):
                if wait and len(done) < len(batches):
                    bar.set_description("waiting for another process")
                for batch in [batch for batch in batches if batch.index not in done]:
                    with storage.claimed(self._lock(batch), wait) as mine:
                        if not mine:
                            continue
                        if not self._reads(batch, aside=True):
                            for rest in self.parts.glob(f".{batch.name}-{batch.index:05d}.*.unfinished"):
                                rest.unlink()  # its process died while it wrote
                            yield batch
                        done.add(batch.index)
                        bar.update(len(batch))

    def _lock(self, batch: Batch) -> Path:
        return self.parts / f".{batch.name}-{batch.index:05d}.lock"

    def add(self, batch: Batch, result) -> None:
        """Put a batch's result on disk, a DataFrame (Parquet) or a Dataset with dim "image" (NetCDF), and so be done.

        A function instead is called with the batch and gives the result; where that runs out of memory, it is called
        again with halves of the batch, and a warning says so.
        """
        if callable(result):
            result = self._fitting(result, batch)
        if isinstance(result, xr.Dataset):
            if "image" not in result.dims:
                raise ValueError(f"a Dataset is kept along its dim 'image', and this has only {', '.join(result.dims)}")
            if result.sizes["image"] == len(batch):
                result = result.assign_coords(image=batch.indices)
        elif not isinstance(result, pd.DataFrame):
            raise TypeError(f"a batch's result is a DataFrame or a Dataset, not {type(result).__name__}")
        suffix = ".parquet" if isinstance(result, pd.DataFrame) else ".nc"
        storage.write(self.parts / f"{batch.name}-{batch.index:05d}{suffix}", result)

    def results(self, name: str = "part"):
        """All parts that are on disk, in order: one DataFrame, or one Dataset along "image".

        Raises Incomplete while batches of the loop are missing, LookupError when no such loop was begun.
        """
        paths = [path for path in sorted(self.parts.iterdir()) if path.suffix in storage.SUFFIXES]
        paths = [path for path in paths if re.fullmatch(rf"{re.escape(name)}-\d{{5,}}", path.stem)]
        loop, (number, of) = self._known("provenance.json").get("prompts", {}).get(name), self.shard
        wanted = -(-loop["prompts"] // loop["in batches of"]) if loop else 0
        if len(paths) < wanted:
            whose = f"shard {number}/{of} is done; " if of > 1 else ""
            remedy = "run the other shards, then once more with shard 1/1" if of > 1 else "run the loop to its end"
            raise Incomplete(f"{whose}{len(paths)} of {wanted} batches of {name!r} are on disk: {remedy}")
        if not paths:
            raise LookupError(f"no results called {name!r} in {self.folder}; run the loop over run.pending first")
        return storage.joined([storage.read(path) for path in paths])

    def path(self, name: str) -> Path:
        """A path in the folder, for what the other methods do not write."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def save(self, name: str, thing) -> Path:
        """Write a DataFrame (Parquet), Dataset or DataArray (NetCDF), figure or image (PNG, or "a.webp")."""
        suffix = {pd.DataFrame: ".parquet", xr.Dataset: ".nc", xr.DataArray: ".nc"}.get(type(thing), ".png")
        path = self.path(name if Path(name).suffix else f"{name}{suffix}")
        storage.write(path, thing)
        return path

    def claim(self, id: str, value=None, low=None, high=None, note=None, *, n=None, **words) -> dict:
        """State a claim before its computation, then put what was found; returns its row of claims.json.

        run.claim("02.top-hurts", owner="paper", sentence="...", measure="drop of PSNR, dB", threshold=0, side="above")
        run.claim("02.top-hurts", *paired_interval(top, others), n=12)

        `words`: owner is "paper" (2605.13974), another paper's arXiv id or "ours"; sentence the claim in full, with the
        figure it comes from; measure a phrase; threshold and side ("above", "below"). `n` is how many prompts, `note`
        what else a reader has to know. The verdict follows from interval and threshold. Raises as `claims.row` does.
        """
        found = None if value is None else (value, low, high)
        path = self.folder / "claims.json"
        with storage.locked(self.folder / ".lock"):
            rows = {row["id"]: row for row in claims.read(path, [])}
            made = claims.row(id, self.model, rows.get(id), found, n=n, note=note, **words)
            storage.write(path, [row for _, row in sorted((rows | {id: made}).items())])
        return made

    def compare_with_evidence(self) -> str:
        """The claims of this run beside the evidence on its model, as text; as `claims.compare_with_evidence`."""
        return claims.compare_with_evidence(claims.read(self.folder / "claims.json"), self.model)

    def _known(self, name: str, without=None) -> dict:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else without or {}

    def _hold(self, name: str, here: dict) -> None:
        """Write a file of the folder that is to stay the same, or compare with the one there."""
        self._refuse(self._known(name, without=here), here)
        storage.write(self.folder / name, here)

    def _refuse(self, there: dict, here: dict) -> None:
        """Raise ValueError, with the differences, when the folder holds other results."""
        wrong = provenance.differences(there, json.loads(json.dumps(here, default=str)))
        if wrong:
            raise ValueError(
                f"{self.folder} holds other results: {'; '.join(wrong)}. Name another out_dir, or remove that folder"
            )

    def _fitting(self, function, batch: Batch):
        """function(batch); after out of memory, the results of its halves, quarters, … joined."""

        def attempt(size):
            return storage.joined([function(piece) for piece in batch.split(size)])

        def half():
            self.most = (self.most or len(batch)) // 2 or None  # None: not even one fits
            if self.most:
                warnings.warn(f"out of memory; going on with {self.most} prompts at once", stacklevel=6)
            return self.most or 0

        if self.most is None:  # accelerate collects garbage before every call, which costs a second
            try:
                return attempt(len(batch))
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            half()
        return find_executable_batch_size(attempt, starting_batch_size=self.most or 0, reduce_batch_size_fn=half)()

    def _reads(self, batch: Batch, aside: bool = False) -> bool:
        """Whether a batch's part is there and reads; one that does not is set `aside` by who holds the batch."""
        for path in (self.parts / f"{batch.name}-{batch.index:05d}{suffix}" for suffix in storage.SUFFIXES):
            if path.exists():
                try:
                    storage.read(path)
                    return True
                except Exception as error:  # whatever Arrow or SciPy make of a broken file
                    if aside:
                        kept, reason = path.with_name(f"{path.name}.unreadable"), str(error).partition("\n")[0]
                        os.replace(path, kept)
                        warnings.warn(f"{path.name} does not read ({reason}); set aside as {kept.name}", stacklevel=3)
        return False


def part_of(shard: str) -> tuple[int, int]:
    """ "3/16" as (3, 16). Raises ValueError for anything that is not a share.

    >>> part_of("3/16")
    (3, 16)
    """
    words = str(shard).split("/")
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not 1 <= int(words[0]) <= int(words[1]):
        raise ValueError(f"shard {shard!r} is no share; write it as in '3/16', from '1/16' to '16/16'")
    return int(words[0]), int(words[1])


def progress(out_dir) -> tuple[int, int]:
    """Batches on disk in a run's folder, and batches of all the loops that were begun there."""
    path = Path(out_dir, "provenance.json")
    loops = json.loads(path.read_text()).get("prompts", {}) if path.exists() else {}
    done = [part for part in path.with_name("parts").glob("*") if part.suffix in storage.SUFFIXES]
    return len(done), sum(-(-loop["prompts"] // loop["in batches of"]) for loop in loops.values())


def watched() -> bool:
    """Whether somebody looks on: at a terminal or in Jupyter, not while a notebook is executed to be kept."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ

"""Results on disk: the result of every finished batch is a file, and a killed run continues with the missing ones.

run = mu.Run(out_dir, parameters, pipe=pipe)
for batch in run.pending(prompts, size=4):  # only what is not on disk yet
    images = mu.generate(pipe, batch.prompts, seeds=batch.seeds)
    run.add(batch, measure(images))  # a DataFrame or Dataset; the batch is done once this returns
table = run.results()  # all batches, in order
"""

import os
import re
import uuid
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import xarray as xr
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from .. import places
from ..models.progress import Bar
from ..ranges import check
from . import claims, files, provenance

UMASK = "let all users of it set umask 002 and be in its group, or name another out_dir"


def folder(out_dir: str | None, name: str, parameters: dict | None = None) -> Path:
    """The folder for a notebook's results, made when it is not there.

    Empty is runs/<name>/<digest of parameters and of the files they name>, so that another parameter gets another
    folder; the environment variable MASSACT_RUNS stands in for runs. Raises NotADirectoryError or PermissionError,
    before any work, where nothing can be written.
    """
    path = Path(out_dir) if out_dir else places.runs() / name
    if not out_dir and parameters is not None:
        path /= provenance.digest([provenance.public(parameters), provenance.contents(parameters)])[:8]
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"out_dir {str(out_dir)!r} is a file; name a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"the results' folder {path} cannot be made ({error.strerror}); name another out_dir, or set MASSACT_RUNS"
        ) from error
    if not os.access(path, os.W_OK) and not (path / "provenance.json").exists():
        raise PermissionError(
            f"the results' folder {path} is not writable (it belongs to {files.owner(path)}); name another out_dir, or "
            "set MASSACT_RUNS to a folder that is"
        )
    return path


class Incomplete(RuntimeError):
    """Batches of a loop are missing."""


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

    @property
    def stem(self) -> str:
        """The name of its part."""
        return f"{self.name}-{self.index:05d}"

    def split(self, size: int) -> list["Batch"]:
        """The same prompts in batches of `size` at most."""
        cuts = [slice(i, i + size) for i in range(0, len(self), size)]
        return [replace(self, indices=self.indices[c], prompts=self.prompts[c], seeds=self.seeds[c]) for c in cuts]


class Run:
    """Results in a folder: a part for every finished batch, written beside and renamed, and where they come from.

    The folder belongs to one set of parameters, one model as it is in memory and one list of prompts. Any number of
    processes may share it: each locks the batch it computes, and the lock ends with that process. Without a common
    disk MASSACT_BATCHES=3/16 in the environment gives a process every 16th batch from the third on.

    Raises ValueError, with the differences, for a folder that holds other results, and for a damaged file in it;
    NotADirectoryError or PermissionError where nothing can be written.
    """

    def __init__(self, out_dir, parameters: dict, *, pipe=None):
        if not isinstance(out_dir, (str, os.PathLike)) or not str(out_dir):
            raise ValueError(f"out_dir = {out_dir!r}; take one from mu.results.folder(out_dir, name, parameters)")
        if not isinstance(parameters, dict) or not all(isinstance(name, str) for name in parameters):
            raise ValueError(f"parameters = {parameters!r}; give a dict, as mu.parameters.read does")
        check(seed=parameters.get("seed") or 0)
        self.seed = int(parameters.get("seed") or 0)
        self.folder, self.pipe, public = folder(os.fspath(out_dir), ""), pipe, provenance.public(parameters)
        self.parts = self.folder / "parts"  # where the batches lie
        self.model = public.get("model", "")
        self.most = None  # prompts at once that fitted into memory, once they did not
        self.provenance = provenance.of(parameters, pipe)
        self.parts.mkdir(exist_ok=True)
        with self._locked():
            self._hold(self._json("parameters.json") if (self.folder / "parameters.json").exists() else public, public)
            self._write("parameters.json", public)
            before = self._json("provenance.json")
            for old in self.folder.glob(".*.json.*.unfinished") if self.writable else ():
                old.unlink(missing_ok=True)  # its process was killed; nobody else writes while this holds the lock
            held = [key for key in ("model", "dtype", "files") if key in before and key in self.provenance]
            self._hold({key: before[key] for key in held}, {key: self.provenance[key] for key in held})
            changed = provenance.differences({key: before.get(key) for key in self.provenance}, self.provenance)
            if changed and set(self.provenance) <= set(before):
                warnings.warn(f"{self.folder.name} was begun otherwise: {'; '.join(changed)}", stacklevel=2)
            self.provenance = {"run": uuid.uuid4().hex[:16]} | self.provenance | before
            self._write("provenance.json", self.provenance)

    @property
    def writable(self) -> bool:
        """Whether this user may write into the folder; a finished one may be read by anyone."""
        return os.access(self.folder, os.W_OK)

    def pending(self, prompts, size: int = 4, *, name: str = "part"):
        """Iterate over the batches of `size` prompts which are not on disk: each a Batch with index, prompts and seeds.

        `prompts` is a text, a list of texts or tuples, or a DataFrame (its rows come as dicts). A loop of its own needs
        a `name` of its own. A part that is not what was written is set aside and pending again. Batches another process
        has claimed come last: finished by then, or free because that process died.

        Raises ValueError for no prompts, for a name that is none, and for a folder that holds results of other prompts,
        another size or another model; PermissionError where batches are missing in a folder of somebody else's.
        """
        prompts = prompts.to_dict("records") if isinstance(prompts, pd.DataFrame) else prompts
        check(size=(size, 1, 10**6))
        given = prompts if isinstance(prompts, (str, dict)) or not hasattr(prompts, "__iter__") else list(prompts)
        if not given or not isinstance(given, (str, list)):
            raise ValueError(f"prompts = {given!r} are none; give a text, a list of them, or a table of pairs")
        prompts = [given] if isinstance(given, str) else given
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise ValueError(f"the name {name!r} of a loop becomes part of file names; take letters, digits, _ . -")
        share = os.environ.get("MASSACT_BATCHES", "1/1")
        number, _, of = share.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(f"MASSACT_BATCHES={share} is no share; write it as in 3/16, from 1/16 to 16/16")
        asked = {"prompts": len(prompts), "of content": provenance.digest(prompts), "in batches of": size}
        with self._locked():
            known = self._json("provenance.json")
            if self.pipe is not None and "model" in known:  # an adapter may have been loaded meanwhile
                now, held = provenance.in_memory(self.pipe), known["model"].get("in memory", {})
                now["in memory"] = held | {n: part for n, part in now["in memory"].items() if n.startswith("transf")}
                self._hold({"model": known["model"]}, {"model": known["model"] | now})
            self._hold(known.setdefault("prompts", {}).setdefault(name, asked), asked)
            self._write("provenance.json", known)
        indices = [list(range(i, min(i + size, len(prompts)))) for i in range(0, len(prompts), size)]
        batches = [
            Batch(name, i, at, [prompts[j] for j in at], [self.seed + j for j in at]) for i, at in enumerate(indices)
        ]
        return self._claim(batches[int(number) - 1 :: int(of)])

    def _claim(self, batches):
        """Yield those that are not on disk and that nobody else holds; then wait for the rest."""
        done = {batch.index for batch in batches if self._done(batch)}
        if len(done) < len(batches) and not self.writable:
            whose = f"{self.folder} belongs to {files.owner(self.folder)} and lacks {len(batches) - len(done)} batches"
            raise PermissionError(f"{whose}; {UMASK}")
        total, before = sum(map(len, batches)), sum(len(batch) for batch in batches if batch.index in done)
        name = batches[0].name if batches else ""
        with Bar(name, total, before) as bar:
            for wait in (False, True):
                for batch in [batch for batch in batches if batch.index not in done]:
                    bar.begin(len(batch), "waiting for another process" if wait else "")
                    with files.locked(self._lock(batch), wait) as mine:
                        if not mine:
                            continue
                        if not self._done(batch, aside=True):
                            yield batch
                        done.add(batch.index)
                        bar.end(len(batch))

    def add(self, batch: Batch, result) -> None:
        """Put a batch's result on disk, a DataFrame (Parquet) or a Dataset with dim "image" (NetCDF), and so be done.

        A function instead is called with the batch and gives the result; where that runs out of memory, it is called
        again with halves of the batch, and a warning says so. Raises RuntimeError where the folder was begun anew by
        somebody else meanwhile.
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
        with self._locked():
            if self._json("provenance.json").get("run") != self.provenance["run"]:
                raise RuntimeError(f"{self.folder} was removed and begun anew while this ran; start this one again")
            files.write(self.parts / f"{batch.stem}{suffix}", result, checksum=True)
        self._lock(batch).unlink(missing_ok=True)  # who has it open finds the part on disk

    def results(self, name: str = "part"):
        """All parts of a loop, in order: one DataFrame, or one Dataset along "image".

        Raises Incomplete, with their names, while parts are missing or are not what was written; LookupError when no
        such loop was begun.
        """
        loop = self._json("provenance.json").get("prompts", {}).get(name)
        if loop is None:
            raise LookupError(f"no results called {name!r} in {self.folder}; run the loop over run.pending first")
        n = -(-loop["prompts"] // loop["in batches of"])
        paths = [self._part(Batch(name, i, [], [], [])) for i in range(n)]
        missing = [f"{name}-{i:05d}" for i, path in enumerate(paths) if path is None]
        if missing:
            lacking = f"{', '.join(missing[:3])}{' and more' * (len(missing) > 3)} missing or damaged"
            many = f"{n - len(missing)} of {n} batches of {name!r} are on disk"
            raise Incomplete(f"{many}: run the loop to its end ({lacking})")
        return files.join([files.read(path) for path in paths])

    def path(self, name: str) -> Path:
        """A path in the folder, for what the other methods do not write. Raises ValueError for one outside."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{name!r} leaves the folder of results; name a file in it, without .. or a leading /")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, thing, alt: str = "") -> Path:
        """Write a DataFrame (Parquet), Dataset or DataArray (NetCDF), figure or image (PNG, or "a.webp").

        A figure is written as PDF, too, and `alt`, its text for who cannot see it (else its titles), stands in both.
        """
        suffix = {pd.DataFrame: ".parquet", xr.Dataset: ".nc", xr.DataArray: ".nc"}.get(type(thing), ".png")
        path = self.path(name if Path(name).suffix else f"{name}{suffix}")
        if hasattr(thing, "savefig") and path.suffix == ".png":
            titles = [thing.get_suptitle(), *(ax.get_title() for ax in thing.axes)]
            thing.set_label(alt or ". ".join(filter(None, titles)))
            files.write(path.with_suffix(".pdf"), thing)
        files.write(path, thing)
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
        with self._locked():
            rows = {row["id"]: row for row in self._json("claims.json", list)}
            made = claims.row(id, self.model, rows.get(id), found, n=n, note=note, **words)
            files.write(self.folder / "claims.json", [row for _, row in sorted((rows | {id: made}).items())])
        return made

    def answer(self, id: str, says: str, found, **words):
        """Put what was found, (value, low, high), as `claim` does, `says` being its note, and give it as Markdown."""
        return claims.answer(self.claim(id, *found, says, **words))

    def compare_with_evidence(self) -> str:
        """The claims of this run beside the evidence on its model; as `claims.compare_with_evidence`."""
        return claims.compare_with_evidence(self._json("claims.json", list), self.model)

    def _repr_mimebundle_(self, include=None, exclude=None):
        """What a notebook's last line, `run`, shows: the claims, where the results lie, and how to go on with them."""
        place, tables = os.path.relpath(self.folder), sorted(path.name for path in self.folder.glob("*.parquet"))
        views = [f'`mu.views.saved("{place}")`'] * (self.folder / "explorer").is_dir()
        again = ", ".join(views + [f'`pd.read_parquet("{place}/{name}")`' for name in tables[:1]])
        lines = [
            self.compare_with_evidence(),
            f"**Results** lie in `{place}`: [what each file holds]({claims.DOCS}/results.md).",
            f"**Look again**, without the model: {again or 'the figures there'}.",
            "**Go on**: executed again, this notebook computes only what is missing there. Other parameters get "
            f"a folder of their own, and thousands of prompts [many processes]({claims.DOCS}/scale.md).",
        ]
        return dict.fromkeys(("text/markdown", "text/plain"), "\n\n".join(lines))

    @contextmanager
    def _locked(self):
        """Nobody else writes JSON files or parts meanwhile; a folder of somebody else's is only read."""
        if not self.folder.is_dir():
            raise RuntimeError(f"{self.folder} was removed while this ran; start this one again")
        if not self.writable:
            yield
            return
        with files.locked(self.folder / ".lock"):
            yield

    def _lock(self, batch: Batch) -> Path:
        return self.parts / f".{batch.stem}.lock"

    def _json(self, name: str, kind: type = dict):
        return files.read_json(self.folder / name, kind())

    def _write(self, name: str, thing: dict) -> None:
        """Write a JSON file where it changes."""
        if self.writable and (not (self.folder / name).exists() or self._json(name) != thing):
            files.write(self.folder / name, thing)

    def _hold(self, before: dict, now: dict) -> None:
        """Raise ValueError, with the differences, when the folder holds other results."""
        wrong = provenance.differences(before, now)
        if wrong:
            raise ValueError(
                f"{self.folder} holds other results: {'; '.join(wrong)}. Name another out_dir, or remove that folder"
            )

    def _fitting(self, function, batch: Batch):
        """function(batch); after out of memory, the results of its halves, quarters, … joined."""

        while True:
            size = self.most or len(batch)
            try:
                return files.join([function(piece) for piece in batch.split(size)])
            except RuntimeError as error:
                if size == 1 or not should_reduce_batch_size(error):
                    raise
            clear_device_cache(garbage_collection=True)  # once the error holds no tensors any more
            self.most = size // 2
            warnings.warn(f"out of memory; going on with {self.most} prompts at once", stacklevel=4)

    def _part(self, batch: Batch) -> Path | None:
        """A batch's part, if it is on disk and is what was written."""
        paths = (self.parts / f"{batch.stem}{suffix}" for suffix in files.SUFFIXES)
        return next((path for path in paths if files.checked(path)), None)

    def _done(self, batch: Batch, aside: bool = False) -> bool:
        """Whether a batch is on disk; who holds it takes a damaged part `aside`, and what a killed process left."""
        if self._part(batch):
            self._lock(batch).unlink(missing_ok=True) if self.writable else None  # its process was killed after writing
            return True
        for path in (self.parts / f"{batch.stem}{suffix}" for suffix in files.SUFFIXES if aside):
            if path.exists():
                kept = path.with_name(f"{path.name}.unreadable")
                os.replace(path, kept)
                warnings.warn(f"{path.name} is not what was written; set aside as {kept.name}", stacklevel=3)
        for rest in self.parts.glob(f".{batch.stem}.*.unfinished") if aside else ():
            rest.unlink(missing_ok=True)
        return False

"""Evidence: the notebooks at the size that decides, and what they found, as files in a folder beside this one.

    python docs/evidence/make.py toy                # make evidence
    python docs/evidence/make.py flux.2-klein-4b    # make evidence MODEL=flux.2-klein-4b

Called in the repository's root. `sizes.json` says which notebooks, in which order, with which parameters, and how many
minutes each takes on two cores with the embedded model, for the time left that is shown. What is computed lies in
runs/evidence/; killed at any moment and called again, this goes on with the batches that are missing. A notebook whose
code, parameters and embedded model are those of its published evidence is not executed again.
"""

import argparse
import ast
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import xarray as xr

from massact_utils.results import claims, provenance, published, storage, sweep
from massact_utils.results.run import progress

MOST, EACH = 5_000_000, 2_000_000  # bytes of tables for a model, and for one notebook of it
FROM = ("model", "files", "device", "dtype", "python", "libraries", "prompts")  # what is kept of a run's provenance
EVERY = 30  # seconds between two lines that say how far it is


@dataclass
class Job:
    """One notebook at the size that decides."""

    notebook: Path
    given: dict  # parameters that differ from the notebook's own
    digest: str  # of its code and parameters
    minutes: float  # on two cores with the embedded model
    folder: Path  # of the results; another code gets another folder


def planned(model: str, sizes: dict, out: Path) -> list[Job]:
    """The notebooks to execute, with their parameters. Raises ValueError for a notebook or parameter that is none."""
    jobs = []
    for stem, size in sizes["notebooks"].items():
        notebook = Path("notebooks", f"{stem}.ipynb")
        if not notebook.is_file():
            raise ValueError(f"sizes.json names {stem}, and there is no {notebook}")
        cells = nbformat.read(notebook, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        own = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(source).body}
        given = {"model": model} | size["parameters"] | sizes["models"].get(model, {}).get(stem, {})
        unknown = [name for name in given if name not in own]
        if unknown:
            raise ValueError(f"{stem} has no parameter {', '.join(unknown)}; sizes.json may name: {', '.join(own)}")
        digest = published.digest(notebook, provenance.public(own | given))
        jobs.append(Job(notebook, given, digest, size["minutes"], out / digest[:8] / stem))
    return jobs


def executed(jobs: list[Job], flags: list[str], keep) -> list[str]:
    """Execute and keep one after the other, saying how far it is; the notebooks that failed."""
    failed, begun, speed = [], time.monotonic(), None
    for i, job in enumerate(jobs):
        words = [word for name, value in job.given.items() for word in ("-p", name, _word(value))]
        start, (before, _) = time.monotonic(), progress(job.folder)
        with ThreadPoolExecutor(1) as thread:
            command = [str(job.notebook), "--out", str(job.folder.parent), *words, *flags]
            future = thread.submit(sweep.main, command)
            try:
                while not wait([future], timeout=EVERY).done:
                    there, of = progress(job.folder)
                    seconds = time.monotonic() - start
                    print(told(job, jobs[i + 1 :], seconds, there - before, there, of, speed), flush=True)
            except KeyboardInterrupt:
                os._exit(130)  # what was started dies with this process
        if future.result():
            failed.append(job.notebook.stem)
        else:
            keep(job)
        speed = (time.monotonic() - begun) / 60 / sum(job.minutes for job in jobs[: i + 1])
    return failed


def told(job: Job, later: list[Job], seconds: float, made: int, there: int, of: int, speed: float | None) -> str:
    """A line: batches done of those begun, and about how many minutes are left of all notebooks.

    `speed` is how many times the minutes of sizes.json the notebooks before took; until one is done it is taken from
    the batches `made` here. A notebook begins its loops one after the other, so that the estimate is rough.
    """
    now = f"{job.notebook.stem}: {there} of {of} batches so far, {seconds / 60:.0f} min"
    if speed is None and made:
        speed = seconds / 60 / (job.minutes * made / of)
    if speed is None:
        return f"{now}; then {len(later)} more"
    left = speed * (job.minutes * (1 - there / max(of, 1)) + sum(other.minutes for other in later))
    return f"{now}; about {left:.0f} min left of all"


def tidy(path: Path) -> pd.DataFrame:
    """A table of a run in long form, without pictures: floats of four bytes, words as categories."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        table = table.reset_index() if any(table.index.names) else table
    else:
        with xr.open_dataset(path, engine="scipy") as data:
            table = data.drop_vars([name for name in data if "rgb" in data[name].dims]).to_dataframe().reset_index()
    table = table[[name for name in table if not table[name].map(lambda value: isinstance(value, bytes)).any()]]
    kinds = {name: np.float32 for name in table.select_dtypes("float64")}
    return table.astype(kinds | {name: "category" for name in table.select_dtypes(["object", "string"])})


def kept(job: Job, to: Path) -> None:
    """Bring a finished notebook's claims, tables and provenance into the folder of its model.

    The largest tables are left out where they are too large together, and named in the provenance, which comes last: a
    notebook without it has no evidence, whatever else lies there.
    """
    made, stem = json.loads((job.folder / "provenance.json").read_text()), job.notebook.stem
    ran = json.loads((job.folder / "parameters.json").read_text())
    if published.digest(job.notebook, ran) != job.digest:
        raise ValueError(f"{stem} was changed while it ran, or ran with other parameters than {job.given}: {ran}")
    place, known = to / stem, json.loads(text) if (text := _read(to / "provenance.json")) else {}
    place.mkdir(parents=True, exist_ok=True)
    if known.pop(stem, None):
        storage.write(to / "provenance.json", known)
    for old in place.iterdir():
        old.unlink()
    files = [path for path in job.folder.iterdir() if path.suffix in storage.SUFFIXES]
    sizes = {}
    for path in files:
        file = place / f"{path.stem}.parquet"
        with storage.whole(file) as beside:
            tidy(path).to_parquet(beside, compression="zstd", index=False)
        sizes[file] = file.stat().st_size
    others = sum(path.stat().st_size for path in to.glob("*/*.parquet") if path.parent != place)
    left_out = {}
    for file in sorted(sizes, key=lambda file: (-sizes[file], file)):
        if sum(sizes.values()) > min(EACH, MOST - others):
            left_out[file.name] = sizes.pop(file)
            file.unlink()
    rows = [row for row in claims.collect(job.folder) if row["notebook"] == stem[:2]]
    storage.write(to / "claims.json", claims.merge(json.loads(_read(to / "claims.json") or "[]"), rows))
    entry = {"digest": job.digest, "parameters": ran, "n": sorted({row["n"] for row in rows if row["n"]})}
    entry |= {name: made[name] for name in FROM if name in made}
    entry |= {"tables": sorted(file.name for file in sizes), "left out (bytes)": left_out}
    storage.write(to / "provenance.json", dict(sorted((known | {stem: entry}).items())))


def _word(value) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def main(argv: list[str] | None = None) -> int:
    """Make what is missing of a model's evidence; 0 when all is there, 1 when a notebook failed."""
    parser = argparse.ArgumentParser(prog="python docs/evidence/make.py", description="Make the evidence of a model.")
    add = parser.add_argument
    add("model", help="a known name, a Hub id or a local folder")
    add("--sizes", type=Path, default=Path("docs/evidence/sizes.json"), help="other sizes, to try a model with")
    add("--to", type=Path, help="another folder than docs/evidence; README and pages stay as they are")
    args, flags = parser.parse_known_args(argv)  # the rest is for the sweep, as in --shards 8
    name = published.folder(provenance.public({"model": args.model})["model"])
    to = (args.to or Path("docs/evidence")) / name
    sizes = json.loads(args.sizes.read_text())
    jobs = planned(args.model, sizes, Path("runs/evidence", name))
    known = json.loads(_read(to / "provenance.json") or "{}")
    missing = [job for job in jobs if known.get(job.notebook.stem, {}).get("digest") != job.digest]
    failed = []
    if missing:
        print(f"Evidence on {name}: {', '.join(job.notebook.stem for job in missing)}", flush=True)
        failed = executed(missing, flags, lambda job: kept(job, to))
    if args.to is None:
        published.publish(root=Path())
    if failed:
        print(f"Failed: {', '.join(failed)}; the others are in {to}", flush=True)
    elif missing:
        print(f"The evidence on {name} is in {to}", flush=True)
    else:
        print(f"Nothing to do: the evidence on {name} in {to} is of this code and these sizes", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Evidence: the notebooks at the size that decides, and what they found, as files in a folder beside this one.

    python docs/evidence/make.py toy                # make evidence
    python docs/evidence/make.py toy --check        # make evidence FLAGS=--check
    python docs/evidence/make.py flux.2-klein-4b    # make evidence MODEL=flux.2-klein-4b

Called in the repository's root. `sizes.json` says which notebooks, with which parameters, and in which of their tables
the batches of a loop stand row by row. What is computed lies in runs/evidence/; killed at any moment and called again,
this goes on with the batches that are missing. A notebook whose digest (digest.py) is that of its published evidence is
not executed again. With `--check` a drawn share of the batches is computed again instead (check.py), and evidence that
agrees gets the digest of today's code.
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
from threading import Lock

import pandas as pd
from check import brief, recomputed, tidy
from digest import digest
from papermill.iorw import load_notebook_node

from massact_utils.results import claims, files, provenance, sweep
from massact_utils.results.sweep import progress

MOST, EACH = 5_000_000, 2_000_000  # bytes of tables for a model, and for one notebook of it
FROM = ("model", "files", "device", "dtype", "python", "libraries", "prompts")  # what is kept of a run's provenance
LOCK = Lock()  # of provenance.json
EVERY = 30  # seconds between two lines that say how far it is


@dataclass
class Job:
    """One notebook at the size that decides."""

    notebook: Path
    given: dict  # parameters that differ from the notebook's own
    parameters: dict  # all, as they are published
    tables: dict  # the table with a loop's batches row by row, where it is not called as the loop is
    digest: str
    folder: Path  # of the results; another code gets another folder

    @property
    def stem(self) -> str:
        return self.notebook.stem


def planned(model: str, sizes: dict, out: Path) -> list[Job]:
    """The notebooks to execute, with their parameters. Raises ValueError for a notebook or parameter that is none."""
    jobs = []
    for stem, size in sizes["notebooks"].items():
        notebook = Path("notebooks", f"{stem}.ipynb")
        if not notebook.is_file():
            raise ValueError(f"sizes.json names {stem}, and there is no {notebook}")
        cells = load_notebook_node(str(notebook)).cells
        source = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.tags)
        own = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(source).body}
        given = {"model": model} | size["parameters"] | sizes["models"].get(model, {}).get(stem, {})
        unknown = [name for name in given if name not in own]
        if unknown:
            raise ValueError(f"{stem} has no parameter {', '.join(unknown)}; sizes.json may name: {', '.join(own)}")
        parameters = provenance.public(own | given)
        name = digest(notebook, parameters)
        jobs.append(Job(notebook, given, parameters, size.get("tables", {}), name, out / name[:8] / stem))
    return jobs


def executed(job: Job, flags: list[str]) -> bool:
    """Execute a notebook, saying now and then how far it is; whether it came to its end."""
    words = [word for name, value in job.given.items() for word in ("-p", name, _word(value))]
    start = time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(sweep.main, [str(job.notebook), "--out", str(job.folder.parent), *words, *flags])
        try:
            while not wait([future], timeout=EVERY).done:
                done, begun = progress(job.folder)
                minutes = (time.monotonic() - start) / 60
                print(f"{job.stem}: {done} of {begun} prompts so far, {minutes:.0f} min", flush=True)
        except KeyboardInterrupt:
            os._exit(130)  # what was started dies with this process
    return not future.result()


def kept(job: Job, to: Path) -> bool:
    """Bring a finished notebook's claims, tables and provenance into the folder of its model; True once they are there.

    A loop whose batches are Datasets and in no table gets a table of them in brief. The largest tables are left out
    where they are too large together, and named in the provenance, which comes last: a notebook without it has no
    evidence, whatever else lies there.
    """
    made, ran = files.read_json(job.folder / "provenance.json"), files.read_json(job.folder / "parameters.json")
    if digest(job.notebook, ran) != job.digest:
        raise ValueError(f"{job.stem} was changed while it ran, or ran with other parameters than {job.given}: {ran}")
    place, known = to / job.stem, files.read_json(to / "provenance.json", {})
    place.mkdir(parents=True, exist_ok=True)
    if known.pop(job.stem, None):
        files.write(to / "provenance.json", known)
    for old in place.iterdir():
        old.unlink()
    tables = {path.stem: tidy(path) for path in job.folder.iterdir() if path.suffix in files.SUFFIXES}
    for loop in set(made.get("prompts", {})) - set(job.tables):
        parts = [brief(path) for path in sorted(job.folder.glob(f"parts/{loop}-*.nc"))]
        tables |= {loop: pd.concat(parts)} if parts else {}
    sizes, left_out = {}, {}
    for name, table in tables.items():
        file = place / f"{name}.parquet"
        with files.atomic_write(file) as beside:
            table.to_parquet(beside, compression="zstd", index=False)
        sizes[file] = file.stat().st_size
    others = sum(path.stat().st_size for path in to.glob("*/*.parquet") if path.parent != place)
    for file in sorted(sizes, key=lambda file: (-sizes[file], file)):
        if sum(sizes.values()) > min(EACH, MOST - others):
            left_out[file.name] = sizes.pop(file)
            file.unlink()
    rows = [row for row in files.read_json(job.folder / "claims.json", []) if row["notebook"] == job.stem[:2]]
    old = [row for row in files.read_json(to / "claims.json", []) if row["notebook"] != job.stem[:2]]
    files.write(to / "claims.json", sorted(old + rows, key=lambda row: row["id"]))
    entry = {"digest": job.digest, "parameters": ran, "n": sorted({row["n"] for row in rows if row["n"]})}
    entry |= {name: made[name] for name in FROM if name in made}
    entry |= {"tables": sorted(file.name for file in sizes), "left out (bytes)": left_out}
    files.write(to / "provenance.json", dict(sorted((known | {job.stem: entry}).items())))
    return True


def checked(job: Job, to: Path) -> bool:
    """Compute a drawn share of a notebook's batches again; whether they agree, and the evidence has today's digest."""
    start, entry = time.monotonic(), files.read_json(to / "provenance.json", {}).get(job.stem)
    if entry is None:
        print(f"{job.stem}: no evidence in {to}", flush=True)
        return False
    was, now = entry["parameters"], job.parameters
    wrong = [f"{name} = {was[name]!r} then, {now[name]!r} now" for name in was if was[name] != now.get(name, was[name])]
    done, of, wrong = (0, 0, wrong) if wrong else recomputed(job, entry["prompts"], to / job.stem)
    words = f"{done} of {of} batches in {(time.monotonic() - start) / 60:.1f} min"
    print(f"{job.stem}: {words}, {'stale' if wrong else 'they agree'}", *wrong, sep="\n  ", flush=True)
    if not wrong:
        stamp = {"digest": job.digest, "parameters": now, "checked": f"{done} of {of} batches"}
        with LOCK:
            known = files.read_json(to / "provenance.json")
            files.write(to / "provenance.json", known | {job.stem: known[job.stem] | stamp})
    return not wrong


def _word(value) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Make what is missing of a model's evidence, or check what is there; 1 when a notebook failed or is stale."""
    parser = argparse.ArgumentParser(prog="python docs/evidence/make.py", description="Make the evidence of a model.")
    add = parser.add_argument
    add("model", help="a known name, a Hub id or a local folder")
    add("--check", action="store_true", help="compute a drawn share of the batches again and compare")
    add("--sizes", type=Path, default=Path("docs/evidence/sizes.json"), help="other sizes, to try a model with")
    add("--to", type=Path, default=Path("docs/evidence"), help="another folder than docs/evidence")
    args, flags = parser.parse_known_args(argv)  # the rest is for the sweep
    name = claims.directory(provenance.public({"model": args.model})["model"])
    to, jobs = args.to / name, planned(args.model, files.read_json(args.sizes), Path("runs/evidence", name))
    if args.check:
        with ThreadPoolExecutor(2) as threads:
            good = threads.map(lambda job: checked(job, to), jobs)
    else:
        known = files.read_json(to / "provenance.json", {})
        jobs = [job for job in jobs if known.get(job.stem, {}).get("digest") != job.digest]
        print(f"Evidence on {name} to make: {', '.join(job.stem for job in jobs) or 'none'}", flush=True)
        good = [executed(job, flags) and kept(job, to) for job in jobs]
    bad = [job.stem for job, well in zip(jobs, good, strict=True) if not well]
    state = f"without {', '.join(bad)}" if bad else "is whole"
    print(f"The evidence on {name} in {to} {state}" + "; make evidence makes it" * bool(bad and args.check))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

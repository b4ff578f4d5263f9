"""Execute notebooks through papermill, each in a process and a folder of its own.

    python -m massact_utils.sweep notebooks/*.ipynb --out runs/workbook -p k 4
    python -m massact_utils.sweep notebooks/02_disruption.ipynb --out runs/k --grid k 1,4,12 --shards 8 --workers 2

Called in the repository's root, which becomes the kernels' working directory. Leaves OUT/<notebook>/<notebook>.ipynb,
the same as .html, and what the notebook writes itself: a parameter `out_dir`, where a notebook declares one, is set to
OUT/<notebook>, or to OUT/<notebook>/<name>=<value> for each point of a grid. Shards of a point share its folder; when
all are done the notebook is executed once more and draws from what is there. Called again, it goes on where it stopped.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd

from .parameters import declared
from .run import Incomplete, progress

# papermill in a process that the kernel of the operating system kills when the one that started it is gone (Linux)
PAPERMILL = """
import ctypes, os, runpy, sys
parent = int(sys.argv.pop(1))
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl and (prctl(1, 9) or os.getppid() != parent):
    sys.exit("the process that started this one is gone")
runpy.run_module("papermill", run_name="__main__", alter_sys=True)
"""
PATIENCE = 600  # seconds to wait for a lost scheduler


class Outcome(NamedTuple):
    """How an execution ended: "done", "waiting" (a shard, for batches of others) or "failed", and with what words."""

    state: str
    problem: str = ""


class Unreachable(RuntimeError):
    """The scheduler does not answer."""


@dataclass
class Job:
    """One notebook at one point of the grid."""

    notebook: Path
    folder: Path
    parameters: list[list[str]]
    name: str
    state: str = "waiting"
    shards: set = field(default_factory=set)  # that are done


def declared_by(notebook: Path) -> list[str]:
    """Names declared in the cells tagged `parameters`. papermill's own reader skips `x: int | None = None`."""
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return [name for cell in tagged for name in declared(cell.source)]


def flag(name: str, value: str) -> tuple[str, ...]:
    """A parameter as papermill's command takes it: a list or a dict as YAML, since -p would leave it a text.

    >>> flag("call", "{guidance_scale: 2.5}")
    ('-y', 'call: {guidance_scale: 2.5}')
    """
    return ("-y", f"{name}: {value}") if value[:1] in ("[", "{") else ("-p", name, value)


def execute(notebook, folder, parameters, shard="", cwd=".", devices=(), threads=0, quiet=False) -> Outcome:
    """Execute one notebook into `folder`, with HTML, or one shard into folder/shards.

    The results get their names when they are complete: papermill also saves after a failure, and the notebook it saves
    when a kernel was killed claims that every cell completed.
    """
    import fcntl

    import nbformat
    from nbconvert import HTMLExporter

    name = f"{Path(notebook).stem}.{shard.replace('/', '-of-')}" if shard else Path(notebook).stem
    place = Path(cwd, folder, "shards" if shard else "").absolute()
    finished, page, unfinished = (place / f"{name}{end}" for end in (".ipynb", ".html", ".unfinished.ipynb"))
    place.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"MASSACT_SHARD": shard or "1/1"}
    if cwd != ".":  # on a Dask worker: its nanny sets one thread, and an allocator that makes a CPU 3 times slower
        import dask

        nanny = dask.config.get("distributed.nanny.pre-spawn-environ")
        environment = {name: value for name, value in environment.items() if str(nanny.get(name)) != value}
    if devices:
        from distributed import get_worker

        environment["CUDA_VISIBLE_DEVICES"] = devices[int(get_worker().name) % len(devices)]
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    flags = [word for pair in parameters for word in flag(*pair)] + ["--no-progress-bar"] * quiet
    command = [sys.executable, "-c", PAPERMILL, str(os.getpid()), str(notebook), unfinished, "--cwd", ".", *flags]
    with open(place / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another sweep may be at it
        for old in (finished, page, unfinished):
            old.unlink(missing_ok=True)
        done = subprocess.run(command, cwd=cwd, env=environment, stderr=subprocess.PIPE if quiet else None, text=True)
        if done.returncode == 0:
            if not shard:
                rebased(unfinished, Path(cwd, notebook).absolute().parent)
                page.write_text(HTMLExporter().from_filename(str(unfinished))[0], encoding="utf-8")
            os.replace(unfinished, finished)
            return Outcome("done")
        cells = nbformat.read(unfinished, as_version=4).cells if unfinished.exists() else []
    for error in (o for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"):
        waits = shard and error.ename == Incomplete.__name__
        return Outcome("waiting" if waits else "failed", f"{error.ename}: {error.evalue}")
    said = [line for line in (done.stderr or "").splitlines() if line.strip()][-1:] or ["papermill or the kernel died"]
    return Outcome("failed", f"exit code {done.returncode}: {said[0]}")


def rebased(executed: Path, home: Path) -> None:
    """Let the relative links and pictures in an executed notebook's text lead to where they led from its `home`."""
    import nbformat

    def link(found):
        return f"]({Path(os.path.relpath(home / found[1], executed.parent)).as_posix()})"

    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?![a-z]+:|[#/])([^)\s]+)\)", link, cell.source)
    nbformat.write(notebook, executed)


def attempt(job: Job, pool, shard: str, retries: int, options: dict) -> Outcome:
    """Execute on a worker, and again after a failure; a scheduler that is lost is none."""
    failures, lost = [], None
    while len(failures) <= retries:
        try:
            outcome = pool().submit(execute, job.notebook, job.folder, job.parameters, shard, **options).result()
            lost = None
        except (CancelledError, Unreachable) as error:  # the scheduler is gone
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE:
                failures += [f"no scheduler for {PATIENCE} s: {error}"] * (retries + 1)
            time.sleep(1)
            continue
        except Exception as error:  # a folder in which nothing can be written; KilledWorker: several workers died of it
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        if outcome.state != "failed":
            job.shards.add(shard)
            return outcome
        failures.append(outcome.problem)
    tried = f" ({len(failures)} times)" if retries else ""
    stem = f"{job.notebook.stem}.{shard.replace('/', '-of-')}" if shard else job.notebook.stem
    as_far = job.folder / ("shards" if shard else "") / f"{stem}.unfinished.ipynb"
    return Outcome("failed", f"{job.name} failed{tried}: {failures[-1]}\n  as far as it came: {as_far}")


def finish(job: Job, pool, shards: int = 1, retries: int = 0, **options) -> str:
    """All shards of a job and then the whole notebook: "" or what went wrong.

    Shards go in rounds: a shard stops where it needs the table of a loop that others have not finished, and the next
    round takes it from there to the next loop.
    """
    job.state, names = "running", [f"{i}/{shards}" for i in range(1, shards + 1)]
    problem, before = "", None
    page = job.folder / f"{job.notebook.stem}.html"
    there, of = progress(job.folder)
    while shards > 1 and not problem and not (page.exists() and there == of):
        job.shards.clear()
        with ThreadPoolExecutor(shards) as each:  # threads that only wait
            outcomes = list(each.map(lambda shard: attempt(job, pool, shard, retries, options), names))
        there, of = progress(job.folder)
        problem = next((outcome.problem for outcome in outcomes if outcome.state == "failed"), "")
        if there == of and any(outcome.state == "done" for outcome in outcomes):
            break
        if (there, of) == before and not problem:
            problem = f"{job.name} failed: {there} of {of} batches are done, and no shard gets any further"
        before = there, of
    problem = problem or attempt(job, pool, "", retries, options).problem
    there, of = progress(job.folder)
    if not problem and there < of:
        problem = f"{job.name} failed: executed, but {there} of {of} batches are on disk; see {job.folder}"
    job.state = "failed" if problem else "done"
    return problem


def table(jobs: list[Job], shards: int) -> str:
    """How far every job has come, for printing."""
    rows = []
    for job in jobs:
        there, of = progress(job.folder)
        rows.append({"job": job.name, "state": job.state, "shards": f"{len(job.shards - {''})}/{shards}"})
        rows[-1] |= {"batches": f"{there}/{of}"}
    return pd.DataFrame(rows).to_string(index=False)


class Cluster:
    """A Dask cluster as an executor: one of the scheduler at an address, or a local one with a worker for each device.

    Calling it gives the executor, connected again when the scheduler was away.
    """

    def __init__(self, address: str | None, workers: int):
        from distributed import Client, LocalCluster  # the [batch] extra

        self.local = None if address else LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0)
        self.connect = partial(Client, address or self.local, timeout=10, set_as_default=False)
        self.lock = threading.Lock()
        self.client = self.connect()

    def __call__(self):
        with self.lock:
            if self.client.status != "running":
                print("the scheduler is away; connecting again", flush=True)
                try:
                    self.client.close(timeout=1)
                    self.client = self.connect()
                except OSError as error:
                    raise Unreachable(str(error)) from error
            return self.client.get_executor(pure=False)

    def close(self):
        """Leave the scheduler, and end a local cluster."""
        self.client.close()
        if self.local:
            self.local.close()


def plan(parser, args) -> list[Job]:
    """Every notebook at every point of the grid, checked before anything starts."""
    jobs, taken, names = [], {name for name, _ in args.p}, {}
    for name, _ in args.grid:
        if name in taken:
            parser.error(f"{name} is given twice")
        taken.add(name)
    for notebook in args.notebooks:
        if not notebook.is_file():
            parser.error(f"{notebook}: no such notebook")
        try:
            names[notebook] = declared_by(notebook)
        except Exception as error:  # whatever nbformat makes of a file that is not a notebook
            parser.error(f"{notebook}: not a readable notebook ({error})")
    for name, _ in args.p + args.grid:
        if name in ("out_dir", "shard"):
            parser.error(f"{name} follows from --out and --shards; leave it away")
        without = [notebook for notebook in args.notebooks if name not in names[notebook]]
        if without and (without == args.notebooks or name in dict(args.grid)):
            parser.error(f"{without[0]} has no parameter {name}; it has: {', '.join(names[without[0]]) or 'none'}")
        for notebook in without:
            print(f"{notebook} has no parameter {name} and runs without it", flush=True)
    for notebook in args.notebooks:
        given = [[name, value] for name, value in args.p if name in names[notebook]]
        for point in product(*([[name, value] for value in values.split(",")] for name, values in args.grid)):
            at = ",".join(f"{name}={value}" for name, value in point)
            folder = args.out / notebook.stem / re.sub(r"[^\w.=,+-]", "-", at)
            if any(folder == job.folder for job in jobs):
                parser.error(f"two notebooks are called {notebook.name}; sweep them into different --out folders")
            out = [["out_dir", str(folder)]] * ("out_dir" in names[notebook])
            jobs.append(Job(notebook, folder, given + list(point) + out, " ".join([str(notebook), at]).strip()))
    return jobs


def main(argv: list[str] | None = None) -> int:
    """Execute every notebook named; 0 when all succeeded, 1 when one failed, 2 when nothing was started."""
    parser = argparse.ArgumentParser(prog="python -m massact_utils.sweep", description="Execute notebooks.")
    add = parser.add_argument
    add("notebooks", nargs="+", type=Path)
    add("--out", required=True, type=Path, help="folder that gets one folder per notebook")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter of those that have it")
    add(
        "--grid",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "A,B,C"),
        help="a parameter's values, each in turn",
    )
    add("--shards", type=int, default=1, metavar="N", help="split the prompts of every notebook over N processes")
    add("--workers", type=int, metavar="N", help="local workers (Dask); one for each GPU where there are several")
    add("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, as in tcp://10.0.0.1:8786")
    add("--retries", type=int, metavar="N", help="times a failed notebook is tried again; 2 with Dask, otherwise 0")
    args = parser.parse_args(argv)
    if args.shards < 1 or (args.workers is not None and args.workers < 1):
        parser.error("--shards and --workers take 1 or more")
    if args.scheduler and args.workers:
        parser.error("--scheduler has workers of its own; leave --workers away")
    jobs = plan(parser, args)

    import torch  # here, so that workers and their notebooks' parents start without it

    devices = [str(i) for i in range(torch.cuda.device_count())]
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    by_itself = len(devices) > 1 and len(jobs) * args.shards > 1 and importlib.util.find_spec("distributed")
    several = args.scheduler or args.workers or by_itself
    options = {"retries": (2 if several else 0) if args.retries is None else args.retries, "shards": args.shards}
    if several:
        workers = args.workers or len(devices)
        try:
            pool = Cluster(args.scheduler, workers)
        except ImportError as error:
            parser.error(f"{error}; several workers need Dask: pip install 'massact[batch]'")
        print(f"Dask dashboard: {pool.client.dashboard_link}", flush=True)
        options |= {"cwd": os.getcwd(), "quiet": True}
        if not args.scheduler:
            threads = os.environ.get("OMP_NUM_THREADS") or max(1, os.cpu_count() // workers)
            options |= {"devices": devices, "threads": threads}
    else:
        alone = ThreadPoolExecutor(1)
        pool, options["quiet"] = (lambda: alone), args.shards > 1
    try:
        failed = watch(jobs, pool, len(jobs) if several else 1, options)
    except KeyboardInterrupt:
        os._exit(130)  # what was started dies with this process
    if several:
        print(table(jobs, args.shards), flush=True)
        pool.close()
    print("\n".join(failed) if failed else f"All {len(jobs)} done; open {args.out}/*/*.html", flush=True)
    return bool(failed)


def watch(jobs: list[Job], pool, at_once: int, options: dict) -> list[str]:
    """Finish all jobs, telling how far they are; what failed, in words."""
    control, shown, told = ThreadPoolExecutor(at_once), time.monotonic(), {}
    futures = [control.submit(finish, job, pool, **options) for job in jobs]
    while len(told) < len(jobs):
        wait([f for f in futures if f not in told], timeout=0.2, return_when=FIRST_COMPLETED)
        for i, (job, future) in enumerate(zip(jobs, futures, strict=True), 1):
            if future.done() and future not in told:
                told[future] = future.result()
                page = job.folder / f"{job.notebook.stem}.html"
                print(f"[{i}/{len(jobs)}] {told[future] or f'{job.name} -> {page}'}", flush=True)
        if time.monotonic() - shown > 30 and (at_once > 1 or options["shards"] > 1):
            print(table(jobs, options["shards"]), flush=True)
            shown = time.monotonic()
    control.shutdown()
    return [said for said in told.values() if said]

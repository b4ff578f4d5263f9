"""Execute notebooks, each in a folder of its own, by as many processes as asked for.

    python -m massact_utils.sweep notebooks/*.ipynb --out runs/workbook --workers 2
    python -m massact_utils.sweep notebooks/02_disruption.ipynb --out runs/k --grid k 1,4,12 --workers 6 -p seed 3

Called in the repository's root, which becomes the kernels' working directory. Leaves OUT/index.html, and for each
notebook OUT/NOTEBOOK/NOTEBOOK.ipynb, the same as .html, and what it writes itself: a parameter `out_dir`, where it
declares one, is OUT/NOTEBOOK, or OUT/NOTEBOOK/NAME=VALUE for each point of a grid. Where there are more workers than
notebooks, several execute the same one on the same folder and share its batches by locks; the first to come to its end
leaves the page. Called again, it goes on where it stopped.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from queue import SimpleQueue

from . import files, parameters

CHILD = "from massact_utils.results.sweep import child; child()"


@dataclass
class Job:
    """One notebook at one point of the grid."""

    notebook: Path
    folder: Path
    given: dict
    name: str
    problem: str | None = None  # "": done

    @property
    def page(self) -> Path:
        """The page it leaves."""
        return self.folder / f"{self.notebook.stem}.html"


def execute(notebook, folder, given: dict, out, cwd=".", environment=None) -> str:
    """Execute one notebook into `folder`, in a process that ends with this one; nothing, or what went wrong.

    The notebook gets its name when it is complete: papermill also saves after a failure, and the notebook it saves when
    a kernel was killed claims that every cell completed.
    """
    from . import pages

    notebook, place = Path(cwd, notebook).absolute(), Path(cwd, folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    unfinished = place / f"{notebook.stem}.{uuid.uuid4().hex[:6]}.unfinished.ipynb"
    shutil.copyfile(notebook, unfinished)  # it runs from now on
    asked = dict(input_path=str(notebook), output_path=str(unfinished), parameters=given, cwd=cwd, progress_bar=False)
    command = [sys.executable, "-c", CHILD, json.dumps(asked)]
    options = dict(cwd=cwd, env=os.environ | (environment or {}), text=True, start_new_session=True)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options
    ) as process:
        words = [line for line in process.stderr.read().splitlines() if line.strip()]
    if process.returncode == 0:
        pages.write(unfinished, place, notebook, Path(cwd, out).absolute(), given)
        return ""
    cells = json.loads(unfinished.read_text())["cells"]
    errors = [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"]
    problem = f"exit code {process.returncode}: {(words or ['papermill or the kernel died'])[-1]}"
    problem = f"{errors[0]['ename']}: {errors[0]['evalue']}" if errors else problem
    as_far = unfinished.with_name(f"{notebook.stem}.failed.ipynb")
    os.replace(unfinished, as_far)
    return f"{problem}\n  as far as it came: {Path(folder, as_far.name)}"


def child() -> None:
    """What the process of `execute` does: papermill, until it is done or the process that started it is gone."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    import papermill

    papermill.execute_notebook(**json.loads(sys.argv[1]))


def value_of(text: str, kind: str):
    """A parameter's value from a word of the command line.

    >>> value_of("{guidance_scale: 2.5}", "dict"), value_of("4", "int"), value_of("4", "str")
    ({'guidance_scale': 2.5}, 4, '4')
    """
    import yaml

    if kind == "str":
        return text
    found = yaml.safe_load(text)
    return (
        float(found) if kind == "float" and isinstance(found, str) and re.fullmatch(r"[\d.]+e-?\d+", found) else found
    )


def plan(parser, args) -> list[Job]:
    """Every notebook at every point of the grid, its parameters checked before anything starts."""
    declared, smallest, jobs = {}, {}, []
    for notebook in args.notebooks:
        try:
            cells = json.loads(notebook.read_text())["cells"]
        except FileNotFoundError:
            parser.error(f"{notebook}: no such notebook")
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"{notebook}: not a readable notebook ({error})")
        code = [("".join(c["source"]), c["metadata"].get("tags", [])) for c in cells if c["cell_type"] == "code"]
        tagged = [parameters.declared(source) for source, tags in code if "parameters" in tags]
        declared[notebook] = {name: kind for names in tagged for name, kind in names.items()}
        smallest[notebook] = {name: n for source, _ in code for name, n in parameters.least(source).items()}
    names = [name for name, _ in args.p + args.grid]
    for name in names:
        having = [notebook for notebook in args.notebooks if name in declared[notebook]]
        if name == "out_dir" or names.count(name) > 1:
            parser.error("out_dir follows from --out; leave it away" if name == "out_dir" else f"{name} is given twice")
        if not having or (name in dict(args.grid) and len(having) < len(args.notebooks)):
            without = next(notebook for notebook in args.notebooks if notebook not in having)
            near = get_close_matches(name, {n for kinds in declared.values() for n in kinds}, 1)
            of = ", ".join(notebook.stem for notebook in args.notebooks if near and near[0] in declared[notebook])
            mean = f"; did you mean {near[0]}, of {of}?" if near and near[0] != name else ""
            parser.error(f"{without} has no parameter {name}{mean or '; it has: ' + ', '.join(declared[without])}")
        for notebook in [notebook for notebook in args.notebooks if notebook not in having]:
            print(f"{notebook} has no parameter {name} and runs without it", flush=True)
    split = [
        [(name, word) for word in re.findall(r"(?:\[[^]]*\]|\{[^}]*\}|[^,])+", words)] for name, words in args.grid
    ]
    for notebook, point in product(args.notebooks, product(*split)):
        kinds, at = declared[notebook], ",".join(f"{name}={word}" for name, word in point)
        given = {name: value_of(word, kinds[name]) for name, word in [*args.p, *point] if name in kinds}
        for problem in parameters.wrong(given, kinds, smallest[notebook]):
            parser.error(f"{notebook}: {problem}")
        folder = args.out / notebook.stem / re.sub(r"[^\w.=,+-]", "-", at)
        if any(folder == job.folder for job in jobs):
            parser.error(f"two notebooks are called {notebook.name}; sweep them into different --out folders")
        given |= {"out_dir": str(folder)} if "out_dir" in kinds else {}
        jobs.append(Job(notebook, folder, given, " ".join([str(notebook), at]).strip()))
    return jobs


def local(workers: int):
    """A function that submits `execute` to one of several local processes, each with its share of GPUs or cores."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = [d for d in devices if d] or [path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*")]
    workers, free = workers or len(devices) or 1, SimpleQueue()
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, os.cpu_count() // workers)
    for i in range(workers):
        free.put({"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {"OMP_NUM_THREADS": str(threads)})
    pool = ThreadPoolExecutor(workers)

    def work(job, out):
        if job.problem == "":
            return ""  # another process came to its end
        environment = free.get()
        try:
            return execute(job.notebook, job.folder, job.given, out, environment=environment)
        finally:
            free.put(environment)

    return workers, lambda job, out: pool.submit(work, job, out)


def remote(address: str, workers: int | None):
    """A function that submits `execute` to the workers of a Dask scheduler."""
    import logging

    from distributed import Client  # the [batch] extra

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    client = Client(address, timeout=10, set_as_default=False)
    pool, cwd = client.get_executor(pure=False), os.getcwd()
    many = workers or len(client.scheduler_info(n_workers=-1)["workers"]) or 1
    return many, lambda job, out: pool.submit(execute, job.notebook, job.folder, job.given, out, cwd)


def progress(folder: Path) -> tuple[int, int]:
    """Prompts on disk in a run's folder, and prompts of all the loops that were begun there."""
    done, loops = 0, files.read_json(folder / "provenance.json", {}).get("prompts", {})
    for name, loop in loops.items():
        parts = {part.stem for part in folder.glob(f"parts/{name}-*") if part.suffix in files.SUFFIXES}
        n = sum(bool(re.fullmatch(rf"{re.escape(name)}-\d+", part)) for part in parts)
        done += min(n * loop["in batches of"], loop["prompts"])
    return done, sum(loop["prompts"] for loop in loops.values())


def watch(jobs: list[Job], futures: dict, out: Path) -> None:
    """Wait for all, saying how far they are: one bar of all prompts, and a line where one ends."""
    from tqdm import tqdm

    ended, form = 0, "{desc}{n:.0f} of about {total:.0f} prompts |{bar:20}| {elapsed}, {remaining} left"
    with tqdm(total=1, leave=False, bar_format=form, mininterval=1 if sys.stderr.isatty() else 30) as bar:
        while futures:
            for future in wait(futures, timeout=1).done | {f for f in futures if f.done()}:
                job = futures.pop(future)
                error = future.exception()
                problem = f"{type(error).__name__}: {error}" if error else future.result()
                if job.problem != "" and (not problem or job not in futures.values()):
                    job.problem = problem and f"{job.name} failed: {problem}"
                    ended += 1
                    bar.write(f"[{ended}/{len(jobs)}] {job.problem or f'{job.name} -> {job.page}'}", file=sys.stdout)
            running = sum(job.problem is None and any(job.folder.glob("*.unfinished.ipynb")) for job in jobs)
            bar.desc = f"{running} running, {len(jobs) - ended - running} waiting, {ended} done: "
            known = [progress(job.folder) for job in jobs]
            begun = [of for _, of in known if of]
            bar.total = sum(begun) * len(jobs) / max(len(begun), 1) or 1
            bar.n = sum(n for n, _ in known)
            bar.update(0)


def main(argv: list[str] | None = None) -> int:
    """Execute every notebook named; 0 when all succeeded, 1 when one failed, 2 when nothing was started."""
    parser = argparse.ArgumentParser(prog="python -m massact_utils.sweep", description="Execute notebooks.")
    add = parser.add_argument
    add("notebooks", nargs="+", type=Path)
    add("--out", required=True, type=Path, help="folder that gets one folder per notebook")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter of those that have it")
    add("--grid", nargs=2, action="append", default=[], metavar=("NAME", "A,B,C"), help="its values, each in turn")
    add("--workers", type=int, metavar="N", help="processes; one for each GPU where there are several")
    add(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler, as in tcp://10.0.0.1:8786: beyond one machine"
    )
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers takes 1 or more")
    jobs = plan(parser, args)
    try:
        many, submit = remote(args.scheduler, args.workers) if args.scheduler else local(args.workers)
    except ImportError as error:
        parser.error(f"{error}; --scheduler needs Dask: pip install 'massact[batch]'")
    except OSError as error:
        parser.error(f"no Dask scheduler answers at {args.scheduler} ({error})")
    for job in jobs:
        for old in [job.page, job.page.with_suffix(".ipynb"), *job.folder.glob("*.unfinished.ipynb")]:
            old.unlink(missing_ok=True)
    try:
        futures = {submit(job, args.out): job for _ in range(-(-many // len(jobs))) for job in jobs}
        watch(jobs, futures, args.out)
    except KeyboardInterrupt:
        print(f"\nStopped; finished batches are kept in {args.out}, and the same command goes on with the rest.")
        sys.stdout.flush()
        os._exit(130)  # what was started ends with this process
    from . import pages

    failed = [job.problem for job in jobs if job.problem]
    print("\n".join(failed) if failed else f"All {len(jobs)} done; open {pages.index(args.out)}", flush=True)
    return bool(failed)

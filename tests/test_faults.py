"""Long jobs meet faults: real processes are killed, disks fill, and no prompt is lost and none is double.

Most runs here draw numbers instead of images, a prompt's own number from its own seed, so that a fault can be tried
often; the last ones are the toy model in a notebook, and a Dask cluster of separate processes.
"""

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr

import massact_utils as mu
from massact_utils.results import files, parameters, sweep
from massact_utils.results.run import Batch
from test_sweep import GUARD, PARAMETERS, write_notebook

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]
fork = multiprocessing.get_context("fork")
PROMPTS = [f"prompt {i}" for i in range(60)]


def draw(batch):
    """What stands in for images and their measures: numbers from each prompt's seed alone."""
    numbers = [np.random.default_rng(seed).normal(size=20).mean() for seed in batch.seeds]
    return pd.DataFrame({"at": batch.indices, "prompt": batch.prompts, "number": numbers})


def work(out, log, pause=0.0, size=2):
    """A bare loop over Run, as a notebook has it; every batch on disk leaves a line in the log."""
    run = mu.Run(out, {"seed": 7})
    for batch in run.pending(PROMPTS, size):
        time.sleep(pause)
        run.add(batch, draw(batch))
        with open(log, "a") as lines:
            lines.write(f"{batch.index}\n")


def start(*args, **more):
    process = fork.Process(target=work, args=args, kwargs=more)
    process.start()
    return process


def expected():
    batch = Batch("part", 0, list(range(60)), PROMPTS, [7 + i for i in range(60)])
    return draw(batch)


def check(out, log=None, faults=1, size=2):
    """The table is the undisturbed one; say how many prompts were lost, and how many were put on disk twice."""
    run = mu.Run(out, {"seed": 7})
    assert list(run.pending(PROMPTS, size)) == []
    table = run.results()
    lost, double = 60 - table["at"].nunique(), len(table) - table["at"].nunique()
    again = 0 if log is None else len(log.read_text().split()) - len(set(log.read_text().split()))
    print(f"faults {faults}, lost {lost}, double in the table {double}, batches put on disk twice {again}")
    assert (lost, double, again) == (0, 0, 0)
    pd.testing.assert_frame_equal(table, expected())
    left = [path.name for path in run.parts.iterdir() if path.suffix not in (".parquet", ".sha256", ".unreadable")]
    assert not left, f"left over: {left}"


def kill_after(process, out, seconds):
    """Wait for a new part, and `seconds`, and kill."""
    before, deadline = len(list(out.glob("parts/*.parquet"))), time.monotonic() + 60
    while len(list(out.glob("parts/*.parquet"))) == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    assert process.is_alive(), "the run was over before the kill; it is too short for this test"
    process.kill()
    process.join()


def test_kill_9_at_ten_random_moments(tmp_path):
    out, log, moments = tmp_path / "out", tmp_path / "log", random.Random(0)
    for i in range(10):
        process = start(out, log, pause=0.1, size=1)
        if i % 4 == 0:  # while it begins
            time.sleep(moments.random() * 0.1)
            process.kill()
            process.join()
        else:
            kill_after(process, out, moments.random() * 0.08)
    before = len(list((out / "parts").glob("*.parquet")))
    assert 0 < before < 60
    work(out, log, size=1)
    check(out, log, faults=10, size=1)  # a kill between a part and its line in the log leaves no line, never two


@pytest.mark.parametrize("renamed", [False, True])
def test_kill_9_while_a_part_is_written(tmp_path, monkeypatch, renamed):
    """At the worst moments: everything is written, and nothing is renamed yet or the lock is still there."""
    out, replace = tmp_path / "out", os.replace

    def die(source, target):
        if renamed:
            replace(source, target)
        if str(target).endswith("part-00003.parquet"):
            os.kill(os.getpid(), signal.SIGKILL)
        if not renamed:
            replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    process = start(out, tmp_path / "log")
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    left = {path.name for path in (out / "parts").iterdir()}
    assert ".part-00003.lock" in left and ("part-00003.parquet" in left) == renamed
    assert any("unfinished" in name for name in left) != renamed
    work(out, tmp_path / "log")
    check(out, tmp_path / "log")


def test_six_processes_on_one_folder_three_of_them_killed(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    processes = [start(out, log, pause=0.3, size=1) for _ in range(6)]
    for process in processes[:3]:
        kill_after(process, out, 0)
    for process in processes[3:]:
        process.join()
    assert [process.exitcode for process in processes[3:]] == [0, 0, 0]
    check(out, log, faults=3, size=1)


def test_truncated_parts(tmp_path):
    work(tmp_path / "out", tmp_path / "log")
    parts = sorted((tmp_path / "out" / "parts").glob("*.parquet"))
    for i, part in enumerate(parts[::6]):
        part.write_bytes(part.read_bytes()[: i * 500])
    with pytest.warns(UserWarning, match=r"is not what was written; set aside"):
        work(tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again").read_text().split() == ["0", "6", "12", "18", "24"]
    check(tmp_path / "out", tmp_path / "again", faults=5)


@contextmanager
def mounted(folder, options):
    """A small file system of its own. Needs the right to mount; without it the test is skipped."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount a file system here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=800k") as disk:
        out, filler = disk / "out", disk / "filler"
        mu.Run(out, {"seed": 7})
        filler.write_bytes(bytes(660 * 1024))
        with pytest.raises(OSError, match="No space left"):
            work(out, tmp_path / "log")
        parts = list((out / "parts").glob("part-*.parquet"))
        assert 0 < len(parts) < 30 and all(len(pd.read_parquet(part)) == 2 for part in parts)
        filler.unlink()
        work(out, tmp_path / "log", size=2)
        check(out, tmp_path / "log")


def test_a_disk_that_takes_nothing(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises((PermissionError, OSError), match=r"not writable|Read-only"):
            mu.Run(disk, {"seed": 7})
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        mu.Run(tmp_path / "file", {"seed": 7})


def sweeping(*words):
    process = fork.Process(target=lambda: sys.exit(sweep.main([str(word) for word in words])))
    process.start()
    return process


def find(process, what):
    """The descendant whose command line holds `what`, once it is there."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(what in word for word in child.cmdline()):
                    return child
        time.sleep(0.02)
    raise AssertionError(f"no {what} was started")


def parts(out, more_than, patience=600):
    """Wait until more parts than that are on disk; how many."""
    deadline = time.monotonic() + patience
    while (n := len([p for p in out.glob("parts/*") if p.suffix in files.SUFFIXES])) <= more_than:
        assert time.monotonic() < deadline, f"{n} parts on disk, and no more come"
        time.sleep(0.01)
    return n


STATISTICS = """
import time
import massact_utils as mu
pipe = mu.load("toy", device="cpu")
run = mu.Run(out_dir, parameters, pipe=pipe)
for batch in run.pending(mu.prompts.read("toyworld", 12), 2):
    with mu.attach(pipe, mu.ChannelStats()) as stats:
        mu.generate(pipe, batch.prompts, seeds=batch.seeds, num_inference_steps=2)
    time.sleep(0.3)
    run.add(batch, stats.dataset())
print(dict(run.results().sizes))"""


@pytest.mark.slow
def test_the_toy_model_in_a_notebook_whose_kernel_and_papermill_are_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook, moments = write_notebook(tmp_path / "toy.ipynb", GUARD, STATISTICS), random.Random(3)
    out = tmp_path / "runs/toy"
    for i, what in enumerate(["ipykernel_launcher", "import child"]):
        sweeper = sweeping(notebook, "--out", "runs")
        parts(out, i)
        time.sleep(moments.random() * 0.4)
        find(sweeper, what).kill()
        sweeper.join()
        assert sweeper.exitcode == 1 and not (out / "toy.html").exists()
    assert sweep.main([notebook, "--out", "runs"]) == 0 and (out / "toy.html").exists()
    namespace = {"In": ["", PARAMETERS], "k": 12, "picks": None, "out_dir": str(tmp_path / "undisturbed")}
    namespace["parameters"] = parameters.read(namespace)
    exec(STATISTICS, namespace)
    disturbed = mu.Run(out, namespace["parameters"]).results()
    xr.testing.assert_identical(disturbed, namespace["run"].results())
    assert disturbed.image.values.tolist() == list(range(12))
    print("faults 2, lost 0, double 0")


def alive(process):
    """Not gone, and not waiting to be reaped by an init that does not."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE


def test_nothing_is_left_of_a_sweep_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweeper = sweeping(write_notebook(tmp_path / "a.ipynb", GUARD, NUMBERS), "--out", "runs")
    parts(tmp_path / "runs/a", 0)
    started = psutil.Process(sweeper.pid).children(recursive=True)
    sweeper.kill()
    deadline = time.monotonic() + 60
    while any(alive(process) for process in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(started) > 1 and not [process for process in started if alive(process)]


NUMBERS = """
import time
import numpy as np
import pandas as pd
import massact_utils as mu
run = mu.Run(out_dir, parameters)
for batch in run.pending([f"prompt {i}" for i in range(60)], 2):
    time.sleep(0.4)
    numbers = [np.random.default_rng(seed).normal() for seed in batch.seeds]
    run.add(batch, pd.DataFrame({"at": batch.indices, "number": numbers}))
    with open(run.path("log"), "a") as lines:
        lines.write(f"{batch.index}\\n")
run.results().to_csv(run.path("table.csv"))"""


def check_numbers(out, faults):
    table = pd.read_csv(out / "table.csv", index_col=0)
    log = (out / "log").read_text().split()
    lost, double, again = 60 - table["at"].nunique(), len(table) - table["at"].nunique(), len(log) - len(set(log))
    print(f"faults {faults}, lost {lost}, double in the table {double}, batches put on disk twice {again}")
    assert (lost, double, again) == (0, 0, 0)
    np.testing.assert_allclose(table.number, [np.random.default_rng(i).normal() for i in range(60)])


def test_two_sweeps_on_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = write_notebook(tmp_path / "numbers.ipynb", GUARD, NUMBERS.replace("0.4", "0.1"))
    sweeps = [sweeping(notebook, "--out", "runs", "-p", "k", "3") for _ in range(2)]
    for process in sweeps:
        process.join()
        assert process.exitcode == 0
    check_numbers(tmp_path / "runs/numbers", faults=0)


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_and_then_its_scheduler(tmp_path):
    """A Dask scheduler and three workers on loopback, and the command line as a user has it."""
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = [sys.executable, "-m", "dask"]
    started = []

    def begin(*words):
        log = open(tmp_path / "dask.log", "a")
        started.append(subprocess.Popen([str(word) for word in words], cwd=tmp_path, stdout=log, stderr=log))
        return started[-1]

    def cluster():
        scheduler = begin(*dask, "scheduler", "--host", "127.0.0.1", "--port", address.split(":")[-1], "--no-dashboard")
        flags = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", tmp_path]
        return scheduler, [begin(*dask, "worker", address, *flags) for _ in range(3)]

    try:
        scheduler, workers = cluster()
        out = tmp_path / "runs/numbers"
        notebook = write_notebook(tmp_path / "numbers.ipynb", GUARD, NUMBERS)
        words = [sys.executable, "-m", "massact_utils.sweep", notebook, "--out", "runs"]
        sweeper = begin(*words, "--scheduler", address, "--workers", "3")
        at = parts(out, 3)
        workers[0].kill()
        parts(out, at + 4)
        for process in [scheduler, *workers]:
            process.kill()
            process.wait()
        assert sweeper.wait(600) == 1 and out.exists()  # it says so, and what is done is kept
        cluster()
        again = begin(*words, "--scheduler", address, "--workers", "3")
        assert again.wait(600) == 0, (tmp_path / "dask.log").read_text()[-3000:]
        assert (out / "numbers.html").exists()
        check_numbers(out, faults=2)
    finally:
        for process in started:
            process.kill()
            process.wait()

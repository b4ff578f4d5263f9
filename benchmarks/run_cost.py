"""What `Run` and the sweep cost beside a bare loop, on the toy model: python benchmarks/run_cost.py

The loop is channel statistics of every block and step. In one pass over the prompts the time inside `Run` (claiming a
batch, writing its part) is told apart from the time of the loop's own work. The sweep executes the same loop as a
notebook, in one process and in two that share the cores. Writes its table into README.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import page
import torch
from nbformat.v4 import new_code_cell, new_notebook

import massact_utils as mu

PARAMETERS = 'n_prompts: int = 200  # prompts\nsteps: int = 4  # denoising steps\nout_dir: str = ""  # results'
LOOP = """
import massact_utils as mu
pipe = mu.load("toy", device="cpu")
run = mu.Run(out_dir, mu.parameters.read(globals()), pipe=pipe)
for batch in run.pending(mu.prompts.read("toyworld", n_prompts), 8):
    with mu.attach(pipe, mu.ChannelStats()) as stats:
        mu.generate(pipe, batch.prompts, seeds=batch.seeds, num_inference_steps=steps)
    run.add(batch, stats.dataset())
print(dict(run.results().sizes))
"""


def loop(folder: Path, n: int, steps: int) -> tuple[float, float]:
    """Seconds of the loop's own work, and seconds inside Run."""
    pipe = mu.load("toy", device="cpu")
    mu.generate(pipe, mu.prompts.read("toyworld", 8), num_inference_steps=1)  # warm
    own, begin = 0.0, time.perf_counter()
    run = mu.Run(folder, {"n_prompts": n, "steps": steps}, pipe=pipe)
    for batch in run.pending(mu.prompts.read("toyworld", n), 8):
        start = time.perf_counter()
        with mu.attach(pipe, mu.ChannelStats()) as stats:
            mu.generate(pipe, batch.prompts, seeds=batch.seeds, num_inference_steps=steps)
        data = stats.dataset()
        own += time.perf_counter() - start
        run.add(batch, data)
    return own, time.perf_counter() - begin - own


def swept(folder: Path, n: int, steps: int, *words: str) -> float:
    """Seconds of the sweep of the same loop as a notebook, its start and the final pass included."""
    notebook = folder / "loop.ipynb"
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(LOOP)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), notebook)
    command = [sys.executable, "-m", "massact_utils.sweep", str(notebook), "--out", str(folder / "-".join(words))]
    begin = time.perf_counter()
    parameters = ["-p", "n_prompts", str(n), "-p", "steps", str(steps)]
    subprocess.run([*command, *parameters, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    n, steps = args.prompts, args.steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own, inside = loop(folder / "run", n, steps)
        parts = list((folder / "run" / "parts").iterdir())
        size = sum(part.stat().st_size for part in parts) / n / 1024
        rows = [
            ("the loop's own work", own, ""),
            ("inside `Run`", inside, f"{inside / own:.2%} of the work; {len(parts)} parts, {size:.0f} KiB a prompt"),
        ]
        one = swept(folder, n, steps)
        rows.append(("sweep, one process", one, f"{one - own - inside:+.0f} s: two interpreters, model, HTML"))
        first = swept(folder, n, steps, "--workers", "2")
        rows.append(("sweep, two processes", first, f"{one / first:.2f} times as fast as one"))
    table = ["| what | seconds | |", "|---|---|---|", *(f"| {what} | {s:.1f} | {note} |" for what, s, note in rows)]
    note = f"{n} prompts in batches of 8, {steps} steps; {page.hardware()}, "
    note += f"{os.cpu_count()} cores, no GPU; torch {torch.__version__}, {torch.get_num_threads()} threads."
    page.write("run cost", note, "\n".join(table))
    print("\n".join(table))


if __name__ == "__main__":
    main()

"""The four notebooks on a model's true shape with random weights: do they run to the end, in what time and memory?

    python benchmarks/rehearsal.py flux.2-klein-4b --depth 2 --tokens 64    # true width, 2 + 2 blocks; a CPU will do
    python benchmarks/rehearsal.py flux.1-dev                               # full depth, 4,096 tokens; a GPU

Builds the pipeline (standins.py) as a folder, times plain generation, and executes the notebooks there through the
sweep, each with the smallest parameters. Writes a row for every notebook to rehearsal.csv and the table in README.md,
beside this file; with `--out`, model, runs and table go to a folder and stay there, and neither is written.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from math import isqrt
from pathlib import Path

import nbformat
import page
import pandas as pd
import psutil
import standins
import torch

import massact_utils as mu
from massact_utils.models.load import format_bytes, weight_bytes
from training.loop import has_bfloat16

HERE = Path(__file__).parent
DTYPE = "bfloat16" if has_bfloat16() else "float32"  # a CPU that emulates bfloat16 takes several times as long
NOTEBOOKS = sorted((HERE.parent / "notebooks").glob("0[1-4]*.ipynb"))
SMALLEST = {  # what decides how many images there are; and what lies here, so that nothing is fetched
    "01_statistics": dict(prompts="toyworld", n_prompts=4, n_seeds=2, at_once=4),
    "02_disruption": dict(prompts="toyworld", evaluator="toy", n_prompts=8, n_layers=1, k=4, at_once=42),
    "03_spatial_clustering": dict(prompts="toyworld", reference="toy", n_prompts=8, n_steps=1),
    "04_transport": dict(pairs="toyworld-pairs", evaluator="toy", n_report=2, k=12),
}


def room() -> int:
    """Bytes that weights may take: four fifths of the GPU's memory, or of the host's where there is no GPU."""
    if torch.cuda.is_available():
        return int(0.8 * torch.cuda.get_device_properties().total_memory)
    return int(0.8 * psutil.virtual_memory().available)


def in_use(process) -> int:
    """Bytes of memory that a process and its children hold, and on a GPU those in use there."""
    held = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            held = max(held, one.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
    if torch.cuda.is_available():
        free, there = torch.cuda.mem_get_info()
        return there - free
    return held


def watched(command, **options) -> tuple[float, int]:
    """Run a command: seconds, and the largest memory of one of its processes. Raises what went wrong."""
    begun, top = time.perf_counter(), 0
    done = psutil.Popen(command, **options)
    while done.poll() is None:
        try:
            top = max(top, in_use(done))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    if done.wait():
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return time.perf_counter() - begun, top


def plain(pipe, call, batch=4) -> tuple[float, list]:
    """Seconds of an image, plainly generated in batches as the notebooks do, after one batch to warm up; and images."""
    prompts, times = mu.prompts.read("toyworld", batch), []
    for _ in range(2):
        begun = time.perf_counter()
        images = mu.generate(pipe, prompts, **call)
        times.append((time.perf_counter() - begun) / batch)
    return min(times), images


def planned(notebook: Path) -> int:
    """Images that a notebook said it would generate, in its first output."""
    printed = [o.get("text", "") for cell in nbformat.read(notebook, 4).cells for o in cell.get("outputs", [])]
    return int(re.search(r"(\d+) images to generate", "".join(printed))[1])


def given(notebook: Path, call: dict, folder: Path) -> list[str]:
    """The smallest parameters of a notebook, as words of the sweep's command; `folder` lies beside the segmenter."""
    values = dict(model=folder, load=json.dumps(dict(dtype=DTYPE)), call=json.dumps(call)) | SMALLEST[notebook.stem]
    values |= dict(reference=folder.parent / "segmenter") if notebook.stem.startswith("03") else {}
    return [word for name, value in values.items() for word in ("-p", name, str(value))]


def rehearse(name: str, depth: int | None, tokens: int, steps: int, out: Path, write) -> None:
    """Build a model, and run the notebooks on it: a row for each, which `write` gets with those before."""
    _, pixels, call = standins.MODELS[name]
    side = isqrt(tokens) * pixels
    call = call | dict(num_inference_steps=steps, height=side, width=side)
    if depth is None and sum(weight_bytes(standins.build(name, device="meta")).values()) > room():
        depth = 2
        print(f"{name} does not fit {format_bytes(room())} in full depth: true width and {depth} + {depth} blocks")
    folder = out / name
    standins.build(name, depth).save_pretrained(folder)
    pipe = mu.load(folder, dtype=DTYPE)
    layers, parameters = len(mu.blocks(pipe)), sum(p.numel() for p in pipe.transformer.parameters())
    seconds, images = plain(pipe, call)
    standins.segmenter(images, out / "segmenter")
    rows = []
    del pipe
    results = out / "runs"
    for notebook in NOTEBOOKS:
        words = [sys.executable, "-m", "massact_utils.sweep", notebook, "--out", results]
        took, most = watched([*words, *given(notebook, call, folder)], cwd=HERE.parent, stdout=subprocess.DEVNULL)
        images = planned(results / notebook.stem / notebook.name)
        kept = sum(path.stat().st_size for path in (results / notebook.stem).rglob("*") if path.is_file())
        rows.append(
            {
                "model": name,
                "notebook": notebook.stem,
                "blocks": layers,
                "full depth": depth is None,
                "parameters": parameters,
                "tokens": isqrt(tokens) ** 2,
                "steps": steps,
                "images": images,
                "seconds": round(took, 1),
                "plain seconds an image": round(seconds, 3),
                "peak bytes": most,
                "disk bytes": kept,
                "hardware": page.hardware("cuda" if torch.cuda.is_available() else "cpu")
                + ", float32" * (DTYPE == "float32"),
                "torch": torch.__version__,
            }
        )
        write(pd.DataFrame(rows))
        print(shown(pd.DataFrame(rows[-1:])).T.to_string(header=False), flush=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table of README.md."""
    depth = table.blocks.astype(str) + table["full depth"].map({True: ", all", False: ", reduced"})
    columns = {
        "model": table.model + ", " + (table.parameters / 1e9).round(1).astype(str) + "B",
        "blocks": depth,
        "tokens x steps": table.tokens.astype(str) + " x " + table.steps.astype(str),
        "notebook": table.notebook.str[:2],
        "images": table.images,
        "time": table.seconds.map("{:.0f} s".format),
        "beside plain generation": (table.seconds / table.images / table["plain seconds an image"]).map(
            "{:.2f}".format
        ),
        "peak memory": table["peak bytes"].map(format_bytes),
        "on disk": table["disk bytes"].map(format_bytes),
    }
    return pd.DataFrame(columns)


def publish(new: pd.DataFrame) -> None:
    """Put a model's rows in the place of its older ones of the same size, and the table into README.md."""
    file, key = HERE / "rehearsal.csv", ["model", "notebook", "full depth", "tokens", "hardware"]
    table = pd.concat([pd.read_csv(file), new]) if file.exists() else new
    table = table.drop_duplicates(key, keep="last").sort_values(["model", "tokens", "notebook"])
    table.to_csv(file, index=False)
    note = "; ".join([*dict.fromkeys(table.hardware), *dict.fromkeys("torch " + table.torch)])
    page.write("rehearsal", f"{note}; bfloat16 where nothing else is said. No GPU so far.", page.markdown(shown(table)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=standins.MODELS)
    parser.add_argument("--tokens", type=int, default=4096, help="image tokens, a square number")
    parser.add_argument("--depth", type=int, help="blocks of each kind; without it all, where the memory holds them")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps")
    parser.add_argument("--out", type=Path, help="a folder for the model, the runs and the table, which then stay")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    what = args.model, args.depth, args.tokens, args.steps
    if args.out:
        rehearse(*what, args.out, lambda table: table.to_csv(args.out / "rehearsal.csv", index=False))
    else:
        with tempfile.TemporaryDirectory() as place:
            rehearse(*what, Path(place), publish)

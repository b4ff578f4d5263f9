"""What a probe costs, beside plain generation and beside what users would otherwise do.

    python benchmarks/probe_cost.py                     # CPU, three sizes; about 10 minutes on two cores
    python benchmarks/probe_cost.py --klein             # a GPU: FLUX.2-klein-4B's real size, random weights, bfloat16

A method's time is a ratio to plain forwards of the same round, the order drawn anew in every round; the table gives
median and quartiles over rounds. Memory is the peak of a process of its own (on a GPU: the allocator's peak) after
loading and a warm-up, less that of plain forwards before it. Writes probe_cost.parquet, probe_cost.png and the table in
README.md, beside this file.
"""

import argparse
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import page
import pandas as pd
import torch
from diffusers import Flux2Transformer2DModel
from tqdm import tqdm

import massact_utils as mu
from massact_utils.probes.disrupt import Disrupt
from massact_utils.probes.record import Record

HERE = Path(__file__).parent
STEPS, TEXT = 2, 64
SIZES = {"small": (384, 256, 2, 4), "medium": (768, 576, 2, 4), "large": (1536, 1024, 2, 4)}  # D, N, dual, single
KLEIN = {"klein-4B": (3072, 4096, 5, 20)}


def new_transformer(width, dual, single, device):
    torch.manual_seed(0)
    with torch.device(device):
        model = Flux2Transformer2DModel(
            in_channels=128,
            num_layers=dual,
            num_single_layers=single,
            attention_head_dim=128,
            num_attention_heads=width // 128,
            joint_attention_dim=width,
            guidance_embeds=False,
        )
    return model.to(torch.bfloat16).eval()


def inputs(width, tokens, device):
    """The arguments of STEPS calls: one image, `tokens` image tokens, TEXT text tokens."""
    side, generator = int(tokens**0.5), torch.Generator().manual_seed(0)
    axis = torch.arange(side)
    zero = torch.zeros(1, dtype=torch.long)
    call = {
        "hidden_states": torch.randn(1, side * side, 128, generator=generator).to(device, torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, TEXT, width, generator=generator).to(device, torch.bfloat16),
        "img_ids": torch.cartesian_prod(zero, axis, axis, zero).to(device),
        "txt_ids": torch.cartesian_prod(zero, zero, zero, torch.arange(TEXT)).to(device),
    }
    return [call | {"timestep": torch.tensor([1 - step / STEPS], device=device)} for step in range(STEPS)]


def run(model, calls):
    with torch.inference_mode():
        for call in calls:
            model(**call, return_dict=False)


@contextmanager
def plain_hooks(model, keep):
    """What a user writes first: a forward hook on every block, image and text tokens alike."""
    kept, handles = [], []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        hook = lambda module, args, out: kept.append(keep(out[1] if isinstance(out, tuple) else out)) and None  # noqa: E731
        handles.append(block.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def upcast_statistics(tokens):
    x = tokens.float()
    return x.abs().mean(1), x.mean(1), x.abs().amax(1), x.square().mean(1)


def run_nnsight(model, calls):
    from nnsight import NNsight

    net = NNsight(model)
    with torch.inference_mode():
        for call in calls:
            with net.trace(**call, return_dict=False):
                saved = list().save()
                for block in [*net.transformer_blocks, *net.single_transformer_blocks]:
                    saved.append(block.output)


def methods(width):
    """Every way to look, as a function of (model, calls)."""

    def attached(probe, model, calls):
        with mu.attach(model, probe()):
            run(model, calls)

    def hooked(keep, model, calls):
        with plain_hooks(model, keep):
            run(model, calls)

    return {
        "plain": run,
        "ChannelStats": partial(attached, mu.ChannelStats),
        "Record, k = 12": partial(attached, partial(Record, k=12)),
        "Disrupt, k = 12": partial(attached, partial(Disrupt, list(range(12)))),
        "float32 statistics in hooks": partial(hooked, upcast_statistics),
        "every token to the host": partial(hooked, lambda tokens: tokens.float().cpu().clone()),
        "nnsight, every block saved": run_nnsight,
    }


def sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def times(size, device, rounds) -> pd.DataFrame:
    """Seconds of every method in every round, and their ratio to plain: rows (size, method, round)."""
    width, tokens, dual, single = size
    model, calls = new_transformer(width, dual, single, device), inputs(width, tokens, device)
    ways, rows, order = methods(width), [], np.random.default_rng(0)
    for way in ways.values():  # warm up
        way(model, calls)
    for i in tqdm(range(rounds), desc=f"width {width}, {tokens} tokens"):
        seconds = {}
        for name in order.permutation(list(ways)):
            sync(device)
            start = time.perf_counter()
            ways[name](model, calls)
            sync(device)
            seconds[name] = time.perf_counter() - start
        rows += [{"method": m, "round": i, "seconds": s, "ratio": s / seconds["plain"]} for m, s in seconds.items()]
    return pd.DataFrame(rows)


def peaks(size, device, method) -> tuple[float, float]:
    """Peak MiB of plain forwards and then of a method, in this process, warmed up. On a CPU this needs Linux' /proc."""
    width, tokens, dual, single = size
    model, calls = new_transformer(width, dual, single, device), inputs(width, tokens, device)
    ways = methods(width)
    ways["plain"](model, calls)

    def peak(way):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            way(model, calls)
            return torch.cuda.max_memory_allocated() / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        way(model, calls)
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

    return peak(ways["plain"]), peak(ways[method])


def report(table, device, rounds):
    """Parquet, figure, and the table in README.md."""
    table.to_parquet(HERE / "probe_cost.parquet", index=False)
    labels, looks = table["size"].unique(), table.method[table.method != "plain"].unique()
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, name in enumerate(looks):
        part, x = table[table.method == name], np.arange(len(labels)) + 0.13 * (i - (len(looks) - 1) / 2)
        spread = abs(part[["low", "high"]].sub(part.ratio, axis=0)).values.T
        axes[0].errorbar(x, part.ratio, spread, fmt="o", capsize=2, label=name)
        axes[1].bar(x, part.extra_mib, 0.12)
    axes[0].axhline(1, color="black", lw=0.8)
    axes[0].axhline(1.03, color="black", lw=0.8, ls=":", label="goal of ChannelStats, 1.03")
    axes[0].set(ylabel="time / plain forward", title="Time: median and quartiles of the rounds")
    axes[1].set(ylabel="MiB", title="Peak memory beside plain forwards", yscale="symlog")
    for ax in axes:
        ax.set(xlabel="width x image tokens", xticks=range(len(labels)), xticklabels=labels)
    fig.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    fig.savefig(HERE / "probe_cost.png", dpi=120)
    lines = ["| size | method | time / plain, median (quartiles) | peak memory beside plain |", "|---|---|---|---|"]
    for row in table.itertuples():
        extra = f"{row.extra_mib:+.0f} MiB ({row.extra_mib / row.plain_mib:+.1%})"
        lines.append(f"| {row.size} | {row.method} | {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f}) | {extra} |")
    note = f"{page.hardware(device)}; torch {torch.__version__}; bfloat16; {STEPS} steps; {rounds} rounds."
    page.write("probe cost", note, "\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--klein", action="store_true", help="FLUX.2-klein-4B's real size, on a GPU")
    parser.add_argument("--peak", nargs=2, metavar=("SIZE", "METHOD"), help="print one peak and exit")
    args = parser.parse_args()
    device, sizes = ("cuda", KLEIN) if args.klein else ("cpu", SIZES)
    if args.peak:
        print(*peaks((SIZES | KLEIN)[args.peak[0]], device, args.peak[1]))
        return
    rows = []
    for label, size in sizes.items():
        measured = times(size, device, args.rounds)
        command = [sys.executable, __file__, *(["--klein"] if args.klein else []), "--peak", label]
        for name in methods(size[0]):
            told = subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout.split()[-2:]
            plain, most = map(float, told)
            part = measured[measured.method == name]
            low, median, high = part.ratio.quantile([0.25, 0.5, 0.75])
            rows.append({"size": f"{size[0]} x {size[1]}", "method": name, "ratio": median, "low": low, "high": high})
            rows[-1] |= {"seconds": part.seconds.median(), "plain_mib": plain, "extra_mib": most - plain}
    table = pd.DataFrame(rows).sort_values(["size"], key=lambda s: s.str.split(" x ").str[0].astype(int), kind="stable")
    report(table, device, args.rounds)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()

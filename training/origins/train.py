"""Train small transformers of diffusers' classes, each with one change, and measure their massive activations.

    python -m training origins --list                        # the plan, and what is done
    python -m training origins                               # every variant and seed
    python -m training origins base rotated --seeds 0 1      # some of them

What is trained, why, and what would refute it stands in data/origins/plan.toml, written before any training. All but
the change is one recipe. To use two cores, start the same command twice, each with OMP_NUM_THREADS=1: a run that
another process holds is left to it, a finished one is skipped. Each goes into data/origins/origins.parquet when it is
finished, after some five minutes.
"""

import argparse
import itertools
import tomllib
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

import massact_utils as mu
from massact_utils.places import atomic_write

from ..loop import DEVICE, autocast
from .measure import SIGMAS, Course, measure
from .networks import GRID, Net
from .scenes import model_digest, splits

STEPS, BATCH, SCENES, SEEDS = 1200, 32, 8192, 3  # of the whole plan
EVERY = 25  # steps between two measurements
RATE = {"adamw": 1.5e-3, "muon": 0.01}
TABLE = mu.places.data("origins", "origins.parquet")
TYPES = {"variant": "category", "seed": "int8", "step": "int16", "layer": "int8", "sigma": "float32"}
TYPES |= {"channel": "int16", "measure": "category", "value": "float32"}
COLUMNS = list(TYPES)

warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # bfloat16 tokens, float32 norms: meant


def plan() -> dict:
    """The plan: variant -> change, question, note, claims, refuted; architectures have their claims in common."""
    text = tomllib.loads(mu.places.data("origins", "plan.toml").read_text())
    rows = {row.pop("variant"): {"claims": text["architectures"]} | row for row in text["variants"]}
    return {name: {"note": "", "refuted": "", "change": {}} | row for name, row in rows.items()}


# ---------------------------------------------------------------- the recipe


def optimisers(net, change) -> list:
    """One optimiser for all weights, AdamW unless the change says otherwise; Muon takes matrices inside the blocks."""
    kind, decay = change.get("optimiser", "adamw"), 0.01
    inside, matrices, vectors = [], [], []
    for name, p in net.named_parameters():
        if p.requires_grad:
            muon = kind == "muon" and p.ndim == 2 and "blocks." in name
            (inside if muon else matrices if p.ndim > 1 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    muon = [torch.optim.Muon(inside, lr=RATE["muon"], weight_decay=decay)] if inside else []
    return [*muon, torch.optim.AdamW(groups, lr=RATE["adamw"], betas=(0.9, 0.98))]


@sdpa_kernel(SDPBackend.MATH)  # on a CPU the other one's backward takes 8 times as long in bfloat16
def sample_loss(net, scenes, change, generator, batch=BATCH, forward=None):
    """The loss of one batch: the mean squared error of the velocity.

    `forward` may be the net, compiled.
    """
    rows, cells, weight = torch.randint(len(scenes.latents), (batch,), generator=generator), slice(None), 1.0
    if change.get("windows") and torch.rand((), generator=generator) < 0.5:
        rows, cells = window(scenes, rows, torch.randint(3, (2,), generator=generator))
    x, text = scenes.batch(rows, cells)
    if change.get("weighted"):
        weight = 1 + 3 * (scenes.subject[rows][:, cells].to(DEVICE) > 0.25).float()
        weight = (weight / weight.mean(1, keepdim=True))[..., None]
    dropped = torch.rand(batch, generator=generator) < 0.1
    text = torch.where(dropped.to(DEVICE)[:, None, None], scenes.empty.float().to(DEVICE), text)
    sigma = torch.sigmoid(0.4 + torch.randn(batch, generator=generator)).to(DEVICE)
    noise = torch.randn(x.shape, generator=generator).to(DEVICE)
    noisy = x + sigma.view(-1, 1, 1) * (noise - x)
    with autocast():
        predicted = (net if forward is None else forward)(noisy, sigma, text, cells)
    return ((predicted.float() - noise + x).square() * weight).mean()


def window(scenes, rows, corner):
    """Rows whose subject's middle is in the 4 x 4 tokens at a corner, in place of others; and the indices of these."""
    side = torch.arange(GRID).float()
    places = torch.cartesian_prod(side, side)  # row and column of every token
    middle = (scenes.subject @ places) / scenes.subject.sum(1, keepdim=True).clamp_min(1e-6)
    near = ((middle - 1.5).round().clamp(0, 2) == corner).all(1).nonzero()[:, 0]
    left, top = corner.tolist()
    cells = torch.arange(GRID * GRID).view(GRID, GRID)[top : top + 4, left : left + 4].flatten()
    return near[rows % len(near)] if len(near) else rows, cells


def train(net, scenes, change, *, steps, seed=0, batch=BATCH, watch=None, forward=None) -> list[float]:
    """Train in place and give the losses: 100 steps of warm-up, a fall over the last fifth, `watch(step)` every 25.

    What a step sees is drawn from the seed and its number, so that all variants of a seed see the same.
    """
    own, losses = optimisers(net, change), []
    factor = lambda step: min(1, (step + 1) / min(100, steps / 10), (1 - step / steps) / 0.2)  # noqa: E731
    schedules = [LambdaLR(one, factor) for one in own]
    for step in (bar := tqdm(range(steps), mininterval=5, disable=None)):
        if watch is not None and step % EVERY == 0:
            watch(step)
        loss = sample_loss(net, scenes, change, torch.Generator().manual_seed(1_000_003 * seed + step), batch, forward)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for one in (*own, *schedules):
            one.step()
        net.zero_grad(set_to_none=True)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
    if watch is not None:
        watch(steps)
    return losses


# ---------------------------------------------------------------- runs


def recipe(steps, scenes) -> dict:
    """What a run's result depends on beside its variant; runs of another recipe never share a table."""
    sizes = dict(steps=steps, batch=BATCH, samples=steps * BATCH, scenes=scenes, sigmas=list(SIGMAS))
    return sizes | {"model": model_digest()}


def run(variant, seed, steps, scenes) -> pd.DataFrame:
    """Train one variant with one seed, and measure it: rows of the table."""
    change = plan()[variant]["change"]
    own, fresh, plain, more = splits(change, scenes)
    torch.manual_seed(seed)
    net = Net(change).to(DEVICE)
    course, compiled = Course(net, fresh), torch.compile(net, dynamic=False)
    train(net, own, change, steps=steps, seed=seed, watch=course, forward=compiled)
    net.eval()
    table = pd.concat([course.table(), measure(net, fresh, plain, more).assign(step=steps)])
    return table.assign(variant=variant, seed=seed)


def read_table(file, made) -> pd.DataFrame:
    """The table of a recipe; empty where there is none. Raises ValueError where it is of another one."""
    if not file.exists():
        return pd.DataFrame(columns=COLUMNS)
    table = pd.read_parquet(file)
    other = {name: table.attrs.get(name) for name in made if table.attrs.get(name) != made[name]}
    if other:
        raise ValueError(f"{file.name} is of another recipe ({other}); delete it, or name another --table")
    return table


def add_rows(file, made, rows) -> None:
    """Put a finished run's rows into the table of its recipe `made`, which is kept in its attrs."""
    with FileLock(mu.places.runs() / "origins" / "table.lock"):
        old, rows = read_table(file, made), rows.fillna({"layer": -1, "channel": -1})
        table = pd.concat([old, rows]) if len(old) else rows
        table = table.astype(TYPES)[COLUMNS].reset_index(drop=True)
        table.attrs = made | {"trial": made["steps"] < STEPS, "torch": torch.__version__.split("+")[0]}
        with atomic_write(file) as beside:
            table.to_parquet(beside, index=False, compression="zstd")


def main(words: list[str] | None = None) -> None:
    """Train what is named and not yet done, or list the plan."""
    rows = plan()
    parser = argparse.ArgumentParser(
        prog="python -m training origins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="variants of the plan; all when none is named")
    add("--list", action="store_true", help="print the plan and what is done, and train nothing")
    add("--seeds", type=int, nargs="+", default=range(SEEDS))
    add("--steps", type=int, default=STEPS, help=f"of {BATCH} samples; fewer than {STEPS} are a trial")
    add("--scenes", type=int, default=SCENES, help="training scenes, drawn once")
    add("--table", type=Path, default=TABLE)
    args = parser.parse_args(words)
    if unknown := set(args.names) - {*rows}:
        parser.error(f"{', '.join(unknown)}: not in plan.toml, which has {', '.join(rows)}")
    chosen = [name for name in rows if not args.names or name in args.names]
    made, folder = recipe(args.steps, args.scenes), mu.places.runs() / "origins"
    folder.mkdir(parents=True, exist_ok=True)

    def done() -> set:
        return set(read_table(args.table, made).groupby(["variant", "seed"], observed=True).groups)

    try:
        finished = done()
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        for name in chosen:
            row, ready = rows[name], sum((name, seed) in finished for seed in args.seeds)
            print(f"{name:18} {ready} of {len(args.seeds)}  {row['question']} {row['change'] or ''}")
        return
    for seed, name in itertools.product(args.seeds, chosen):
        with suppress(Timeout), FileLock(folder / f"{name}-{seed}.lock", timeout=0):  # held: another process is at it
            if (name, seed) not in done():
                print(f"{name}, seed {seed}", flush=True)
                add_rows(args.table, made, run(name, seed, args.steps, args.scenes))

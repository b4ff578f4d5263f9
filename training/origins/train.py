"""Train small transformers of diffusers' classes, each with one change, and measure their massive activations.

    python -m training.origins.train --list                                   # the plan, and what is done
    python -m training.origins.train --part essential                         # every variant and seed of the first half
    python -m training.origins.train --variants base,rotated --seeds 0,1      # some of them

What is trained, why, and what would refute it stands in data/origins/plan.toml, written before any training.
networks.py has the classes and the changes, and everything else is one recipe for all. To use two cores, start the same
command twice, each with OMP_NUM_THREADS=1: a run that another process holds is left to it. A run that is finished is
skipped; one that was killed goes on from its last state. Finished runs lie in runs/origins/<digest of the recipe and
the embedded model>/. After each of them all go into data/origins/origins.parquet.
"""

import argparse
import hashlib
import json
import tomllib
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

import massact_utils as mu
from massact_utils.measures import masks
from massact_utils.places import whole
from massact_utils.probes import levels
from massact_utils.results import storage
from massact_utils.results.run import watched
from massact_utils.worlds import toyworld

from . import networks
from .networks import GRID, Net, modulated

STEPS, BATCH, SCENES, SEEDS = 1200, 32, 8192, 3  # of the whole plan
SIGMAS, K, DRAWS, EVERY = (0.2, 0.5, 0.8), 12, 8, 25
RATE = {"adamw": 1.5e-3, "sgd": 0.2, "muon": 0.01}
TABLE, DEVICE = mu.places.data("origins", "origins.parquet"), "cuda" if torch.cuda.is_available() else "cpu"


warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # bfloat16 tokens, float32 norms: meant


def plan() -> dict:
    """The plan: variant -> part, change, question, note, claims, refuted; architectures have their claims in common."""
    words = tomllib.loads(mu.places.data("origins", "plan.toml").read_text())
    rows = {row.pop("variant"): {"claims": words["architectures"]} | row for row in words["variants"]}
    return {name: {"note": "", "refuted": "", "change": {}} | row for name, row in rows.items()}


# ---------------------------------------------------------------- what is seen


class Seen:
    """Scenes as a transformer sees them: latents (n, 36, 32), text states (n, T, 288), coverage of tokens (n, 36)."""

    def __init__(self, latents, text, empty, subject):
        self.latents, self.text, self.empty, self.subject = latents, text, empty, subject

    def batch(self, rows, cells=slice(None)):
        return self.latents[rows][:, cells].float().to(DEVICE), self.text[rows].float().to(DEVICE)


def drawn(scenes, ground, seed):
    """Images (n, 48, 48, 3) uint8 and subjects (n, 48, 48) bool, on another ground or without things and shadows."""
    nothing = {name: (lambda x, y: np.full_like(x, 9.0)) for name in toyworld.SHAPES}  # a shape that is far away
    with mock.patch.dict(toyworld.SHAPES, nothing) if ground == "textures" else nullcontext():
        images, things, _ = toyworld.render(scenes, seed=seed, size=8 * GRID)
    subject = things["subject"]
    if ground in ("constant", "per token"):
        colours = np.random.default_rng(seed).integers(0, 256, (len(images), GRID, GRID, 3), np.uint8)
        colours = np.full_like(colours, 128) if ground == "constant" else colours
        images = np.where(subject[..., None], images, colours.repeat(8, 1).repeat(8, 2))
    return images, subject


@torch.no_grad()
def seen(pipe, n, *, seed, split="train", ground="drawn") -> Seen:
    """n scenes through the embedded autoencoder and the frozen text encoder of a pipeline."""
    vae, latents, text, subjects = pipe.vae, [], [], []
    deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    scenes = toyworld.sample(n, seed=seed, split=split)
    for i in range(0, n, 128):
        images, subject = drawn(scenes[i : i + 128], ground, seed + i)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(DEVICE).float() / 127.5 - 1
        z = F.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)
        z = ((z - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation).flatten(2).mT
        latents.append((z - z.mean(1, keepdim=True) if ground == "mean removed" else z).half().cpu())
        text.append(states(pipe, [toyworld.caption(scene) for scene in scenes[i : i + 128]]))
        subjects.append(torch.from_numpy(masks.coverage(subject, (GRID, GRID))).flatten(1))
    longest = max(len(part[0]) for part in text)
    text = torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in text])
    return Seen(torch.cat(latents), text, states(pipe, [""], longest), torch.cat(subjects))


def states(pipe, prompts, length=None):
    """The embedded text encoder's states of prompts, cut where the longest ends: (n, T, 288) float16."""
    chats = [
        pipe.tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, enable_thinking=False)
        for p in prompts
    ]
    size = dict(padding="max_length", max_length=length) if length else dict(padding=True)
    tokens = pipe.tokenizer(chats, return_tensors="pt", truncation=length is not None, **size).to(DEVICE)
    hidden = pipe.text_encoder.model(**tokens, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat(hidden[1:4], -1).half().cpu()


def worlds(change, scenes):
    """What a variant trains on, its own fresh scenes, those of the plain world, and more of its own, for levels."""
    check = min(128, scenes // 16)
    kept = mu.places.runs() / "origins" / f"seen-{change.get('ground', 'drawn')}-{scenes}-{check}-{model()}.pt"
    if not kept.exists():
        pipe, ground = mu.load("toy", device=DEVICE, dtype="float32"), change.get("ground", "drawn")
        wanted = [(scenes, "train", ground), (check, "test", ground), (check, "test", "drawn"), (check, "test", ground)]
        made = [seen(pipe, n, seed=10**6 * (i + 1), split=s, ground=g) for i, (n, s, g) in enumerate(wanted)]
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole(kept) as beside:
            torch.save([vars(part) for part in made], beside)
    return [Seen(**part) for part in torch.load(kept)]


def model() -> str:
    """A digest of the embedded autoencoder and text encoder."""
    files = sorted(mu.places.data("toy", "klein").glob("[tv]*/*.safetensors"))
    files = [file for file in files if file.parent.name in ("vae", "text_encoder")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


# ---------------------------------------------------------------- the recipe


def optimisers(net, change):
    """One optimiser for all weights, AdamW unless the change says otherwise; Muon takes matrices inside the blocks."""
    kind, decay = change.get("optimiser", "adamw"), change.get("decay", 0.01)
    parameters = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    matrix = [p for name, p in parameters if p.ndim == 2 and "blocks." in name]
    many = [p for _, p in parameters if p.ndim > 1]
    groups = [{"params": many, "weight_decay": decay}, {"params": [p for _, p in parameters if p.ndim <= 1]}]
    groups[1]["weight_decay"] = 0.0
    if kind == "sgd":
        return [torch.optim.SGD(groups, lr=RATE["sgd"], momentum=0.9)]
    if kind == "muon":
        inside = set(map(id, matrix))
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in inside]
        first = [torch.optim.Muon(matrix, lr=RATE["muon"], weight_decay=decay)]
        return [*first, torch.optim.AdamW(groups, lr=RATE["adamw"], betas=(0.9, 0.98))]
    return [torch.optim.AdamW(groups, lr=RATE["adamw"], betas=(0.9, 0.98))]


@sdpa_kernel(SDPBackend.MATH)  # on a CPU the other one's backward takes 8 times as long in bfloat16
def sample_loss(net, world, change, generator, batch=BATCH, forward=None):
    """The loss of one batch: the mean squared error of what the net is to predict, as the change says.

    `forward` may be the net, compiled.
    """
    rows, cells, weight = torch.randint(len(world.latents), (batch,), generator=generator), slice(None), 1.0
    if change.get("windows") and torch.rand((), generator=generator) < 0.5:  # 4 x 4 tokens around the rows' subjects
        corner = torch.randint(3, (2,), generator=generator)
        corners = (networks.middle(world.subject) - 1.5).round().clamp(0, 2)
        near = (corners == corner).all(1).nonzero()[:, 0]
        rows = near[rows % len(near)] if len(near) else rows
        left, top = corner.tolist()
        cells = torch.arange(GRID * GRID).view(GRID, GRID)[top : top + 4, left : left + 4].flatten()
    x, text = world.batch(rows, cells)
    if change.get("weighted"):
        weight = 1 + 3 * (world.subject[rows][:, cells].to(DEVICE) > 0.25).float()
        weight = (weight / weight.mean(1, keepdim=True))[..., None]
    dropped = torch.rand(batch, generator=generator) < (1.0 if change.get("unconditional") else 0.1)
    text = torch.where(dropped.to(DEVICE)[:, None, None], world.empty.float().to(DEVICE), text)
    sigma = torch.sigmoid(0.4 + torch.randn(batch, generator=generator)).to(DEVICE)
    sigma = torch.full_like(sigma, 0.5) if change.get("one_sigma") else sigma
    noise = torch.randn(x.shape, generator=generator).to(DEVICE)
    noisy = x + sigma.view(-1, 1, 1) * (noise - x)
    with torch.autocast(DEVICE, torch.bfloat16):
        said = (net if forward is None else forward)(noisy, sigma, text, cells)
    target = {"velocity": noise - x, "image": x, "noise": noise}[net.target]
    return ((said.float() - target).square() * weight).mean()


def train(net, world, change, *, steps, seed=0, batch=BATCH, watch=None, state=None, save=None, forward=None):
    """Train in place: AdamW, 100 steps of warm-up, a fall over the last fifth; `watch(step)` is called every 25 steps.

    What a step sees is drawn from the seed and its number, so that all variants of a seed see the same and a run that
    goes on from `state` sees what it would have seen. Gives the losses.
    """
    optimiser, first, losses = optimisers(net, change), 0, []
    if state is not None:
        net.load_state_dict(state["net"])
        for one, kept in zip(optimiser, state["optimisers"], strict=True):
            one.load_state_dict(kept)
        first, losses = state["step"], state["losses"]
    rates = [[group["lr"] for group in one.param_groups] if state is None else None for one in optimiser]
    rates = state["rates"] if state is not None else rates

    def keep(step):
        kept = dict(net=net.state_dict(), optimisers=[one.state_dict() for one in optimiser])
        save(kept | dict(step=step, losses=losses, rates=rates))

    how = dict(mininterval=5, leave=False, disable=watch is not None and not watched())
    for step in (bar := tqdm(range(first, steps), initial=first, total=steps, **how)):
        if watch is not None and step % EVERY == 0:
            watch(step)
        if save is not None and step % 200 == 0 and step > first:
            keep(step)
        if change.get("permuted") and step == steps // 2:
            networks.permute_gates(net, optimiser, seed)
        factor = min(1, (step + 1) / min(100, steps / 10), (1 - step / steps) / 0.2)
        for one, base in zip(optimiser, rates, strict=True):
            for group, rate in zip(one.param_groups, base, strict=True):
                group["lr"] = rate * factor
        loss = sample_loss(net, world, change, torch.Generator().manual_seed(1_000_003 * seed + step), batch, forward)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for one in optimiser:
            one.step()
            one.zero_grad(set_to_none=True)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
    if watch is not None and first < steps:
        watch(steps)
    if save is not None and first < steps:
        keep(steps)
    return losses


# ---------------------------------------------------------------- what is measured


class Second:
    """A probe that reads: the uncentred second moment of the image tokens (D, D) at every layer of one call."""

    edits = False

    def __init__(self):
        self.moments = {}

    def __call__(self, tokens, site):
        x = tokens.detach().float().flatten(0, 1)
        self.moments[site.layer] = x.mT @ x / len(x)


@torch.no_grad()
def error(net, world, sigma, change, *probes, rows=slice(None)) -> float:
    """Mean squared error of the velocity on fresh noised scenes, with probes attached; the noise is always the same."""
    x, text = world.batch(rows)
    text = world.empty.float().to(DEVICE).expand_as(text) if change.get("unconditional") else text
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    noisy, at = x + sigma * (noise - x), torch.full((len(x),), sigma, device=DEVICE)
    with mu.attach(net.transformer, *probes) if probes else nullcontext():
        said = net.velocity(noisy, at, text)
    return float((said - noise + x).square().mean())


def spectrum(moments) -> dict:
    """What one layer's second moment (D, D) says: the four measures of concentration, by name."""
    energy = moments.diagonal().clamp_min(1e-12)
    size = energy.sqrt().sort(descending=True).values
    return {
        "largest over median": float(size[0] / size.median()),
        "energy in the top": float(size[:K].square().sum() / energy.sum()),
        "kurtosis": float(len(energy) * energy.square().sum() / energy.sum() ** 2),  # of channels' RMS, as 2405.19279
        "largest eigenvalue": float(torch.linalg.eigvalsh(moments)[-1] / moments.trace()),
    }


class Course:
    """Every 25 steps, on 32 fresh scenes at sigma 0.5: the loss, concentration, and |gate| and |h| of every channel."""

    def __init__(self, net, world, change):
        self.net, self.world, self.change, self.rows, self.sizes, self.gates = net, world, change, [], {}, {}

    def __call__(self, step):
        probe = Second()
        with modulated(self.net) as factors:
            loss = error(self.net, self.world, 0.5, self.change, probe, rows=slice(32))
        self.rows.append(dict(step=step, measure="course: loss", value=loss))
        self.sizes[step] = np.stack([m.diagonal().sqrt().cpu() for m in probe.moments.values()])  # layer D
        self.gates[step] = {i: factor[..., 2, :].abs().mean((0, 1)).cpu().numpy() for i, factor in factors.items()}
        for layer, moments in probe.moments.items():
            found = spectrum(moments)
            self.rows += [dict(step=step, layer=layer, measure=f"course: {m}", value=v) for m, v in found.items()]

    def table(self) -> pd.DataFrame:
        """Rows (step, layer, channel, measure, value); of channels, the 12 that end largest and 12 drawn from the rest,
        in the middle layer, relative to the median channel, as logarithms to the base 2.
        """
        last, layer, rows = max(self.sizes), len(next(iter(self.sizes.values()))) // 2, list(self.rows)
        order = self.sizes[last][layer].argsort()[::-1]
        chosen = {c: "top" for c in order[:K]} | {
            c: "other" for c in np.random.default_rng(0).choice(order[K:], K, False)
        }
        for step, sizes in self.sizes.items():
            for name, values in (("activation", sizes[layer]), ("gate", self.gates[step].get(layer))):
                if values is not None and np.median(values) > 0:
                    ratio = np.log2((values + 1e-9) / np.median(values))
                    words = ({"channel": c, "measure": f"course: {name} of {of}"} for c, of in chosen.items())
                    rows += [dict(step=step, layer=layer, value=ratio[w["channel"]], **w) for w in words]
        half = min(self.sizes, key=lambda step: abs(step - last / 2))
        before, after = (set(self.sizes[at][layer].argsort()[::-1][:K]) for at in (half, last))
        moved = {int(networks.permutation(len(order), self.change.get("seed", 0))[c]) for c in before}
        rows.append(dict(step=last, layer=layer, measure="top kept since half", value=len(before & after) / K))
        rows.append(dict(step=last, layer=layer, measure="top moved with the gate", value=len(moved & after) / K))
        return pd.DataFrame(rows).assign(sigma=0.5)


def measured(net, own, plain, more, change) -> pd.DataFrame:
    """Everything that is measured at the end of a training: rows (layer, sigma, channel, measure, value)."""
    tables = []
    for sigma in (0.5,) if change.get("one_sigma") else SIGMAS:
        rows, stats, probe, level = [], mu.ChannelStats(), Second(), levels.Levels()
        error(net, more, sigma, change, level)
        with modulated(net) as factors:
            intact = error(net, own, sigma, change, stats, probe)
        data = stats.dataset().isel(step=0)
        scores = data.mean_abs.mean("image")
        sets = {which: mu.select_channels(scores, K, which=which) for which in ("top", "bottom")}
        sets |= {f"outside {i}": mu.select_channels(scores, K, which="outside", seed=i) for i in range(DRAWS)}
        rows.append(dict(measure="loss", value=intact))
        for layer in scores.layer.values:
            here, top = scores.sel(layer=layer).values, sets["top"].sel(layer=layer).values
            rows += [dict(layer=layer, channel=c, measure="mean_abs", value=value) for c, value in enumerate(here)]
            rows += [dict(layer=layer, measure=m, value=v) for m, v in spectrum(probe.moments[layer]).items()]
            for name, of in (("top", top), ("all", data.channel.values)):
                part = data.sel(layer=layer, channel=of)
                energy = float(part.mean_sq.mean("image").sum())
                constant, level_sq = ((part["mean"].mean("image") ** 2).sum(), (part["mean"] ** 2).mean("image").sum())
                parts = {"constant": constant, "level": level_sq - constant, "pattern": energy - level_sq}
                rows += [dict(layer=layer, measure=f"{p} of {name}", value=float(v) / energy) for p, v in parts.items()]
            if layer in factors:
                rows += [dict(layer=layer) | row for row in told(factors[layer], here, top)]
        edits = [(which, "zero") for which in sets]
        edits += [(which, mode) for which in ("top", "outside 0") for mode in ("no pattern", "no level")]
        for which, mode in edits:
            edit = mu.Disrupt(sets[which], mode=mode, levels=level.table())
            rows.append(dict(measure=f"loss: {mode}, {which}", value=error(net, own, sigma, change, edit)))
        closed = ["gate's largest", *(f"others of the gate {i}" for i in range(DRAWS))]
        for which in closed if net.family not in networks.ONE_PROJECTION else ():
            with modulated(net, without(which, factors)):
                rows.append(dict(measure=f"loss: {which}", value=error(net, own, sigma, change)))
        for which, ids in ((name, ids) for name, ids in sets.items() if name != "bottom"):  # on the plain world
            error(net, plain, sigma, change, record := mu.Record(ids.drop_vars("step", errors="ignore")))
            subject = (plain.subject > 0.5).numpy().reshape(-1, GRID, GRID)
            there = subject.any((1, 2)) & ~subject.all((1, 2))
            found = masks.overlaps(record, subject, {"set": {}}).isel(image=there, arm=0, step=0).mean("image")
            for rule in ("heat", "oracle"):
                values = found.sel(rule=rule)
                name = f"mIoU ({rule}), {which}"
                rows += [dict(layer=i, measure=name, value=float(values.sel(layer=i))) for i in record.layers]
        tables.append(pd.DataFrame(rows).assign(sigma=sigma))
    return pd.concat(tables)


def told(factor, sizes, top):
    """How a block's modulation (B, sets, 3, D) goes with the size (D,) of the channels that leave it."""
    parts = dict(zip(("shift", "scale", "gate"), factor.unbind(2), strict=True))
    parts["scale"] = 1 + parts["scale"]
    for name, values in parts.items():
        values = values.abs().mean((0, 1)).cpu().numpy()
        if np.ptp(values) > 1e-6:  # else it is fixed, or one for all channels
            yield dict(measure=f"{name}: rank correlation", value=float(spearmanr(values, sizes).statistic))
        yield dict(measure=f"{name} at the top", value=float(np.median(values[top])))
        yield dict(measure=f"{name} elsewhere", value=float(np.median(np.delete(values, top))))


def without(which, factors):
    """An edit of modulations: the gate is 0 where it is largest in its block, or at as many others, drawn anew."""

    def edit(layer, factor):
        size = factors[layer][..., 2, :].abs().mean((0, 1))
        order = size.argsort(descending=True).cpu()
        draw = torch.Generator().manual_seed(int(which.split()[-1]) if which[-1].isdigit() else 0)
        others = order[K:][torch.randperm(len(order) - K, generator=draw)[:K]]
        factor = factor.clone()
        factor[..., 2, order[:K] if which == "gate's largest" else others] = 0
        return factor

    return edit


# ---------------------------------------------------------------- runs


def recipe(steps, scenes) -> dict:
    """What a run's result depends on beside its variant; runs of another recipe are never mixed."""
    return dict(steps=steps, batch=BATCH, samples=steps * BATCH, scenes=scenes, sigmas=SIGMAS, model=model())


@contextmanager
def mine(path):
    """Whether this process may work on a run: no other holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.claimed(path.with_suffix(".lock"), wait=False) as free:
        yield free is not False


def one(variant, seed, steps, scenes, folder):
    """Train and measure one variant with one seed; a state is kept every 200 steps, until all is measured."""
    change = plan()[variant]["change"] | {"seed": seed}
    own, fresh, plain, more = worlds(change, scenes)
    torch.manual_seed(seed)
    net, path = Net(change).to(DEVICE), folder / f"{variant}-{seed}.pt"
    course = Course(net, fresh, change)
    state = torch.load(path, weights_only=False) if path.exists() else None
    course.__dict__ |= state.pop("course") if state else {}

    def save(state):
        kept = {name: getattr(course, name) for name in ("rows", "sizes", "gates")}
        with whole(path) as beside:
            torch.save(state | {"course": kept}, beside)

    fast = torch.compile(net, dynamic=False)
    train(net, own, change, steps=steps, seed=seed, watch=course, state=state, save=save, forward=fast)
    net.eval()
    table = pd.concat([course.table(), measured(net, fresh, plain, more, change).assign(step=steps)])
    storage.write(folder / f"{variant}-{seed}.parquet", table.assign(variant=variant, seed=seed))
    path.unlink(missing_ok=True)


def known_runs(table, made) -> pd.DataFrame | None:
    """A table of this recipe, None where there is no table. Raises ValueError where it is of another one."""
    if not table.exists():
        return None
    found, made = pd.read_parquet(table), json.loads(json.dumps(made))
    other = {name: found.attrs.get(name) for name in made if found.attrs.get(name) != made[name]}
    if other:
        raise ValueError(f"{table.name} is of another recipe ({other}); delete it, or name another --table")
    return found


def gather(folder, made, table=TABLE):
    """All finished runs of one recipe as one tidy table, with the recipe `made` in its attrs.

    These are the runs in the folder, and those that the table holds already, as from another machine.
    """
    found = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])
    old = known_runs(table, made)
    if old is not None:
        new = found[["variant", "seed"]].drop_duplicates()
        there = old[["variant", "seed"]].merge(new, "left", indicator="made").made == "both"
        found = pd.concat([found, old[~there.to_numpy()]])
    whole_numbers = {"seed": "int8", "step": "int16", "layer": "int8", "channel": "int16"}
    found = found.fillna(dict.fromkeys(("layer", "channel"), -1)).astype(whole_numbers)
    found = found.astype({"variant": "category", "measure": "category", "sigma": "float32", "value": "float32"})
    found = found[["variant", "seed", "step", "layer", "sigma", "channel", "measure", "value"]].reset_index(drop=True)
    found.attrs = made | {"trial": made["steps"] < STEPS, "torch": torch.__version__.split("+")[0]}
    with whole(table) as beside:
        found.to_parquet(beside, index=False, compression="zstd")


def main():
    known = plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the plan and what is done, and train nothing")
    parser.add_argument("--part", choices=("essential", "rest"), help="half of the plan; all of it where none is named")
    parser.add_argument("--variants", help="names from the plan, with commas between them")
    parser.add_argument("--seeds", default=",".join(map(str, range(SEEDS))))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} samples; fewer than {STEPS} are a trial")
    parser.add_argument("--scenes", type=int, default=SCENES, help="training scenes, drawn once")
    parser.add_argument("--table", type=Path, default=TABLE)
    words = parser.parse_args()
    chosen = (
        words.variants.split(",") if words.variants else [v for v in known if words.part in (None, known[v]["part"])]
    )
    if set(chosen) - set(known):
        parser.error(f"{', '.join(set(chosen) - set(known))}: no variant of plan.toml, which has {', '.join(known)}")
    folder, seeds = mu.places.runs() / "origins", [int(seed) for seed in words.seeds.split(",")]
    folder /= hashlib.sha256(json.dumps(made := recipe(words.steps, words.scenes)).encode()).hexdigest()[:12]
    runs = [(variant, seed) for seed in seeds for variant in chosen]
    try:
        there = known_runs(words.table, made)
    except ValueError as error:
        parser.error(str(error))
    done = set() if there is None else set(there.groupby(["variant", "seed"], observed=True).size().index)
    done |= {(v, s) for v, s in runs if (folder / f"{v}-{s}.parquet").exists()}
    if words.list:
        for variant in chosen:
            row, ready = known[variant], sum((variant, seed) in done for seed in seeds)
            print(f"{variant:18} {row['part']:9} {ready} of {len(seeds)}  {row['question']} {row['change'] or ''}")
        return
    for variant, seed in runs:
        with mine(folder / f"{variant}-{seed}") as free:
            if free and (variant, seed) not in done and not (folder / f"{variant}-{seed}.parquet").exists():
                print(f"{variant}, seed {seed}", flush=True)
                one(variant, seed, words.steps, words.scenes, folder)
                gather(folder, made, words.table)


if __name__ == "__main__":
    main()

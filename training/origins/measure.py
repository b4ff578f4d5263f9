"""What is measured of a small training: its course every 25 steps, and everything at its end, as tidy rows."""

from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

import massact_utils as mu
from massact_utils.measures import masks
from massact_utils.probes.arms import Arm

from ..loop import DEVICE
from .networks import GRID, ONE_PROJECTION, modulated

SIGMAS, K, DRAWS = (0.2, 0.5, 0.8), 12, 8  # noise levels, channels in the top set, draws of others


class SecondMoment:
    """A probe that reads: the uncentred second moment of the image tokens (D, D) at every layer of one call."""

    edits = False

    def __init__(self):
        self.moments = {}

    def __call__(self, tokens, site):
        x = tokens.detach().float().flatten(0, 1)
        self.moments[site.layer] = x.mT @ x / len(x)


@torch.no_grad()
def error(net, scenes, sigma, *probes, rows=slice(None)) -> float:
    """Mean squared error of the velocity on fresh noised scenes, with probes attached; the noise is always the same."""
    x, text = scenes.batch(rows)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    noisy, at = x + sigma * (noise - x), torch.full((len(x),), sigma, device=DEVICE)
    with mu.attach(net.transformer, *probes) if probes else nullcontext():
        velocity = net(noisy, at, text)
    return float((velocity - noise + x).square().mean())


def concentration(moment) -> dict:
    """The four measures of concentration, by name, of one layer's second moment (D, D)."""
    energy = moment.diagonal().clamp_min(1e-12)
    size = energy.sqrt().sort(descending=True).values
    return {
        "largest over median": float(size[0] / size.median()),
        "energy in the top": float(size[:K].square().sum() / energy.sum()),
        "kurtosis": float(len(energy) * energy.square().sum() / energy.sum() ** 2),  # of channels' RMS, as 2405.19279
        "largest eigenvalue": float(torch.linalg.eigvalsh(moment)[-1] / moment.trace()),
    }


class Course:
    """At each step it is called: loss, concentration, |gate| and |h| of all channels, on 32 fresh scenes, sigma 0.5."""

    def __init__(self, net, scenes):
        self.net, self.scenes, self.rows, self.sizes, self.gates = net, scenes, [], {}, {}

    def __call__(self, step):
        probe = SecondMoment()
        with modulated(self.net) as factors:
            loss = error(self.net, self.scenes, 0.5, probe, rows=slice(32))
        self.rows.append(dict(step=step, measure="course: loss", value=loss))
        self.sizes[step] = np.stack([m.diagonal().sqrt().cpu() for m in probe.moments.values()])  # layer D
        self.gates[step] = {i: factor[..., 2, :].abs().mean((0, 1)).cpu().numpy() for i, factor in factors.items()}
        for layer, moment in probe.moments.items():
            measures = concentration(moment).items()
            self.rows += [dict(step=step, layer=layer, measure=f"course: {m}", value=v) for m, v in measures]

    def table(self) -> pd.DataFrame:
        """Rows (step, layer, channel, measure, value); of channels the 12 that end largest, in the middle layer, over
        the median channel, as logarithms to the base 2.
        """
        last, layer, rows = max(self.sizes), len(next(iter(self.sizes.values()))) // 2, list(self.rows)
        order = self.sizes[last][layer].argsort()[::-1]
        for step, sizes in self.sizes.items():
            for name, values in (("activation", sizes[layer]), ("gate", self.gates[step].get(layer))):
                if values is not None and np.median(values) > 0:
                    ratio = np.log2((values + 1e-9) / np.median(values))
                    key = dict(step=step, layer=layer, measure=f"course: {name} of top")
                    rows += [key | dict(channel=c, value=ratio[c]) for c in order[:K]]
        return pd.DataFrame(rows).assign(sigma=0.5)


def measure(net, own, plain, more, sigmas=SIGMAS) -> pd.DataFrame:
    """Everything that is measured at the end of a training: rows (layer, sigma, channel, measure, value)."""
    tables = []
    for sigma in sigmas:
        stats, moment, average = mu.ChannelStats(), SecondMoment(), mu.ChannelStats()
        error(net, more, sigma, average)
        with modulated(net) as factors:
            rows = [dict(measure="loss", value=error(net, own, sigma, stats, moment))]
        data = stats.dataset().isel(branch=0, step=0)
        scores = data.mean_abs.mean("image")
        sets = {which: mu.select_channels(scores, K, which=which) for which in ("top", "bottom")}
        sets |= {f"outside {i}": mu.select_channels(scores, K, which="outside", seed=i) for i in range(DRAWS)}
        for layer in scores.layer.values:
            sizes, top = scores.sel(layer=layer).values, sets["top"].sel(layer=layer).values
            of_layer = concentration(moment.moments[layer]) | shares(data.sel(layer=layer, channel=top))
            of_layer |= gate_correlation(factors[layer], sizes) if layer in factors else {}
            rows += [dict(layer=layer, measure=name, value=value) for name, value in of_layer.items()]
            rows += [dict(layer=layer, channel=c, measure="mean_abs", value=value) for c, value in enumerate(sizes)]
        edits, levels = [(which, "zero", "zero") for which in sets], average.dataset()["mean"].mean("image")
        for which in ("top", "outside 0"):
            edits += [(which, "no pattern", "flat"), (which, "no level", "average level")]  # as the table names them
        for which, name, edit in edits:
            edit = mu.Disrupt(Arm(sets[which], edit, levels=levels))
            rows.append(dict(measure=f"loss: {name}, {which}", value=error(net, own, sigma, edit)))
        if net.family not in ONE_PROJECTION:
            for which in ["gate's largest", *(f"others of the gate {i}" for i in range(DRAWS))]:
                with modulated(net, closed(which, factors)):
                    rows.append(dict(measure=f"loss: {which}", value=error(net, own, sigma)))
        for which in [name for name in sets if name != "bottom"]:
            record = mu.Record(sets[which].drop_vars("step", errors="ignore"))
            error(net, plain, sigma, record)
            values = overlap(record, plain.subject).items()
            rows += [dict(layer=layer, measure=f"mIoU (oracle), {which}", value=value) for layer, value in values]
        tables.append(pd.DataFrame(rows).assign(sigma=sigma))
    return pd.concat(tables)


def shares(top):
    """Shares of the energy of a layer's top channels that are constant, of levels and of patterns: name -> share."""
    energy = float(top.mean_sq.mean("image").sum())
    constant, means = ((top["mean"].mean("image") ** 2).sum(), (top["mean"] ** 2).mean("image").sum())
    parts = {"constant": constant, "level": means - constant, "pattern": energy - means}
    return {f"{name} of top": float(part) / energy for name, part in parts.items()}


def gate_correlation(factor, sizes) -> dict:
    """Rank correlation of a block's gate, of (B, sets, 3, D), with the size (D,) of the channels that leave it.

    Empty where the gate is fixed, or one for all channels.
    """
    gate = factor[..., 2, :].abs().mean((0, 1)).cpu().numpy()
    return {"gate: rank correlation": float(spearmanr(gate, sizes).statistic)} if np.ptp(gate) > 1e-6 else {}


def closed(which, factors):
    """An edit of modulations: the gate is 0 where it is largest in its block, or at as many others, one draw each."""

    def edit(layer, factor):
        order = factors[layer][..., 2, :].abs().mean((0, 1)).argsort(descending=True).cpu()
        generator = torch.Generator().manual_seed(int(which.split()[-1]) if which[-1].isdigit() else 0)
        others = order[K:][torch.randperm(len(order) - K, generator=generator)[:K]]
        factor = factor.clone()
        factor[..., 2, order[:K] if which == "gate's largest" else others] = 0
        return factor

    return edit


def overlap(record, subject):
    """mIoU of each layer's partition with the subject's coverage (n, 36), over images that have subject and ground."""
    subject = (subject > 0.5).numpy().reshape(-1, GRID, GRID)
    parted = subject.any((1, 2)) & ~subject.all((1, 2))
    table = masks.overlaps(record, subject, {"set": {}}).isel(image=parted, arm=0, step=0)
    return table.sel(rule="oracle").mean("image").to_series()

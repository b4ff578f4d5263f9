"""What masks cost beside plain generation: every arm of notebook 03 at every layer and step of one image.

    python benchmarks/mask_cost.py                      # CPU; about 5 minutes on two cores
    python benchmarks/mask_cost.py --klein              # a GPU: FLUX.2-klein-4B's depth, 4,096 tokens, 4 steps

A transformer of FLUX.2-klein-4B's width and random weights denoises one image plainly; then tokens with a subject in
them stand for its record, of every channel, and all arms are clustered with `overlaps`. Beside it scikit-learn, SciPy
and scikit-image do the arms on all channels at one site. Writes the table in README.md, beside this file.
"""

import argparse
import time

import numpy as np
import page
import pandas as pd
import torch
from probe_cost import inputs, new_transformer, run
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu
from sklearn.cluster import k_means
from sklearn.decomposition import PCA

from massact_utils.measures.masks import border_of, overlaps
from massact_utils.probes.record import Record

WIDTH, STEPS, K = 3072, 2, 12
BORDER = dict(method="border", scaling="standard")


def arms():
    """Those of notebook 03: twelve channels in many ways, and all of them in three."""
    draw, top = np.random.default_rng(0), dict(ranks=range(K))
    sets = {f"random {i}": dict(ranks=draw.choice(WIDTH, K, replace=False)) for i in range(5)}
    ways = {"standard": dict(scaling="standard"), "from border": dict(method="border")}
    ways |= {"standard, from border": BORDER, "plain": {}}
    few = sets | {name: top | how for name, how in ways.items()} | {"random, from border": sets["random 0"] | BORDER}
    return few, {"all": {}, "all, PCA": dict(method="pca"), "all, from border": BORDER}


def record_of(side, layers, steps, device):
    """Tokens with a disc and a smooth ground in them, in bfloat16, at every layer and step: the record and the disc."""
    draw, sites = torch.Generator(device).manual_seed(0), {}
    axis = torch.linspace(-1, 1, side, device=device)
    disc = (axis[:, None] ** 2 + (axis - 0.2) ** 2 < 0.2).flatten()[:, None]
    ground = torch.stack([torch.sin(f * axis[:, None] + axis) for f in range(1, 25)], -1).reshape(side * side, 24)
    ids = torch.arange(WIDTH, device=device)[None]
    for layer in range(layers):
        for step in range(steps):
            mix, shift, noise = (torch.randn(n, WIDTH, generator=draw, device=device) for n in (24, 1, side * side))
            tokens = 0.3 * ground @ mix + disc * shift + 2 * noise + 20 * shift
            sites[step, layer] = ids, tokens[None].bfloat16()
    return Record.of(sites, (side, side)), disc.reshape(1, side, side).cpu().numpy()


def by_libraries(tokens, grid):
    """The three arms on all channels by scikit-learn, SciPy and scikit-image, as one would write them: (N, K)."""
    x, border = tokens.float().cpu().numpy(), border_of(grid).ravel()
    unit = (x - x.min(0)) / np.ptp(x, axis=0)
    k_means(unit, 2, n_init=1, random_state=0)
    threshold_otsu(PCA(1, random_state=0).fit_transform(unit)[:, 0])
    z = (x - x.mean(0)) / x.std(0)
    threshold_otsu(np.partition(cdist(z, z[border]), 3)[:, :4].mean(1))


def seconds(function, device, repeats=3):
    """The least of several times, after one run to warm up."""
    function()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def measured(side, dual, single, steps, device):
    model = new_transformer(WIDTH, dual, single, device)
    calls = (inputs(WIDTH, side * side, device) * steps)[:steps]
    plain = seconds(lambda: run(model, calls), device)
    record, disc = record_of(side, dual + single, steps, device)
    few, every = arms()
    times = [seconds(lambda a=a: overlaps(record, disc, a), device) for a in (few, every, few | every)]
    sites, alone = len(record.sites), record_of(side, 1, 1, device)[0]
    ours = seconds(lambda: overlaps(alone, disc, every), device)
    theirs = seconds(lambda: by_libraries(alone[0, 0][1][0], record.grid), device)
    return {
        "tokens": f"{side} x {side}",
        "layers x steps": f"{dual + single} x {steps}",
        "generation": f"{plain:.2f} s",
        f"{len(few)} arms on 12 channels": f"{times[0] / plain:.2f}",
        f"{len(every)} on all {WIDTH}": f"{times[1] / plain:.2f}",
        "together": f"{times[2] / plain:.2f}",
        "all arms, a site": f"{1000 * times[2] / sites:.0f} ms",
        "all channels: libraries / ours": f"{theirs / ours:.1f}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--klein", action="store_true", help="FLUX.2-klein-4B's depth, on a GPU")
    klein = parser.parse_args().klein
    device = "cuda" if klein else "cpu"
    torch.set_grad_enabled(False)
    sizes = [(64, 5, 20, 4)] if klein else [(16, 1, 2, STEPS), (32, 1, 2, STEPS), (64, 1, 2, STEPS)]
    table = pd.DataFrame([measured(*size, device) for size in sizes])
    print(table.to_string())
    note = f"{page.hardware(device)}; torch {torch.__version__}; width {WIDTH}, bfloat16; generation plain."
    page.write("mask cost on a GPU" if klein else "mask cost", note, page.markdown(table))

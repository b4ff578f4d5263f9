"""Statistics: what probes see of every prompt with every seed, batch by batch, as one crossed table.

best = pilot(results, pipe, prompts, seed=n_seeds)            # the largest channels, by noise that is not in the table
data = run(results, pipe, prompts, range(n_seeds), best)      # dims (prompt, seed, step, layer, channel), and maps
"""

import numpy as np
import xarray as xr

from ..models.families import blocks
from ..models.load import generate
from ..probes.attach import attach
from ..probes.channels import ChannelStats, score, select_channels
from ..probes.record import Record

QUANTILE = 0.999  # of |activation|, over an image's tokens


def pilot(results, pipe, prompts, *, seed: int, k: int = 8, by: str = "mean_abs", at_once: int = 8, **call):
    """Ids of the k channels that are largest over the median of their layer, in the images of four prompts: (rank)."""

    def measure(batch):
        with attach(pipe, ChannelStats(quantile=QUANTILE)) as stats:
            _images(pipe, batch, **call)
        return stats.dataset().sel(branch="cond", drop=True)

    for batch in results.pending([(prompt, seed) for prompt in prompts[:4]], at_once, name="pilot"):
        results.add(batch, measure)
    scores = score(results.results("pilot"), by)
    return select_channels((scores / scores.median("channel")).mean(["image", "step", "layer"]), k)


def run(results, pipe, prompts, seeds, best: xr.DataArray, *, at_once: int = 8, **call) -> xr.Dataset:
    """ChannelStats of every prompt with every seed, and maps of the `best` channels in three layers: a `design`.

    Of the first batch the record is saved for the explorer.
    """
    n = len(blocks(pipe))
    three = sorted({n // 4, n // 2, n - 1})

    def measure(batch):
        stats, record = ChannelStats(quantile=QUANTILE), Record(best)
        with attach(pipe, stats), attach(pipe, record, layers=three):
            images = _images(pipe, batch, **call)
        if 0 in batch.indices:
            record.save(results.path("explorer/record.safetensors"))
        return batch_table(stats, record, images)

    for batch in results.pending([(prompt, seed) for seed in seeds for prompt in prompts], at_once):
        results.add(batch, measure)
    return design(results.results(), len(prompts), len(seeds))


def _images(pipe, batch, **call) -> list:
    """The images of a batch of (prompt, seed)."""
    prompts, seeds = zip(*batch.prompts, strict=True)
    return generate(pipe, list(prompts), seeds=list(seeds), **call)


def batch_table(stats: ChannelStats, record: Record, images) -> xr.Dataset:
    """What probes saw of one batch as one table along "image": statistics, the record's maps, pictures (y, x, rgb)."""
    small = [image.convert("RGB") for image in images]  # copies: the caller's stay as they are
    for image in small:
        image.thumbnail((128, 128))
    pictures = np.stack([np.asarray(image) for image in small]).astype(np.int16)  # NetCDF has no uint8
    table = stats.dataset().sel(branch="cond", drop=True)
    table = table.assign(maps=channel_maps(record), picture=(("image", "y", "x", "rgb"), pictures))
    table.attrs |= {"grid": list(record.grid)}
    return table


def channel_maps(record: Record, most: int = 4) -> xr.DataArray:
    """A Record of the same channels everywhere as maps: (image, map_step, map_layer, map_channel, token).

    Of many steps, `most` of them, evenly spread. Raises ValueError for a record whose channels differ between sites.
    """
    steps = [record.steps[i] for i in np.unique(np.linspace(0, len(record.steps) - 1, most).astype(int))]
    cells = [[record[step, layer] for layer in record.layers] for step in steps]
    ids = cells[0][0][0][0].cpu().numpy()  # K
    if any((own.cpu().numpy() != ids).any() for row in cells for own, _ in row):
        raise ValueError("maps need the same channels at every site; give Record one set of them, a DataArray (rank)")
    values = np.stack([[x.float().cpu().numpy() for _, x in row] for row in cells])  # step layer image N K
    dims = ("image", "map_step", "map_layer", "map_channel", "token")
    coords = {"map_step": steps, "map_layer": record.layers, "map_channel": ids}
    return xr.DataArray(values.transpose(2, 0, 1, 4, 3), coords, dims, name="maps")


def design(table: xr.Dataset, prompts: int, seeds: int) -> xr.Dataset:
    """Images drawn seed by seed, each with every prompt, as a design: dim "image" -> dims (prompt, seed)."""
    coords = {
        "seed": ("image", np.repeat(np.arange(seeds), prompts)),
        "prompt": ("image", np.tile(np.arange(prompts), seeds)),
    }
    table = table.drop_vars("image").assign_coords(coords).set_index(image=["seed", "prompt"])
    return table.unstack("image").transpose("prompt", "seed", ...)

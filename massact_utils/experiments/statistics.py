"""Statistics: what probes see of every prompt with every seed, batch by batch, as one crossed table.

best = pilot(results, pipe, prompts, seed=n_seeds)            # the largest channels, by noise that is not in the table
data = run(results, pipe, prompts, range(n_seeds), best)      # dims (prompt, seed, step, layer, channel), and maps
"""

from contextlib import nullcontext

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

    Models with text tokens of their own have the text stream's statistics, too. Of the first batch the record is saved
    for the explorer, and of its first image all channels of the middle layer at the last step (tokens.nc).
    """
    known = blocks(pipe)
    middle, three = len(known) // 2, sorted({len(known) // 4, len(known) // 2, len(known) - 1})
    dual = any(block.kind == "dual" for block in known)

    def measure(batch):
        stats, record, seen = ChannelStats(quantile=QUANTILE), Record(best), {}
        text_stats = ChannelStats() if dual else None
        text = attach(pipe, text_stats, stream="text") if dual else nullcontext()
        one = attach(pipe, lambda x, site: seen.update(x=x[0].clone()), layers=middle, branch="cond")
        with text, one, attach(pipe, stats), attach(pipe, record, layers=three):
            images = _images(pipe, batch, **call)
        if 0 in batch.indices:
            record.save(results.path("explorer/record.safetensors"))
            results.save("tokens", xr.DataArray(seen["x"].float().cpu().numpy(), dims=("token", "channel")))
        return batch_table(stats, record, images, text_stats)

    for batch in results.pending([(prompt, seed) for seed in seeds for prompt in prompts], at_once):
        results.add(batch, measure)
    return design(results.results(), len(prompts), len(seeds))


def _images(pipe, batch, **call) -> list:
    """The images of a batch of (prompt, seed)."""
    prompts, seeds = zip(*batch.prompts, strict=True)
    return generate(pipe, list(prompts), seeds=list(seeds), **call)


def batch_table(stats: ChannelStats, record: Record, images, text_stats: ChannelStats | None = None) -> xr.Dataset:
    """What probes saw of one batch as one table along "image": statistics, the record's maps, pictures (y, x, rgb).

    The text stream's statistics are kept as text_abs and text_sq (image, step, text_layer, channel).
    """
    small = [image.convert("RGB") for image in images]  # copies: the caller's stay as they are
    for image in small:
        image.thumbnail((128, 128))
    pictures = np.stack([np.asarray(image) for image in small]).astype(np.int16)  # NetCDF has no uint8
    table = stats.dataset().sel(branch="cond", drop=True)
    table = table.assign(maps=channel_maps(record), picture=(("image", "y", "x", "rgb"), pictures))
    table.attrs |= {"grid": list(record.grid)}
    if text_stats is None:
        return table
    text = text_stats.dataset()[["mean_abs", "mean_sq"]].sel(branch="cond", drop=True)
    text = text.drop_vars(["name", "kind", "timestep"])
    text = text.rename(mean_abs="text_abs", mean_sq="text_sq", layer="text_layer")
    return table.assign(text.variables)


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

"""Statistics: what probes see of every prompt with every seed, batch by batch, as one crossed table."""

import numpy as np
import xarray as xr

from ..probes.channels import ChannelStats
from ..probes.record import Record


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

"""A crossed design: every prompt drawn with every seed, and what probes saw of it as one table."""

import numpy as np
import xarray as xr

from .channels import ChannelStats
from .spatial import Record


def gathered(stats: ChannelStats, record: Record, images, words: ChannelStats | None = None) -> xr.Dataset:
    """What probes saw of one batch as one table along "image": statistics, the record's maps, pictures (y, x, rgb).

    `words` are the text stream's statistics, kept as text_abs and text_sq (image, step, text_layer, channel).
    """
    for image in images:
        image.thumbnail((128, 128))
    pictures = np.stack([np.asarray(image.convert("RGB")) for image in images]).astype(np.int16)  # NetCDF has no uint8
    table = stats.dataset().assign(maps=maps(record), picture=(("image", "y", "x", "rgb"), pictures))
    table.attrs |= {"grid": list(record.grid)}
    if words is None:
        return table
    text = words.dataset()[["mean_abs", "mean_sq"]].drop_vars(["name", "kind", "timestep"])
    text = text.rename(mean_abs="text_abs", mean_sq="text_sq", layer="text_layer")
    return table.assign(text.variables)


def design(table: xr.Dataset, prompts: int, seeds: int) -> xr.Dataset:
    """Images drawn seed by seed, each with every prompt, as a design: dim "image" -> dims (prompt, seed)."""
    at = {
        "seed": ("image", np.repeat(np.arange(seeds), prompts)),
        "prompt": ("image", np.tile(np.arange(prompts), seeds)),
    }
    table = table.drop_vars("image").assign_coords(at).set_index(image=["seed", "prompt"])
    return table.unstack("image").transpose("prompt", "seed", ...)


def maps(record: Record, most: int = 4) -> xr.DataArray:
    """A Record of the same channels everywhere as maps: (image, map_step, map_layer, map_channel, token).

    Of many steps, `most` of them, evenly spread. Raises ValueError for a record whose channels differ between sites.
    """
    steps = [record.steps[i] for i in np.unique(np.linspace(0, len(record.steps) - 1, most).astype(int))]
    cells = [[record[step, layer] for layer in record.layers] for step in steps]
    ids = cells[0][0][0][0].cpu().numpy()  # K
    if any((found.cpu().numpy() != ids).any() for row in cells for found, _ in row):
        raise ValueError("maps need the same channels at every site; give Record one set of them, a DataArray (rank)")
    values = np.stack([[kept.float().cpu().numpy() for _, kept in row] for row in cells])  # step layer image N K
    dims = ("image", "map_step", "map_layer", "map_channel", "token")
    at = {"map_step": steps, "map_layer": record.layers, "map_channel": ids}
    return xr.DataArray(values.transpose(2, 0, 1, 4, 3), at, dims, name="maps")


def coverage(maps: xr.DataArray, level: xr.DataArray) -> np.ndarray:
    """Share of the tokens on which |activation| is over a level, per prompt: (prompt, ..., token) -> (prompt).

    `level` (prompt, seed, step, layer) is looked up at the maps' own steps and layers.
    """
    above = abs(maps) > level.sel(step=maps.step, layer=maps.layer)
    return above.mean([dim for dim in maps.dims if dim != "prompt"]).values

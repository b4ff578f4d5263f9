"""Sites: choose the best layer and step of each way to make a mask on some images, and report it on others.

A table is what `masks.overlaps` gives, (image, rule, arm, layer, step), with a coordinate `half` along its images:
"choose", "report", or anything else for an image that is left out. A control that was drawn several times has the arms
"name 0", "name 1" and so on, and goes by "name": its draws share a site.
"""

import numpy as np
import xarray as xr

from ..probes.record import Record
from .evidence import paired_interval
from .masks import POLARITIES, token_masks

SITE = ("arm", "rule", "layer", "step")


def names(table: xr.DataArray) -> list[str]:
    """The arms of a table, a control that was drawn several times by its one name."""
    return list(dict.fromkeys(str(arm).rstrip("0123456789").rstrip() for arm in table.arm.values))


def scored(table: xr.DataArray, arm: str, half: str) -> xr.DataArray:
    """One arm on one half of the images: (image, rule, layer, step), and draw for a control that was drawn.

    Raises KeyError for an arm that is not in the table.
    """
    table, there = table.isel(image=table.half.values == half), [str(name) for name in table.arm.values]
    if arm in there:
        return table.sel(arm=arm, drop=True)
    drawn = [name for name in there if name.rpartition(" ")[0] == arm and name.rpartition(" ")[2].isdigit()]
    if not drawn:
        raise KeyError(f"no arm {arm!r}; there are {', '.join(names(table))}")
    return table.sel(arm=drawn).rename(arm="draw").assign_coords(draw=range(len(drawn)))


def best(table: xr.DataArray, arms, rules=POLARITIES, steps=None) -> dict:
    """Where the choosing half has its highest mean: {"arm", "rule", "layer", "step"}, among some arms, rules and steps.

    `arms` is a name or several; `steps` None is all. What `reported` takes. Raises KeyError for what is not there.
    """
    steps = table.step.values if steps is None else steps
    found = []
    for arm in [arms] if isinstance(arms, str) else arms:
        mean = scored(table, arm, "choose").sel(rule=[*rules], step=[*steps])
        mean = mean.mean([dim for dim in ("image", "draw") if dim in mean.dims]).stack(site=SITE[1:]).fillna(-1)
        at = mean[int(np.argmax(mean.values))]
        found.append((float(at), dict(zip(SITE, (arm, *at.site.item()), strict=True))))
    return max(found, key=lambda pair: pair[0])[1]


def reported(table: xr.DataArray, site: dict, arm: str | None = None) -> xr.DataArray:
    """The reporting half at a site as from `best`: (image), or (draw, image); `arm` is another arm, at that site."""
    where = {dim: site[dim] for dim in SITE[1:]}
    return scored(table, arm or site["arm"], "report").sel(where, drop=True)


def over_steps(table: xr.DataArray, arms, rules=POLARITIES) -> xr.DataArray:
    """The reporting half at every step, each at the arm, rule and layer that suit that step: (step, image), a mean over
    draws.
    """
    lines = [reported(table, best(table, arms, rules, [step])) for step in table.step.values]
    lines = [line.mean("draw") if "draw" in line.dims else line for line in lines]
    return xr.concat(lines, "step", coords="minimal", compat="override").assign_coords(step=table.step.values)


def first_above(line: xr.DataArray, other: xr.DataArray) -> float | None:
    """The first step at which a line (step, images) surely lies above another, by its 95 % interval; None: at none."""
    for i, step in enumerate(line.step.values):
        if paired_interval(line.isel(step=i, drop=True), other.isel(step=i, drop=True))[1] > 0:
            return step.item()
    return None


def drawn(files, site: dict, **how) -> np.ndarray:
    """The masks at a site, as from `best`, of all images recorded in some files: (image, H, W) bool.

    `how` are `token_masks`' other arguments, as in ranks=range(12) or method="border". Files are read one after the
    other, so that one is in memory at a time. Raises what `token_masks` raises: ValueError for the rule "oracle".
    """
    where = dict(layer=site["layer"], step=site["step"], polarity=site["rule"])
    return np.concatenate([token_masks(Record.load(file), **where, **how)[0] for file in files])

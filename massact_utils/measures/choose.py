"""Choose: the best layer and step of each way to make a mask on some images, reported on others.

A table is what `masks.overlaps` gives, (image, rule, arm, layer, step), with a coordinate `half` along its images:
"choose", "report", or anything else for an image that is left out. A control that was drawn several times has the arms
"name 0", "name 1" and so on, and goes by "name": its draws share a site.
"""

import numpy as np
import xarray as xr

from ..probes.record import Record
from .masks import POLARITIES, best_consensus, iou, token_masks

SITE = ("arm", "rule", "layer", "step")


def arm_names(table: xr.DataArray) -> list[str]:
    """The arms of a table, a control that was drawn several times by its one name."""
    return list(dict.fromkeys(str(arm).rstrip("0123456789").rstrip() for arm in table.arm.values))


def arm_scores(table: xr.DataArray, arm: str, half: str) -> xr.DataArray:
    """One arm on one half of the images: (image, rule, layer, step), and draw for a control that was drawn.

    Raises KeyError for an arm that is not in the table.
    """
    table, arms = table.isel(image=table.half.values == half), [str(name) for name in table.arm.values]
    if arm in arms:
        return table.sel(arm=arm, drop=True)
    draws = [name for name in arms if name.rpartition(" ")[0] == arm and name.rpartition(" ")[2].isdigit()]
    if not draws:
        raise KeyError(f"no arm {arm!r}; there are {', '.join(arm_names(table))}")
    return table.sel(arm=draws).rename(arm="draw").assign_coords(draw=range(len(draws)))


def choose_site(table: xr.DataArray, arms, rules=POLARITIES, steps=None) -> dict:
    """Where the choosing half has its highest mean: {"arm", "rule", "layer", "step"}, among some arms, rules and steps.

    `arms` is a name or several; `steps` None is all. What `report_site` takes. Raises KeyError for an unknown arm.
    """
    steps = table.step.values if steps is None else steps
    sites = []
    for arm in [arms] if isinstance(arms, str) else arms:
        mean = arm_scores(table, arm, "choose").sel(rule=[*rules], step=[*steps])
        mean = mean.mean([dim for dim in ("image", "draw") if dim in mean.dims]).stack(site=SITE[1:]).fillna(-1)
        best = mean[int(np.argmax(mean.values))]
        sites.append((float(best), dict(zip(SITE, (arm, *best.site.item()), strict=True))))
    return max(sites, key=lambda pair: pair[0])[1]


def report_site(table: xr.DataArray, site: dict, arm: str | None = None) -> xr.DataArray:
    """The reporting half at a site as from `choose_site`: (image), or (draw, image); `arm` is another arm, there."""
    where = {dim: site[dim] for dim in SITE[1:]}
    return arm_scores(table, arm or site["arm"], "report").sel(where, drop=True)


def over_steps(table: xr.DataArray, arms, rules=POLARITIES) -> xr.DataArray:
    """The reporting half at every step, each at the arm, rule and layer that suit that step: (step, image), a mean over
    draws.
    """
    lines = [report_site(table, choose_site(table, arms, rules, [step])) for step in table.step.values]
    lines = [line.mean("draw") if "draw" in line.dims else line for line in lines]
    return xr.concat(lines, "step", coords="minimal", compat="override").assign_coords(step=table.step.values)


def masks_at(files, site: dict, **arm) -> np.ndarray:
    """The masks at a site, as from `choose_site`, of all images recorded in some files: (image, H, W) bool.

    `arm` are `token_masks`' other arguments, as in ranks=range(12) or method="border". Files are read one after the
    other, so that one is in memory at a time. Raises what `token_masks` raises: ValueError for the rule "oracle".
    """
    where = dict(layer=site["layer"], step=site["step"], polarity=site["rule"])
    return np.concatenate([token_masks(Record.load(file), **where, **arm)[0] for file in files])


def with_caption_prior(table: xr.DataArray, subjects) -> xr.DataArray:
    """A table of images of many seeds of each caption, with the arm "caption" and the coordinates half and caption.

    `subjects` are the masks in the images (caption, seed, H, W) bool. The arm is the mask that overlaps the subjects of
    the caption's other seeds most. Even seeds choose, odd ones report; an image without a subject does neither. Raises
    ValueError where fewer than two captions have a subject to report on.
    """
    if (shown := int(subjects[:, 1::2].any((1, 2, 3)).sum())) < 2:
        raise ValueError(f"the images of {shown} captions show a subject; name another reference, or more prompts")
    n, seeds = subjects.shape[:2]
    prior = [[best_consensus(np.delete(masks, i, 0)) for i in range(seeds)] for masks in subjects]
    caption = iou(prior, subjects).reshape(-1, 1, 1, 1, 1) + 0 * table[:, :, :1].assign_coords(arm=["caption"])
    half = np.where(subjects.any((2, 3)), np.where(np.arange(seeds) % 2, "report", "choose"), "no subject there")
    coords = dict(half=("image", half.ravel()), caption=("image", np.repeat(np.arange(n), seeds)))
    return xr.concat([table, caption], "arm").assign_coords(coords)

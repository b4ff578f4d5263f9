"""Transport: settings and their controls side by side in one batch, from the same noise, for notebook 04.

sets = channel_sets(ranks(results, pipe, prompts), k=12, seed=0)        # the top, and others outside of it
table = arms(pipe, sets, dict(k=12, mask="soft union"))                 # which channels, part, mask, dose
data = run(results, pipe, pairs, table, sets, mask="soft union")        # a row an image
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import torch
import xarray as xr
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from ..measures.evidence import DRAWS, arm_scores
from ..measures.images import picture, thumbnail
from ..measures.masks import token_masks
from ..measures.transfer import blended, measure, moved
from ..models.load import generate
from ..probes.arms import Arm
from ..probes.attach import attach
from ..probes.channels import ChannelStats, select_channels
from ..probes.record import Record
from ..probes.transport import Transport, noised_source
from ..results.files import picture_name

SHOWN = 4  # pairs in the explorer
DEFAULTS = {  # what may be varied
    "channels": "top",  # a record of the batch, or a control: "latents" are blended
    "k": None,  # the first k recorded channels; None: all
    "dose": 1.0,
    "part": "both",
    "mask": "everywhere",  # one of the batch's masks; "moved": the source's subject comes to the target's place
    "layers": (0, 1),  # from and to, as shares of the depth
    "window": (0, 1),  # from and to, as shares of the schedule
    "branch": "cond",
}


def setting(**change) -> dict:
    """A setting: DEFAULTS with some of it changed. Raises ValueError for a name that is not in it.

    >>> setting(part="level")["part"], setting()["part"]
    ('level', 'both')
    """
    if not change.keys() <= DEFAULTS.keys():
        raise ValueError(f"a setting has no {', '.join(change.keys() - DEFAULTS.keys())}; it has {', '.join(DEFAULTS)}")
    return DEFAULTS | change


def ranks(results, pipe, prompts, **call) -> xr.DataArray:
    """By what channels are ranked: (layer, channel). Kept in the results' ranking.nc."""
    if not results.path("ranking.nc").exists():
        with attach(pipe, ChannelStats()) as stats:
            generate(pipe, list(prompts), seeds=range(len(prompts)), **call)
        results.save("ranking", stats.dataset()[["mean_abs"]].mean(["image", "branch"]))
    return xr.load_dataset(results.path("ranking.nc")).mean_abs.mean("step").astype(float)


def channel_sets(scores: xr.DataArray, k: int, seed: int = 0) -> dict:
    """The sets that are carried: "top", the k largest, and "outside 0" and so on, draws of k others."""
    sets = {f"outside {i}": select_channels(scores, k, which="outside", seed=seed + i) for i in range(DRAWS)}
    return {"top": select_channels(scores, k)} | sets


def arms(pipe, sets: dict, own: dict) -> dict:
    """All arms by name, each a `setting`: `own` under its mask and without one, by part and by dose, and the controls.

    Without a mask they are "no mask, both", "no mask, level", "outside 0, no mask" and so on; "latents" are there where
    the pipeline hands them over.
    """
    free, dose = own | dict(mask="everywhere"), own.get("dose", 1.0)
    made = {"top": own, "top, moved": own | dict(mask="moved")}
    made |= {f"no mask, {part}": free | dict(part=part) for part in ("both", "level", "pattern")}
    for name in [name for name in sets if name != "top"]:
        made |= {name: own | dict(channels=name), f"{name}, no mask": free | dict(channels=name)}
    for share in (1 / 3, 2 / 3):
        less = dict(dose=round(dose * share, 2))
        made |= {f"top, dose {less['dose']}": own | less, f"no mask, dose {less['dose']}": free | less}
    made |= {"latents": own | dict(channels="latents")} if "latents" in callback_inputs(pipe) else {}
    made["picture"] = own | dict(channels="picture", mask="picture")
    return {name: setting(**change) for name, change in made.items()}


def subjects(record: Record, k: int) -> np.ndarray:
    """Where the subjects are, (B, H, W), by notebook 03's best rule: tokens unlike those of the border."""
    layer, step = record.layers[int(0.8 * len(record.layers))], record.steps[max(len(record.steps) - 2, 0)]
    how = dict(ranks=range(min(12, k)), method="border", scaling="standard")
    return token_masks(record, layer=layer, step=step, **how)[0]


def run(results, pipe, pairs, table, sets, *, mask, world=None, evaluator="toy", seed=0, at_once=1, **call):
    """Every arm of a table with every pair: a row an image, its measures by `transfer.measure` and a small picture.

    Beside the arms stand "source", "target", "caption" (the exchange asked for in words), and "pixels" and "pixels,
    moved", which are pasted under `mask`. `pairs` has the columns source, target and asked. The "picture" that is given
    as a source is the source's scene as its world draws it, else the source. Only what is missing is computed.
    """
    k = table["top"]["k"]

    def compared(batch):
        n = len(batch)
        scene = baseline_batch(pipe, batch.prompts, batch.seeds, sets, lambda record: subjects(record, k), **call)
        given = scene.images["source"]
        if world and world.render:
            given = world.render([*map(world.parse, scene.prompts["source"])], seed=seed)[0]
            given = [*map(Image.fromarray, given)]
        add_pictures(pipe, scene, given, lambda record: subjects(record, k), **call)
        made = run_settings(pipe, scene, [*table.values()], **call) + pasted(scene, mask) + pasted(scene, "moved")
        made += scene.images["asked"] + scene.images["target"] + scene.images["source"]
        names = [*table, "pixels", "pixels, moved", "caption", "target", "source"]
        texts, intact = (
            [of[name] * len(names) for name in ("source", "target")] for of in (scene.prompts, scene.images)
        )
        where = np.tile(scene.masks["union"], (len(names), 1, 1))
        found = measure(made, texts, intact, where, world=world, evaluator=evaluator)
        share = np.tile(scene.masks["target"].reshape(n, -1).mean(1), len(names))
        found = found.assign(name=np.repeat(names, n), pair=np.tile(batch.indices, len(names)), share=share)
        return found.assign(png=[thumbnail(image) for image in made])

    for batch in results.pending(pairs, at_once, name="report"):
        results.add(batch, compared)
    return results.results("report")


def of(table: pd.DataFrame, arm: str, measure: str) -> np.ndarray:
    """A measure of an arm in the table of `run`: (pair), or (draw, pair, 1) of "outside", drawn many times.

    Raises KeyError for an arm that is not in the table.
    """
    arms = table.name.str.replace(r"^outside \d+", "outside", regex=True)
    return arm_scores(table.assign(arm=arms), measure, "pair", draw="name", arm=arm)


def pictures(table: pd.DataFrame, arms: dict, n: int = 4) -> dict:
    """Pictures of the first n pairs by arm {name: arm}, as `plots.contact_sheet` takes them."""
    png = table.set_index(["pair", "name"]).png
    pairs = sorted(table.pair.unique())[:n]
    return {(f"pair {i}", name): picture(png[i, arm]) for i in pairs for name, arm in arms.items()}


def save_explorer(results, table: pd.DataFrame, pairs: pd.DataFrame, mask: str, dose: float) -> None:
    """What `views.saved` shows of some pairs: source and target, and the target by mask and dose."""
    doses = {arm: arm.split()[-1] for arm in table.name.unique() if " dose " in arm}
    doses |= {"top, dose": f"{dose:g}", "no mask, both": f"{dose:g}"}
    for row in table[table.pair < SHOWN].itertuples():
        arm = "top, dose" if row.name == "top" else row.name
        if row.name in ("source", "target"):
            at = dict(pair=row.pair, beside=row.name)
        elif arm in doses:
            at = dict(pair=row.pair, mask=mask if arm.startswith("top") else "everywhere", dose=doses[arm])
        else:
            continue
        results.save(picture_name(**at), Image.fromarray(picture(row.png)))
    texts = map("Source: {}. Target: {}.".format, pairs.source[:SHOWN], pairs.target[:SHOWN])
    results.save("explorer/captions.json", dict(enumerate(texts)))


@dataclass
class PairBatch:
    """Pairs as they are without transport, B of them: prompts, images and records of the sources."""

    prompts: dict[str, list[str]]  # source, target, and asked: the caption that asks for the exchange in words
    seeds: list[int]
    images: dict[str, list[Image.Image]]  # by the same names
    records: dict[str, Record]  # rows 0 to B - 1 are the sources
    masks: dict[str, np.ndarray]  # names of `mask_variants` -> (B, H, W)
    offsets: dict[str, list[tuple[int, int]]]  # of masks that move: tokens (down, right), one for each pair
    trajectory: "Trajectory"  # rows: sources, targets, asked
    sets: dict[str, xr.DataArray]  # what of its record is carried, where that is of all channels


def baseline_batch(pipe, pairs, seeds, sets: dict, cut, **call) -> PairBatch:
    """Sources, targets and what is asked for in words, generated in one batch from the same noise.

    `pairs` are dicts with source, target and asked; `sets` are channels to record by name, "top" among them, or doses
    or bases of subspaces, for which one record of all channels is kept; `cut` makes the subjects' masks (rows, H, W)
    bool from the record of "top". `call` goes to the pipeline.
    """
    names, n = ("source", "target", "asked"), len(pairs)
    prompts = {name: [pair[name] for pair in pairs] for name in names}
    own = {name: chosen for name, chosen in sets.items() if "channel" in chosen.dims}
    width = next(iter(own.values())).sizes["channel"] if own else 1
    whole, trajectory = Record(xr.DataArray(np.arange(width), dims="rank")), Trajectory()
    records = {name: whole if name in own else Record(ids) for name, ids in sets.items()}
    with attach(pipe, *dict.fromkeys(records.values())):
        made = generate(pipe, [*chain(*prompts.values())], seeds=[*seeds] * 3, **call, **_hook(pipe, [trajectory]))
    images = {name: made[i * n : i * n + n] for i, name in enumerate(names)}
    source, target, _ = np.split(np.asarray(cut(records["top"])), 3)
    offsets = {"moved": list(map(offset, source, target))}
    return PairBatch(prompts, list(seeds), images, records, mask_variants(source, target), offsets, trajectory, own)


def add_pictures(pipe, batch: PairBatch, pictures, cut, *, name: str = "picture", prompts=None, **call) -> None:
    """Add a picture for each pair as a source, by `noised_source`: a record and a mask `name` (the soft union with the
    target's). `prompts` are shown with the pictures: the sources' if None.
    """
    record = Record(batch.records["top"].channels)
    noised_source(pipe, pictures, record, prompt=prompts or batch.prompts["source"], seed=batch.seeds, **call)
    source, target = np.asarray(cut(record)), batch.masks["target"]
    batch.records[name], batch.masks[name] = record, mask_variants(source, target)["soft union"]


def run_settings(pipe, batch: PairBatch, settings: list[dict], **call) -> list:
    """Every target of a batch in every setting, setting by setting: one Transport, an arm for each row.

    Raises KeyError for a mask or channels that the batch does not have, and ValueError for a control that the pipeline
    cannot do (`callback_inputs`).
    """
    n, steps, prompts = len(batch.seeds), batch.records["top"].steps, batch.prompts["target"] * len(settings)
    if "latents" not in callback_inputs(pipe) and any(s["channels"] == "latents" for s in settings):
        raise ValueError(f"{type(pipe).__name__} hands no latents to a callback, so they cannot be a control")
    arms, callbacks = [None] * len(prompts), []
    for i, s in enumerate(settings):
        rows, window = range(i * n, i * n + n), share_to_slice(s["window"], len(steps))
        within = range(window.start, window.stop)
        if s["channels"] == "latents":
            callbacks.append(blend_latents(batch.trajectory, rows, s["dose"] * batch.masks[s["mask"]], within))
        else:
            dose = _dose(s, batch.records[s["channels"]])
            arms[rows.start : rows.stop] = [_arm(s, batch, dose, pair) for pair in range(n)]
    call |= dict(seeds=batch.seeds * len(settings)) | _hook(pipe, callbacks)
    with attach(pipe, Transport(batch.records["top"], arms=arms)) if any(arms) else nullcontext():
        return generate(pipe, prompts, **call)


def pasted(batch: PairBatch, mask: str) -> list[Image.Image]:
    """Every target with its source's pixels under one of the batch's masks: a control without transport.

    Where the mask moves the source's subject, its pixels are moved as well.
    """
    sources = batch.images["source"]
    if mask in batch.offsets:
        sources = moved(sources, batch.offsets[mask], batch.records["top"].grid)
    return blended(batch.images["target"], sources, batch.masks[mask])


def share_to_slice(share, n: int) -> slice:
    """The layers or steps in a share of n, from and to, at least one.

    >>> range(8)[share_to_slice((0.5, 1), 8)]
    range(4, 8)
    """
    first = min(round(share[0] * n), n - 1)
    return slice(first, max(round(share[1] * n), first + 1))


def mask_variants(source, target) -> dict[str, np.ndarray]:
    """Where to transport, from the subjects' masks (B, H, W) bool on the tokens' grid: names to masks (B, H, W).

    The source's, the target's, their union, the union with a soft rim of about a token, everywhere, and "moved": the
    target's with the source's brought to its place (`offset`).
    """
    source, target = np.asarray(source, bool), np.asarray(target, bool)
    union = source | target
    soft = np.maximum(union, gaussian_filter(union.astype(np.float32), (0, *[0.7] * (union.ndim - 1))))
    masks = {"source": source, "target": target, "union": union, "soft union": soft, "everywhere": np.ones_like(union)}
    arrived = [shift(a, (*[0] * (a.ndim - 2), *offset(a, b)), order=0) for a, b in zip(source, target, strict=True)]
    return masks | {"moved": target | np.stack(arrived)}


def offset(source, target) -> tuple[int, int]:
    """From the middle of one mask to another's, (..., H, W) bool: tokens (down, right); (0, 0) where one is empty.

    >>> offset([[True, False], [False, False]], [[False, False], [False, True]])
    (1, 1)
    """
    masks = [np.asarray(mask, bool) for mask in (source, target)]
    if not all(mask.any() for mask in masks):
        return 0, 0
    a, b = (np.argwhere(mask).mean(0)[-2:] for mask in masks)
    return tuple(round(float(step)) for step in b - a)


class Trajectory:
    """A `callback_on_step_end` that keeps the latents after every step, `latents[step]` (B, ...)."""

    def __init__(self):
        self.latents = {}

    def __call__(self, pipe, step, timestep, inputs):
        self.latents[step] = inputs["latents"].clone()
        return {}


def callback_inputs(pipe) -> list[str]:
    """What a pipeline hands to a `callback_on_step_end` that blends latents: ["latents"], or [] if it hands none."""
    return [name for name in getattr(pipe, "_callback_tensor_inputs", []) if name == "latents"]


def blend_latents(trajectory: Trajectory, rows, weight, steps):
    """A `callback_on_step_end` that moves latents x of `rows` to x + weight * (source - x) after `steps`.

    Sources are the trajectory's first rows; `weight` (rows, H, W) from 0 to 1 is on the tokens' grid. This is blended
    latent diffusion (arXiv 2206.02779) with a generated source. Raises KeyError for a step the trajectory lacks.
    """
    weight, rows = torch.as_tensor(np.asarray(weight, np.float32)), list(rows)

    def callback(pipe, step, timestep, inputs):
        if step not in steps:
            return {}
        latents, sources = inputs["latents"].clone(), trajectory.latents[step][: len(rows)]
        share = weight.to(latents)  # rows H W
        if latents.ndim == 3:
            share = share.flatten(1)[..., None]  # packed: rows N 1
        else:
            share = torch.nn.functional.interpolate(share[:, None], latents.shape[-2:])
            share = share.reshape(len(rows), *[1] * (latents.ndim - 3), *latents.shape[-2:])
        latents[rows] = torch.lerp(latents[rows], sources.to(latents), share)
        return {"latents": latents}

    return callback


def _dose(s, record) -> xr.DataArray:
    """A setting's dose at every branch, step and layer of a record."""
    at = {"branch": ["cond", "uncond", "extra"], "step": record.steps, "layer": record.layers}
    dose = xr.DataArray(np.zeros([*map(len, at.values())]), at, tuple(at))
    branch = slice(None) if s["branch"] == "both" else at["branch"].index(s["branch"])
    window, depth = (share_to_slice(s[name], len(at[dim])) for name, dim in (("window", "step"), ("layers", "layer")))
    dose[branch, window, depth] = s["dose"]
    return dose


def _arm(s, batch, dose, pair) -> Arm:
    """The arm of one row: a pair in a setting."""
    to = batch.offsets[s["mask"]][pair] if s["mask"] in batch.offsets and s["part"] != "level" else (0, 0)
    what = dict(record=batch.records[s["channels"]], image=pair, part=s["part"], first=s["k"])
    return Arm(batch.sets.get(s["channels"]), dose=dose, mask=batch.masks[s["mask"]][pair], offset=to, **what)


def _hook(pipe, callbacks) -> dict:
    """The pipeline's arguments for callbacks, of which each sees what those before it changed."""

    def in_turn(pipe, step, timestep, inputs):
        changed = {}
        for each in callbacks:
            changed |= each(pipe, step, timestep, inputs | changed)
        return changed

    names = callback_inputs(pipe)
    return dict(callback_on_step_end=in_turn, callback_on_step_end_tensor_inputs=names) if callbacks and names else {}

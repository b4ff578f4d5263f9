"""Transport: settings and their controls side by side in one batch, from the same noise, for notebook 04.

batch = baseline_batch(pipe, pairs, seeds, {"top": ids}, cut)         # cut(record) -> masks of the subjects, (B, H, W)
images = run_settings(pipe, batch, [setting(), setting(part="level"), setting(channels="latents", window=(0, 0.5))])
"""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import xarray as xr
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from ..measures.transfer import blended, moved
from ..models.load import generate
from ..probes.arms import Arm
from ..probes.attach import attach
from ..probes.record import Record
from ..probes.transport import Transport, noised_source

DEFAULTS = {  # what may be varied
    "channels": "top",  # a record of the batch, or a control: "latents" are blended, "caption" is asked for in words
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


def batch_sizes(pairs: int, together: int, settings: int) -> list[int]:
    """Rows of each batch in a loop over pairs: three a pair in `baseline_batch`, one a setting in `run_settings`.

    >>> batch_sizes(5, together=2, settings=10)
    [6, 20, 6, 20, 3, 10]
    """
    sizes = [min(together, pairs - first) for first in range(0, pairs, together)]
    return [size * each for size in sizes for each in (3, settings)]


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
    """Add a picture for each pair as a source: a record `name`, its mask `name` (the soft union with the target's), and
    "`name`, moved", all by `noised_source`. `prompts` are shown with the pictures: the sources' if None.
    """
    record = Record(batch.records["top"].channels)
    noised_source(pipe, pictures, record, prompt=prompts or batch.prompts["source"], seed=batch.seeds, **call)
    source, target = np.asarray(cut(record)), batch.masks["target"]
    variants = mask_variants(source, target)
    batch.records[name] = record
    batch.masks |= {name: variants["soft union"], f"{name}, moved": variants["moved"]}
    batch.offsets[f"{name}, moved"] = list(map(offset, source, target))


def run_settings(pipe, batch: PairBatch, settings: list[dict], **call) -> list:
    """Every target of a batch in every setting, setting by setting: one Transport, an arm for each row.

    Raises KeyError for a mask or channels that the batch does not have, and ValueError for a control that the pipeline
    cannot do (`callback_inputs`).
    """
    n, steps, prompts = len(batch.seeds), batch.records["top"].steps, batch.prompts["target"] * len(settings)
    for name, needed in {"latents": "latents", "caption": "prompt_embeds"}.items():
        if needed not in callback_inputs(pipe) and any(s["channels"] == name for s in settings):
            raise ValueError(f"{type(pipe).__name__} hands no {needed} to a callback, so {name!r} cannot be a control")
    arms, callbacks = [None] * len(prompts), []
    for i, s in enumerate(settings):
        rows, window = range(i * n, i * n + n), share_to_slice(s["window"], len(steps))
        within = range(window.start, window.stop)
        if s["channels"] == "latents":
            callbacks.append(blend_latents(batch.trajectory, rows, s["dose"] * batch.masks[s["mask"]], within))
        elif s["channels"] == "caption":
            if 0 in within:
                prompts[rows.start : rows.stop] = batch.prompts["asked"]
            if len(within) < len(steps):
                callbacks.append(swap_prompts(batch.trajectory, rows, range(n, 2 * n), range(2 * n, 3 * n), within))
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


def reuse_subject(pipe, picture, *, caption: str, prompts, ids, cut, settings: dict, seed: int = 0, **call) -> dict:
    """A picture's subject under new prompts: {(row, prompt): image}, the prompts alone, then a row for each setting.

    `caption` says what is in the picture; `ids` are the channels, and `cut` is as in `baseline_batch`. Settings take
    the channels "picture" and, as a mask, "picture" or "picture, moved".
    """
    pairs = [dict(source=caption, target=prompt, asked=prompt) for prompt in prompts]
    batch = baseline_batch(pipe, pairs, range(seed, seed + len(pairs)), {"top": ids}, cut, **call)
    add_pictures(pipe, batch, [picture] * len(pairs), cut, **call)
    images = iter([*batch.images["target"], *run_settings(pipe, batch, list(settings.values()), **call)])
    columns = [f"prompt {i}" for i in range(len(pairs))]
    rows = {(row, column): next(images) for row in ("the prompt alone", *settings) for column in columns}
    return {("the prompt alone", "the picture"): picture} | rows


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
    """A `callback_on_step_end` that keeps the latents after every step, `latents[step]` (B, ...), and the rows' text
    embeddings, `prompts` (B, ...), where the pipeline hands them over (see `callback_inputs`).
    """

    def __init__(self):
        self.latents, self.prompts = {}, None

    def __call__(self, pipe, step, timestep, inputs):
        self.latents[step] = inputs["latents"].clone()
        if "prompt_embeds" in inputs:
            self.prompts = inputs["prompt_embeds"][-len(inputs["latents"]) :]  # guidance may put its own rows first
        return {}


def callback_inputs(pipe) -> list[str]:
    """What a pipeline hands to a `callback_on_step_end` that blends latents or swaps captions; [] if it takes none.

    Text embeddings are among it where every caption has as many tokens, without a mask: only there can they be swapped.
    """
    names = getattr(pipe, "_callback_tensor_inputs", [])
    masked = any("prompt" in name and "mask" in name for name in inspect.signature(type(pipe).__call__).parameters)
    return [name for name in names if name == "latents" or (name == "prompt_embeds" and not masked)]


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


def swap_prompts(trajectory: Trajectory, rows, own, other, steps):
    """A `callback_on_step_end`: `rows` have the captions of the trajectory's rows `other` in `steps`, else of `own`.

    The first step's is what the pipeline is called with. Raises ValueError where the embeddings do not fit.
    """

    def callback(pipe, step, timestep, inputs):
        embeds, recorded = inputs["prompt_embeds"].clone(), trajectory.prompts
        if recorded is None or recorded.shape[1:] != embeds.shape[1:]:
            raise ValueError(
                f"captions of the form {tuple(embeds.shape[1:])} cannot be swapped for "
                f"{None if recorded is None else tuple(recorded.shape[1:])}; see `callback_inputs`"
            )
        first = len(embeds) - len(inputs["latents"])  # guidance may put its own rows first
        embeds[[first + row for row in rows]] = recorded[list(other if step + 1 in steps else own)].to(embeds)
        return {"prompt_embeds": embeds}

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

"""Transport: massive channels of one trajectory carried into another (arXiv 2605.13974, step 3 of the method).

record = mu.Record(k=12)
with mu.attach(pipe, record):                                # the source
    mu.generate(pipe, "a red fox in the snow")
with mu.attach(pipe, mu.Transport(record, mask=subject), branch="cond"):    # the target
    images = mu.generate(pipe, "a grey wolf in the snow")
"""

import inspect
import math
from operator import index

import numpy as np
import torch

from ..models.load import defaults, quietly
from ..models.noise import noised
from ..ranges import check
from .arms import Arm, coordinates, listed, part_at, put_back, rows_of, set_at, widen
from .attach import attach
from .record import Record


class Transport:
    """A probe that edits: under a mask, the recorded channels move from the target's values towards the source's.

    At every site, x + mask * dose * (source - x) for the K channels recorded at its step, evaluation and layer. `part`
    is "both", "level" (the target keeps its pattern and gets the source's level, the mean over the image's tokens) or
    "pattern" (the reverse); what the two change adds up to what both change. `dose`, `mask` and `part` are those of an
    `Arm`; one recorded image or mask serves all rows, several one row each. `arms` has an Arm for each row of the batch
    in their place, or None for a row left alone, with more to say:

    - image: the recorded image whose values are carried, of `record`, or of the arm's own record; first: only so many
      of the recorded channels, of which `select_channels` and a Record's own choice have the largest first.
    - channels: ids, doses or a basis of a subspace, carried out of a record of all channels.
    - offset: the mask is where values arrive, and tokens to which nothing comes stay as they are. Rotary positions are
      not moved.

    A record holds one branch. Under guidance the conditional one alone (`branch="cond"` in `attach`, or a dose) carries
    much further than both: guidance then amplifies what was transported instead of cancelling it.

    Raises ValueError for what an Arm refuses, for images, channels or offsets that the record does not have, and in use
    for another number of rows, another grid, model or schedule; RuntimeError for an empty record; KeyError for a site
    that was not recorded.
    """

    edits = True

    def __init__(self, record: Record, *, dose=1.0, mask=None, arms=None, part="both"):
        if not isinstance(record, Record):
            raise TypeError(f"record = {record!r} is none; give a mu.Record of the source")
        self.record, self.arms, self.weights = record, arms, {}
        if arms is None:
            images = len(record[record.sites[0]][0]) if record.sites else 1
            masks = [*mask] if np.ndim(mask) > len(record.grid or (0, 0)) else [mask]
            several = [
                Arm(dose=dose, mask=masks[i % len(masks)], part=part, image=i % images)
                for i in range(max(images, len(masks)))
            ]
            self.arms = several if len(several) > 1 else several[0]
        for arm in listed(self.arms):
            _check(arm, arm.record or record)

    def __call__(self, tokens, site):
        edited, recorded = tokens.clone(), {}
        for rows, arm in rows_of(self.arms, len(tokens)):
            if arm is None or not (dose := float(part_at("doses", arm.dose, site))):
                continue
            record = arm.record or self.record
            if record not in recorded:
                recorded[record] = [x.to(tokens.device) for x in _recorded(record, site)]
            if (arm, tokens.device) not in self.weights:
                self.weights[arm, tokens.device] = _weight(arm, site.grid).to(tokens.device)
            chosen, values = (x[arm.image, ..., : arm.first] for x in recorded[record])  # K, N K
            if arm.channels is not None:
                chosen, dose, values = _chosen(arm, site, tokens, chosen, values)
            x = coordinates(edited[rows], chosen)  # B N K
            weight = dose * self.weights[arm, tokens.device].to(x)
            new = torch.lerp(x, _carried(x, widen(values), arm, site.grid), weight)
            put_back(edited[rows], chosen, x, new)
        return edited


def _chosen(arm, site, tokens, ids, values) -> tuple:
    """An arm's own set at a site, its doses, and a recorded state's coordinates (N, K) in it."""
    width = tokens.shape[2]
    if len(ids) != width:
        raise ValueError(
            f"an arm with channels of its own is carried from a record of all {width}, and this has {len(ids)}; "
            "record them with Record(xr.DataArray(range(width), dims='rank'))"
        )
    state = torch.empty_like(tokens[0]).index_copy_(1, ids, values.to(tokens.dtype))  # N D
    chosen, dose = (torch.as_tensor(x, device=tokens.device) for x in set_at(arm, site, width))
    dtype = widen(tokens[:0]).dtype
    chosen = chosen.to(dtype) if chosen.is_floating_point() else chosen
    return chosen, dose.to(dtype), coordinates(state[None], chosen)[0]


def _check(arm, record) -> None:
    """Raise ValueError for an arm that a record cannot serve, RuntimeError for an empty record."""
    record.finished()
    images, (height, width) = len(record[record.sites[0]][0]), record.grid[-2:]
    if not 0 <= arm.image < images or not (arm.first is None or 1 <= arm.first <= record.k):
        raise ValueError(
            f"image {arm.image}, first {arm.first}: the record has {images} images and {record.k} channels of each"
        )
    if abs(arm.offset[0]) >= height or abs(arm.offset[1]) >= width:
        raise ValueError(f"offset {arm.offset} leaves the grid of {height} x {width} tokens")


def _weight(arm, grid) -> torch.Tensor:
    """The mask on the grid, 0 where an offset brings nothing: (N, 1)."""
    down, right = (slice(max(d, 0), d if d < 0 else None) for d in arm.offset)
    reached = torch.zeros(grid)
    reached[..., down, right] = 1
    return (arm.mask_on(grid) * reached.flatten())[:, None]


def _carried(x, values, arm, grid) -> torch.Tensor:
    """What the target's channels x (B, N, K) become at dose 1, of recorded values (N, K)."""
    if any(arm.offset):
        values = values.unflatten(0, grid).roll(arm.offset, (-3, -2)).flatten(0, -2)
    if arm.part == "both":
        return values.expand_as(x)
    own, new = x.mean(1, keepdim=True), values.mean(0, keepdim=True)
    return x - own + new if arm.part == "level" else values - new + own


def _recorded(record, site) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (image, K) and values (image, N, K) of a site, after a check that it is the same place of the same run."""
    if record.grid != site.grid:
        raise ValueError(
            f"the record has a grid of {record.grid} tokens, the target {site.grid}; generate both at one size"
        )
    found = record[site.step, site.layer, site.evaluation]
    name, timestep = record.blocks[site.layer][0], record.timesteps[site.step]
    if name != site.name:
        raise ValueError(f"layer {site.layer} was {name} when recorded and is {site.name}: another model")
    if not site.evaluation and not math.isclose(timestep, site.timestep, rel_tol=1e-5, abs_tol=1e-5):
        raise ValueError(
            f"step {site.step} was recorded at timestep {timestep:g} and is at {site.timestep:g} now; generate with "
            "the source's number of steps"
        )
    return found


def noised_source(pipe, image, *probes, prompt="", seed=0, layers=None, steps=None, **call):
    """Show probes (a Record) the tokens of a real image, noised to every step of the schedule, without generation.

    `image` is a PIL image or array (H, W, 3) uint8, or a list. `prompt` conditions the transformer: one for all images,
    or one for each. `seed` draws the noise as in `generate`, so that source and target can share it: an int is seed +
    position. `call` goes to the pipeline. Guidance is off, and only the conditional branch is seen. Gives the probe, or
    a tuple. Raises what `attach` and `noise.noised` raise, and ValueError for prompts or seeds of another number than
    images.
    """
    images = list(image) if isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4 else [image]
    seed = index(seed) if hasattr(seed, "__index__") and not getattr(seed, "ndim", 0) else seed  # NumPy's, too
    several = [images, prompt, seed, call.get("prompt_embeds", "")]
    for each in np.ravel(seed).tolist():
        check(seed=each)
    if wrong := [text for text in np.ravel(np.array(prompt, object)) if not isinstance(text, str)]:
        raise TypeError(f"prompt {wrong[0]!r} is not text")
    counts = [len(x) for x in several if not isinstance(x, (str, int)) and len(x) != 1]
    batch = max(counts, default=1)
    if not batch or any(n != batch for n in counts):
        raise ValueError(f"{len(images)} images do not fit the prompts or seeds; give one, or one for each image")
    seed = [seed + i for i in range(batch)] if isinstance(seed, int) else seed  # as in `generate`
    prompts, seeds = ([x] * batch if isinstance(x, str) else [*x] * (batch // len(x)) for x in (prompt, seed))
    accepted = inspect.signature(type(pipe).__call__).parameters
    given = {name: value for name, value in defaults(pipe).items() if not name.startswith("negative_prompt")}
    if not pipe.transformer.config.get("guidance_embeds"):  # there guidance is an input of the transformer
        given |= dict(guidance_scale=0.0, true_cfg_scale=0.0)
    given = {name: value for name, value in given.items() if name in accepted} | call
    if "prompt_embeds" not in call:
        given["prompt"] = prompts
    with noised(pipe, images, steps), attach(pipe, *probes, layers=layers, steps=steps) as attached:
        quietly(pipe, seeds, output_type="latent", **given)
    return attached

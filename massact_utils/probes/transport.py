"""Transport: massive channels of one trajectory carried into another (arXiv 2605.13974, step 3 of the method).

record = mu.Record(k=12)
with mu.attach(pipe, record):                                # the source
    mu.generate(pipe, "a red fox in the snow")
with mu.attach(pipe, mu.Transport(record, mask=subject), branch="cond"):    # the target
    images = mu.generate(pipe, "a grey wolf in the snow")
"""

import inspect
import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, shift

from ..models.latents import noised
from ..models.load import defaults, quietly
from .attach import attach
from .levels import check, level_of
from .record import Record


class Transport:
    """A probe that edits: under a mask, the recorded channels move from the target's values towards the source's.

    At every site, x + mask * strength * (source - x) for the K channels recorded there; the site's own timestep names
    the recorded step. `strength` from 0 (nothing changes) to 1 is one number, or one for each row of the batch. `mask`
    (H, W), or (B, H, W) for each row, is bool or a weight from 0 to 1 and is brought to the tokens' grid (a bool one
    stays hard); None is everywhere. `rows` says which recorded image each row takes, None for a row left alone; without
    it one recorded image serves all rows, or as many as rows one each. `k` takes the first k recorded channels alone
    (`select_channels` and a Record's own choice have the largest first). Several Transports in one `attach` are the
    arms of a comparison. Whose channels: `Record(k=12)` takes each source's own, `Record(select_channels(scores))`
    those of the prompts scored, sources or targets. It holds steps * layers * N * K values, of FLUX.2-klein-4B at
    1024 x 1024 and K = 12 10 MB an image.

    `part` is "both", or "level": the target keeps its pattern and gets the source's level, or "pattern": the reverse.
    `level` says what a level is: "mean", "median" or "border" over all of an image's tokens (`levels.level_of`), or
    "mask", the mean over the mask's tokens. What the two parts change adds up to what both change. The level carried
    first and then the pattern is the same as both too, if the level is that of the tokens that change: without a mask,
    or with a bool mask and level="mask". `shift` (dy, dx) carries values to the tokens dy below and dx to the right;
    `mask` is where they arrive, and tokens to which nothing comes stay as they are. Rotary positions are not moved.

    A record holds one branch. Under guidance the conditional one alone (`branch="cond"` in `attach`) carries much
    further than both: guidance then amplifies what was transported instead of cancelling it.

    Raises ValueError for a strength or mask outside 0 to 1, k outside 1 to K, an unknown part or level, a shift off
    the grid and an empty record; in use, for rows, masks or strengths that do not fit the batch, another grid or other
    blocks, and a timestep that was not recorded; KeyError for a layer that was not.
    """

    edits = True

    def __init__(
        self,
        record: Record,
        *,
        strength=1.0,
        mask=None,
        rows=None,
        k: int | None = None,
        part: str = "both",
        level: str = "mean",
        shift: tuple[int, int] = (0, 0),
    ):
        if not record.sites:
            raise ValueError("the Record has seen no tokens: generate inside `with mu.attach(pipe, record):` first")
        most = record.k
        if k is not None and not 1 <= k <= most:
            raise ValueError(f"k = {k} channels cannot be taken of {most} recorded ones; allowed: 1 to {most}")
        if part not in ("both", "level", "pattern"):
            raise ValueError(f"part {part!r} is unknown; allowed: both, level, pattern")
        check(level, "mask")
        if level == "mask" and mask is None:
            raise ValueError("level='mask' is the mean over the mask's tokens; give mask=")
        height, width = record.grid[-2:]
        if abs(shift[0]) >= height or abs(shift[1]) >= width or (part == "level" and any(shift)):
            raise ValueError(
                f"shift {tuple(shift)} of part {part!r} is not possible on {height} x {width} tokens; allowed: less "
                "than the grid, and (0, 0) for a level, which has no place"
            )
        self.record, self.rows, self.k = record, rows, k
        self.part, self.level, self.shift = part, level, tuple(shift)
        self.strength = torch.as_tensor(strength, dtype=torch.float32)
        if self.strength.ndim > 1 or not ((self.strength >= 0) & (self.strength <= 1)).all():
            raise ValueError(f"strength {strength!r} is not a number from 0 to 1, or one for each row")
        self.mask, self.hard = None, False
        if mask is not None:
            mask = (mask if isinstance(mask, torch.Tensor) else torch.as_tensor(np.asarray(mask))).cpu()
            self.hard = mask.dtype == torch.bool
            self.mask = mask.float() if mask.ndim == 3 else mask.float()[None]  # 1 or B, H, W
            if self.mask.ndim != 3 or not ((self.mask >= 0) & (self.mask <= 1)).all():
                raise ValueError(f"mask {tuple(mask.shape)} has to be (H, W) or (B, H, W), bool or from 0 to 1")
        self.plans = {}  # (images, device, dtype, tokens' shape) -> rows, their sources, their weights (rows N 1)

    def __call__(self, tokens, site):
        step = self._step(site)
        ids, values = self.record[step, site.layer]  # image K, image N K
        rows, at, weight = self._plan(tokens, len(ids))
        if not len(rows):
            return None
        values = values[..., : self.k].to(tokens)[at]  # rows N K
        ids = ids[:, None, : self.k].to(tokens.device)[at].expand(values.shape)
        edited = tokens[rows]
        x = edited.gather(2, ids)
        edited.scatter_(2, ids, torch.lerp(x, self._carried(x, values, weight), weight))
        return tokens.index_copy(0, rows, edited)

    def _carried(self, x, values, weight) -> torch.Tensor:
        """What the target's channels x become at strength 1: (rows, N, K)."""
        grid, moved = self.record.grid, values
        if any(self.shift):
            moved = values.unflatten(1, grid).roll(self.shift, (-3, -2)).flatten(1, -2)
        if self.part == "both":
            return moved
        source = moved if self.level == "mask" else values
        own, new = (level_of(y, self.level, grid, weight) for y in (x, source))  # rows 1 K
        target = x - own + new if self.part == "level" else moved - new + own
        return target.to(x.dtype)

    def _step(self, site) -> int:
        """The recorded step at the site's timestep."""
        record = self.record
        if record.grid != site.grid:
            raise ValueError(
                f"the record has a grid of {record.grid} tokens, the target {site.grid}; generate both at one size"
            )
        if record.names.get(site.layer, site.name) != site.name:
            raise ValueError(
                f"layer {site.layer} was {record.names[site.layer]} when recorded and is {site.name}: another model"
            )
        for step, timestep in record.timesteps.items():
            if math.isclose(timestep, site.timestep, rel_tol=1e-5, abs_tol=1e-5):
                return step
        known = ", ".join(f"{timestep:g} (step {step})" for step, timestep in sorted(record.timesteps.items()))
        raise ValueError(
            f"timestep {site.timestep:g} (step {site.step}) was not recorded; recorded: {known}. Generate with the "
            "source's number of steps and size, or attach with steps= that were recorded"
        )

    def _sources(self, images: int, batch: int) -> list:
        """The recorded image, or None, of each row."""
        sources = self.rows if self.rows is not None else [0] * batch if images == 1 else range(images)
        if len(sources) != batch or any(source is not None and not 0 <= source < images for source in sources):
            raise ValueError(
                f"rows {list(sources)} do not fit a batch of {batch} rows and {images} recorded images; give rows=, "
                "the recorded image (or None) of each row"
            )
        return list(sources)

    def _plan(self, tokens, images: int) -> tuple:
        """The rows that change, the recorded image of each, and mask times strength (rows, N, 1), on the device."""
        batch, grid, key = len(tokens), self.record.grid, (images, tokens.device, tokens.dtype, *tokens.shape)
        if key not in self.plans:
            sources = self._sources(images, batch)
            mask = torch.ones(1, *grid)
            if self.mask is not None:
                mask = torch.nn.functional.adaptive_avg_pool2d(self.mask[:, None], grid)[:, 0]
                mask = (mask >= 0.5).float() if self.hard else mask
            for what, n in (("masks", len(mask)), ("strengths", self.strength.numel())):
                if n not in (1, batch):
                    raise ValueError(f"{n} {what} for {batch} rows in the batch; give one, or one for each row")
            down, right = (slice(max(d, 0), d if d < 0 else None) for d in self.shift)
            reached = torch.zeros(grid)
            reached[..., down, right] = 1
            weight = ((mask * reached).flatten(1) * self.strength.reshape(-1, 1)).expand(batch, -1)  # B N
            strength = self.strength.expand(batch)
            live = [i for i, source in enumerate(sources) if source is not None and strength[i]]
            at = [sources[i] for i in live]
            rows, at = (torch.as_tensor(x, dtype=torch.long, device=tokens.device) for x in (live, at))
            self.plans[key] = rows, at, weight[live, :, None].to(tokens)
        return self.plans[key]


def span(share, n: int) -> slice:
    """The layers or steps in a share of n, from and to, at least one.

    >>> range(8)[span((0.5, 1), 8)]
    range(4, 8)
    """
    first = min(round(share[0] * n), n - 1)
    return slice(first, max(round(share[1] * n), first + 1))


def masks_of(source, target) -> dict[str, np.ndarray]:
    """Where to transport, from the subjects' masks (B, H, W) bool on the tokens' grid: names to masks (B, H, W).

    The source's, the target's, their union, the union with a soft rim of about a token, everywhere, and "moved": the
    target's with the source's brought to its place (`way`).
    """
    source, target = np.asarray(source, bool), np.asarray(target, bool)
    union = source | target
    rim = gaussian_filter(union.astype(np.float32), (0, *[0.7] * (union.ndim - 1)))
    soft, full = np.maximum(union, rim), np.ones_like(union)
    masks = {"source": source, "target": target, "union": union, "soft union": soft, "everywhere": full}
    there = [shift(a, (*[0] * (a.ndim - 2), *way(a, b)), order=0) for a, b in zip(source, target, strict=True)]
    return masks | {"moved": target | np.stack(there)}


def way(source, target) -> tuple[int, int]:
    """From the middle of one mask to another's, (..., H, W) bool: tokens (down, right), as `Transport(shift=...)` takes
    them; (0, 0) where one is empty.

    >>> way([[True, False], [False, False]], [[False, False], [False, True]])
    (1, 1)
    """
    masks = [np.asarray(mask, bool) for mask in (source, target)]
    if not all(mask.any() for mask in masks):
        return 0, 0
    a, b = (np.argwhere(mask).mean(0)[-2:] for mask in masks)
    return tuple(round(float(step)) for step in b - a)


def noised_source(pipe, image, *probes, prompt="", seed=0, layers=None, steps=None, **call):
    """Show probes (a Record) the tokens of a real image, noised to every step of the schedule, without generation.

    `image` is a PIL image or array (H, W, 3) uint8, or a list. `prompt` conditions the transformer: one for all images,
    or one for each. `seed` draws the noise as in `generate`, so that source and target can share it: an int is seed +
    position. `call` goes to the pipeline. Guidance is off, and only the conditional branch is seen. Gives the probe, or
    a tuple. Raises what `attach` and `latents.noised` raise, and ValueError for prompts or seeds of another number than
    images.
    """
    images = list(image) if isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4 else [image]
    several = [images, prompt, seed, call.get("prompt_embeds", "")]
    counts = [len(x) for x in several if not isinstance(x, (str, int)) and len(x) != 1]
    batch = max(counts, default=1)
    if any(n != batch for n in counts):
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

"""Probes: look at, or change, the image tokens that leave a transformer's blocks while a pipeline generates.

def shrink(tokens, site):              # B N D
    return 0.9 * tokens                # return None to leave them as they are

with mu.attach(pipe, shrink, layers=-1, steps=slice(2, None)):
    images = mu.generate(pipe, prompts)
"""

import itertools
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import index

import torch
from torch.utils._pytree import tree_leaves

from .blocks import bind, branches_of, cut, family_of, members, paste, target_tokens, transformers_of

_generations = itertools.count()


@dataclass(frozen=True)
class Site:
    """Where a probe stands.

    - layer, name, kind: the block, as in `blocks(pipe)`.
    - step, timestep: index into the scheduler's timesteps, and its value there. Image-to-image begins in mid-schedule
      and so at a later step. A bare transformer has no schedule: steps count from 0, the timestep is the call's.
    - branch: "cond", "uncond", or "extra" for a further pass of the same step (SD3's skip-layer guidance).
    - grid: (H, W) of the N = H * W tokens in raster order; (F, H, W) of a video; (1, N) of a text.
    - rows: the rows of the generation's batch to which the B token rows belong.
    - generation: a number that differs in every generation.
    """

    layer: int
    name: str
    kind: str
    step: int
    timestep: float
    branch: str
    grid: tuple[int, ...]
    rows: range
    generation: int


@contextmanager
def attach(pipe, *probes, layers=None, steps=None, branch=None, stream="image"):
    """Call each probe on the image tokens (B, N, D) leaving each chosen block: `probe(tokens, site)` -> tokens or None.

    `pipe` is a pipeline or a bare transformer. `layers` and `steps` are ints (negative from the end), slices or
    lists; None is all. `branch` is "cond", "uncond" or "both" (every pass); None is "cond" for a probe whose
    attribute `edits` is False, and "both" for any other. `stream="text"` takes the text tokens of dual-stream blocks.
    Gives the probe, or a tuple of them; no hook is left afterwards. Raises ValueError or TypeError, before anything
    is generated, for what does not exist; for a step that does not exist at the transformer's first call;
    FloatingPointError for tokens that are not finite.
    """
    if not probes or not all(map(callable, probes)):
        raise TypeError(f"probes have to be callables probe(tokens, site), at least one; got {probes!r}")
    for what, value, allowed in (
        ("branch", branch, ("cond", "uncond", "both", None)),
        ("stream", stream, ("image", "text")),
    ):
        if value not in allowed:
            raise ValueError(f"{what} {value!r} is unknown; allowed: {', '.join(map(repr, allowed))}")
    wanted = [branch or ("both" if getattr(probe, "edits", True) else "cond") for probe in probes]
    reader, handles = _Reader(pipe, steps), []
    try:
        for transformer, bound in transformers_of(pipe):
            _refuse(transformer)
            found = members(transformer)
            chosen = {found[i][0] for i in _pick("layer", layers, len(found))}
            if stream == "text":
                chosen = _with_text(found, chosen, layers)
            handles.append(transformer.register_forward_pre_hook(partial(reader.enter, bound), with_kwargs=True))
            for block, module, part in found:
                if block in chosen:
                    hook = partial(_on_block, reader, tuple(zip(probes, wanted, strict=True)), block, part, stream)
                    handles.append(module.register_forward_hook(hook))
            handles.append(transformer.register_forward_hook(reader.leave, with_kwargs=True))
        yield probes[0] if len(probes) == 1 else probes
    finally:
        for handle in handles:
            handle.remove()


def _pick(what: str, chosen, n: int):
    """Indices below n (a range or a list) that an int, a slice or a list of ints names. Raises ValueError naming what
    does not exist.
    """
    if chosen is None or isinstance(chosen, slice):
        picked = range(n)[chosen or slice(None)]
        if not picked:
            raise ValueError(f"{what}s {chosen} name none of the {n} there are")
        return picked
    try:
        picked = [index(chosen)] if not hasattr(chosen, "__iter__") else [index(i) for i in chosen]
    except TypeError:
        raise TypeError(f"{what}s have to be an int, a slice or a list of ints; got {chosen!r}") from None
    for i in picked:
        if not -n <= i < n:
            raise ValueError(f"{what} {i} does not exist; allowed: 0 to {n - 1}, or -1 to {-n} from the end")
    if not picked:
        raise ValueError(f"{what}s is an empty list; leave it out for all {n}")
    return [i % n for i in picked]


def _with_text(found, chosen, layers):
    dual = {block for block, _, part in found if part.kind == "dual"}
    if not dual:
        raise ValueError("stream='text': this model keeps no text stream of its own; only stream='image' is allowed")
    if layers is not None and chosen - dual:
        names = ", ".join(f"{b.index} ({b.name})" for b in sorted(chosen - dual))
        raise ValueError(
            f"stream='text': layers {names} keep no text stream apart; allowed: {sorted(b.index for b in dual)}"
        )
    return chosen & dual


def _refuse(transformer) -> None:
    """Raise RuntimeError, with the remedy, for a transformer on which hooks would be ignored or see stale tokens."""
    if getattr(transformer, "is_cache_enabled", False):
        raise RuntimeError(
            "a block cache is on, so that skipped blocks would show stale tokens; call pipe.transformer.disable_cache()"
        )
    if hasattr(transformer, "_orig_mod") or transformer._compiled_call_impl is not None:
        raise RuntimeError(
            "the whole transformer is compiled, so that a probe attached now would be ignored in silence; "
            "load it again and compile its blocks instead: pipe.transformer.compile_repeated_blocks()"
        )


class _Reader:
    """What a transformer's own calls tell: layout, generation, step, branches. `call` is None outside the chosen
    steps.
    """

    def __init__(self, pipe, steps):
        self.pipe, self.chosen, self.bare = pipe, steps, isinstance(pipe, torch.nn.Module)
        self.schedule = self.key = self.latents = self.call = None
        self.replaying = False
        if self.bare:  # no schedule to count from the end of
            ends = (
                [steps.start, steps.stop]
                if isinstance(steps, slice)
                else steps
                if hasattr(steps, "__iter__")
                else [steps]
            )
            if any(end is not None and end < 0 for end in ends):
                raise ValueError(
                    f"steps {steps!r}: a bare transformer has no schedule with an end; attach to the pipeline"
                )

    def enter(self, bound, transformer, args, kwargs):
        if self.replaying:
            return
        self.call, given = None, bind(transformer, args, kwargs)
        layout = family_of(transformer).layout(transformer, given)
        if layout is None:  # not a denoising call
            return
        self._tick(float(torch.as_tensor(given["timestep"]).max()), given["hidden_states"])
        if self.step in self.steps:
            self.call = layout, branches_of(self.pipe, transformer, given, self.passes, bound)

    def _tick(self, timestep, latents):
        """A new scheduler index or timestep is the next step, the same again the next pass.

        A generation begins with a new schedule, or when the index falls back. A bare transformer has neither: there,
        its first timestep coming back begins a generation, and a pass has the latents of the one before.
        """
        scheduler = None if self.bare else self.pipe.scheduler
        schedule, at = getattr(scheduler, "timesteps", None), getattr(scheduler, "_step_index", None)
        if at is None and hasattr(scheduler, "_step_index"):
            at = scheduler._begin_index or 0
        key, last = (at, timestep), self.key
        same = key == last and (not self.bare or torch.equal(latents, self.latents))
        if (
            last is None
            or schedule is not self.schedule
            or (at is not None and at < last[0])
            or (self.bare and key == self.first and not same)
        ):
            self.generation, self.schedule, self.first, self.step, self.passes = (
                next(_generations),
                schedule,
                key,
                at or 0,
                0,
            )
            self.timesteps = [] if schedule is None else schedule.tolist()
            self.steps = _pick("step", self.chosen, sys.maxsize if self.bare else len(schedule))
            if not isinstance(self.steps, range) and min(self.steps) < self.step:
                raise ValueError(
                    f"step {min(self.steps)} is not run: this generation begins in mid-schedule, at step {self.step}"
                )
        elif same:
            self.passes += 1
        else:
            self.step, self.passes = (self.step + 1 if at is None or at == last[0] else at), 0
        self.key, self.latents = key, latents if self.bare else None
        self.timestep = self.timesteps[self.step] if self.step < len(self.timesteps) else timestep

    def leave(self, transformer, args, kwargs, output):
        """Raise FloatingPointError when the model's output is not finite, naming the first block at fault by a second
        run.
        """
        if self.replaying or self.call is None:
            return
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        if all(torch.isfinite(tensor).all() for tensor in tensors):
            return
        bad, handles = [], []

        def look(block, part, module, inputs, output):
            stream = output if part.output is None else output[part.output]
            if not torch.isfinite(stream).all():
                bad.append((block, stream.dtype))

        self.replaying = True
        try:
            handles = [
                module.register_forward_hook(partial(look, block, part)) for block, module, part in members(transformer)
            ]
            with torch.no_grad():
                transformer(*args, **kwargs)
        finally:
            self.replaying = False
            for handle in handles:
                handle.remove()
        where = f"layer {bad[0][0].index} ({bad[0][0].name})" if bad else "the layers after the last block"
        dtype = bad[0][1] if bad else tensors[0].dtype
        raise FloatingPointError(
            f"{where} returned tokens that are not finite at step {self.step}, in {dtype}; load with dtype='bfloat16'"
        )


@torch.compiler.disable
def _on_block(reader, probes, block, part, stream, module, inputs, output):
    """Show the target's tokens of one block to the probes, branch by branch, and write back what they return."""
    if reader.call is None:
        return None
    layout, branches = reader.call
    place = part.output if stream == "image" else 1 - part.output
    tokens = whole = output if place is None else output[place]
    if stream == "image":
        start, n = target_tokens(part, layout, block, whole)
    elif whole is None:  # SD3's last block drops its text
        return None
    else:
        start, n = part.registers, whole.shape[1] - part.registers
    edited = None
    for branch, rows in branches:
        watching = [
            p
            for p, wanted in probes
            if wanted in (branch, "both") and (getattr(p, "edits", True) or not reader.replaying)
        ]
        if not watching:
            continue
        before = tokens = cut(whole, rows, start, n)  # B N D
        grid = layout.grid if stream == "image" else (1, n)
        site = Site(
            *(block.index, block.name, block.kind, reader.step, reader.timestep, branch, grid),
            *(range(rows.stop - rows.start), reader.generation),
        )
        for probe in watching:
            answer = probe(tokens, site)
            if answer is not None:
                if getattr(answer, "shape", None) != tokens.shape:
                    got = tuple(answer.shape) if hasattr(answer, "shape") else repr(answer)
                    raise ValueError(
                        f"{probe} returned {got} at {block.name}; wanted: {tuple(tokens.shape)} as given, or None"
                    )
                tokens = answer.to(whole.dtype)
        if tokens is not before:
            edited = paste(whole if edited is None else edited, rows, start, tokens)
    if edited is None or place is None:
        return edited
    return type(output)(edited if i == place else kept for i, kept in enumerate(output))

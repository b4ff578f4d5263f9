"""Probes: look at, or change, the image tokens that leave a transformer's blocks while a pipeline generates.

def shrink(tokens, site):              # B N D
    return 0.9 * tokens                # return None to leave them as they are

with mu.attach(pipe, shrink, layers=-1, steps=slice(2, None)):
    images = mu.generate(pipe, prompts)
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils._pytree import tree_leaves

from ..models.calls import Reader, pick
from ..models.families import (
    INFERRED,
    cut,
    is_known,
    members,
    paste,
    stream_of,
    target_tokens,
    text_tokens,
    transformers_of,
    with_stream,
)
from ..models.infer import infer


@dataclass(frozen=True)
class Site:
    """Where a probe stands.

    - layer, name, kind: the block, as in `blocks(pipe)`.
    - step, timestep: index into the scheduler's timesteps, and its value there. Image-to-image begins in mid-schedule
      and so at a later step. A bare transformer has no schedule: steps count from 0, the timestep is the call's.
    - branch: "cond", "uncond", or "extra" for a further pass of the same step (SD3's skip-layer guidance).
    - grid: (H, W) of the N = H * W tokens in raster order; (F, H, W) of a video; (1, N) of a text.
    - rows: the rows of the generation's batch to which the B token rows belong.
    - generation: a number that differs in every generation, and in every chunk of a video that is made in chunks.
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
    attribute `edits` is False, and "both" for any other. Whether guidance doubles the batch is read off the pipeline's
    running call; a bare transformer's rows are one branch. `stream="text"` takes the text tokens of dual-stream blocks,
    padding included.
    Gives the probe, or a tuple of them; no hook is left afterwards. Raises ValueError or TypeError, before anything
    is generated, for what does not exist; for a step that does not exist at the transformer's first call; RuntimeError
    for a probe that writes into its tokens and does not return them; FloatingPointError for tokens that are not finite.
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
    reader, handles = Reader(pipe, steps), []
    on_block = torch.compiler.disable(_on_block)  # here: as a decorator it would double the time of the import

    def install(transformer):
        found = members(transformer)
        chosen = {found[i][0] for i in pick("layer", layers, len(found))}
        for block, module, part in found:
            if block in (_with_text(found, chosen, layers) if stream == "text" else chosen):
                hook = partial(on_block, reader, tuple(zip(probes, wanted, strict=True)), block, part, stream)
                handles.append(module.register_forward_hook(hook))

    def learn(transformer, args, kwargs):  # a class that is not in the table shows its layout at its first call
        INFERRED[transformer] = infer(transformer, args, kwargs)
        install(transformer)
        learning.pop(transformer).remove()

    learning = {}
    try:
        for transformer, bound in transformers_of(pipe):
            _refuse(transformer)
            if is_known(transformer):
                install(transformer)
            else:
                learning[transformer] = transformer.register_forward_pre_hook(learn, with_kwargs=True)
            handles.append(transformer.register_forward_pre_hook(partial(reader.enter, bound), with_kwargs=True))
            handles.append(transformer.register_forward_hook(partial(_check_finite, reader), with_kwargs=True))
        yield probes[0] if len(probes) == 1 else probes
    finally:
        for handle in [*handles, *learning.values()]:
            handle.remove()


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


def _check_finite(reader, transformer, args, kwargs, output):
    """Raise FloatingPointError when a model's output is not finite; a second run names the first block at fault."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    if reader.layout is None or all(torch.isfinite(tensor).all() for tensor in tensors):
        return
    bad, handles = [], []

    def look(block, part, module, inputs, output):
        stream = stream_of(part, output)
        if not torch.isfinite(stream).all():
            bad.append((f"layer {block.index} ({block.name})", stream.dtype))

    try:
        handles += [
            module.register_forward_hook(partial(look, block, part)) for block, module, part in members(transformer)
        ]
        with torch.no_grad():
            transformer.forward(*args, **kwargs)  # not called, so that only the blocks' hooks run
    finally:
        for handle in handles:
            handle.remove()
    where, dtype = bad[0] if bad else ("the model after its last block", tensors[0].dtype)
    raise FloatingPointError(
        f"{where} returned values that are not finite at step {reader.step}, in {dtype}; load with dtype='bfloat16'"
    )


def _version(tokens) -> int:
    """A number that changes when a tensor is written to; in inference mode torch keeps none, and it stays -1."""
    return -1 if tokens.is_inference() else tokens._version


def _on_block(reader, probes, block, part, stream, module, inputs, output):
    """Show the target's tokens of one block to the probes, branch by branch, and write back what they return."""
    layout, branches = reader.layout, reader.branches
    if layout is None:
        return None
    tokens = whole = stream_of(part, output, stream)
    if stream == "image":
        start, n = target_tokens(part, layout, block, whole)
    elif whole is None:  # SD3's last block drops its text
        return None
    else:
        start, n = text_tokens(part, layout, whole)
    edited = None
    for branch, rows in branches:
        watching = [p for p, wanted in probes if wanted in (branch, "both")]
        if not watching:
            continue
        tokens, written = cut(whole, rows, start, n), False  # B N D
        grid = layout.grid if stream == "image" else (1, n)
        site = Site(
            *(block.index, block.name, block.kind, reader.step, reader.timestep, branch, grid),
            *(range(rows.stop - rows.start), reader.generation),
        )
        for probe in watching:
            before = _version(tokens)
            answer = probe(tokens, site)
            if answer is None and _version(tokens) != before:
                raise RuntimeError(
                    f"{probe} changed the tokens at {block.name} in place and returned None; return them"
                )
            if answer is not None and (answer is not tokens or _version(tokens) != before or before == -1):
                if getattr(answer, "shape", None) != tokens.shape:
                    got = tuple(answer.shape) if hasattr(answer, "shape") else repr(answer)
                    raise ValueError(
                        f"{probe} returned {got} at {block.name}; wanted: {tuple(tokens.shape)} as given, or None"
                    )
                tokens, written = answer.to(whole.dtype), True
        if written:
            edited = paste(whole if edited is None else edited, rows, start, tokens)
    return None if edited is None else with_stream(part, output, edited, stream)

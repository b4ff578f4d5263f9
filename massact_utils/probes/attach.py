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

from ..models.calls import CallTracker
from ..models.families import (
    block_modules,
    pick,
    put_tokens,
    stream_of,
    take_tokens,
    target_tokens,
    text_tokens,
    with_stream,
)
from ..ranges import check


@dataclass(frozen=True)
class Site:
    """Where a probe stands.

    - layer, name, kind: the block, as in `blocks(pipe)`.
    - step, timestep: the call's own timestep as the scheduler counts it, and its place among those of the schedule.
      Image-to-image begins at a later step. A bare transformer's timestep is the call's, and steps count from 0.
    - evaluation: 0, or higher where a scheduler evaluates the model again at one step (Heun's).
    - branch: "cond", "uncond", or "extra" for any other pass (skip-layer and perturbed-attention guidance).
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
    evaluation: int = 0


@contextmanager
def attach(pipe, *probes, layers=None, steps=None, branch=None, stream="image", rows=None):
    """Call each probe on the image tokens (B, N, D) leaving each chosen block: `probe(tokens, site)` -> tokens or None.

    `pipe` is a pipeline or a bare transformer. `layers` and `steps` are ints (negative from the end), slices or
    lists; None is all. `branch` is "cond", "uncond" or "both" (every pass); None is "cond" for a probe whose
    attribute `edits` is False, and "both" for any other. Branches are known from the pipeline that runs; `rows` names
    those of one's own loop, or of a pipeline that announces none, one for each part of its batch: ("uncond", "cond").
    A bare transformer's rows are one branch, "cond". `stream="text"` takes the text tokens of dual-stream blocks,
    padding included.
    Gives the probe, or a tuple of them; no hook is left afterwards. Raises ValueError or TypeError, before anything
    is generated, for what does not exist, and before a probe sees anything for rows, timesteps and steps that are not
    known; RuntimeError for a block cache and for a probe that writes into its tokens and does not return them;
    FloatingPointError, at the next call or at the end, for tokens that are not finite.
    """
    if not probes or not all(callable(probe) and not isinstance(probe, type) for probe in probes):
        raise TypeError(f"probes have to be callables probe(tokens, site), at least one; got {probes!r}")
    check(branch="both" if branch is None else branch, stream=stream)
    wanted = [(p, branch or ("both" if getattr(p, "edits", True) else "cond")) for p in probes]
    on_block = torch.compiler.disable(_on_block)  # here: as a decorator it would double the time of the import
    with CallTracker(pipe, steps, rows) as calls:
        for transformer, _ in calls.transformers:
            if hasattr(transformer, "_orig_mod") or transformer._compiled_call_impl is not None:
                raise RuntimeError(
                    "the whole transformer is compiled, so that a probe attached now would be ignored in silence; "
                    "load it again and compile its blocks instead: pipe.transformer.compile_repeated_blocks()"
                )
            listed = block_modules(transformer)
            chosen = {listed[i][0] for i in pick("layer", layers, len(listed))}
            for block, module, blocks in listed:
                if block in (_with_text(listed, chosen, layers) if stream == "text" else chosen):
                    calls.add(module.register_forward_hook(partial(on_block, calls, wanted, block, blocks, stream)))
            calls.add(transformer.register_forward_hook(partial(_on_output, calls)))
        try:
            yield probes[0] if len(probes) == 1 else probes
        except BaseException:
            for probe in (probe for probe in probes if hasattr(probe, "forget_half") and hasattr(calls, "picked")):
                steps = calls.picked  # of a bare transformer without an end
                last = max(steps[0], steps[-1]) if isinstance(steps, range) else max(steps)
                probe.forget_half(calls.generation, (last, max(block.index for block in chosen)))
            raise


def _with_text(listed, chosen, layers):
    dual = {block for block, _, blocks in listed if blocks.kind == "dual"}
    if not dual:
        raise ValueError("stream='text': this model keeps no text stream of its own; only stream='image' is allowed")
    if layers is not None and chosen - dual:
        names = ", ".join(f"{b.index} ({b.name})" for b in sorted(chosen - dual))
        raise ValueError(
            f"stream='text': layers {names} keep no text stream apart; allowed: {sorted(b.index for b in dual)}"
        )
    return chosen & dual


def _on_output(calls, transformer, inputs, output):
    """Have a model's output checked, so that a block no probe looks at is not missed."""
    for leaf in tree_leaves(output) if calls.layout is not None else ():
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            calls.watch("the model", leaf)


def _on_block(calls, probes, block, blocks, stream, module, inputs, output):
    """Show the target's tokens of one block to the probes, branch by branch, and write back what they return."""
    layout, tokens = calls.layout, stream_of(blocks, output, stream) if calls.layout is not None else None
    if tokens is None:  # SD3's last block drops its text
        return None
    start, n = (
        target_tokens(blocks, layout, block, tokens) if stream == "image" else text_tokens(blocks, layout, tokens)
    )
    grid, edited = layout.grid if stream == "image" else (1, n), None
    for branch, rows in calls.branches:
        watching = [probe for probe, wanted in probes if wanted in (branch, "both")]
        if not watching:
            continue
        seen, written = take_tokens(tokens, rows, start, n), False  # B N D
        site = Site(
            layer=block.index,
            name=block.name,
            kind=block.kind,
            step=calls.step,
            timestep=calls.timestep,
            branch=branch,
            grid=grid,
            rows=range(rows.stop - rows.start),
            generation=calls.generation,
            evaluation=calls.evaluation,
        )
        for probe in watching:
            answer = _call(probe, seen, site)
            seen, written = (seen, written) if answer is None else (answer, True)
        calls.watch(f"layer {block.index} ({block.name}), branch {branch},", seen)
        if written:
            edited = put_tokens(tokens if edited is None else edited, rows, start, seen.to(tokens.dtype))
    return None if edited is None else with_stream(blocks, output, edited, stream)


def _call(probe, tokens, site):
    """What a probe makes of tokens (B, N, D); None where it changes nothing."""
    if tokens.is_inference() and getattr(probe, "edits", True):  # which keep no count of writes: a copy does
        with torch.inference_mode(False):
            tokens = tokens.clone()
    before = None if tokens.is_inference() else tokens._version
    answer = probe(tokens, site)
    written = before is not None and tokens._version != before
    if answer is None and written:
        raise RuntimeError(f"{probe} changed the tokens at {site.name} in place and returned None; return them")
    if answer is None or (answer is tokens and not written):
        return None
    if getattr(answer, "shape", None) != tokens.shape:
        got = tuple(answer.shape) if hasattr(answer, "shape") else repr(answer)
        raise ValueError(f"{probe} returned {got} at {site.name}; wanted: {tuple(tokens.shape)} as given, or None")
    return answer

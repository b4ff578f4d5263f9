"""Every supported Diffusion Transformer as one list of blocks: the only module that knows model families.

A family is a row of FAMILIES: how to read the image grid off the transformer's call, where its lists of blocks stand
in execution order, and where the image tokens stand in what a block returns. Nothing else in the package asks for a
class.
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch


class Block(NamedTuple):
    """One block: its index over the whole depth, dotted name, kind "dual" (image and text kept apart) or "single",
    width D.
    """

    index: int
    name: str
    kind: str
    width: int


class Part(NamedTuple):
    """A list of blocks and where the image tokens stand in a block's output.

    `output` is the image stream's place in the returned tuple (None: a bare tensor). Within that stream the tokens
    that entered as image stream are the "whole" of it, its "head", its "tail", or start at another place per row
    ("ragged").
    """

    path: str
    kind: str
    output: int | None
    where: str = "whole"
    registers: int = 0  # learned tokens in front of a dual block's text stream


class Layout(NamedTuple):
    """Image tokens of one transformer call: target grid, length of the image stream, reference tokens before the
    target.
    """

    grid: tuple[int, ...]
    stream: int
    before: int = 0
    starts: list[int] | None = None  # per row, for "ragged" parts


class Family(NamedTuple):
    """How a transformer class lays out its tokens, and the order of branches where guidance doubles the batch."""

    layout: Callable
    parts: tuple[Part, ...]
    doubled: tuple[str, ...] = ()


def _by_ids(transformer, call) -> Layout:
    """Position ids name the tokens: the target has the lowest value on axis 0, references have higher ones."""
    ids = call["img_ids"].detach().cpu()
    ids = ids[0] if ids.ndim == 3 else ids
    target = ids[:, 0] == ids[:, 0].min()
    first, n = int(target.int().argmax()), int(target.sum())
    if not target[first : first + n].all():
        raise ValueError(f"{type(transformer).__name__}: the target's image tokens are not contiguous in img_ids")
    return Layout((len(ids[target, 1].unique()), len(ids[target, 2].unique())), len(ids), first)


DUAL = Part("transformer_blocks", "dual", 1)
SINGLE = "single_transformer_blocks"

FAMILIES = {
    "Flux2Transformer2DModel": Family(_by_ids, (DUAL, Part(SINGLE, "single", None, "tail"))),
}


def transformers_of(pipe) -> list[tuple[torch.nn.Module, str | None]]:
    """The transformers of a pipeline, or a bare one, each with the branch it is bound to (None: told by the call)."""
    if isinstance(pipe, torch.nn.Module):
        return [(pipe, None)]
    if getattr(pipe, "transformer", None) is None:
        raise TypeError(
            f"{type(pipe).__name__} has no transformer; give a Diffusion Transformer pipeline or a bare transformer"
        )
    second = [
        (getattr(pipe, name, None), branch)
        for name, branch in (("transformer_2", None), ("unconditional_transformer", "uncond"))
    ]
    return [(pipe.transformer, "cond" if second[1][0] is not None else None)] + [
        pair for pair in second if pair[0] is not None
    ]


def family_of(transformer) -> Family:
    """The row of FAMILIES for a transformer. Raises TypeError for a class that is not in the table."""
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise TypeError(f"{name} is not a known Diffusion Transformer; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def members(transformer) -> list[tuple[Block, torch.nn.Module, Part]]:
    """Every block of a transformer in execution order, with its module and the Part it belongs to."""
    found, family, config = [], family_of(transformer), transformer.config
    width = getattr(transformer, "inner_dim", None) or config.num_attention_heads * config.attention_head_dim
    for part in family.parts:
        for i, module in enumerate(transformer.get_submodule(part.path)):
            found.append((Block(len(found), f"{part.path}.{i}", part.kind, width), module, part))
    return found


def blocks(pipe) -> list[Block]:
    """The blocks whose image tokens a probe can see, in execution order, of a pipeline or a bare transformer.

    Raises TypeError for a pipeline without a transformer and for a transformer class that is not known.
    """
    return [block for block, _, _ in members(transformers_of(pipe)[0][0])]


def bind(transformer, args, kwargs) -> dict:
    """A transformer call's arguments under common names, whether they were passed by position or not."""
    given = inspect.signature(type(transformer).forward).bind(transformer, *args, **kwargs).arguments
    return {
        {"x": "hidden_states", "t": "timestep", "timesteps": "timestep"}.get(name, name): value
        for name, value in given.items()
    }


def branches_of(pipe, transformer, given, passes: int, bound: str | None) -> list[tuple[str, slice]]:
    """The branches in one transformer call, each with its rows: [(branch, slice)].

    Where guidance doubles the batch its halves are the same latents; elsewhere the first pass of a step is
    conditional, the second unconditional, and any other "extra".
    """
    latents, order = given["hidden_states"], family_of(transformer).doubled
    n = len(latents) // 2
    if order and passes == 0 and len(latents) == 2 * n and getattr(pipe, "do_classifier_free_guidance", True):
        if all(torch.equal(first, second) for first, second in zip(latents[:n], latents[n:], strict=True)):
            return [(order[0], slice(0, n)), (order[1], slice(n, 2 * n))]
    by_pass = ("cond", "extra") if order else ("cond", "uncond", "extra")
    return [(bound or by_pass[min(passes, len(by_pass) - 1)], slice(0, len(latents)))]


def cut(stream: torch.Tensor, rows: slice, start: int | list[int], n: int) -> torch.Tensor:
    """The n tokens from `start` (per row, where a list) of some rows of a stream: (B, S, D) -> (rows, n, D)."""
    if isinstance(start, int):
        return stream[rows, start : start + n]
    return torch.stack([row[s : s + n] for row, s in zip(stream[rows], start[rows], strict=True)])


def paste(stream: torch.Tensor, rows: slice, start: int | list[int], tokens: torch.Tensor) -> torch.Tensor:
    """A copy of a stream (B, S, D) with tokens (rows, N, D) in the place that `cut` takes them from."""
    if tokens.shape == stream.shape:
        return tokens
    stream, n = stream.clone(), tokens.shape[1]
    if isinstance(start, int):
        stream[rows, start : start + n] = tokens
    else:
        for row, s, new in zip(range(len(stream))[rows], start[rows], tokens, strict=True):
            stream[row, s : s + n] = new
    return stream


def target_tokens(part: Part, layout: Layout, block: Block, stream: torch.Tensor) -> tuple[int | list[int], int]:
    """First target token in an image stream (B, S, D), per row where rows differ, and their number N.

    Raises ValueError when the stream is too short for the layout, or not as long as it must be.
    """
    length, n = stream.shape[1], math.prod(layout.grid)
    start = {"tail": length - layout.stream + layout.before, "ragged": layout.starts}.get(part.where, layout.before)
    last = max(start) if isinstance(start, list) else start
    if last < 0 or last + n > length or (part.where == "whole" and length != layout.stream):
        raise ValueError(
            f"{block.name} returned {length} tokens, which does not fit the {layout.stream} image tokens of the call "
            f"(grid {' x '.join(map(str, layout.grid))}): this diffusers version lays them out in another way; "
            "correct the class's row in massact_utils/blocks.py"
        )
    return start, n

"""Infer: the layout of a transformer class that is not in the table, told from one of its own calls and checked.

The image stream is what one block returns and the next takes first; which of its tokens are the target's is told by
gradients: the model's output depends on exactly those rows of the last block's output, and rows that enter the first
block depend on the latents where they are image, and not where they are text. What does not fit is refused.
"""

import math
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .calls import bind
from .families import UNKNOWN, Family, Layout, Part


class _Stop(Exception):
    """Ends a trial forward early."""


def _first(args, kwargs):
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def _lists(transformer) -> dict[str, nn.ModuleList]:
    """Lists of two or more blocks of one class that are not inside another such list."""
    found = {}
    for name, module in transformer.named_modules():
        alike = isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1
        if alike and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def infer(transformer, args, kwargs) -> Family:
    """The Family of an unknown transformer class, from the arguments of one call. Raises TypeError, with the reason."""

    def refuse(reason):
        return TypeError(
            f"{type(transformer).__name__} is not a known Diffusion Transformer, and cannot be inferred: {reason}; "
            "add a row for it to FAMILIES in massact_utils/models/families.py"
        )

    latents = _first(args, kwargs)
    lists = _lists(transformer)
    if latents is None or not latents.is_floating_point() or latents.ndim < 3:
        raise refuse("its first tensor argument is not a batch of latents")
    outputs, last = {name: set() for name in lists}, {}

    def before(name, i, module, inputs, named):
        if i:  # which element of what the block before returned is the very object this one takes first
            streams = last["output"] if isinstance(last["output"], (tuple, list)) else [last["output"]]
            same = [k for k, stream in enumerate(streams) if stream is _first(inputs, named)]
            outputs[name].add(
                (same[0] if isinstance(last["output"], (tuple, list)) else None) if len(same) == 1 else "lost"
            )
        else:
            last.setdefault("order", []).append(name)

    def after(name, i, module, inputs, output):
        last["output"] = output

    with torch.no_grad(), _hooks(lists, before, after):
        transformer.forward(*args, **kwargs)
    order = [
        name
        for name in last.get("order", ())
        if outputs[name] and "lost" not in outputs[name] and len(outputs[name]) == 1
    ]
    if not order or order[-1] != last["order"][-1]:
        raise refuse("its last list of blocks does not pass one tensor from block to block")
    places = {name: outputs[name].pop() for name in order}
    rows, length = _rows_behind_the_output(transformer, args, kwargs, lists[order[-1]], places[order[-1]])
    n = len(rows)
    if not n or rows != list(range(rows[0], rows[0] + n)):
        raise refuse(
            f"its output depends on {n} rows of the last block that do not stand together, or not the same ones in "
            "every row of the batch"
        )
    where = "whole" if n == length else "head" if rows[0] == 0 else "tail" if rows[-1] == length - 1 else None
    if where is None:
        raise refuse("its image tokens are neither at the head nor at the tail of the last block's output")
    layout = partial(_layout, patch=_patch(latents, n))
    found = layout(transformer, bind(transformer, args, kwargs) | {"hidden_states": latents})
    if found is None or math.prod(found.grid) != n:
        raise refuse(f"the grid of its {n} image tokens cannot be told from the call")
    parts = [Part(order[-1], "single" if places[order[-1]] is None else "dual", places[order[-1]], where)]
    for name in reversed(order[:-1]):
        image, entering = _rows_from_the_latents(transformer, args, kwargs, lists[name][0], latents)
        if image == list(range(n)) and entering == n:
            parts.insert(0, Part(name, "single" if places[name] is None else "dual", places[name], "whole"))
        elif image:
            raise refuse(f"{len(image)} of the {entering} tokens entering {name} are image, and the target has {n}")
    return Family(layout, tuple(parts), UNKNOWN)


def _hooks(lists, before, after):
    """A context in which two functions are called with (list, index, module, ...) around every block."""
    stack = ExitStack()
    for name, blocks in lists.items():
        for i, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(partial(before, name, i), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(partial(after, name, i)).remove)
    return stack


def _rows_behind_the_output(transformer, args, kwargs, blocks, place) -> tuple[list[int], int]:
    """Rows of the last block's image stream (B, S, D) on which the model's output depends, and S."""
    kept = []

    def cut_graph(module, inputs, output):
        stream = (output if place is None else output[place]).detach().requires_grad_()
        kept.append(stream)
        torch.set_grad_enabled(True)
        return stream if place is None else type(output)(stream if k == place else x for k, x in enumerate(output))

    handle = blocks[-1].register_forward_hook(cut_graph)
    try:
        with torch.no_grad():
            output = transformer.forward(*args, **kwargs)
        with torch.enable_grad():
            loss = sum((x.float() * _weights(x)).sum() for x in tree_leaves(output) if isinstance(x, torch.Tensor))
        (gradient,) = torch.autograd.grad(loss, kept[-1])
    finally:
        handle.remove()
    return _rows(gradient), gradient.shape[1]


def _rows_from_the_latents(transformer, args, kwargs, block, latents) -> tuple[list[int], int]:
    """Rows of what enters a block first (B, S, D) that depend on the latents, and S."""
    leaf, kept = latents.detach().clone().requires_grad_(), []

    def stop(module, inputs, named):
        kept.append(_first(inputs, named))
        raise _Stop

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.enable_grad():
            transformer.forward(
                *(leaf if x is latents else x for x in args),
                **{k: leaf if x is latents else x for k, x in kwargs.items()},
            )
    except _Stop:
        pass
    finally:
        handle.remove()
    stream = kept[0]
    if not stream.requires_grad:
        return [], stream.shape[1]
    with torch.enable_grad():  # two vector-Jacobian products make a directional derivative
        tangent = torch.zeros_like(stream, requires_grad=True)
        (back,) = torch.autograd.grad(stream, leaf, tangent, create_graph=True)
        (forward,) = torch.autograd.grad((back * _weights(back)).sum(), tangent)
    return _rows(forward), stream.shape[1]


def _weights(x):
    """Weights that let no sum cancel, drawn from no generator that the user's own noise comes from."""
    return torch.cos(12.9898 * torch.arange(x.numel(), device=x.device, dtype=torch.float32)).reshape(x.shape)


def _rows(gradient) -> list[int]:
    """Tokens with a gradient (B, S, D), which are the same in every row of the batch; none where they differ."""
    seen = gradient.abs().amax(2) > 0  # B S
    return seen[0].nonzero().flatten().tolist() if (seen == seen[0]).all() else []


def _patch(latents, n) -> int | None:
    """The patch size that cuts latents (B, C, H, W) into n tokens; None where latents are packed (B, N, C)."""
    if latents.ndim == 3:
        return None
    size = math.isqrt(math.prod(latents.shape[2:]) // n) if n else 0
    return size or None


def _layout(transformer, call, patch) -> Layout | None:
    """Grid from the latents' own sides, or from position ids of as many tokens with rows on axis 1 and columns on axis
    2.
    """
    latents = call["hidden_states"]
    if patch:
        grid = tuple(side // patch for side in latents.shape[-2:])
        return Layout(grid, math.prod(grid))
    n = latents.shape[1]
    for ids in call.values():
        if isinstance(ids, torch.Tensor) and ids.ndim in (2, 3) and ids.shape[-1] in (3, 4) and ids.shape[-2] == n:
            ids = (ids[0] if ids.ndim == 3 else ids).cpu()
            grid = len(ids[:, 1].unique()), len(ids[:, 2].unique())
            if math.prod(grid) == n:
                return Layout(grid, n)
    return None

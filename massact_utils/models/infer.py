"""Infer: find the layout of a transformer class that is not in the table from one of its calls, and check it.

The image stream is what one block returns and the next takes first; which of its tokens are the target's is told by
gradients: the model's output depends on exactly those rows of the last block's output, and rows that enter the first
block depend on the latents where they are image, and not where they are text. The grid is told by gradients, too: a
token depends on one patch of the latents, and the next token on the next patch. What does not fit is refused.
"""

import math
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .calls import bind
from .families import UNKNOWN, Family, Layout, Part, raster


class _Stop(Exception):
    """Ends a trial forward early."""


class _Refused(TypeError):
    """A layout that cannot be inferred, with the reason."""


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
        return _Refused(
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
            output = last.get("output")
            several = isinstance(output, (tuple, list))
            same = [k for k, x in enumerate(output if several else [output]) if x is _first(inputs, named)]
            outputs[name].add((same[0] if several else None) if len(same) == 1 else "lost")
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
    try:
        return _family(transformer, args, kwargs, latents, lists, order, places, refuse)
    except _Refused:
        raise
    except Exception as error:  # whatever a trial run meets that the model is not made for, as the plain run has passed
        raise refuse(f"a trial run with gradients failed ({error})") from error


def _family(transformer, args, kwargs, latents, lists, order, places, refuse) -> Family:
    """The Family that gradients show, where `order` lists the image's blocks and `places` the stream in their output.

    Raises what `refuse` makes of a reason.
    """
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
    part = Part(order[-1], "single" if places[order[-1]] is None else "dual", places[order[-1]], where)
    parts, first = [part], rows[0]
    for name in reversed(order[:-1]):
        image, entering = _rows_from_the_latents(transformer, args, kwargs, lists[name][0], latents)
        if image == list(range(n)) and entering == n:
            parts.insert(0, Part(name, "single" if places[name] is None else "dual", places[name]))
            first = 0
        elif image:
            raise refuse(f"{len(image)} of the {entering} tokens entering {name} are image, and the target has {n}")
    patch = None
    if latents.ndim > 3:
        patch = _patch(transformer, args, kwargs, lists[parts[0].path][0], latents, first, n)
    layout = partial(_layout, patch=patch)
    found = layout(transformer, bind(transformer, args, kwargs) | {"hidden_states": latents})
    if found is None or math.prod(found.grid) != n:
        raise refuse(f"the grid of its {n} image tokens cannot be told from the call")
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
        (gradient,) = torch.autograd.grad(loss, kept[-1], allow_unused=True)
    finally:
        handle.remove()
    return _rows(gradient), kept[-1].shape[1]


def _entering(transformer, args, kwargs, block, latents):
    """Latents that take a gradient, and what enters a block first (B, S, D) when they are denoised."""
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
    return leaf, kept[0]


def _rows_from_the_latents(transformer, args, kwargs, block, latents) -> tuple[list[int], int]:
    """Rows of what enters a block first (B, S, D) that depend on the latents, and S."""
    leaf, stream = _entering(transformer, args, kwargs, block, latents)
    if not stream.requires_grad:
        return [], stream.shape[1]
    with torch.enable_grad():  # two vector-Jacobian products make a directional derivative
        tangent = torch.zeros_like(stream, requires_grad=True)
        (back,) = torch.autograd.grad(stream, leaf, tangent, create_graph=True, allow_unused=True)
        if back is None:  # text, of which a gradient is asked for its own weights
            return [], stream.shape[1]
        (forward,) = torch.autograd.grad((back * _weights(back)).sum(), tangent)
    return _rows(forward), stream.shape[1]


def _patch(transformer, args, kwargs, block, latents, first, n) -> dict[int, int] | None:
    """The patch of one token: its extent along each axis of the latents that the grid runs over (axis -> extent).

    The token at `first` of what enters `block` depends on the first patch, and its neighbour along each axis on the
    next; None where that is not so, or where it is not clear which axis holds the channels.
    """
    leaf, stream = _entering(transformer, args, kwargs, block, latents)

    def box(at):  # the first row's latents behind a token: (start, stop) on every axis but the batch's
        with torch.enable_grad():
            token = stream[0, first + at].float()
            (gradient,) = torch.autograd.grad((token * _weights(token)).sum(), leaf, retain_graph=True)
        seen = gradient[0].nonzero()
        return [(int(low), int(high) + 1) for low, high in zip(seen.amin(0), seen.amax(0), strict=True)]

    sides, corner = latents.shape[1:], box(0)
    extents = [stop - start for start, stop in corner]
    whole = [axis for axis, side in enumerate(sides) if extents[axis] == side]
    channels = [0] if latents.ndim == 4 else [axis for axis in whole if sides[axis] > 1] or whole[:1]
    axes = [axis for axis in range(len(sides)) if axis not in channels]
    grid = [sides[axis] // extents[axis] for axis in axes]
    if len(channels) != 1 or math.prod(grid) != n:
        return None
    at = 1
    for axis, tiles in zip(reversed(axes), reversed(grid), strict=True):  # one step along each axis, last one first
        step = [(extents[axis], 2 * extents[axis]) if other == axis else corner[other] for other in range(len(sides))]
        if tiles > 1 and box(at) != step:
            return None
        at *= tiles
    return {axis + 1: extents[axis] for axis in axes}


def _weights(x):
    """Weights that let no sum cancel, drawn from no generator that the user's own noise comes from."""
    return torch.cos(12.9898 * torch.arange(x.numel(), device=x.device, dtype=torch.float32)).reshape(x.shape)


def _rows(gradient) -> list[int]:
    """Tokens with a gradient (B, S, D), which are the same in every row of the batch; none where they differ."""
    if gradient is None:
        return []
    seen = gradient.abs().amax(2) > 0  # B S
    return seen[0].nonzero().flatten().tolist() if (seen == seen[0]).all() else []


def _layout(transformer, call, patch) -> Layout | None:
    """Grid from the latents' own sides where a patch (axis -> extent) is known.

    Packed latents (B, N, C) are of one image (F, H, W) that the call lists, of frames, height and width that it names,
    or have position ids with rows on axis 1 and columns on axis 2.
    """
    latents = call["hidden_states"]
    if latents.ndim > 3:
        return raster(latents.shape[axis] // extent for axis, extent in patch.items()) if patch else None
    n = latents.shape[1]
    named = [call.get(name) for name in ("num_frames", "height", "width")]
    for sizes in (named, *_triples(call)):
        if all(isinstance(size, int) for size in sizes) and math.prod(sizes) == n:
            return raster(sizes)
    for ids in call.values():
        if isinstance(ids, torch.Tensor) and ids.ndim in (2, 3) and ids.shape[-1] in (3, 4) and ids.shape[-2] == n:
            ids = (ids[0] if ids.ndim == 3 else ids).cpu()
            grid = len(ids[:, 1].unique()), len(ids[:, 2].unique())
            if math.prod(grid) == n:
                return Layout(grid, n)
    return None


def _triples(value) -> list:
    """Every (F, H, W) that a call's arguments hold, however deep in lists."""
    if isinstance(value, dict):
        return [triple for inner in value.values() for triple in _triples(inner)]
    if not isinstance(value, (list, tuple)):
        return []
    if len(value) == 3 and all(isinstance(size, int) for size in value):
        return [value]
    return [triple for inner in value for triple in _triples(inner)]

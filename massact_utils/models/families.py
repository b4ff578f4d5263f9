"""Every supported Diffusion Transformer as one list of blocks: the only module that knows model families.

A family is a row of FAMILIES: how to read the image grid off the transformer's call, where its lists of blocks stand
in execution order, and where the image tokens stand in what a block returns. Nothing else in the package asks for a
class.
"""

import math
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

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

    `output` is the image stream's place in the returned tuple (None: a bare tensor). Within that stream the tokens of
    the call's image stream are the "whole" of it, its "head", its "tail", or stand where the layout says ("joint").
    """

    path: str
    kind: str
    output: int | None
    where: str = "whole"
    registers: int = 0  # learned tokens in front of a dual block's text stream


class Layout(NamedTuple):
    """Image tokens of a call: the target's grid, the length of the image stream (references included), how many of its
    tokens stand before the target, and where the target begins in a joint stream; lists where rows differ.
    """

    grid: tuple[int, ...]
    stream: int
    before: int | list[int] = 0
    joint: int | list[int] = 0


class Family(NamedTuple):
    """How a transformer class lays out its tokens, and the order of branches where guidance doubles the batch."""

    layout: Callable  # (transformer, call's arguments) -> Layout, or None for a call that denoises nothing
    parts: tuple[Part, ...]
    doubled: tuple[str, ...] = ()


def _grid(ids: torch.Tensor) -> tuple[int, int]:
    """(H, W) from position ids (N, 3 or 4) with the row on axis 1 and the column on axis 2."""
    return len(ids[:, 1].unique()), len(ids[:, 2].unique())


def _by_ids(transformer, call) -> Layout:
    """Position ids name the tokens: the target has the lowest value on axis 0, references have higher ones."""
    ids = call["img_ids"].detach().cpu()
    ids = ids[0] if ids.ndim == 3 else ids
    target = ids[:, 0] == ids[:, 0].min()
    first, n = int(target.int().argmax()), int(target.sum())
    if not target[first : first + n].all():
        raise ValueError(f"{type(transformer).__name__}: the target's image tokens are not contiguous in img_ids")
    return Layout(_grid(ids[target]), len(ids), first)


def _by_shape(transformer, call) -> Layout:
    """Latents (B, C, H, W), or (B, C, F, H, W) of a video, cut into patches in raster order."""
    sizes, patch = call["hidden_states"].shape[2:], transformer.config.patch_size
    if len(sizes) < 2:
        raise ValueError(
            f"{type(transformer).__name__}: latents of shape {tuple(call['hidden_states'].shape)} hide the grid"
        )
    patch = [patch] * len(sizes) if isinstance(patch, int) else patch
    grid = tuple(size // p for size, p in zip(sizes, patch, strict=True))
    return Layout(grid, math.prod(grid))


def _qwen(transformer, call) -> Layout:
    """img_shapes lists (F, H, W): the target, then references; the layered model has many targets, one reference."""
    shapes = call["img_shapes"][0]
    shapes = shapes if isinstance(shapes, list) else [shapes]
    targets = shapes[:1] if call.get("additional_t_cond") is None else shapes[:-1]  # layered
    frames, *grid = sum(f for f, _, _ in targets), *targets[0][1:]
    return Layout(tuple(grid) if frames == 1 else (frames, *grid), sum(map(math.prod, shapes)))


def _z_image(transformer, call) -> Layout:
    """A list of latents (C, F, H, W), or of lists of them, target last; each piece is padded to a multiple of 32."""
    latents, texts = call["hidden_states"], call["cap_feats"]
    patch = (call.get("f_patch_size", 1), *[call.get("patch_size", 2)] * 2)

    def tokens(x):
        return math.prod(size // p for size, p in zip(x.shape[1:], patch, strict=True))

    def padded(n):
        return 32 * math.ceil(n / 32)

    omni = isinstance(latents[0], list)
    target = latents[0][-1] if omni else latents[0]
    grid = tuple(size // p for size, p in zip(target.shape[1:], patch, strict=True))
    before = [sum(32 if x is None else padded(tokens(x)) for x in row[:-1]) if omni else 0 for row in latents]
    joint = [n + sum(padded(len(text)) for text in row) if omni else 0 for n, row in zip(before, texts, strict=True)]
    return Layout(grid[1:] if grid[0] == 1 else grid, max(before) + padded(tokens(target)), before, joint)


def _lumina(transformer, call) -> Layout:
    """In the joint stream a row's image follows its own text, without the padding."""
    return _by_shape(transformer, call)._replace(joint=call["encoder_attention_mask"].sum(1).tolist())


def _fibo2(transformer, call) -> Layout:
    """In the joint stream gist tokens come first, or last when rows differ in their number; references follow the
    image.
    """
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    mask, text, config = call.get("encoder_attention_mask"), call["encoder_hidden_states"], transformer.config
    lengths = [text.shape[2]] * len(text) if mask is None else mask.sum(1).tolist()
    names = ("min_num_gist_tokens", "max_num_gist_tokens", "gist_step", "gist_min_text_len", "gist_max_text_len")
    counts = set(compute_gist_count(lengths, *(config[name] for name in names)))
    return _by_shape(transformer, call)._replace(joint=counts.pop() if len(counts) == 1 else 0)


def _glm(transformer, call) -> Layout | None:
    """Before the first step, references are written to a cache by calls of their own."""
    caches = call.get("kv_caches")
    return None if caches is not None and caches[0].mode == "write" else _by_shape(transformer, call)


def _krea(transformer, call) -> Layout:
    """The last position ids are the image's."""
    n = call["hidden_states"].shape[1]
    return Layout(_grid(call["position_ids"][-n:].cpu()), n)


def _ideogram(transformer, call) -> Layout:
    """An indicator marks the image tokens of a packed sequence of text and image."""
    from diffusers.models.transformers.transformer_ideogram4 import OUTPUT_IMAGE_INDICATOR

    image = (call["indicator"] == OUTPUT_IMAGE_INDICATOR).cpu()
    grid = _grid(call["position_ids"][0].cpu()[image[0]])
    return Layout(grid, math.prod(grid), joint=image.int().argmax(1).tolist())


def _ltx(transformer, call) -> Layout:
    """The size of the latent video is passed along."""
    grid = call["num_frames"], call["height"], call["width"]
    return Layout(grid, math.prod(grid))


DUAL = Part("transformer_blocks", "dual", 1)  # (text, image)
DUAL_IMAGE_FIRST = Part("transformer_blocks", "dual", 0)
SPLIT = Part("single_transformer_blocks", "single", 1)  # joined inside, returned as (text, image)
TAIL = Part("single_transformer_blocks", "single", None, "tail")  # one tensor, text before image
PLAIN = Part("transformer_blocks", "single", None)  # image only; text enters by cross-attention
UNCOND_FIRST, COND_FIRST = ("uncond", "cond"), ("cond", "uncond")
UNKNOWN = ("?", "?")  # of an inferred family

FAMILIES = {
    "FluxTransformer2DModel": Family(_by_ids, (DUAL, SPLIT)),
    "Flux2Transformer2DModel": Family(_by_ids, (DUAL, TAIL)),
    "QwenImageTransformer2DModel": Family(_qwen, (DUAL,)),
    "SD3Transformer2DModel": Family(_by_shape, (DUAL,), UNCOND_FIRST),
    "PixArtTransformer2DModel": Family(_by_shape, (PLAIN,), UNCOND_FIRST),
    "SanaTransformer2DModel": Family(_by_shape, (PLAIN,), UNCOND_FIRST),
    "ZImageTransformer2DModel": Family(
        _z_image,
        (Part("noise_refiner", "single", None, "head"), Part("layers", "single", None, "joint")),
        COND_FIRST,
    ),
    "Lumina2Transformer2DModel": Family(
        _lumina, (Part("noise_refiner", "single", None), Part("layers", "single", None, "joint"))
    ),
    "AuraFlowTransformer2DModel": Family(
        _by_shape, (Part("joint_transformer_blocks", "dual", 1, registers=8), TAIL), UNCOND_FIRST
    ),
    "HunyuanDiT2DModel": Family(_by_shape, (Part("blocks", "single", None),), UNCOND_FIRST),
    "HunyuanImageTransformer2DModel": Family(_by_shape, (DUAL_IMAGE_FIRST, SPLIT._replace(output=0))),
    "CogView4Transformer2DModel": Family(_by_shape, (DUAL_IMAGE_FIRST,)),
    "ChromaTransformer2DModel": Family(_by_ids, (DUAL, TAIL)),
    "DiTTransformer2DModel": Family(_by_shape, (PLAIN,), COND_FIRST),
    "HiDreamImageTransformer2DModel": Family(
        _by_shape,
        (Part("double_stream_blocks", "dual", 0, "head"), Part("single_stream_blocks", "single", None, "head")),
        UNCOND_FIRST,
    ),
    "OmniGenTransformer2DModel": Family(
        _by_shape, (Part("layers", "single", None, "tail"),), ("cond", "uncond", "extra")
    ),
    "BriaTransformer2DModel": Family(_by_ids, (DUAL, SPLIT), UNCOND_FIRST),
    "BriaFiboTransformer2DModel": Family(_by_ids, (DUAL, TAIL), UNCOND_FIRST),
    "BriaFibo2Transformer2DModel": Family(
        _fibo2, (Part("noise_refiner", "single", None, "head"), Part("layers", "single", None, "joint"))
    ),
    "Krea2Transformer2DModel": Family(_krea, (PLAIN._replace(where="tail"),)),
    "Ideogram4Transformer2DModel": Family(_ideogram, (Part("layers", "single", None, "joint"),)),
    "GlmImageTransformer2DModel": Family(_glm, (DUAL_IMAGE_FIRST,)),
    "LongCatImageTransformer2DModel": Family(_by_ids, (DUAL, SPLIT)),
    "OvisImageTransformer2DModel": Family(_by_ids, (DUAL, SPLIT)),
    "WanTransformer3DModel": Family(_by_shape, (Part("blocks", "single", None),)),
    "LTXVideoTransformer3DModel": Family(_ltx, (PLAIN,), UNCOND_FIRST),
}


# Families whose pipelines put a prompt through the tokenizer's chat template first, and whether they let it think.
CHATS = {"Flux2Transformer2DModel": False, "ZImageTransformer2DModel": True}
INFERRED = WeakKeyDictionary()  # a transformer of a class that is not in the table -> what its first call showed


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
    """The row of FAMILIES for a transformer, or what its first call showed. Raises TypeError where there is neither."""
    name = type(transformer).__name__
    if transformer in INFERRED:
        return INFERRED[transformer]
    if name not in FAMILIES:
        raise TypeError(
            f"{name} is not a known Diffusion Transformer; known: {', '.join(sorted(FAMILIES))}. "
            "Another class is inferred and checked when it first runs with a probe attached"
        )
    return FAMILIES[name]


def members(transformer) -> list[tuple[Block, torch.nn.Module, Part]]:
    """Every block of a transformer in execution order, with its module and the Part it belongs to."""
    found, family, config = [], family_of(transformer), transformer.config
    heads = config.get("num_attention_heads", 0) * (config.get("attention_head_dim") or 0)
    width = getattr(transformer, "inner_dim", None) or heads or config.get("dim") or config.get("hidden_size")
    for part in family.parts:
        for i, module in enumerate(transformer.get_submodule(part.path)):
            found.append((Block(len(found), f"{part.path}.{i}", part.kind, width), module, part))
    return found


def blocks(pipe) -> list[Block]:
    """The blocks whose image tokens a probe can see, in execution order, of a pipeline or a bare transformer.

    Raises TypeError for a pipeline without a transformer and for a transformer class that is not known.
    """
    return [block for block, _, _ in members(transformers_of(pipe)[0][0])]


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

    Raises ValueError when the stream's length does not fit the layout.
    """
    length, n = stream.shape[1], math.prod(layout.grid)
    start = layout.joint if part.where == "joint" else layout.before
    start = start + length - layout.stream if part.where == "tail" else start
    if isinstance(start, list) and min(start) == max(start):
        start = start[0]
    first, last = (min(start), max(start)) if isinstance(start, list) else (start, start)
    if first < 0 or last + n > length or (part.where == "whole" and length != layout.stream):
        raise ValueError(
            f"{block.name} returned {length} tokens, which does not fit the {layout.stream} image tokens of the call "
            f"(grid {' x '.join(map(str, layout.grid))}): this diffusers version lays them out in another way; "
            "correct the class's row in massact_utils/models/families.py"
        )
    return start, n

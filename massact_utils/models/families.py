"""Every supported Diffusion Transformer as one list of blocks: with `layouts`, all that knows model families.

A family is a row of FAMILIES: how the grid of image tokens is read from the transformer's call, its lists of blocks in
execution order, and where the image tokens stand in what a block returns.
"""

import math
from collections.abc import Callable
from functools import reduce
from operator import index
from typing import NamedTuple

import torch

from . import layouts
from .layouts import Layout, by_ids, by_shape


class Block(NamedTuple):
    """One block: its index over the whole depth, dotted name, kind "dual" (image and text kept apart) or "single",
    width D.
    """

    index: int
    name: str
    kind: str
    width: int


class BlockList(NamedTuple):
    """A list of blocks and where the image tokens stand in a block's output.

    `output` is the image stream's place in the returned tuple (None: a bare tensor). Within that stream the tokens of
    the call's image stream are the "whole" of it, its "head", its "tail", or stand where the layout says ("joint").
    """

    path: str
    kind: str
    output: int | None
    where: str = "whole"
    registers: int = 0  # learned tokens in front of a dual block's text stream
    swapped: bool = False  # streams are (S, B, D)


class Family(NamedTuple):
    """A transformer class: the layout of its tokens, its blocks, and what its pipelines call it with.

    - layout: (transformer, call's arguments) -> Layout, or None for a call that denoises nothing.
    - doubled: the order of branches where guidance doubles the batch; () where each branch has a call of its own.
    - time: the timestep it is called with at a scheduler's timestep t, the largest of which is `top`.
    """

    layout: Callable
    lists: tuple[BlockList, ...]
    doubled: tuple[str, ...] = ()
    time: Callable = lambda t, top: t


def unit(t, top):
    """From 1 to 0."""
    return t / 1000


def rising(t, top):
    """From 0 to 1."""
    return 1 - t / 1000


def _cosmos(t, top):
    return t / (1000 + t)


def _sana(t, top):
    return math.sin(t) / (math.sin(t) + math.cos(t)) if top < 2 else t  # SANA-Sprint's are angles


DUAL = BlockList("transformer_blocks", "dual", 1)  # (text, image)
IMAGE_FIRST = DUAL._replace(output=0)
DOUBLE = BlockList("double_blocks", "dual", 0, "head")
SPLIT = BlockList("single_transformer_blocks", "single", 1)  # joined inside, returned as (text, image)
SPLIT_IMAGE_FIRST = SPLIT._replace(output=0)
TAIL = BlockList("single_transformer_blocks", "single", None, "tail")  # one tensor, text before image
PLAIN = BlockList("transformer_blocks", "single", None)  # image only; text enters by cross-attention
BLOCKS, LAYERS = PLAIN._replace(path="blocks"), PLAIN._replace(path="layers")
JOINT = LAYERS._replace(where="joint")
REFINER = PLAIN._replace(path="noise_refiner")
VISUAL = PLAIN._replace(path="visual_transformer_blocks")
UNCOND_FIRST, COND_FIRST = ("uncond", "cond"), ("cond", "uncond")

_GROUPS = {
    # images
    "FluxTransformer2DModel LongCatImageTransformer2DModel OvisImageTransformer2DModel": Family(
        by_ids, (DUAL, SPLIT), time=unit
    ),
    "Flux2Transformer2DModel ChromaTransformer2DModel": Family(by_ids, (DUAL, TAIL), time=unit),
    "Flux3Transformer2DModel": Family(
        by_ids, (PLAIN._replace(path="mode_blocks.image"), SPLIT._replace(where="head")), time=unit
    ),
    "BriaTransformer2DModel": Family(by_ids, (DUAL, SPLIT), UNCOND_FIRST),
    "BriaFiboTransformer2DModel": Family(by_ids, (DUAL, TAIL), UNCOND_FIRST),
    "BriaFibo2Transformer2DModel": Family(layouts.fibo2, (REFINER._replace(where="head"), JOINT), time=unit),
    "QwenImageTransformer2DModel": Family(layouts.qwen, (DUAL,), time=unit),
    "QwenImage21Transformer2DModel": Family(layouts.last_shape, (PLAIN._replace(where="tail"),), time=unit),
    "NucleusMoEImageTransformer2DModel": Family(layouts.last_shape, (PLAIN,), time=unit),
    "SD3Transformer2DModel": Family(by_shape, (DUAL,), UNCOND_FIRST),
    "SanaTransformer2DModel": Family(by_shape, (PLAIN,), UNCOND_FIRST, _sana),
    "ZImageTransformer2DModel": Family(layouts.z_image, (REFINER._replace(where="head"), JOINT), COND_FIRST, rising),
    "Lumina2Transformer2DModel": Family(layouts.lumina, (REFINER, JOINT), time=rising),
    "LuminaNextDiT2DModel": Family(by_shape, (LAYERS,), COND_FIRST, rising),
    "AuraFlowTransformer2DModel": Family(
        by_shape, (DUAL._replace(path="joint_transformer_blocks", registers=8), TAIL), UNCOND_FIRST, unit
    ),
    "HunyuanDiT2DModel": Family(by_shape, (BLOCKS,), UNCOND_FIRST),
    "PRXTransformer2DModel": Family(by_shape, (BLOCKS,), UNCOND_FIRST, unit),
    "CogView4Transformer2DModel": Family(by_shape, (IMAGE_FIRST,)),
    "GlmImageTransformer2DModel": Family(layouts.glm, (IMAGE_FIRST,), time=lambda t, top: t - 1),
    "DiTTransformer2DModel": Family(layouts.dit, (PLAIN,), COND_FIRST),
    "HiDreamImageTransformer2DModel": Family(
        layouts.hidream,
        (DOUBLE._replace(path="double_stream_blocks"), PLAIN._replace(path="single_stream_blocks", where="head")),
        UNCOND_FIRST,
    ),
    "OmniGenTransformer2DModel": Family(by_shape, (LAYERS._replace(where="tail"),), ("cond", "uncond", "extra")),
    "Krea2Transformer2DModel": Family(layouts.krea, (PLAIN._replace(where="tail"),), time=unit),
    "Ideogram4Transformer2DModel": Family(layouts.ideogram, (JOINT,), time=rising),
    "ErnieImageTransformer2DModel": Family(by_shape, (LAYERS._replace(where="head", swapped=True),), UNCOND_FIRST),
    "JoyImageEditTransformer3DModel": Family(layouts.joy, (DOUBLE,)),
    "JoyImageEditPlusTransformer3DModel": Family(layouts.joy_plus, (DOUBLE,), UNCOND_FIRST),
    # images and videos
    "PixArtTransformer2DModel AllegroTransformer3DModel SanaVideoTransformer3DModel": Family(
        by_shape, (PLAIN,), UNCOND_FIRST
    ),
    "CogView3PlusTransformer2DModel EasyAnimateTransformer3DModel MochiTransformer3DModel": Family(
        by_shape, (IMAGE_FIRST,), UNCOND_FIRST
    ),
    "HunyuanImageTransformer2DModel HunyuanVideoTransformer3DModel MotifVideoTransformer3DModel": Family(
        by_shape, (IMAGE_FIRST, SPLIT_IMAGE_FIRST)
    ),
    "HunyuanVideo15Transformer3DModel": Family(by_shape, (IMAGE_FIRST,)),
    "HunyuanVideoFramepackTransformer3DModel": Family(
        by_shape, (IMAGE_FIRST._replace(where="tail"), SPLIT_IMAGE_FIRST._replace(where="tail"))
    ),
    "Kandinsky5Transformer3DModel": Family(layouts.kandinsky5, (VISUAL,)),
    "Kandinsky6Transformer3DModel": Family(layouts.kandinsky6, (VISUAL._replace(output=0),)),
    # videos; the reference images of WanVACE are frames in front, which no call tells
    "WanTransformer3DModel SkyReelsV2Transformer3DModel ChronoEditTransformer3DModel WanVACETransformer3DModel": Family(
        by_shape, (BLOCKS,)
    ),
    "WanAnimateTransformer3DModel WanAnimate2Transformer3DModel": Family(layouts.animate, (BLOCKS,)),
    "HeliosTransformer3DModel": Family(by_shape, (BLOCKS._replace(where="tail"),)),
    "AnyFlowTransformer3DModel": Family(layouts.frames_first, (BLOCKS,), UNCOND_FIRST),
    "AnyFlowFARTransformer3DModel": Family(layouts.far, (BLOCKS,), UNCOND_FIRST),
    "SanaWMTransformer3DModel": Family(by_shape, (BLOCKS,), UNCOND_FIRST),
    "CogVideoXTransformer3DModel ConsisIDTransformer3DModel": Family(
        layouts.frames_first, (IMAGE_FIRST,), UNCOND_FIRST
    ),
    "LTXVideoTransformer3DModel": Family(layouts.ltx, (PLAIN,), UNCOND_FIRST),
    "LTX2VideoTransformer3DModel": Family(layouts.ltx, (PLAIN._replace(output=0),), UNCOND_FIRST),  # (video, audio)
    "CosmosTransformer3DModel": Family(by_shape, (PLAIN,), time=_cosmos),
    "MiniMaxH3Transformer3DModel": Family(layouts.minimax, (PLAIN._replace(where="joint"),)),
}
FAMILIES = {name: family for names, family in _GROUPS.items() for name in names.split()}

# Families whose pipelines put a prompt through the tokenizer's chat template first, and whether they let it think.
CHAT_TEMPLATES = {"Flux2Transformer2DModel": False, "ZImageTransformer2DModel": True}
WRAPPERS = (("module",), ("base_model", "model"))


def _row(transformer) -> Family | None:
    return next((FAMILIES[cls.__name__] for cls in type(transformer).__mro__ if cls.__name__ in FAMILIES), None)


def unwrap(transformer: torch.nn.Module) -> torch.nn.Module:
    """The model inside a wrapper of torch (DistributedDataParallel) or PEFT, or the model itself."""
    while _row(transformer) is None:
        inner = (reduce(lambda at, name: getattr(at, name, None), path, transformer) for path in WRAPPERS)
        inside = next((module for module in inner if isinstance(module, torch.nn.Module)), None)
        if inside is None:
            break
        transformer = inside
    return transformer


def transformers_of(pipe) -> list[tuple[torch.nn.Module, str | None]]:
    """The transformers of a pipeline, or a bare one, each with the branch it is bound to (None: told by the call)."""
    if isinstance(pipe, torch.nn.Module):
        return [(unwrap(pipe), None)]
    names = ("transformer", "transformer_2", "unconditional_transformer")
    first, second, uncond = (getattr(pipe, name, None) for name in names)
    if first is None:
        raise TypeError(
            f"{type(pipe).__name__} has no transformer; give a Diffusion Transformer pipeline or a bare transformer"
        )
    pairs = [(first, None if uncond is None else "cond"), (second, None), (uncond, "uncond")]
    return [(unwrap(module), branch) for module, branch in pairs if module is not None]


def family_of(transformer) -> Family:
    """The row of FAMILIES for a transformer's class or the nearest of its base classes.

    Raises TypeError, with a row to begin with, where there is none.
    """
    row = _row(transformer)
    if row is not None:
        return row
    name, lists = type(transformer).__name__, {}
    for path, module in transformer.named_modules():
        alike = isinstance(module, torch.nn.ModuleList) and len(module) > 1 and len({type(x) for x in module}) == 1
        if alike and not any(path.startswith(f"{outer}.") for outer in lists):
            lists[path] = module
    rows = ", ".join(f"BlockList({path!r}, 'single', None)" for path in lists or ["transformer_blocks"])
    raise TypeError(
        f"{name} is not a known Diffusion Transformer; add a row for it, such as\n"
        f"    from massact_utils.models.families import BlockList, Family, by_shape\n"
        f"    mu.FAMILIES[{name!r}] = Family(by_shape, ({rows},))\n"
        "for latents (B, C, H, W) and blocks that return the image tokens alone; docs/models.md has the other cases"
    )


def layout_of(transformer, call: dict) -> Layout | None:
    """The layout of a call with these arguments; None for one that denoises nothing.

    Raises ValueError for a call whose arguments do not tell the layout.
    """
    row, name = family_of(transformer), type(transformer).__name__
    try:
        return row.layout(transformer, call)
    except KeyError as missing:
        raise ValueError(f"{name} was called without {missing}, which tells its grid of tokens; pass it") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def block_modules(transformer) -> list[tuple[Block, torch.nn.Module, BlockList]]:
    """Every block of a transformer in execution order, with its module and the BlockList it belongs to."""
    listed, config = [], getattr(transformer, "config", {})
    heads = config.get("num_attention_heads", 0) * (config.get("attention_head_dim") or 0)
    named = [config.get(name) for name in ("hidden_size", "model_dim", "dim")]
    width = getattr(transformer, "inner_dim", None) or next(filter(None, named), heads)
    for blocks in family_of(transformer).lists:
        for i, module in enumerate(transformer.get_submodule(blocks.path)):
            listed.append((Block(len(listed), f"{blocks.path}.{i}", blocks.kind, width), module, blocks))
    return listed


def blocks(pipe) -> list[Block]:
    """The blocks whose image tokens a probe can see, in execution order, of a pipeline or a bare transformer.

    Raises TypeError for a pipeline without a transformer and for a transformer class that is not known.
    """
    return [block for block, _, _ in block_modules(transformers_of(pipe)[0][0])]


def pick(what: str, chosen, n: int | None):
    """Indices below n (a range or a list) that an int, a slice or a list of ints names; n None is without an end.

    Raises ValueError naming what does not exist, TypeError for anything else.

    >>> pick("layer", [0, -1], 5)
    [0, 4]
    """
    try:
        if chosen is None or isinstance(chosen, slice):
            if picked := range(n)[chosen or slice(None)]:
                return picked
            raise ValueError(f"{what}s {chosen} name none of the {n} there are")
        chosen = [*chosen] if hasattr(chosen, "__iter__") else [chosen]
        if any(isinstance(i, bool) for i in chosen):  # a mask, not places
            raise TypeError
        picked = [*map(index, chosen)]
    except TypeError:
        raise TypeError(f"{what}s have to be an int, a slice or a list of ints; got {chosen!r}") from None
    if wrong := [i for i in picked if not -n <= i < n]:
        raise ValueError(f"{what} {wrong[0]} does not exist; allowed: 0 to {n - 1}, or -1 to {-n} from the end")
    if not picked:
        raise ValueError(f"{what}s are an empty list; leave them out for all there are")
    return [i % n for i in picked]


def stream_of(blocks: BlockList, output, stream: str = "image") -> torch.Tensor | None:
    """The image or the text stream (B, S, D) in what a block returned; None where the block drops it."""
    place = blocks.output if stream == "image" else 1 - blocks.output
    tokens = output if place is None else output[place]
    return tokens.transpose(0, 1) if blocks.swapped and tokens is not None else tokens


def with_stream(blocks: BlockList, output, new: torch.Tensor, stream: str = "image"):
    """What a block returned, with another image or text stream (B, S, D) in it."""
    new = new.transpose(0, 1).contiguous() if blocks.swapped else new
    place = blocks.output if stream == "image" else 1 - blocks.output
    return new if place is None else type(output)(new if i == place else old for i, old in enumerate(output))


def take_tokens(stream: torch.Tensor, rows: slice, start: int | list[int], n: int) -> torch.Tensor:
    """The n tokens from `start` (per row, where a list) of some rows of a stream: (B, S, D) -> (rows, n, D)."""
    if isinstance(start, int):
        return stream[rows, start : start + n]
    return torch.stack([row[s : s + n] for row, s in zip(stream[rows], start[rows], strict=True)])


def put_tokens(stream: torch.Tensor, rows: slice, start: int | list[int], tokens: torch.Tensor) -> torch.Tensor:
    """A copy of a stream (B, S, D) with tokens (rows, N, D) where `take_tokens` takes them from."""
    if tokens.shape == stream.shape:
        return tokens
    stream, n = stream.clone(), tokens.shape[1]
    if isinstance(start, int):
        stream[rows, start : start + n] = tokens
    else:
        for row, s, new in zip(range(len(stream))[rows], start[rows], tokens, strict=True):
            stream[row, s : s + n] = new
    return stream


def target_tokens(blocks: BlockList, layout: Layout, block: Block, stream: torch.Tensor) -> tuple[int | list[int], int]:
    """First target token in an image stream (B, S, D), per row where rows differ, and their number N.

    Raises ValueError when the stream's length does not fit the layout.
    """
    length, n = stream.shape[1], math.prod(layout.grid)
    start = layout.joint if blocks.where == "joint" else layout.before
    start = start + length - layout.stream if blocks.where == "tail" else start
    if isinstance(start, list) and min(start) == max(start):
        start = start[0]
    first, last = (min(start), max(start)) if isinstance(start, list) else (start, start)
    if first < 0 or last + n > length or (blocks.where == "whole" and length != layout.stream):
        raise ValueError(
            f"{block.name} returned {length} tokens, which does not fit the {layout.stream} image tokens of the call "
            f"(grid {' x '.join(map(str, layout.grid))}): the class lays them out in another way; correct its row in "
            "mu.FAMILIES"
        )
    return start, n


def text_tokens(blocks: BlockList, layout: Layout, stream: torch.Tensor) -> tuple[int, int]:
    """First token of the prompt in a dual block's text stream (B, S, D), and their number, padding included."""
    n = stream.shape[1] - blocks.registers if layout.text is None else layout.text
    return blocks.registers, n

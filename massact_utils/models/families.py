"""Every supported Diffusion Transformer as one list of blocks: the only module that knows model families.

A family is a row of FAMILIES: how the grid of image tokens is read from the transformer's call, its lists of blocks in
execution order, and where the image tokens stand in what a block returns.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary


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


class Layout(NamedTuple):
    """Image tokens of a call: the target's grid, the length of the image stream (references included), how many of its
    tokens stand before the target, and where the target begins in a joint stream; lists where rows differ.

    - text: the number of text tokens that dual blocks pass on (None: all they return).
    - images: how many images the call denoises, where only the call itself tells.
    - timestep: the target's, where the call has those of other tokens, too.
    """

    grid: tuple[int, ...]
    stream: int
    before: int | list[int] = 0
    joint: int | list[int] = 0
    text: int | None = None
    images: int | None = None
    timestep: Any = None


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


_HOST = WeakIdKeyDictionary()  # position ids -> (version, copy): a pipeline passes the same ones in every call


def on_host(ids: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in the host's memory; the same tensor is read from the device once."""
    version = 0 if ids.is_inference() else ids._version
    if _HOST.get(ids, (None,))[0] != version:
        _HOST[ids] = version, ids.detach().cpu()
    return _HOST[ids][1]


def _grid(ids: torch.Tensor) -> tuple[int, int]:
    """(H, W) from position ids (N, 3 or 4) with the row on axis 1 and the column on axis 2."""
    return len(ids[:, 1].unique()), len(ids[:, 2].unique())


def by_ids(transformer, call) -> Layout:
    """Position ids name the tokens: the target has the lowest value on axis 0, references have higher ones."""
    ids = on_host(call["img_ids"])
    ids = ids[0] if ids.ndim == 3 else ids
    target = ids[:, 0] == ids[:, 0].min()
    first, n = int(target.int().argmax()), int(target.sum())
    if not target[first : first + n].all():
        raise ValueError(f"{type(transformer).__name__}: the target's image tokens are not contiguous in img_ids")
    return Layout(_grid(ids[target]), len(ids), first)


def raster(grid) -> Layout:
    """Nothing but the target, in raster order; a single frame is an image."""
    grid = tuple(map(int, grid))
    while len(grid) > 2 and grid[0] == 1:
        grid = grid[1:]
    return Layout(grid, math.prod(grid))


def _cut(transformer, call, sizes) -> Layout:
    """Sides (H, W), or (F, H, W) of a video, cut into patches in raster order."""
    config = transformer.config
    if len(sizes) < 2:
        shape = tuple(call["hidden_states"].shape)
        raise ValueError(f"{type(transformer).__name__}: latents of shape {shape} hide the grid")
    patch = config.patch_size
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)[-len(sizes) :]
    return raster(size // p for size, p in zip(sizes, patch, strict=True))


def by_shape(transformer, call) -> Layout:
    """Latents (B, C, H, W), or (B, C, F, H, W) of a video."""
    return _cut(transformer, call, call["hidden_states"].shape[2:])


def _frames_first(transformer, call) -> Layout:
    """Latents (B, F, C, H, W)."""
    frames, _, *sides = call["hidden_states"].shape[1:]
    return _cut(transformer, call, (frames, *sides))


def _channels_last(transformer, call) -> Layout:
    """Latents (B, F, H, W, C)."""
    if (call.get("sparse_params") or {}).get("to_fractal"):
        raise ValueError(
            f"{type(transformer).__name__}: sparse attention sorts the tokens by neighbourhoods, so that no raster is "
            "left; call it without sparse_params (attention_type 'regular')"
        )
    return _cut(transformer, call, call["hidden_states"].shape[1:-1])


def _shapes(call) -> list[tuple[int, int, int]]:
    """(F, H, W) of every image of the first row, in the order of img_shapes."""
    shapes = call["img_shapes"]
    shapes = [shapes] if isinstance(shapes[0], int) else shapes[0]
    return [shapes] if isinstance(shapes[0], int) else list(shapes)


def _qwen(transformer, call) -> Layout:
    """img_shapes lists (F, H, W): the target, then references; the layered model has many targets, one reference."""
    shapes = _shapes(call)
    targets = shapes[:1] if call.get("additional_t_cond") is None else shapes[:-1]  # layered
    frames = sum(f for f, _, _ in targets)
    return raster((frames, *targets[0][1:]))._replace(stream=sum(map(math.prod, shapes)))


def _last_shape(transformer, call) -> Layout:
    """img_shapes lists (F, H, W): references, then the target, which ends the joint stream."""
    return raster(_shapes(call)[-1])


def _joy(transformer, call) -> Layout:
    """Latents (B, images, C, F, H, W) with the target last, which the model moves to the front; or one image's."""
    latents, patch = call["hidden_states"], transformer.config.patch_size
    sizes = tuple(size // p for size, p in zip(latents.shape[-3:], patch, strict=True))
    images = latents.shape[1] if latents.ndim == 6 else 1
    return raster(sizes)._replace(stream=images * math.prod(sizes))


def _joy_plus(transformer, call) -> Layout:
    """Patches (B, N, C, 1, P, P) of the target, then of references, then padding; shape_list has (F, H, W) of each."""
    targets = {tuple(map(int, shapes[0])) for shapes in call["shape_list"]}
    if len(targets) > 1:
        raise ValueError(
            f"{type(transformer).__name__}: the rows of one batch have different grids {sorted(targets)}; "
            "generate images of one size in a batch"
        )
    return raster(targets.pop())._replace(stream=call["hidden_states"].shape[1])


def _kandinsky6(transformer, call) -> Layout:
    """Latents (B, F, H, W, C), of which frames of type 1, at the end, are a reference."""
    whole, types = _channels_last(transformer, call), call.get("visual_token_type_ids")
    if types is None:
        return whole
    return raster((int((on_host(types)[0] == 0).sum()), *whole.grid[-2:]))._replace(stream=whole.stream)


def _animate(transformer, call) -> Layout | None:
    """Latents (B, C, F, H, W), or a list of them, of which the first frame is the reference; a call of its own first
    fills Wan-Animate 2's cache with the driving video.
    """
    if call.get("kv_cache_mode") == "extract":
        return None
    whole = _cut(transformer, call, call["hidden_states"][0].shape[1:])
    frame = math.prod(whole.grid[-2:])
    return raster((whole.stream // frame - 1, *whole.grid[-2:]))._replace(stream=whole.stream, before=frame)


def _far(transformer, call) -> Layout | None:
    """A chunk of frames (B, F, C, H, W); calls between chunks only write what is finished to the cache."""
    flags = call.get("kv_cache_flag") or {}
    return None if flags.get("is_cache_step") else _frames_first(transformer, call)


def _minimax(transformer, call) -> Layout:
    """The generated video is the last run of video rows in a packed sequence; position ids hold time, row, column."""
    rows = on_host(call["video_indices"]).tolist()
    n = next((i for i in range(1, len(rows)) if rows[-i - 1] != rows[-i] - 1), len(rows))
    ids = on_host(call["position_ids"])[rows[-n:]]
    grid = tuple(len(ids[:, axis].unique()) for axis in range(3))
    if math.prod(grid) != n:
        raise ValueError(f"{type(transformer).__name__}: position_ids make no grid of the {n} generated video tokens")
    timestep = call["timestep"][call["timestep_indices"][rows[-1]]]
    return raster(grid)._replace(joint=rows[-n], timestep=timestep)


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
    return raster(grid)._replace(stream=max(before) + padded(tokens(target)), before=before, joint=joint)


def _hidream(transformer, call) -> Layout:
    """Text of T5 and of Llama's last layer; each block takes another layer's in addition, and hands it to no other."""
    text = call["encoder_hidden_states_t5"].shape[1] + call["encoder_hidden_states_llama3"].shape[-2]
    return by_shape(transformer, call)._replace(text=text)


def _lumina(transformer, call) -> Layout:
    """In the joint stream a row's image follows its own text, without the padding."""
    return by_shape(transformer, call)._replace(joint=on_host(call["encoder_attention_mask"]).sum(1).tolist())


def _fibo2(transformer, call) -> Layout:
    """In the joint stream gist tokens come first, or last when rows differ in their number; references follow the
    image.
    """
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    mask, text, config = call.get("encoder_attention_mask"), call["encoder_hidden_states"], transformer.config
    lengths = [text.shape[2]] * len(text) if mask is None else on_host(mask).sum(1).tolist()
    names = ("min_num_gist_tokens", "max_num_gist_tokens", "gist_step", "gist_min_text_len", "gist_max_text_len")
    counts = set(compute_gist_count(lengths, *(config[name] for name in names)))
    return by_shape(transformer, call)._replace(joint=counts.pop() if len(counts) == 1 else 0)


def _glm(transformer, call) -> Layout | None:
    """Before the first step, references are written to a cache by calls of their own."""
    caches = call.get("kv_caches")
    return None if caches is not None and caches[0].mode == "write" else by_shape(transformer, call)


def _krea(transformer, call) -> Layout:
    """The last position ids are the image's."""
    n = call["hidden_states"].shape[1]
    return Layout(_grid(on_host(call["position_ids"])[-n:]), n)


def _ideogram(transformer, call) -> Layout:
    """An indicator marks the image tokens of a packed sequence of text and image."""
    from diffusers.models.transformers.transformer_ideogram4 import OUTPUT_IMAGE_INDICATOR

    image = on_host(call["indicator"]) == OUTPUT_IMAGE_INDICATOR
    grid = _grid(on_host(call["position_ids"])[0][image[0]])
    return Layout(grid, math.prod(grid), joint=image.int().argmax(1).tolist())


def _ltx(transformer, call) -> Layout:
    """The size of the latent video is passed along, or the place of every token, in pixels and seconds."""
    if call.get("num_frames") is not None or call.get("video_coords") is None:
        return raster((call["num_frames"], call["height"], call["width"]))
    coordinates = on_host(call["video_coords"])[0]  # 3 N, or 3 N 2 with the end of each
    coordinates = coordinates[..., 0] if coordinates.ndim == 3 else coordinates
    grid = tuple(len(axis.unique()) for axis in coordinates)
    if math.prod(grid) != coordinates.shape[1]:
        raise ValueError(
            f"{type(transformer).__name__}: {coordinates.shape[1]} tokens make no grid {grid}; "
            "leave out conditions beyond the first frame"
        )
    return raster(grid)


def _dit(transformer, call) -> Layout:
    """Where guidance doubles the batch, half of the class labels are the empty one."""
    labels = on_host(call["class_labels"])
    return by_shape(transformer, call)._replace(images=int((labels < transformer.config.num_embeds_ada_norm).sum()))


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
DUAL_IMAGE_FIRST = BlockList("transformer_blocks", "dual", 0)
SPLIT = BlockList("single_transformer_blocks", "single", 1)  # joined inside, returned as (text, image)
TAIL = BlockList("single_transformer_blocks", "single", None, "tail")  # one tensor, text before image
PLAIN = BlockList("transformer_blocks", "single", None)  # image only; text enters by cross-attention
BLOCKS, LAYERS = PLAIN._replace(path="blocks"), PLAIN._replace(path="layers")
SPLIT_IMAGE_FIRST = SPLIT._replace(output=0)
UNCOND_FIRST, COND_FIRST = ("uncond", "cond"), ("cond", "uncond")

FAMILIES = {
    "FluxTransformer2DModel": Family(by_ids, (DUAL, SPLIT), time=unit),
    "Flux2Transformer2DModel": Family(by_ids, (DUAL, TAIL), time=unit),
    "QwenImageTransformer2DModel": Family(_qwen, (DUAL,), time=unit),
    "SD3Transformer2DModel": Family(by_shape, (DUAL,), UNCOND_FIRST),
    "PixArtTransformer2DModel": Family(by_shape, (PLAIN,), UNCOND_FIRST),
    "SanaTransformer2DModel": Family(by_shape, (PLAIN,), UNCOND_FIRST, time=_sana),
    "ZImageTransformer2DModel": Family(
        _z_image,
        (BlockList("noise_refiner", "single", None, "head"), LAYERS._replace(where="joint")),
        COND_FIRST,
        time=rising,
    ),
    "Lumina2Transformer2DModel": Family(
        _lumina, (BlockList("noise_refiner", "single", None), LAYERS._replace(where="joint")), time=rising
    ),
    "AuraFlowTransformer2DModel": Family(
        by_shape, (BlockList("joint_transformer_blocks", "dual", 1, registers=8), TAIL), UNCOND_FIRST, time=unit
    ),
    "HunyuanDiT2DModel": Family(by_shape, (BLOCKS,), UNCOND_FIRST),
    "HunyuanImageTransformer2DModel": Family(by_shape, (DUAL_IMAGE_FIRST, SPLIT_IMAGE_FIRST)),
    "CogView4Transformer2DModel": Family(by_shape, (DUAL_IMAGE_FIRST,)),
    "ChromaTransformer2DModel": Family(by_ids, (DUAL, TAIL), time=unit),
    "DiTTransformer2DModel": Family(_dit, (PLAIN,), COND_FIRST),
    "HiDreamImageTransformer2DModel": Family(
        _hidream,
        (
            BlockList("double_stream_blocks", "dual", 0, "head"),
            BlockList("single_stream_blocks", "single", None, "head"),
        ),
        UNCOND_FIRST,
    ),
    "OmniGenTransformer2DModel": Family(by_shape, (LAYERS._replace(where="tail"),), ("cond", "uncond", "extra")),
    "BriaTransformer2DModel": Family(by_ids, (DUAL, SPLIT), UNCOND_FIRST),
    "BriaFiboTransformer2DModel": Family(by_ids, (DUAL, TAIL), UNCOND_FIRST),
    "BriaFibo2Transformer2DModel": Family(
        _fibo2, (BlockList("noise_refiner", "single", None, "head"), LAYERS._replace(where="joint")), time=unit
    ),
    "Krea2Transformer2DModel": Family(_krea, (PLAIN._replace(where="tail"),), time=unit),
    "Ideogram4Transformer2DModel": Family(_ideogram, (LAYERS._replace(where="joint"),), time=rising),
    "GlmImageTransformer2DModel": Family(_glm, (DUAL_IMAGE_FIRST,), time=lambda t, top: t - 1),
    "LongCatImageTransformer2DModel": Family(by_ids, (DUAL, SPLIT), time=unit),
    "OvisImageTransformer2DModel": Family(by_ids, (DUAL, SPLIT), time=unit),
    "WanTransformer3DModel": Family(by_shape, (BLOCKS,)),
    "LTXVideoTransformer3DModel": Family(_ltx, (PLAIN,), UNCOND_FIRST),
    "Flux3Transformer2DModel": Family(
        by_ids, (BlockList("mode_blocks.image", "single", None), SPLIT._replace(where="head")), time=unit
    ),
    "QwenImage21Transformer2DModel": Family(_last_shape, (PLAIN._replace(where="tail"),), time=unit),
    "ErnieImageTransformer2DModel": Family(by_shape, (LAYERS._replace(where="head", swapped=True),), UNCOND_FIRST),
    "NucleusMoEImageTransformer2DModel": Family(_last_shape, (PLAIN,), time=unit),
    "JoyImageEditTransformer3DModel": Family(_joy, (BlockList("double_blocks", "dual", 0, "head"),)),
    "JoyImageEditPlusTransformer3DModel": Family(
        _joy_plus, (BlockList("double_blocks", "dual", 0, "head"),), UNCOND_FIRST
    ),
    "Kandinsky5Transformer3DModel": Family(_channels_last, (BlockList("visual_transformer_blocks", "single", None),)),
    "Kandinsky6Transformer3DModel": Family(_kandinsky6, (BlockList("visual_transformer_blocks", "single", 0),)),
    "PRXTransformer2DModel": Family(by_shape, (BLOCKS,), UNCOND_FIRST, time=unit),
    "CogView3PlusTransformer2DModel": Family(by_shape, (DUAL_IMAGE_FIRST,), UNCOND_FIRST),
    "LuminaNextDiT2DModel": Family(by_shape, (LAYERS,), COND_FIRST, time=rising),
    "CogVideoXTransformer3DModel": Family(_frames_first, (DUAL_IMAGE_FIRST,), UNCOND_FIRST),
    "ConsisIDTransformer3DModel": Family(_frames_first, (DUAL_IMAGE_FIRST,), UNCOND_FIRST),
    "EasyAnimateTransformer3DModel": Family(by_shape, (DUAL_IMAGE_FIRST,), UNCOND_FIRST),
    "MochiTransformer3DModel": Family(by_shape, (DUAL_IMAGE_FIRST,), UNCOND_FIRST),
    "HunyuanVideoTransformer3DModel": Family(by_shape, (DUAL_IMAGE_FIRST, SPLIT_IMAGE_FIRST)),
    "HunyuanVideo15Transformer3DModel": Family(by_shape, (DUAL_IMAGE_FIRST,)),
    "HunyuanVideoFramepackTransformer3DModel": Family(
        by_shape, (DUAL_IMAGE_FIRST._replace(where="tail"), SPLIT_IMAGE_FIRST._replace(where="tail"))
    ),
    "MotifVideoTransformer3DModel": Family(by_shape, (DUAL_IMAGE_FIRST, SPLIT_IMAGE_FIRST)),
    "AllegroTransformer3DModel": Family(by_shape, (PLAIN,), UNCOND_FIRST),
    "CosmosTransformer3DModel": Family(by_shape, (PLAIN,), time=_cosmos),
    "SanaVideoTransformer3DModel": Family(by_shape, (PLAIN,), UNCOND_FIRST),
    "SanaWMTransformer3DModel": Family(by_shape, (BLOCKS,), UNCOND_FIRST),
    "LTX2VideoTransformer3DModel": Family(_ltx, (PLAIN._replace(output=0),), UNCOND_FIRST),  # (video, audio)
    "SkyReelsV2Transformer3DModel": Family(by_shape, (BLOCKS,)),
    "ChronoEditTransformer3DModel": Family(by_shape, (BLOCKS,)),
    "WanVACETransformer3DModel": Family(by_shape, (BLOCKS,)),  # reference images are frames in front: no call tells
    "WanAnimateTransformer3DModel": Family(_animate, (BLOCKS,)),
    "WanAnimate2Transformer3DModel": Family(_animate, (BLOCKS,)),
    "HeliosTransformer3DModel": Family(by_shape, (BLOCKS._replace(where="tail"),)),
    "AnyFlowTransformer3DModel": Family(_frames_first, (BLOCKS,), UNCOND_FIRST),
    "AnyFlowFARTransformer3DModel": Family(_far, (BLOCKS,), UNCOND_FIRST),
    "MiniMaxH3Transformer3DModel": Family(_minimax, (PLAIN._replace(where="joint"),)),
}

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

    Raises ValueError for a call without an argument that tells the layout.
    """
    try:
        return family_of(transformer).layout(transformer, call)
    except KeyError as missing:
        raise ValueError(
            f"{type(transformer).__name__} was called without {missing}, which tells its grid of tokens; pass it, or "
            "give the class a layout of your own in mu.FAMILIES"
        ) from None


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

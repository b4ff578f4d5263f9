"""Layouts: where a transformer's call says that the target's image tokens stand, a function for each way to say it."""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary


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


_HOST = WeakIdKeyDictionary()  # position ids -> (version, copy): a pipeline passes the same ones in every call


def on_host(ids: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in the host's memory; the same tensor is read from the device once."""
    version = 0 if ids.is_inference() else ids._version
    if _HOST.get(ids, (None,))[0] != version:
        _HOST[ids] = version, ids.detach().cpu()
    return _HOST[ids][1]


def _grid(ids: torch.Tensor, axes=(1, 2)) -> tuple[int, ...]:
    """(H, W) of a raster, or (F, H, W), from position ids (N, 3 or 4): how many values there are on each axis."""
    grid = tuple(len(ids[:, axis].unique()) for axis in axes)
    if math.prod(grid) != len(ids):
        raise ValueError(f"{len(ids)} target tokens make no grid {grid}; leave out conditions beyond the first frame")
    return grid


def by_ids(transformer, call) -> Layout:
    """Position ids name the tokens: the target has the lowest value on axis 0, references have higher ones."""
    ids = on_host(call["img_ids"])
    ids = ids[0] if ids.ndim == 3 else ids
    target = ids[:, 0] == ids[:, 0].min()
    first, n = int(target.int().argmax()), int(target.sum())
    if not target[first : first + n].all():
        raise ValueError("the target's image tokens are not contiguous in img_ids")
    return Layout(_grid(ids[target]), len(ids), first)


def raster(grid) -> Layout:
    """Nothing but the target, in raster order; a single frame is an image."""
    grid = tuple(map(int, grid))
    while len(grid) > 2 and grid[0] == 1:
        grid = grid[1:]
    return Layout(grid, math.prod(grid))


def _cut(transformer, sizes) -> Layout:
    """Sides (H, W), or (F, H, W) of a video, cut into patches in raster order."""
    config = transformer.config
    patch = config.patch_size
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)[-len(sizes) :]
    return raster(size // p for size, p in zip(sizes, patch, strict=True))


def by_shape(transformer, call, sides=None) -> Layout:
    """Latents (B, C, H, W), or (B, C, F, H, W) of a video; in another order, `sides` are the axes of F, H and W."""
    shape = tuple(call["hidden_states"].shape)
    if len(shape) < 4:
        raise ValueError(f"latents of shape {shape} hide the grid")
    return _cut(transformer, [shape[i] for i in sides or range(2, len(shape))])


frames_first = partial(by_shape, sides=(1, 3, 4))  # B F C H W
channels_last = partial(by_shape, sides=(1, 2, 3))  # B F H W C


def kandinsky5(transformer, call) -> Layout:
    """Latents (B, F, H, W, C), whose tokens keep their order unless attention is sparse."""
    if (call.get("sparse_params") or {}).get("to_fractal"):
        raise ValueError("sparse attention sorts the tokens, so that no raster is left; call it without sparse_params")
    return channels_last(transformer, call)


def _shapes(call) -> list[tuple[int, int, int]]:
    """(F, H, W) of every image of the first row, in the order of img_shapes."""
    shapes = call["img_shapes"]
    shapes = [shapes] if isinstance(shapes[0], int) else shapes[0]
    return [shapes] if isinstance(shapes[0], int) else list(shapes)


def qwen(transformer, call) -> Layout:
    """img_shapes lists (F, H, W): the target, then references; the layered model has many targets, one reference."""
    shapes = _shapes(call)
    targets = shapes[:1] if call.get("additional_t_cond") is None else shapes[:-1]  # layered
    frames = sum(f for f, _, _ in targets)
    return raster((frames, *targets[0][1:]))._replace(stream=sum(map(math.prod, shapes)))


def last_shape(transformer, call) -> Layout:
    """img_shapes lists (F, H, W): references, then the target, which ends the joint stream."""
    return raster(_shapes(call)[-1])


def joy(transformer, call) -> Layout:
    """Latents (B, images, C, F, H, W) with the target last, which the model moves to the front; or one image's."""
    latents = call["hidden_states"]
    target = _cut(transformer, latents.shape[-3:])
    return target._replace(stream=target.stream * (latents.shape[1] if latents.ndim == 6 else 1))


def joy_plus(transformer, call) -> Layout:
    """Patches (B, N, C, 1, P, P) of the target, then of references, then padding; shape_list has (F, H, W) of each."""
    targets = {tuple(map(int, shapes[0])) for shapes in call["shape_list"]}
    if len(targets) > 1:
        raise ValueError(f"rows of one batch have different grids {sorted(targets)}; generate images of one size")
    return raster(targets.pop())._replace(stream=call["hidden_states"].shape[1])


def kandinsky6(transformer, call) -> Layout:
    """Latents (B, F, H, W, C), of which frames of type 1, at the end, are a reference."""
    whole, types = kandinsky5(transformer, call), call.get("visual_token_type_ids")
    if types is None:
        return whole
    return raster((int((on_host(types)[0] == 0).sum()), *whole.grid[-2:]))._replace(stream=whole.stream)


def animate(transformer, call) -> Layout | None:
    """Latents (B, C, F, H, W), or a list of them, of which the first frame is the reference; a call of its own first
    fills Wan-Animate 2's cache with the driving video.
    """
    if call.get("kv_cache_mode") == "extract":
        return None
    whole = _cut(transformer, call["hidden_states"][0].shape[1:])
    frame = math.prod(whole.grid[-2:])
    return raster((whole.stream // frame - 1, *whole.grid[-2:]))._replace(stream=whole.stream, before=frame)


def far(transformer, call) -> Layout | None:
    """A chunk of frames (B, F, C, H, W); calls between chunks only write what is finished to the cache."""
    flags = call.get("kv_cache_flag") or {}
    return None if flags.get("is_cache_step") else frames_first(transformer, call)


def minimax(transformer, call) -> Layout:
    """The generated video is the last run of video rows in a packed sequence; position ids hold time, row, column."""
    rows = on_host(call["video_indices"]).tolist()
    n = next((i for i in range(1, len(rows)) if rows[-i - 1] != rows[-i] - 1), len(rows))
    grid = _grid(on_host(call["position_ids"])[rows[-n:]], (0, 1, 2))
    timestep = call["timestep"][call["timestep_indices"][rows[-1]]]
    return raster(grid)._replace(joint=rows[-n], timestep=timestep)


def z_image(transformer, call) -> Layout:
    """A list of latents (C, F, H, W), or of lists of them, target last; each piece is padded to a multiple of 32."""
    latents, patch = call["hidden_states"], (call.get("f_patch_size", 1), *[call.get("patch_size", 2)] * 2)

    def grid(x):
        return [size // p for size, p in zip(x.shape[1:], patch, strict=True)]

    def padded(n):
        return 32 * math.ceil(n / 32)

    if not isinstance(latents[0], list):
        target = raster(grid(latents[0]))
        return target._replace(stream=padded(target.stream))
    target = raster(grid(latents[0][-1]))
    before = [sum(32 if x is None else padded(math.prod(grid(x))) for x in row[:-1]) for row in latents]
    texts = [sum(padded(len(text)) for text in row) for row in call["cap_feats"]]
    joint = [n + text for n, text in zip(before, texts, strict=True)]
    return target._replace(stream=max(before) + padded(target.stream), before=before, joint=joint)


def hidream(transformer, call) -> Layout:
    """Text of T5 and of Llama's last layer; each block takes another layer's in addition, and hands it to no other."""
    text = call["encoder_hidden_states_t5"].shape[1] + call["encoder_hidden_states_llama3"].shape[-2]
    return by_shape(transformer, call)._replace(text=text)


def lumina(transformer, call) -> Layout:
    """In the joint stream a row's image follows its own text, without the padding."""
    return by_shape(transformer, call)._replace(joint=on_host(call["encoder_attention_mask"]).sum(1).tolist())


def fibo2(transformer, call) -> Layout:
    """In the joint stream gist tokens come first, or last when rows differ in their number; references follow the
    image.
    """
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    mask, text, config = call.get("encoder_attention_mask"), call["encoder_hidden_states"], transformer.config
    lengths = [text.shape[2]] * len(text) if mask is None else on_host(mask).sum(1).tolist()
    names = ("min_num_gist_tokens", "max_num_gist_tokens", "gist_step", "gist_min_text_len", "gist_max_text_len")
    counts = set(compute_gist_count(lengths, *(config[name] for name in names)))
    return by_shape(transformer, call)._replace(joint=counts.pop() if len(counts) == 1 else 0)


def glm(transformer, call) -> Layout | None:
    """Before the first step, references are written to a cache by calls of their own."""
    caches = call.get("kv_caches")
    return None if caches is not None and caches[0].mode == "write" else by_shape(transformer, call)


def krea(transformer, call) -> Layout:
    """The last position ids are the image's."""
    n = call["hidden_states"].shape[1]
    return Layout(_grid(on_host(call["position_ids"])[-n:]), n)


def ideogram(transformer, call) -> Layout:
    """An indicator marks the image tokens of a packed sequence of text and image."""
    from diffusers.models.transformers.transformer_ideogram4 import OUTPUT_IMAGE_INDICATOR

    image = on_host(call["indicator"]) == OUTPUT_IMAGE_INDICATOR
    grid = _grid(on_host(call["position_ids"])[0][image[0]])
    return Layout(grid, math.prod(grid), joint=image.int().argmax(1).tolist())


def ltx(transformer, call) -> Layout:
    """The size of the latent video is passed along, or the place of every token, in pixels and seconds."""
    if call.get("num_frames") is not None or call.get("video_coords") is None:
        return raster((call["num_frames"], call["height"], call["width"]))
    places = on_host(call["video_coords"])[0]  # 3 N, or 3 N 2 with the end of each
    return raster(_grid((places[..., 0] if places.ndim == 3 else places).mT, (0, 1, 2)))


def dit(transformer, call) -> Layout:
    """Where guidance doubles the batch, half of the class labels are the empty one."""
    labels = on_host(call["class_labels"])
    return by_shape(transformer, call)._replace(images=int((labels < transformer.config.num_embeds_ada_norm).sum()))

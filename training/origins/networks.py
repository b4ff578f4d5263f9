"""Small transformers of diffusers' classes, each called in its own way, and their modulation read and edited."""

from contextlib import ExitStack, contextmanager
from functools import partial

import diffusers
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

import massact_utils as mu

from . import changes

GRID, LATENTS, TEXT = 6, 32, 288  # tokens of a side, of the embedded autoencoder, of the embedded text encoder
HEAD, DUAL, SINGLE = 32, 1, 4  # width of a head; blocks of the two kinds, together the depth of a class with one kind
CLASSES = {
    "Flux2Transformer2DModel": "flux2",
    "FluxTransformer2DModel": "flux1",
    "SD3Transformer2DModel": "sd3",
    "QwenImageTransformer2DModel": "qwen",
    "SanaTransformer2DModel": "sana",
    "PixArtTransformer2DModel": "pixart",
    "Lumina2Transformer2DModel": "lumina",
}
ONE_PROJECTION = ("pixart", "sana")  # from which all blocks get their modulation, each with a table of its own
ZERO = ("modulation", "norm_out", "_mod.1", "norm1.linear", "norm1_context.linear", ".norm.linear")
ZERO += ("adaln_single.linear", "time_embed.linear")  # parts of the names of what starts at zero

# ---------------------------------------------------------------- classes, and how each is called


def build(family: str, width: int = 128) -> nn.Module:
    """A transformer of 5 blocks; those whose class has two kinds of blocks have 1 of the first and 4 of the second."""
    heads, depth = width // HEAD, DUAL + SINGLE
    common = dict(in_channels=LATENTS, num_attention_heads=heads)
    if family != "lumina":
        common["attention_head_dim"] = HEAD
    square = dict(out_channels=LATENTS, sample_size=GRID, patch_size=1, num_layers=depth)
    two_kinds = dict(joint_attention_dim=TEXT, num_layers=DUAL, num_single_layers=SINGLE)
    own = {
        "flux2": two_kinds | dict(timestep_guidance_channels=128, axes_dims_rope=(4, 12, 12, 4), guidance_embeds=False),
        "flux1": two_kinds | dict(pooled_projection_dim=TEXT, axes_dims_rope=(8, 12, 12), patch_size=1),
        "sd3": square
        | dict(joint_attention_dim=TEXT, pooled_projection_dim=TEXT, caption_projection_dim=width)
        | dict(pos_embed_max_size=GRID, qk_norm="rms_norm"),
        "qwen": dict(joint_attention_dim=TEXT, out_channels=LATENTS, patch_size=1, num_layers=depth)
        | dict(axes_dims_rope=(8, 12, 12)),
        "sana": square
        | dict(num_cross_attention_heads=heads, cross_attention_head_dim=HEAD, cross_attention_dim=width)
        | dict(caption_channels=TEXT, qk_norm="rms_norm_across_heads", interpolation_scale=1.0),
        "pixart": square | dict(cross_attention_dim=width, caption_channels=TEXT, use_additional_conditions=False),
        "lumina": dict(hidden_size=width, num_layers=depth - 1, num_refiner_layers=1, num_kv_heads=heads)
        | dict(axes_dim_rope=(8, 12, 12), axes_lens=(64, 16, 16), cap_feat_dim=TEXT, multiple_of=32)
        | dict(sample_size=GRID, patch_size=1),
    }[family]
    name = next(name for name, short in CLASSES.items() if short == family)
    return getattr(diffusers, name)(**common, **own)


def call(family, model, x, sigma, text, cells=slice(None)):
    """A class's own call: latents (B, N, 32), sigma (B,), text states (B, T, 288) -> (B, N, 32)."""
    common = dict(encoder_hidden_states=text, return_dict=False)
    pooled = dict(pooled_projections=text.mean(1)) if family in ("flux1", "sd3") else {}
    if family in ("flux1", "flux2"):
        axes = 4 if family == "flux2" else 3
        ids = dict(img_ids=image_ids(cells, axes).to(x.device), txt_ids=text_ids(text.shape[1], axes).to(x.device))
        return model(hidden_states=x, timestep=sigma, **ids, **pooled, **common)[0]
    if family == "qwen":
        return model(hidden_states=x, timestep=sigma, img_shapes=[[(1, GRID, GRID)]] * len(x), **common)[0]
    own = dict(added_cond_kwargs={}) if family == "pixart" else {}
    if family == "lumina":
        own = dict(encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.long, device=x.device))
    square = x.mT.unflatten(2, (GRID, GRID))  # B C H W
    return model(hidden_states=square, timestep=sigma * 1000, **own, **pooled, **common)[0].flatten(2).mT


def image_ids(cells=slice(None), axes=4):
    """Position ids of image tokens (N, axes), laid over the 12 x 12 of the embedded model."""
    side, zero = (torch.arange(GRID) + 0.5) * (12 / GRID) - 0.5, torch.zeros(1)
    return torch.cartesian_prod(*(zero, side, side, zero)[:axes])[cells]


def text_ids(length, axes=4):
    """Position ids of text tokens (T, axes)."""
    ids = torch.zeros(length, axes)
    ids[:, 3:] = torch.arange(length)[:, None]
    return ids


def blocks_of(model) -> list[nn.Module]:
    """The blocks through which image tokens pass."""
    return [model.get_submodule(block.name) for block in mu.blocks(model)]


# ---------------------------------------------------------------- the net that is trained


class Net(nn.Module):
    """A transformer and what a change puts around it.

    `change` may name a family, and of FLUX.2's class: modulation parts that are `off` or one `scalar` for all channels,
    a `gated_norm`, a learned `bias` after each block, `rotated` weights.
    """

    def __init__(self, change: dict):
        super().__init__()
        self.family = change.get("family", "flux2")
        self.transformer = model = build(self.family, change.get("width", 128))
        start(model)
        self.time_token = "shift" in change.get("off", ())
        if change.keys() & {"off", "scalar"}:
            changes.modulate(model, change.get("off", ()), change.get("scalar", False))
        if change.get("gated_norm"):
            changes.gate_norms(model, blocks_of(model))
        if change.get("bias"):
            changes.add_biases(model, blocks_of(model))
        if change.get("rotated"):
            changes.rotate(model)

    def forward(self, noisy, sigma, text, cells=slice(None)):
        """The velocity, noise minus image, of noisy latents (B, N, 32) at sigma (B,), given text states (B, T, 288)."""
        if self.time_token:
            text = torch.cat([get_timestep_embedding(1000 * sigma, TEXT, True, 0)[:, None].to(text), text], 1)
        return call(self.family, self.transformer, noisy, sigma, text, cells)


def start(model):
    """Matrices by Xavier; modulation and output start at zero, so that every block begins as the identity."""
    for name, parameter in model.named_parameters():  # FLUX.1's blocks have a proj_out, too: behind a gate, so not zero
        if any(part in name for part in ZERO) or name.startswith("proj_out"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2 and "table" not in name:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("scale_shift_table"):  # PixArt and SANA: a constant part, beside the part of the time
            nn.init.zeros_(parameter)


# ---------------------------------------------------------------- modulations, read and edited


@contextmanager
def modulated(net, probe=None):
    """Gives {block: (B, sets, 3, D)}: the shift, scale and gate that its image tokens got in the net's last call.

    `probe(block, factors)` sees them at every call, and returns others in their place, or None. Of PixArt's and SANA's
    classes, whose blocks share one projection, others raise ValueError. Lumina's has no shift, and the tanh of its gate
    is taken. `net` is anything with a transformer of one of the classes and the `family` by which `build` knows it.
    """
    model, family, factors = net.transformer, net.family, {}
    width = mu.blocks(model)[0].width

    def read(block, out):
        if family == "lumina":
            scale, gate = out.unflatten(-1, (-1, 2, width)).unbind(-2)
            return torch.stack([torch.zeros_like(scale), scale, gate.tanh()], -2)
        read = out.unflatten(-1, (-1, 3, width))
        return read + block.scale_shift_table.unflatten(0, (-1, 3)) if family in ONE_PROJECTION else read

    def write(edited):
        if family in ONE_PROJECTION:
            raise ValueError(f"the blocks of {family} share one projection; its factors can be read, not edited")
        if family == "lumina":
            gate = edited[..., 2, :].clamp(-1 + 1e-6, 1 - 1e-6).atanh()
            edited = torch.stack([edited[..., 1, :], gate], -2)
        return edited.flatten(1)

    def look(index, block, out):
        factors[index] = read(block, out)
        edited = None if probe is None else probe(index, factors[index])
        return None if edited is None else write(edited)

    def on_call(index, block, args, kwargs):  # FLUX.2's blocks are given their modulation
        name = "temb_mod_img" if hasattr(block, "norm1") else "temb_mod"
        edited = look(index, block, kwargs[name])
        return None if edited is None else (args, kwargs | {name: edited})

    with ExitStack() as hooks:
        for index, block in enumerate(blocks_of(model)):
            if family == "flux2":
                handle = block.register_forward_pre_hook(
                    lambda block, args, kwargs, index=index: on_call(index, block, args, kwargs), with_kwargs=True
                )
            else:
                see = partial(look, index, block)
                handle = projection(family, model, block).register_forward_hook(lambda _, args, out, see=see: see(out))
            hooks.callback(handle.remove)
        yield factors


def projection(family, model, block) -> nn.Module:
    """The layer that makes a block's modulation of its image tokens."""
    if family in ONE_PROJECTION:
        return (model.adaln_single if family == "pixart" else model.time_embed).linear
    layer = block.img_mod if family == "qwen" else getattr(block, "norm1", None) or block.norm
    return getattr(layer, "linear", layer)

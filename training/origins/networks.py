"""Small transformers of diffusers' classes, and what is changed in one of them: all that train.py trains.

Every class keeps its own code. A change replaces a module of the built model, hooks it, or parametrises its weights.
All changes but `family` are of FLUX.2's class, the common base.
"""

from contextlib import contextmanager

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.nn.utils import parametrize

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

# ---------------------------------------------------------------- classes, and how each is called


def ids(cells=slice(None), text=0, axes=4):
    """Position ids of image tokens, laid over the 12 x 12 of the embedded model, or of text tokens (Flux's classes)."""
    if text:
        where = torch.zeros(text, axes)
        where[:, 3:] = torch.arange(text)[:, None]
        return where
    axis, zero = (torch.arange(GRID) + 0.5) * (12 / GRID) - 0.5, torch.zeros(1)
    return torch.cartesian_prod(*(zero, axis, axis, zero)[:axes])[cells]


def as_image(x):  # B N C -> B C H W
    return x.mT.unflatten(2, (GRID, GRID))


def build(family: str, width: int = 128) -> nn.Module:
    """A transformer of 5 blocks; those whose class has two kinds of blocks have 1 of the first and 4 of the second."""
    heads, depth = dict(attention_head_dim=HEAD, num_attention_heads=width // HEAD), DUAL + SINGLE
    square = dict(in_channels=LATENTS, out_channels=LATENTS, sample_size=GRID, patch_size=1, num_layers=depth)
    joint = dict(joint_attention_dim=TEXT, in_channels=LATENTS)
    if family == "flux2":
        more = dict(timestep_guidance_channels=128, axes_dims_rope=(4, 12, 12, 4), guidance_embeds=False)
        sizes = dict(num_layers=DUAL, num_single_layers=SINGLE)
        return diffusers.Flux2Transformer2DModel(**heads, **joint, **sizes, **more)
    if family == "flux1":
        more = dict(pooled_projection_dim=TEXT, axes_dims_rope=(8, 12, 12), num_layers=DUAL, num_single_layers=SINGLE)
        return diffusers.FluxTransformer2DModel(patch_size=1, **heads, **joint, **more)
    if family == "sd3":
        more = dict(
            caption_projection_dim=width, pooled_projection_dim=TEXT, pos_embed_max_size=GRID, qk_norm="rms_norm"
        )
        return diffusers.SD3Transformer2DModel(joint_attention_dim=TEXT, **square, **heads, **more)
    if family == "qwen":
        more = dict(out_channels=LATENTS, patch_size=1, num_layers=depth, axes_dims_rope=(8, 12, 12))
        return diffusers.QwenImageTransformer2DModel(**heads, **joint, **more)
    if family == "sana":
        cross = dict(num_cross_attention_heads=width // HEAD, cross_attention_head_dim=HEAD, cross_attention_dim=width)
        more = dict(caption_channels=TEXT, qk_norm="rms_norm_across_heads", interpolation_scale=1.0)
        return diffusers.SanaTransformer2DModel(**square, **heads, **cross, **more)
    if family == "pixart":
        more = dict(cross_attention_dim=width, caption_channels=TEXT, use_additional_conditions=False)
        return diffusers.PixArtTransformer2DModel(**square, **heads, **more)
    if family == "lumina":
        more = dict(hidden_size=width, num_layers=depth - 1, num_refiner_layers=1, num_kv_heads=width // HEAD)
        more |= dict(num_attention_heads=width // HEAD, axes_dim_rope=(8, 12, 12), axes_lens=(64, 16, 16))
        more |= dict(sample_size=GRID, patch_size=1, in_channels=LATENTS, cap_feat_dim=TEXT, multiple_of=32)
        return diffusers.Lumina2Transformer2DModel(**more)
    raise ValueError(f"family {family!r} is unknown; allowed: {', '.join(CLASSES.values())}")


def call(family, model, x, sigma, text, cells=slice(None)):
    """A class's own call: latents (B, N, 32), sigma (B,), text states (B, T, 288) -> (B, N, 32)."""
    common = dict(encoder_hidden_states=text, return_dict=False)
    if family == "flux2":
        where = dict(img_ids=ids(cells).to(x.device), txt_ids=ids(text=text.shape[1]).to(x.device))
        return model(hidden_states=x, timestep=sigma, **where, **common)[0]
    if family == "flux1":
        where = dict(img_ids=ids(cells, axes=3).to(x.device), txt_ids=ids(text=text.shape[1], axes=3).to(x.device))
        return model(hidden_states=x, timestep=sigma, pooled_projections=text.mean(1), **where, **common)[0]
    if family == "qwen":
        return model(hidden_states=x, timestep=sigma, img_shapes=[[(1, GRID, GRID)]] * len(x), **common)[0]
    more = {"sd3": dict(pooled_projections=text.mean(1)), "pixart": dict(added_cond_kwargs={})}.get(family, {})
    if family == "lumina":
        more = dict(encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.long, device=x.device))
    said = model(hidden_states=as_image(x), timestep=sigma * 1000, **more, **common)[0]
    return said.flatten(2).mT


def blocks_of(model) -> list[nn.Module]:
    """The blocks through which image tokens pass, in the order of `mu.blocks`."""
    names = ("noise_refiner", "layers", "transformer_blocks", "single_transformer_blocks")
    return [block for name in names for block in getattr(model, name, None) or []]


# ---------------------------------------------------------------- the net that is trained


class Net(nn.Module):
    """A transformer and what a change puts around it.

    `change` may name a family, and of FLUX.2's class: modulation parts that are `off`, `still` or one `scalar` for all
    channels, modulation `per_block`, a `norm`, a learned `bias` after each block, the number of `registers`, `rotated`
    weights; a `target` ("velocity", "image", "noise") with a `skip` from the noisy latents; `no_text`.
    """

    def __init__(self, change: dict):
        super().__init__()
        self.family, self.target = change.get("family", "flux2"), change.get("target", "velocity")
        self.skip, self.no_text = change.get("skip", False), change.get("no_text", False)
        self.transformer = model = build(self.family, change.get("width", 128))
        start(model)
        self.time_token = "shift" in change.get("off", ())
        if change.keys() & {"off", "still", "scalar"}:
            modulate(model, change.get("off", ()), change.get("still", ()), change.get("scalar", False))
        if change.get("per_block"):
            per_block(model)
        if change.get("norm"):
            renorm(model, change["norm"])
        if change.get("bias"):
            add_biases(model)
        registers = change.get("registers", 0)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, TEXT)) if registers else None
        if change.get("rotated"):
            rotate(model)

    def forward(self, noisy, sigma, text, cells=slice(None)):
        """What is predicted of noisy latents (B, N, 32) at sigma (B,), given text states (B, T, 288)."""
        text = 0 * text[:, :1] if self.no_text else text
        if self.registers is not None:
            text = torch.cat([self.registers.expand(len(text), -1, -1).to(text), text], 1)
        if self.time_token:
            text = torch.cat([get_timestep_embedding(1000 * sigma, TEXT, True, 0)[:, None].to(text), text], 1)
        said = call(self.family, self.transformer, noisy, sigma, text, cells)
        return said + self.known(sigma.view(-1, 1, 1)) * noisy if self.skip else said

    def known(self, sigma):
        """The factor with which the noisy latents alone predict the target best, were latents white."""
        part = {"velocity": 2 * sigma - 1, "image": 1 - sigma, "noise": sigma}[self.target]
        return part / (sigma**2 + (1 - sigma) ** 2)

    def velocity(self, noisy, sigma, text):
        """The prediction as a velocity, noise minus image, whatever is the target."""
        said, s = self(noisy, sigma, text), sigma.view(-1, 1, 1)
        return {"velocity": said, "image": (noisy - said) / s, "noise": (said - noisy) / (1 - s)}[self.target]


def start(model):
    """Matrices by Xavier; modulation and output start at zero, so that every block begins as the identity."""
    zero = ("modulation", "norm_out", "_mod.1", "norm1.linear", "norm1_context.linear", ".norm.linear")
    zero += ("adaln_single.linear", "time_embed.linear")
    for name, parameter in model.named_parameters():  # FLUX.1's blocks have a proj_out, too: behind a gate, so not zero
        if any(part in name for part in zero) or name.startswith("proj_out"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2 and "table" not in name:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("scale_shift_table"):  # PixArt and SANA: a constant part, beside the part of the time
            nn.init.zeros_(parameter)


# ---------------------------------------------------------------- changes of FLUX.2's class


PARTS = ("shift", "scale", "gate")
NEUTRAL = {"shift": 0.0, "scale": 0.0, "gate": 1.0}


class Modulation(nn.Module):
    """FLUX.2's modulation, of which parts are neutral (`off`), learned but the same at all times (`still`), or, where
    they multiply, one number for all channels (`scalar`).
    """

    def __init__(self, inner, width, off=(), still=(), scalar=False):
        super().__init__()
        self.inner, self.width, self.off, self.scalar = inner, width, off, scalar
        kept = {part: torch.full((inner.mod_param_sets, width), NEUTRAL[part]) for part in still}
        self.still = nn.ParameterDict(kept)

    def forward(self, temb):
        parts = dict(zip(PARTS, self.inner(temb).unflatten(-1, (-1, 3, self.width)).unbind(-2), strict=True))
        for name, moving in parts.items():  # B sets D
            if name in self.off:
                parts[name] = torch.full_like(moving, NEUTRAL[name])
            elif name in self.still:
                parts[name] = self.still[name].to(moving).expand_as(moving)
            elif self.scalar and name != "shift":
                parts[name] = moving.mean(-1, keepdim=True).expand_as(moving)
        return torch.stack(list(parts.values()), -2).flatten(1)


class Plain(nn.Module):
    """A norm in the place of one that is modulated."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, temb):
        return self.norm(x)


def modulate(model, off=(), still=(), scalar=False):
    """Swap the modulations; where gates do not open from zero, what a block adds starts at zero instead."""
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        setattr(model, name, Modulation(getattr(model, name), model.inner_dim, off, still, scalar))
    if "scale" in off:
        model.norm_out = Plain(nn.LayerNorm(model.inner_dim, elementwise_affine=False))
    elif scalar:  # the scale of the last norm, too

        def one_scale(module, args, out):
            scale, shift = out.chunk(2, 1)
            return torch.cat([scale.mean(1, keepdim=True).expand_as(scale), shift], 1)

        model.norm_out.linear.register_forward_hook(one_scale)
    if "gate" in (*off, *still):
        for name, parameter in model.named_parameters():
            if "blocks." in name and residual(name) == "out":
                nn.init.zeros_(parameter)


def per_block(model):
    """A modulation of its own for every block, in the place of the shared ones."""
    now = {}
    model.time_guidance_embed.register_forward_hook(lambda module, args, out: now.update(temb=out))

    def own(block, args, kwargs):
        return args, kwargs | {name: part(now["temb"]) for name, part in block.modulation.items()}

    for block in blocks_of(model):
        sets = {"temb_mod_img": 2, "temb_mod_txt": 2} if hasattr(block, "norm1") else {"temb_mod": 1}
        kind = type(model.single_stream_modulation)
        block.modulation = nn.ModuleDict({name: kind(model.inner_dim, n) for name, n in sets.items()})
        for parameter in block.modulation.parameters():
            nn.init.zeros_(parameter)
        block.register_forward_pre_hook(own, with_kwargs=True)
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        getattr(model, name).requires_grad_(False)


class GatedNorm(nn.Module):
    """A LayerNorm followed by a learned gate of rank 16 that starts open, after 2601.22966 (abstract)."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 16), nn.Linear(16, width)
        nn.init.zeros_(self.up.weight), nn.init.zeros_(self.up.bias)

    def forward(self, x):
        x = F.layer_norm(x, x.shape[-1:])
        return x * 2 * torch.sigmoid(self.up(F.silu(self.down(x))))


def renorm(model, kind: str):
    """Another norm where blocks read the residual ("rms", "none", "gated"), or one more where they write: of the whole
    residual after each block ("post"), or of what a block adds ("sandwich").
    """
    width = model.inner_dim

    def normed(module, args, out):
        return tuple(F.layer_norm(x, (width,)) for x in out) if isinstance(out, tuple) else F.layer_norm(out, (width,))

    make = {
        "rms": lambda: nn.RMSNorm(width, eps=1e-6, elementwise_affine=False),
        "none": nn.Identity,
        "gated": lambda: GatedNorm(width),
    }.get(kind)
    for block in blocks_of(model):
        if make is not None:
            for name in ("norm", "norm1", "norm1_context", "norm2", "norm2_context"):
                if hasattr(block, name):
                    setattr(block, name, make())
        elif kind == "post":
            block.register_forward_hook(normed)
        elif kind == "sandwich":
            for name in ("attn", "ff", "ff_context"):
                if hasattr(block, name):
                    getattr(block, name).register_forward_hook(normed)
        else:
            raise ValueError(f"norm {kind!r} is unknown; allowed: rms, none, gated, post, sandwich")


def add_biases(model):
    """A learned vector that every block adds to all its tokens: a place for constants of its own."""

    def add(block, args, out):
        return tuple(x + block.constant.to(x) for x in out) if isinstance(out, tuple) else out + block.constant.to(out)

    for block in blocks_of(model):
        block.constant = nn.Parameter(torch.zeros(model.inner_dim))
        block.register_forward_hook(add)


def residual(name: str) -> str | None:
    """Which side of a weight of FLUX.2's class is the residual stream: "in", "out" or None."""
    name = name.removesuffix(".weight").removesuffix(".original")
    out = ("x_embedder", "context_embedder", "to_out", "to_out.0", "to_add_out", "linear_out", "norm_out.linear")
    into = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "linear_in", "to_qkv_mlp_proj")
    if name.endswith(out) or "modulation" in name:
        return "out"
    return "in" if name.endswith(into) or name == "proj_out" else None


class Rotated(nn.Module):
    """A weight as a fixed rotation of what the optimiser sees, on its residual side; rows come in groups of a width."""

    def __init__(self, q, side):
        super().__init__()
        self.side = side
        self.register_buffer("q", q)

    def forward(self, seen):
        return turned(seen, self.q, self.side)

    def right_inverse(self, weight):
        return turned(weight, self.q.mT, self.side)


def turned(weight, q, side):
    """q times every group of rows of a weight ("out"), or the weight times q transposed ("in")."""
    return weight @ q.mT if side == "in" else (q @ weight.unflatten(0, (-1, len(q)))).flatten(0, 1)


def rotate(model, seed: int = 0):
    """Let the optimiser see the residual stream in a fixed random basis; the function at the start stays the same."""
    q = torch.linalg.qr(torch.randn(model.inner_dim, model.inner_dim, generator=torch.Generator().manual_seed(seed))).Q
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (side := residual(name)):
            parametrize.register_parametrization(module, "weight", Rotated(q, side))


def permutation(width: int, seed: int) -> torch.Tensor:
    """Where a gate's rows go when they are permuted: row i goes to place permutation[i]."""
    return torch.randperm(width, generator=torch.Generator().manual_seed(1000 + seed))


@torch.no_grad()
def permute_gates(net, optimisers, seed: int):
    """Permute the rows of all gates' projections, and what the optimiser remembers of them."""
    for name, weight in net.named_parameters():
        if "modulation" in name:
            width = net.transformer.inner_dim
            to = permutation(width, seed).to(weight.device)
            kept = [one.state[weight] for one in optimisers if weight in one.state]
            for tensor in [weight, *(x for state in kept for x in state.values() if x.shape == weight.shape)]:
                gate = tensor.view(-1, 3, width, tensor.shape[-1])[:, 2]
                gate[:, to] = gate.clone()


# ---------------------------------------------------------------- looking at modulations


@contextmanager
def modulated(net, edit=None, watch=None):
    """Gives {block: (B, sets, 3, D)}, the shift, scale and gate that each block's image tokens get while the net runs.

    `watch(block, factors)` sees them at every call. `edit(block, factors)` returns other factors, or None; not of
    PixArt's and SANA's classes, whose blocks share one projection. Lumina's has no shift, and the tanh of its gate is
    taken. `net` is anything with a transformer of one of the classes and the `family` by which `build` knows it.
    """
    model, family, width, seen, handles = net.transformer, net.family, width_of(net.transformer), {}, []
    if edit is not None and family in ONE_PROJECTION:
        raise ValueError(f"the blocks of {family} share one projection; its factors can be read, not edited")

    def read(out, block):
        if family == "lumina":
            scale, gate = out.unflatten(-1, (-1, 2, width)).unbind(-2)
            return torch.stack([torch.zeros_like(scale), scale, gate.tanh()], -2)
        factors = out.unflatten(-1, (-1, 3, width))
        return (
            factors + block.scale_shift_table.unflatten(0, (-1, 3)) if hasattr(block, "scale_shift_table") else factors
        )

    def write(factors):
        if family == "lumina":
            factors = torch.stack([factors[..., 1, :], factors[..., 2, :].clamp(-1 + 1e-6, 1 - 1e-6).atanh()], -2)
        return factors.flatten(1)

    def look(out, index, block):
        seen[index] = read(out, block)
        if watch is not None:
            watch(index, seen[index])
        other = None if edit is None else edit(index, seen[index])
        return None if other is None else write(other)

    for index, block in enumerate(blocks_of(model)):
        if family == "flux2":
            name = "temb_mod_img" if hasattr(block, "norm1") else "temb_mod"

            def given(block, args, kwargs, index=index, name=name):
                other = look(kwargs[name], index, block)
                return None if other is None else (args, kwargs | {name: other})

            handles.append(block.register_forward_pre_hook(given, with_kwargs=True))
            continue
        if family in ONE_PROJECTION:
            source = (model.adaln_single if family == "pixart" else model.time_embed).linear
        else:
            source = block.img_mod if family == "qwen" else getattr(block, "norm1", None) or block.norm
            source = getattr(source, "linear", source)
        hook = lambda module, args, out, index=index, block=block: look(out, index, block)  # noqa: E731
        handles.append(source.register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def width_of(model) -> int:
    """Width of the residual stream."""
    return model.config.get("hidden_size") or model.config.attention_head_dim * model.config.num_attention_heads


def middle(subject):
    """Row and column of the middle of each subject, from its coverage (n, 36): (n, 2)."""
    axis = torch.arange(GRID).float()
    places = torch.stack([axis.repeat_interleave(GRID), axis.repeat(GRID)], 1)
    return (subject @ places) / subject.sum(1, keepdim=True).clamp_min(1e-6)

"""What is changed of a built transformer of FLUX.2's class: a module replaced, hooked, or its weights parametrised."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

NEUTRAL = {"shift": 0.0, "scale": 0.0, "gate": 1.0}
MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
WRITES = ("x_embedder", "context_embedder", "to_out", "to_out.0", "to_add_out", "linear_out", "norm_out.linear")
READS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "linear_in", "to_qkv_mlp_proj")


class Modulation(nn.Module):
    """FLUX.2's modulation, of which parts are neutral (`off`) or, where they multiply, one number for all channels
    (`scalar`).
    """

    def __init__(self, inner, width, off=(), scalar=False):
        super().__init__()
        self.inner, self.width, self.off, self.scalar = inner, width, off, scalar

    def forward(self, temb):
        parts = dict(zip(NEUTRAL, self.inner(temb).unflatten(-1, (-1, 3, self.width)).unbind(-2), strict=True))
        for name, moving in parts.items():  # B sets D
            if name in self.off:
                parts[name] = torch.full_like(moving, NEUTRAL[name])
            elif self.scalar and name != "shift":
                parts[name] = moving.mean(-1, keepdim=True).expand_as(moving)
        return torch.stack(list(parts.values()), -2).flatten(1)


class Unmodulated(nn.Module):
    """A norm in the place of one that is modulated."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, temb):
        return self.norm(x)


def modulate(model, off=(), scalar=False):
    """Swap the modulations; where gates do not open from zero, what a block adds starts at zero instead."""
    for name in MODULATIONS:
        setattr(model, name, Modulation(getattr(model, name), model.inner_dim, off, scalar))
    if "scale" in off:
        model.norm_out = Unmodulated(nn.LayerNorm(model.inner_dim, elementwise_affine=False))
    elif scalar:  # the scale of the last norm, too

        def one_scale(module, args, out):
            scale, shift = out.chunk(2, 1)
            return torch.cat([scale.mean(1, keepdim=True).expand_as(scale), shift], 1)

        model.norm_out.linear.register_forward_hook(one_scale)
    if "gate" in off:
        for name, parameter in model.named_parameters():
            if "blocks." in name and residual_side(name) == "out":
                nn.init.zeros_(parameter)


class GatedNorm(nn.Module):
    """A LayerNorm followed by a learned gate of rank 16 that starts open, after 2601.22966 (abstract)."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 16), nn.Linear(16, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        x = F.layer_norm(x, x.shape[-1:])
        return x * 2 * torch.sigmoid(self.up(F.silu(self.down(x))))


def gate_norms(model, blocks):
    """A gated norm wherever a block reads the residual."""
    for block in blocks:
        for name in ("norm", "norm1", "norm1_context", "norm2", "norm2_context"):
            if hasattr(block, name):
                setattr(block, name, GatedNorm(model.inner_dim))


def add_biases(model, blocks):
    """A learned vector that every block adds to all its tokens: a place for constants of its own."""

    def add(block, args, out):
        return tuple(x + block.constant.to(x) for x in out) if isinstance(out, tuple) else out + block.constant.to(out)

    for block in blocks:
        block.constant = nn.Parameter(torch.zeros(model.inner_dim))
        block.register_forward_hook(add)


def residual_side(name: str) -> str | None:
    """Which side of a weight of FLUX.2's class is the residual stream: "in", "out" or None."""
    name = name.removesuffix(".weight").removesuffix(".original")
    if name.endswith(WRITES) or "modulation" in name:
        return "out"
    return "in" if name.endswith(READS) or name == "proj_out" else None


class Rotated(nn.Module):
    """A weight as a fixed rotation of what the optimiser sees, on its residual side; rows come in groups of a width."""

    def __init__(self, q, side):
        super().__init__()
        self.side = side
        self.register_buffer("q", q)

    def forward(self, weight):
        return rotated(weight, self.q, self.side)

    def right_inverse(self, weight):
        return rotated(weight, self.q.mT, self.side)


def rotated(weight, q, side):
    """q times every group of rows of a weight ("out"), or the weight times q transposed ("in")."""
    return weight @ q.mT if side == "in" else (q @ weight.unflatten(0, (-1, len(q)))).flatten(0, 1)


def rotate(model, seed: int = 0):
    """Let the optimiser see the residual stream in a fixed random basis; the function at the start stays the same."""
    q = torch.linalg.qr(torch.randn(model.inner_dim, model.inner_dim, generator=torch.Generator().manual_seed(seed))).Q
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (side := residual_side(name)):
            parametrize.register_parametrization(module, "weight", Rotated(q, side))

"""A resumable training loop on one or two processes, and what all trainings of embedded models share."""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Whether the device computes in bfloat16 itself; a CPU that emulates it takes several times as long."""
    if DEVICE == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast():
    """bfloat16 where the device has it, float32 elsewhere."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=has_bfloat16())


def in_float32(attention):
    """Attention in float32: on a CPU its backward takes five times as long in bfloat16."""

    def attend(query, key, value, attn_mask=None, **kwargs):
        with torch.autocast(DEVICE, enabled=False):
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.float()
            return attention(query.float(), key.float(), value.float(), attn_mask=attn_mask, **kwargs).to(query.dtype)

    return attend


def begin(seed: int) -> None:
    """Set the seed, attention's type on a CPU, and the process group of torchrun."""
    torch.manual_seed(seed)
    if DEVICE == "cpu" and has_bfloat16():
        F.scaled_dot_product_attention = in_float32(F.scaled_dot_product_attention)
    if WORLD_SIZE > 1:
        dist.init_process_group("gloo")


def as_pixels(images: np.ndarray) -> torch.Tensor:
    """Images (n, size, size, 3) uint8 as (n, 3, size, size) float in [-1, 1] on the device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1


class Loop:
    """A training of a planned number of steps that goes on where it stopped; a checkpoint every 3 minutes.

    Without a checkpoint it begins at step `first`. The learning rate rises over `warmup` steps, is constant, and falls
    over the last fifth of the planned steps. What a step draws comes from its number, so that a restart leaves no kink.
    `folder` holds the checkpoint: the modules, what else has a state (`kept`), and the dict `extra`.
    """

    def __init__(
        self, folder: Path, name: str, steps: int, lr: float, modules: dict, warmup=200, seed=0, first=0, **kept
    ):
        self.name, self.steps, self.seed, self.step, self.extra = name, steps, seed, first, {}
        self.state = modules | kept
        self.path = folder / f"{name}.pt"
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimisers = [self.adamw(self.parameters, lr)]
        if self.path.exists():
            saved = torch.load(self.path, map_location=DEVICE, weights_only=False)
            for key, module in self.state.items():
                module.load_state_dict(saved["modules"][key])
            self.step, self.extra = saved["step"], saved["extra"]
            for optimiser, state_dict in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state_dict)
            if RANK == 0:
                print(f"{name}: goes on at step {self.step} of {steps}", flush=True)
        self.rate = lambda: min(1, (self.step - first + 1) / warmup, (1 - self.step / steps) / 0.2) + 1e-3

    @staticmethod
    def adamw(parameters, lr: float):
        """AdamW with weight decay on matrices alone."""
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        groups = [group | {"lr": lr, "full_lr": lr} for group in groups]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def save(self) -> None:
        """Write weights, optimisers' state, step and extra beside, then rename."""
        if RANK:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": {key: module.state_dict() for key, module in self.state.items()},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "extra": self.extra,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def run(self, loss_of, minutes: float = float("inf"), each=None) -> float:
        """Minimise `loss_of()` to the planned steps, or for so many minutes; the running mean of the loss.

        `each` is called at every checkpoint.
        """
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, mininterval=30, disable=RANK > 0)
        begun, saved, mean = time.monotonic(), time.monotonic(), self.extra.get("loss")
        while self.step < self.steps and time.monotonic() - begun < 60 * minutes:
            for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
                group["lr"] = group["full_lr"] * self.rate()
            torch.manual_seed(1_000_003 * (self.step + 10**6 * self.seed) + RANK)  # also when resumed
            loss = loss_of()
            loss.backward()
            if WORLD_SIZE > 1:
                gradients = [p.grad for p in self.parameters]
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                dist.all_reduce(flat)
                sizes = [gradient.numel() for gradient in gradients]
                for gradient, part in zip(gradients, (flat / WORLD_SIZE).split(sizes), strict=True):
                    gradient.copy_(part.view_as(gradient))
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            self.step += 1
            mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
            self.extra["loss"] = mean
            bar.update()
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if time.monotonic() - saved > 180:
                self.save()
                if each is not None and RANK == 0:
                    each()
                saved = time.monotonic()
        self.save()
        bar.close()
        return mean


def note(folder: Path, stage: str, **figures) -> None:
    """Keep a stage's figures in training.json beside its result."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "training.json"
    stages = json.loads(path.read_text()) if path.exists() else {}
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    stages[stage] = rounded | {"device": DEVICE, "torch": torch.__version__}
    path.write_text(json.dumps(stages, indent=1, sort_keys=True) + "\n")

"""Where trainings run, and whether in bfloat16."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Whether the device computes in bfloat16 itself; emulated, it takes several times as long as float32."""
    if DEVICE == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast():
    """bfloat16 where the device has it, float32 elsewhere."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=has_bfloat16())

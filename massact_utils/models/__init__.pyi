from . import calls, families, infer, latents, load
from .load import KNOWN, defaults

__all__ = [
    "KNOWN",
    "calls",
    "defaults",
    "families",
    "infer",
    "latents",
    "load",
]

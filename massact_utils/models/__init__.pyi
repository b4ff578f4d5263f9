from . import calls, families, guess, infer, latents, load
from .load import KNOWN, defaults

__all__ = [
    "KNOWN",
    "calls",
    "defaults",
    "families",
    "guess",
    "infer",
    "latents",
    "load",
]

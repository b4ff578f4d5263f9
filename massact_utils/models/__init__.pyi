from . import calls, cost, families, guess, infer, latents, load, memory
from .load import KNOWN, defaults

__all__ = [
    "KNOWN",
    "calls",
    "cost",
    "defaults",
    "families",
    "guess",
    "infer",
    "latents",
    "load",
    "memory",
]

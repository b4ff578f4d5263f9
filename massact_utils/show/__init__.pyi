from . import explorers, plots

__all__ = [
    "explorers",
    "plots",
]

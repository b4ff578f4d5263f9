from . import controls, explorers, losses, outlines, page, plots

__all__ = [
    "controls",
    "explorers",
    "losses",
    "outlines",
    "page",
    "plots",
]

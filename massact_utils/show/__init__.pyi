from . import controls, explorers, outlines, page, plots

__all__ = [
    "controls",
    "explorers",
    "outlines",
    "page",
    "plots",
]

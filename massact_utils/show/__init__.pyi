from . import controls, explorers, page, plots

__all__ = [
    "controls",
    "explorers",
    "page",
    "plots",
]

from . import controls, explorers, losses, page, plots

__all__ = [
    "controls",
    "explorers",
    "losses",
    "page",
    "plots",
]

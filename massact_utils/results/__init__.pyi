from . import claims, parameters, provenance, published, run, storage, sweep
from .run import Incomplete, Run, folder

__all__ = [
    "Incomplete",
    "Run",
    "claims",
    "folder",
    "parameters",
    "provenance",
    "published",
    "run",
    "storage",
    "sweep",
]

from . import claims, parameters, provenance, run, storage, sweep
from .run import Incomplete, Run, folder

__all__ = [
    "Incomplete",
    "Run",
    "claims",
    "folder",
    "parameters",
    "provenance",
    "run",
    "storage",
    "sweep",
]

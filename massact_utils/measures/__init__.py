"""Measures: what numbers are made of; they run no pipeline.

May import: places, worlds, models, probes.
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
)

"""Probes: what looks at image tokens or edits them while a pipeline runs.

May import: places, models.
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
)

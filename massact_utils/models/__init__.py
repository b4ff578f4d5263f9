"""Models: what is probed. Loading and generating, and what a transformer's classes and calls tell of its tokens.

May import: places.
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [path.stem for path in Path(__file__).parent.glob("[!_]*.py")],
    {"load": ["KNOWN", "defaults", "settings"]},
)

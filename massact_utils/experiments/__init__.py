"""Experiments: one module a notebook, which generates its arms together and tabulates them.

May import: every room before it, and results.
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
)

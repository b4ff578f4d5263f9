"""Results: what stays on disk, and how many notebooks are executed.

May import: places, models, measures (for the verdict of a claim).
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [path.stem for path in Path(__file__).parent.glob("[!_]*.py")], {"run": ["Incomplete", "Run", "folder"]}
)

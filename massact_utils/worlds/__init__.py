"""Worlds: what is drawn and said, each a module with the same functions: sample, caption, parse, pairs, render.

toyworld (polygons), emojiworld (drawings by three artists), everyday (words alone, for real models).
May import: places.
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
)

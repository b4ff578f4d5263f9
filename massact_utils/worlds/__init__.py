"""Worlds: what is drawn and said, each with the same interface: ATTRIBUTES, GRAMMAR, sample, caption, parse, pairs,
split_of, render (None where nothing is drawn) and OWN (the folder in data/ of evaluators that learnt it, or None).

toyworld (polygons), emojiworld (drawings by three artists), everyday (words alone, for real models); table: one's own.
May import: places.
"""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
)

"""Models: what is probed. Loading and generating, and what a transformer's classes and calls tell of its tokens.

load, families (the only file that knows model families), infer, calls, latents.
May import: places. Nothing of the other rooms.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

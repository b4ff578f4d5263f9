"""Massive activations in Diffusion Transformers: probes attached to a pipeline, and what two notebooks share.

Rooms, in the order in which data flows: worlds -> models -> probes -> measures -> experiments -> show, and results
around them; prompts feed them. A name is loaded on its first use; __init__.pyi lists them for editors.

Axes, everywhere in this order: B rows of the batch, S steps, L layers, N image tokens (H * W, raster), D channels, K
chosen channels.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

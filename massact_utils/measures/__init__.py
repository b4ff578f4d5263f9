"""Measures: what numbers are made of.

metrics (images and prompts to numbers), readout (ToyWorld's own evaluators), masks, sites and company (of masks),
baselines, references, stability, transfer, linear (read-out), evidence (intervals and verdicts). May import: models,
probes, toyworld.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Massive activations in Diffusion Transformers: probes attached to a pipeline, and what two notebooks share.

Axes, everywhere in this order: B rows of the batch, S steps, L layers, N image tokens (H * W, raster), D channels, K
chosen channels.
"""

from . import metrics, models, plots, runs, toyworld
from .blocks import Block, blocks
from .channels import ChannelStats, select_channels
from .models import generate, load
from .probes import Site, attach

__all__ = [
    "Block",
    "ChannelStats",
    "Site",
    "attach",
    "blocks",
    "generate",
    "load",
    "metrics",
    "models",
    "plots",
    "runs",
    "select_channels",
    "toyworld",
]

"""Massive activations in Diffusion Transformers: probes attached to a pipeline, and what two notebooks share.

Axes, everywhere in this order: B rows of the batch, S steps, L layers, N image tokens (H * W, raster), D channels, K
chosen channels.
"""

from . import (
    channels,
    crossed,
    latents,
    metrics,
    models,
    parameters,
    plots,
    prompts,
    references,
    runs,
    spatial,
    stability,
    toyworld,
    transfer,
    widgets,
)
from .blocks import Block, blocks
from .channels import ChannelStats, select_channels
from .disruption import Disrupt
from .models import generate, load
from .probes import Site, attach
from .runs import Run
from .spatial import Record, iou, token_masks
from .transport import Transport, noised_source

__all__ = [
    "Block",
    "ChannelStats",
    "Disrupt",
    "Record",
    "Run",
    "Site",
    "Transport",
    "attach",
    "blocks",
    "channels",
    "crossed",
    "generate",
    "iou",
    "latents",
    "load",
    "metrics",
    "models",
    "noised_source",
    "parameters",
    "plots",
    "prompts",
    "references",
    "runs",
    "select_channels",
    "spatial",
    "stability",
    "token_masks",
    "toyworld",
    "transfer",
    "widgets",
]

from . import experiments, measures, models, places, probes, prompts, results, show, worlds
from .measures.masks import iou, token_masks
from .models.cost import cost
from .models.families import FAMILIES, Block, blocks
from .models.load import generate, load
from .probes.attach import Site, attach
from .probes.channels import ChannelStats, select_channels
from .probes.disrupt import Disrupt
from .probes.record import Record
from .probes.transport import Transport, noised_source
from .prompts import world_of
from .results import parameters
from .results.run import Run
from .show import plots, views

__all__ = [
    "FAMILIES",
    "Block",
    "ChannelStats",
    "Disrupt",
    "Record",
    "Run",
    "Site",
    "Transport",
    "attach",
    "blocks",
    "cost",
    "experiments",
    "generate",
    "iou",
    "load",
    "measures",
    "models",
    "noised_source",
    "parameters",
    "places",
    "plots",
    "probes",
    "prompts",
    "results",
    "select_channels",
    "show",
    "token_masks",
    "views",
    "world_of",
    "worlds",
]

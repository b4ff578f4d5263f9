from . import evidence, linear, masks, metrics, readout, references, sites, stability, transfer

__all__ = [
    "evidence",
    "linear",
    "masks",
    "metrics",
    "readout",
    "references",
    "sites",
    "stability",
    "transfer",
]

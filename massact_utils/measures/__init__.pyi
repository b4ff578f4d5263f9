from . import evidence, masks, metrics, readout, references, sites, stability, transfer

__all__ = [
    "evidence",
    "masks",
    "metrics",
    "readout",
    "references",
    "sites",
    "stability",
    "transfer",
]

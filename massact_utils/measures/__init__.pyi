from . import evidence, masks, metrics, readout, references, stability, transfer

__all__ = [
    "evidence",
    "masks",
    "metrics",
    "readout",
    "references",
    "stability",
    "transfer",
]

from . import evidence, linear, masks, metrics, readout, references, stability, transfer

__all__ = [
    "evidence",
    "linear",
    "masks",
    "metrics",
    "readout",
    "references",
    "stability",
    "transfer",
]

from . import baselines, company, evidence, linear, masks, metrics, readout, references, sites, stability, transfer

__all__ = [
    "baselines",
    "company",
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

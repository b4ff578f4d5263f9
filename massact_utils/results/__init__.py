"""Results: what stays on disk, and how many notebooks are executed.

run (whole batches, each done once), storage, provenance, parameters, claims, published
(the evidence and the pages made from it), sweep.
May import: models, measures (for the verdict of a claim).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

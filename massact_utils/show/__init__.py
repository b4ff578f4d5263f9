"""Show: what people look at.

plots, losses and outlines (figures on an `ax`: of channels, of what disruption costs, of masks), explorers (controls
and a picture that follows them; made of what controls has), page (the same for a page without a kernel).
May import: models, probes, measures, results.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

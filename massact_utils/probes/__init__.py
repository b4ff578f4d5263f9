"""Probes: what looks at image tokens or edits them while a pipeline runs.

attach (the hooks), channels (statistics and selection), levels (and patterns), record, doses, disrupt, transport.
May import: models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

from . import attach, channels, disrupt, record, transport

__all__ = [
    "attach",
    "channels",
    "disrupt",
    "record",
    "transport",
]

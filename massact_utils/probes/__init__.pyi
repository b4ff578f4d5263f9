from . import attach, channels, disrupt, doses, levels, record, transport

__all__ = [
    "attach",
    "channels",
    "disrupt",
    "doses",
    "levels",
    "record",
    "transport",
]

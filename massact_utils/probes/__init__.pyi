from . import attach, channels, disrupt, doses, levels, record, transport, words

__all__ = [
    "attach",
    "channels",
    "disrupt",
    "doses",
    "levels",
    "record",
    "transport",
    "words",
]

from . import attach, channels, disrupt, record, transport, words

__all__ = [
    "attach",
    "channels",
    "disrupt",
    "record",
    "transport",
    "words",
]

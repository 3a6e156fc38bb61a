"""The codec: payloads and events as bytes. Pure; logs, the network and the web share it."""

from .events import (
    NIL,
    Keyed,
    TopicCodec,
    join_events,
    keys_of,
    list_of,
    pack_event,
    pack_headers,
    parts_of,
    split_events,
)

__all__ = (
    "NIL",
    "Keyed",
    "TopicCodec",
    "join_events",
    "keys_of",
    "list_of",
    "pack_event",
    "pack_headers",
    "parts_of",
    "split_events",
)

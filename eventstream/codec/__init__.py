"""The codec: payloads and events as bytes. Pure; logs, the network and the web share it."""

from .events import Keyed, TopicCodec, join_events

__all__ = ("Keyed", "TopicCodec", "join_events")

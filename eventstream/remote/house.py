"""What all connections share: the server as they see it, and what it keeps of each topic for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..bus import EventBus
from ..codec import TopicCodec
from ..events import Topic
from .access import Authenticate, Authorize, ServerLimits
from .messages import OpenTopic
from .sharing import Kept, SharedEvents

__all__ = ("House", "Shelf")


class Shelf:
    """What a server keeps of one topic for all its connections.

    Args:
        topic: As the bus knows it.
        keyed: Whether it finds the key in the payload, for those who publish.
        events: Where the bytes of its events are kept.
        lists: Where those of lists of them are.
    """

    def __init__(self, topic: Topic[Any], keyed: bool, events: Kept, lists: Kept) -> None:
        self.topic = topic
        self.keyed = keyed
        self.codec: TopicCodec[Any] = TopicCodec(topic)
        self.shared: SharedEvents = SharedEvents(self.codec, events, lists)


class House(Protocol):
    """What a connection needs of its server."""

    @property
    def bus(self) -> EventBus:
        """Which is served."""
        ...

    @property
    def limits(self) -> ServerLimits:
        """What one client gets."""
        ...

    @property
    def authenticate(self) -> Authenticate | None:
        """Who clients are."""
        ...

    @property
    def authorize(self) -> Authorize | None:
        """What they may do."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """The time, in POSIX seconds."""
        ...

    @property
    def shelves(self) -> Mapping[str, Shelf]:
        """The topics that clients use, by name."""
        ...

    def shelf(self, declared: OpenTopic, may_create: bool) -> Shelf:
        """The topic that a client means.

        Raises:
            EventStreamError: if there is none that fits.
        """
        ...

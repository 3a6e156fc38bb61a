"""What a bus holds of one topic: the events, and where their readers start."""

from __future__ import annotations

from typing import Any

from ..events import Topic
from ..snapshots import TopicOpening
from ..topics import LiveTopic
from .housekeeping import Housekeeping

__all__ = ("Room",)


class Room:
    """What a bus holds of one topic; takes care of what the topic does not do itself (see `topics.Care`)."""

    __slots__ = ("_housekeeping", "live", "opening", "topic")

    live: LiveTopic
    opening: TopicOpening

    def __init__(self, topic: Topic[Any], housekeeping: Housekeeping) -> None:
        self.topic: Topic[Any] = topic
        self._housekeeping = housekeeping

    def begun(self) -> None:
        """Nothing that was built or kept leads to the new life."""
        self.opening.restart()

    def grown(self) -> None:
        """Idle readers may want a bookmark."""
        self._housekeeping.call_for_bookmarks()

    def unfollowed(self, key: str) -> None:
        """What was kept of the key leads nowhere."""
        self.opening.forget(key)

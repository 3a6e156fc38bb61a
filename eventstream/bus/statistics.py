"""What a bus tells of itself."""

from __future__ import annotations

import msgspec

from ..snapshots import CacheStatistics
from ..topics import TopicStatistics

__all__ = ("BusStatistics",)


class BusStatistics(msgspec.Struct, frozen=True):
    """A bus at one moment.

    Attributes:
        topics: Each topic that was used, by its name.
        snapshots: The cache of snapshots.
        subscribers: Open subscriptions of all topics.
        views: Different views that are followed.
    """

    topics: dict[str, TopicStatistics]
    snapshots: CacheStatistics
    subscribers: int
    views: int

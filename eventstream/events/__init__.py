"""The words that everything else speaks: topics, events, positions, frames. Pure values, no behaviour in time."""

from .event import NO_HEADERS, Event
from .frames import Bookmark, Frame, ResetReason, Resumed, SnapshotEnd, SnapshotStart
from .names import check_headers, check_name
from .position import EARLIEST, MAX_INDEX, Earliest, Position
from .topic import NO_KEY, Topic

__all__ = (
    "EARLIEST",
    "MAX_INDEX",
    "NO_HEADERS",
    "NO_KEY",
    "Bookmark",
    "Earliest",
    "Event",
    "Frame",
    "Position",
    "ResetReason",
    "Resumed",
    "SnapshotEnd",
    "SnapshotStart",
    "Topic",
    "check_headers",
    "check_name",
)

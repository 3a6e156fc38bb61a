"""What a topic itself still refers to: its newest `retain` events, found by index.

The segments stand in the order of their first indexes, so `after=` is found by bisection, whatever the number retained.
Memory is dropped by whole segments, but the *floor* is exact: a position is resumable if and only if all events after
it are among the newest `retain`, whether or not older ones happen to be still in memory.
Written under the topic's lock; read under it too.

Rejected: a `SortedDict` by first index. Indexes only grow, so nothing has to be sorted: two lists are as right, and
five times as fast.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from .buffer import INDEX, Buffer, Place, Segment

__all__ = ("History",)

SLACK: Final = 1024  # places of forgotten segments at the front of the lists, before they are cut off: 16 KiB


class History:
    """The retained stretch of one buffer.

    Args:
        buffer: The buffer whose events are retained.
        retain: How many.
        base: The index before its first event.
    """

    __slots__ = ("_before", "_buffer", "_firsts", "_forgotten", "_retain", "_segments")

    def __init__(self, buffer: Buffer, retain: int, base: int) -> None:
        self._buffer = buffer
        self._retain = retain
        self._before = base  # the newest index before the oldest segment here
        self._firsts: list[int] = []  # of each segment, the index of its first event
        self._segments: list[Segment | None] = []
        self._forgotten = 0  # Invariant: so many at the front of both lists are meaningless

    def __len__(self) -> int:
        return min(self._buffer.count, self._retain)

    def add(self, segment: Segment) -> Segment | None:
        """Takes a segment in, with its first events, and lets go of those that are wholly too old.

        Returns the first of these, for the caller to drop when no lock is held any more.
        """
        self._firsts.append(segment.items[0].index)
        self._segments.append(segment)
        first = oldest = self.oldest()
        trimmed = self._buffer.count - self._retain
        while oldest is not segment and oldest.start + len(oldest.items) <= trimmed:
            self._before = oldest.items[-1].index
            self._segments[self._forgotten] = None
            self._forgotten += 1
            oldest = self.oldest()
        if self._forgotten > SLACK and 2 * self._forgotten > len(self._firsts):
            del self._firsts[: self._forgotten], self._segments[: self._forgotten]
            self._forgotten = 0
        return None if first is oldest else first

    @property
    def floor(self) -> int:
        """The oldest index that can be resumed from: that of the newest event that is no longer retained."""
        trimmed = self._buffer.count - self._retain
        if trimmed <= 0:
            return self._before
        oldest = self.oldest()
        while oldest.start + len(oldest.items) < trimmed and oldest.next is not None:
            oldest = oldest.next  # too old, but not let go yet: that happens with the next segment
        within = trimmed - oldest.start
        return oldest.items[within - 1].index if within > 0 else self._before

    @property
    def reach(self) -> int:
        """The index after which all events are still in memory: at most the floor."""
        return self._before

    def find(self, index: int) -> Place:
        """The place of the first event with a greater index; the buffer's end if there is none yet."""
        at = bisect_right(self._firsts, index, self._forgotten) - 1
        segment = self._segments[at] if at >= self._forgotten else None
        if segment is None:
            return self.oldest(), 0
        return segment, bisect_right(segment.items, index, key=INDEX)

    def oldest(self) -> Segment:
        """The first segment that the topic refers to."""
        segment = self._segments[self._forgotten] if self._segments else None
        return self._buffer.tail if segment is None else segment

"""A snapshot: a buffer of events that state what is now, spliced to the live events after it.

Written by its build alone; read by any number of readers, also while it grows. It holds events and nothing about its
readers: `SnapshotStart` and `SnapshotEnd` are each reader's own, so that one snapshot serves those who are new and
those who were reset. Ten thousand readers of it hold one copy.
"""

from __future__ import annotations

from ..errors import EventStreamError
from ..topics import AnyEvent, Buffer, Lot, Place, Segment, Waker
from ..topics.buffer import SEGMENT_SIZE
from .splice import seek

__all__ = ("Snapshot",)


class Snapshot:
    """The state of a topic, or of one key, at an index.

    Attributes:
        key: The key, or None for the whole topic.
        epoch: The life of the history that it leads to.
        first: Where its readers start; None once nobody new may start.
        pinned: How many events of its channel came before the place that it leads to (or, until that is known,
            before the build began).
        index: At which it holds; None while it is built.
        last: Its last segment, once it is complete.
        error: Why it failed.
    """

    __slots__ = ("buffer", "epoch", "error", "first", "index", "key", "last", "pinned")

    def __init__(self, waker: Waker, key: str | None, epoch: str, pinned: int) -> None:
        self.key: str | None = key
        self.epoch: str = epoch
        self.buffer: Buffer = Buffer(Lot(waker))
        self.first: Segment | None = self.buffer.tail
        self.pinned: int = pinned
        self.index: int | None = None
        self.last: Segment | None = None
        self.error: EventStreamError | None = None

    def __len__(self) -> int:
        return self.buffer.count

    def extend(self, events: list[AnyEvent]) -> None:
        """Adds events and lets those who read along have them."""
        for start in range(0, len(events), SEGMENT_SIZE):
            self.buffer.append(events[start : start + SEGMENT_SIZE])
        self.buffer.lot.wake()

    def complete(self, index: int, live: Place) -> None:
        """It holds at `index`; the first later event stands at or behind `live`. Under the topic's lock."""
        place = seek(live, index)
        self.pinned = place[0].start + place[1]
        self.index = index
        self.last = self.buffer.tail  # after the index: who sees the last segment asks for it
        self.buffer.splice(place)
        self.buffer.lot.wake()

    def fail(self, error: EventStreamError) -> None:
        """It will never be complete; its readers get the error after what they have. Safe from any thread."""
        if self.error is None and self.last is None:
            self.error = error
            self.first = None
            self.buffer.lot.wake()

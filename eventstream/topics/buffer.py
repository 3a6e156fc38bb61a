"""The linked event buffer: one writer appends, any number of readers follow at their own pace and take no lock.

A buffer is an *unrolled* linked list. A segment holds up to 128 events in a plain list; `next` leads to the segment
after it. A reader's whole state is a *place*: (segment, offset). It takes a slice of what lies behind its place, and
when a segment is used up it follows the link.

    Buffer ─────────────────────────────────────────────┐ tail
            ┌─────────┐ next  ┌─────────┐ next     ┌────▼────┐
            │ e1 … e128│─────▶│e129…e256│─────▶ …  │ … e900  │◀── appended here
            └─────────┘       └────▲────┘          └─────────┘
                                   └ a reader's place

Why it is safe without a lock, also from threads: a segment only grows, and is linked onwards only when it is full;
so a reader that looks at `next` *before* it looks at the length can never step over an event. A batch is added by one
`extend` and never straddles two segments, so no slice splits it.

Who owns what: the buffer refers to its tail alone. What lies before it lives as long as a reader's place, the topic's
history or a cached snapshot refers to it, and is freed by the interpreter when nobody does.

**Splice**: a link is (segment, offset), so that a snapshot's last segment can be linked into the middle of the live
buffer, to the place where its first later event stands or will stand. No event is copied, and no reader of either
chain notices. A link is set once; a buffer that was spliced is finished.

Rejected: a node per event (the collector tracks each of them: more than all else that a publish costs); an array
ring (readers would have to be told when it wraps); `msgspec.Struct(gc=False)` for segments (freeing a chain of 200,000
overflows the C stack; a class with `__slots__` is freed iteratively by CPython).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, Final, TypeAlias

from ..events import Event
from .parking import Lot

__all__ = ("INDEX", "SEGMENT_SIZE", "AnyEvent", "Buffer", "Place", "Segment", "walk")

AnyEvent: TypeAlias = Event[Any]
SEGMENT_SIZE: Final = 128  # long enough that a link costs nothing per event, short enough to free in microseconds
INDEX: Final[Callable[[AnyEvent], int]] = attrgetter("index")


class Segment:
    """A stretch of events. Written by its buffer alone, read by everyone.

    Invariants: `items` only grows, and not any more once `next` is set; indexes never fall within it.
    """

    __slots__ = ("items", "lot", "next", "next_offset", "start")

    def __init__(self, start: int, lot: Lot, items: list[AnyEvent]) -> None:
        self.items: list[AnyEvent] = items
        self.lot: Lot = lot  # where a reader waits that has used this segment up
        self.next: Segment | None = None
        self.next_offset: int = 0  # where in `next` to go on: above 0 only after a splice
        self.start: int = start  # how many events the buffer had before this segment


Place: TypeAlias = tuple[Segment, int]


class Buffer:
    """The writing end: knows the tail, and how many events there ever were.

    Not locked: the owner lets one writer in at a time.
    """

    __slots__ = ("count", "finished", "lot", "tail")

    def __init__(self, lot: Lot) -> None:
        self.lot: Lot = lot
        self.count: int = 0  # Invariant: count == tail.start + len(tail.items)
        self.finished: bool = False
        self.tail: Segment = Segment(0, lot, [])

    def end(self) -> Place:
        """The place where the next event will stand."""
        return self.tail, len(self.tail.items)

    def append(self, events: list[AnyEvent]) -> Segment | None:
        """Adds one batch, wakes nobody. Returns the segment if the batch is the first in it."""
        assert not self.finished, "a spliced buffer leads into another one: appending would diverge"
        tail = self.tail
        held = len(tail.items)
        self.count += len(events)
        if held and held + len(events) > SEGMENT_SIZE:
            segment = Segment(tail.start + held, self.lot, events.copy())
            self.tail = segment
            tail.next = segment  # last: from here on readers leave the old tail
            return segment
        tail.items.extend(events)
        return None if held else tail

    def splice(self, place: Place) -> None:
        """Links the end of this buffer to a place in another; nothing can be appended afterwards."""
        assert not self.finished, "a link is set once"
        self.finished = True
        self.tail.next_offset = place[1]
        self.tail.next = place[0]  # last: a reader takes the offset only after it saw the segment


def walk(place: Place) -> Iterator[list[AnyEvent]]:
    """The events behind a place, a list for each stretch, up to the present end."""
    segment, offset = place
    while True:
        following, following_offset = segment.next, segment.next_offset
        if events := segment.items[offset:]:
            yield events
        if following is None:
            return
        segment, offset = following, following_offset

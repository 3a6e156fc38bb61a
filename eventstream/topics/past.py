"""What a log keeps of a topic further back than memory, as readers see it.

A log whose events outlive the bus sets `LiveTopic.past` when it attaches; everything else about it stays unknown here.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from .buffer import AnyEvent

__all__ = ("Page", "Past")


class Page(msgspec.Struct, frozen=True, gc=False):
    """A stretch of a topic's past, of whole batches.

    Attributes:
        events: Those of one key, or of all, in order.
        index: Everything for this reader up to this index stands in this page or in earlier ones.
        behind: How many events follow in the log, at the time of reading, of all keys.
    """

    events: list[AnyEvent]
    index: int
    behind: int


class Past(Protocol):
    """The history of one life of a topic, as its log keeps it."""

    @property
    def floor(self) -> int:
        """The oldest index that can be resumed from. From any thread; never goes back."""
        ...

    @property
    def retained(self) -> int:
        """How many events can be resumed through. From any thread."""
        ...

    async def read(self, after: int, key: str | None) -> Page | None:
        """The next stretch after an index, bounded in events and bytes; None if some of it is not retained any more.

        Raises:
            EventStreamError: if the log cannot be read, or an event does not fit the topic's type.
        """
        ...

    async def state(self) -> dict[str, AnyEvent]:
        """The newest event of each living key, in the order of their indexes.

        All that it knows of was appended to the topic when this returns. The caller owns the mapping.

        Raises:
            EventStreamError: as for `read`.
        """
        ...

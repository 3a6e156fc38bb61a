"""What a bus asks of the place where events are committed.

The bus keeps the recent events of each topic in memory, for readers; a log decides their order and makes them last.
The law between them: **commit, then append, in order, under the topic's lock**, so that nobody reads what might not
last and all read in the order of the commits. Both the log that commits here and one that learns of commits made
elsewhere (a cluster's) feed the bus in the same way: `live.append(events)`. Neither topics nor snapshots know which log
it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from ..events import NO_HEADERS, Position
from ..topics import LiveTopic

__all__ = ("Entries", "Log", "NowaitLog", "Pending", "PipelinedLog", "Terms")


Entries: TypeAlias = tuple[tuple[str, Any], ...]
"""(key, payload) of each event of one atomic batch, at least one; checked by the bus."""


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What a publish asks for beyond being appended. Checked by the bus.

    Attributes:
        id: Names this publish: the same again within the dedupe window appends nothing.
        expect: Append only if the (first) key's newest event has this index; 0 if it has none.
        index: Given by an application that has its own order; must be above the head.
        headers: Immutable texts that travel along.
    """

    id: str | None = None
    expect: int | None = None
    index: int | None = None
    headers: Mapping[str, str] = NO_HEADERS


class Log(Protocol):
    """Where a bus's events are kept. One log belongs to one bus."""

    async def open(self) -> None:
        """Opens files and connections. Called once, when the bus starts."""

    def attach(self, live: LiveTopic) -> None:
        """Begins the life of a topic that the bus has not used before: `live.begin(epoch, head)`."""

    async def append(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        """Commits, then appends to `live`. A checkpoint, unless the log is a `NowaitLog` too.

        Returns:
            The position of the batch; for an `id` that was committed before, the position it had then.

        Raises:
            Conflict: if the key is not where the terms expect it.
            IndexOrder: if a given index is not above the head, or the head is the last index there is.
        """
        ...

    def remembers(self, live: LiveTopic) -> float:
        """For how many seconds back it surely knows the ids of the publishes to this topic; from any thread."""
        ...

    async def refresh(self, live: LiveTopic) -> Position:
        """Ends the present life of a topic's history and begins another. Returns its position 0."""
        ...

    async def aclose(self) -> None:
        """Closes what was opened. Idempotent."""


class Pending(Protocol):
    """A batch that has its place in the order of commits, and is not committed yet."""

    async def wait(self) -> Position:
        """Returns when it is committed and appended. For one task. Cancelled, it is committed all the same.

        Raises:
            EventStreamError: as of `Log.append`.
        """
        ...


@runtime_checkable
class PipelinedLog(Protocol):
    """A log that takes further batches while it commits: for who publishes for others, and must keep their order."""

    async def submit(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Pending:
        """As `Log.append`, but returns when the batch has its place; waits only if there is no room for it."""
        ...


@runtime_checkable
class NowaitLog(Protocol):
    """A log that can commit without waiting."""

    def append_nowait(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        """As `Log.append`, at once, from any thread."""
        ...

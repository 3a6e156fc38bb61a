"""Who waits for entries: one entry (`wait`), or all there are (`flush`). Told after each change on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from anyio import Event

from ..errors import NotAccepted, UnknownEntry
from ..events import Position
from .entry import EntryState
from .lanes import Record

__all__ = ("Flush", "Waiting")

REMEMBERED: Final = 16_384  # accepted entries whose position can still be asked for: about 4 MB


class _Waiter:
    __slots__ = ("event", "outcome")

    def __init__(self) -> None:
        self.event = Event()
        self.outcome: Position | NotAccepted | None = None


class Flush:
    """One call of `flush`.

    Attributes:
        left: Numbers of entries that may still go on by themselves.
        done: When there are none, or the outbox was left.
    """

    def __init__(self, moving: Iterable[Record]) -> None:
        self.left: set[int] = {record.number for record in moving}
        self.done: Event = Event()
        self._look()

    def gone(self, numbers: Iterable[int]) -> None:
        """These need not be waited for any more."""
        self.left.difference_update(numbers)
        self._look()

    def _look(self) -> None:
        if not self.left:
            self.done.set()


class Waiting:
    """All who wait."""

    def __init__(self) -> None:
        self._waiters: dict[str, _Waiter] = {}
        self._accepted: OrderedDict[str, Position] = OrderedDict()
        self.flushes: list[Flush] = []

    def accepted(self, record: Record, position: Position) -> None:
        """It is on the bus, and no longer in the file."""
        self._accepted[record.id] = position
        if len(self._accepted) > REMEMBERED:
            self._accepted.popitem(last=False)
        self._tell(record, position)
        for flush in self.flushes:
            flush.gone((record.number,))

    def stopped(self, record: Record, state: EntryState, behind: Iterable[Record]) -> None:
        """It was set aside, or discarded; those behind it wait with it."""
        self._tell(record, NotAccepted(record.id, state, record.reason))
        if self.flushes:
            numbers = [record.number, *(other.number for other in behind)]
            for flush in self.flushes:
                flush.gone(numbers)

    async def wait(self, id: str, record: Record | None) -> Position:
        """Until it is accepted.

        Raises:
            NotAccepted: if it was set aside or discarded.
            UnknownEntry: if nothing is known of it.
        """
        if record is None:
            if id in self._accepted:
                return self._accepted[id]
            raise UnknownEntry(id)
        if record.state in ("conflict", "unknown", "dead"):
            raise NotAccepted(id, record.state, record.reason)
        waiter = self._waiters.setdefault(id, _Waiter())
        await waiter.event.wait()
        if isinstance(waiter.outcome, Position):
            return waiter.outcome
        assert waiter.outcome is not None
        raise waiter.outcome.with_traceback(None)

    def close(self) -> None:
        """The outbox is left: nobody will hear more."""
        for id, waiter in self._waiters.items():
            waiter.outcome = NotAccepted(id, "closed", "the outbox was left; the entry is in its file")
            waiter.event.set()
        self._waiters.clear()
        for flush in self.flushes:
            flush.done.set()

    def _tell(self, record: Record, outcome: Position | NotAccepted) -> None:
        waiter = self._waiters.pop(record.id, None)
        if waiter is not None:
            waiter.outcome = outcome
            waiter.event.set()

"""The way in: from a publish to an entry on disk. Ids, quotas, and who waits for the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from anyio.lowlevel import checkpoint

from ..errors import InvalidName, OutboxFull
from ..events import MAX_INDEX, check_headers, check_name
from ..pipes.signal import Signal
from . import file
from .drain import Drain
from .lanes import ABOUT, Lanes, Record
from .options import OutboxLimits
from .writer import Writer

__all__ = ("Keeping", "Terms", "check_expect")

Terms = tuple[int | None, str | None, Mapping[str, str] | None]
"""What a publish asks for: expect, id and headers."""

ID_BITS: Final = 96  # of the part of an id that names a life of an outbox: no two anywhere share it


class _Arrival:
    """An entry on its way to the disk, and who waits for that."""

    __slots__ = ("arrived", "error", "record", "waiters")

    def __init__(self, record: Record) -> None:
        self.record: Record = record
        self.waiters: list[Signal] = []  # mostly one; an `anyio.Event` costs more than all else of an arrival
        self.arrived: bool = False
        self.error: Exception | None = None

    async def wait(self) -> None:
        """Until it is on disk.

        Raises:
            NotStored, OutboxUnusable: if it is not.
        """
        if self.arrived:
            await checkpoint()
        else:
            waiter = Signal()
            self.waiters.append(waiter)
            await waiter.wait()
        if self.error is not None:
            raise self.error


class Keeping:
    """Brings entries to the disk, in the order of the calls.

    Args:
        lanes: Where they go then; `drain` is woken.
        number: The greatest that is in use.
    """

    def __init__(
        self,
        lanes: Lanes,
        drain: Drain,
        writer: Writer,
        limits: OutboxLimits,
        clock: Callable[[], float],
        random: Random,
        number: int,
    ) -> None:
        self._lanes = lanes
        self._drain = drain
        self._writer = writer
        self._limits = limits
        self._clock = clock
        self._name = f"{random.getrandbits(ID_BITS):0{ID_BITS // 4}x}"
        self._number = number
        self._arriving: dict[str, _Arrival] = {}
        self._arriving_size = 0

    async def keep(self, topic: str, key: str, payload: bytes | None, terms: Terms) -> str:
        """Returns the id when the entry is on disk. See `Outbox.publish`."""
        expect, id, headers = terms
        check_expect(expect)
        checked = check_headers(headers)
        if id is None:
            id = f"{self._name}-{self._number + 1}"
        elif await self._is_kept(check_name("id", id), topic, key):
            return id
        extra = sum(len(name) + len(value) for name, value in checked.items()) if checked else 0
        size = ABOUT + len(id) + len(topic) + len(key) + len(payload or b"") + extra
        self._check_room(size)
        self._number += 1
        record = Record(self._number, id, topic, key, queued=self._clock(), size=size, expect=expect)
        row = file.row_of(record, payload, checked)  # which may fail: only then is anybody told of it
        arrival = self._arriving[id] = _Arrival(record)
        self._arriving_size += size
        self._writer.insert(row, lambda _, error: self._arrived(arrival, error))
        await arrival.wait()
        return id

    async def _is_kept(self, id: str, topic: str, key: str) -> bool:
        """Whether this publish was made before, as far as we know."""
        arrival = self._arriving.get(id)
        leaving = self._drain.leaving.get(id)
        record = arrival.record if arrival else leaving[0] if leaving else self._lanes.records.get(id)
        if record is None:
            return False
        if (record.topic, record.key) != (topic, key):
            raise InvalidName("id", id, "is that of an entry of another topic or key")
        if arrival is None:
            await checkpoint()
        else:
            await arrival.wait()
        return True

    def _check_room(self, size: int) -> None:
        limits = self._limits
        if len(self._lanes.records) + len(self._arriving) >= limits.entries:
            raise OutboxFull("entries", limits.entries)
        if self._lanes.size + self._arriving_size + size > limits.bytes:
            raise OutboxFull("bytes", limits.bytes)

    def _arrived(self, arrival: _Arrival, error: Exception | None) -> None:
        """The disk has it, or has failed. Called also if nobody waits for that any more."""
        record = arrival.record
        del self._arriving[record.id]
        self._arriving_size -= record.size
        arrival.error = error
        if error is None:
            self._lanes.add(record)
            self._drain.wake()
        arrival.arrived = True
        for waiter in arrival.waiters:
            waiter.set()


def check_expect(expect: object) -> None:
    """Refuses what can be no index to expect."""
    if expect is not None and (not isinstance(expect, int) or isinstance(expect, bool) or not 0 <= expect <= MAX_INDEX):
        raise ValueError(f"expect must be a whole number from 0 to 2**63 - 1, not {expect!r}")

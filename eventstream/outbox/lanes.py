"""Which entry may go next: the index of everything in the file, in memory. Pure: no clock, no file, no event loop.

A *lane* is the queue of one key of one topic. Its first entry goes, and none behind it until that has an answer (or
`per_key` of them, if the user has chosen so; an entry with `expect` always goes alone, because of all answers only a
conflict stops the lane for good). Lanes know nothing of each other.

    ready ──take──▶ in flight ──land──▶ dropped (accepted), or back in its place: due later, or set aside

Who writes: the outbox (new entries, what people decide) and its drain (answers). The times are those of the event
loop's clock, so that a wall clock that is set neither hurries nor stalls anything; what is on disk is translated.

Rejected: asking the file with SQL for each next entry (a query for each, and a commit before the next can be seen);
one queue for all with a set of blocked keys (a blocked key's backlog would be looked through again and again).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import Final

from .entry import Entry, EntryState
from .outcome import Outcome

__all__ = ("ABOUT", "Lanes", "Record")

ABOUT: Final = 320  # bytes that an entry counts beyond its contents: its row and its record, about
WAITING: Final[tuple[EntryState, ...]] = ("pending", "held")
BLOCKING: Final[tuple[EntryState, ...]] = ("conflict", "unknown")


class Record:
    """The working copy of one entry.

    Attributes:
        number: Its place in the order of all entries.
        due: When it may be tried; inf: not before something else happens.
        sent: When the first attempt whose outcome is not known was made; None if there is none, -inf if that cannot be
            said any more.
        before: `sent` as it was before the present attempt.
        flying: Whether it was given to the bus, or is about to be, and has no answer.
    """

    __slots__ = (
        "attempts",
        "before",
        "due",
        "expect",
        "flying",
        "id",
        "key",
        "number",
        "queued",
        "reason",
        "sent",
        "size",
        "state",
        "topic",
    )

    def __init__(
        self, number: int, id: str, topic: str, key: str, *, queued: float, size: int, expect: int | None
    ) -> None:
        self.number: int = number
        self.id: str = id
        self.topic: str = topic
        self.key: str = key
        self.queued: float = queued
        self.size: int = size
        self.expect: int | None = expect
        self.state: EntryState = "pending"
        self.reason: str = ""
        self.attempts: int = 0
        self.due: float = -inf
        self.sent: float | None = None
        self.before: float | None = None
        self.flying: bool = False

    def entry(self, state: EntryState | None = None) -> Entry:
        """As the user sees it."""
        return Entry(
            self.id,
            self.topic,
            self.key,
            state or self.state,
            self.reason,
            self.attempts,
            self.queued,
            self.size,
            self.expect,
        )


class _Lane:
    __slots__ = ("listed", "name", "records")

    def __init__(self, name: tuple[str, str]) -> None:
        self.name = name
        self.records: deque[Record] = deque()  # Invariant: by number; none is dead
        self.listed = False  # whether it is among the ready ones


class Lanes:
    """All entries of one outbox.

    Attributes:
        records: By id.
        counts: How many are in each state.
        size: Their bytes together.
        in_flight: How many have no answer yet.
    """

    def __init__(self, per_key: int = 1) -> None:
        self.records: dict[str, Record] = {}
        self.counts: dict[EntryState, int] = dict.fromkeys((*WAITING, *BLOCKING, "dead"), 0)
        self.size: int = 0
        self.in_flight: int = 0
        self._per_key = per_key
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._later: list[tuple[float, int, Record]] = []  # a heap; what is out of date in it is passed over

    # Coming and going.

    def add(self, record: Record) -> None:
        """A new entry, or one from the file; with the greatest number so far."""
        self.records[record.id] = record
        self.counts[record.state] += 1
        self.size += record.size
        if record.state != "dead":
            lane = self._lane(record)
            lane.records.append(record)
            self._list(lane)

    def drop(self, record: Record) -> None:
        """The entry is gone: accepted or discarded."""
        if self.records.pop(record.id, None) is None:
            return
        self.counts[record.state] -= 1
        self.size -= record.size
        self._land(record)
        if record.state != "dead":
            self._leave_lane(record)

    # The way to the bus.

    def take(self, now: float, room: int) -> list[Record]:
        """The entries to send now, at most `room`; from now on they are in flight."""
        while self._later and self._later[0][0] <= now:
            record = heappop(self._later)[2]
            if record.id in self.records and record.state in WAITING:
                self._list(self._lane(record))
        taken: list[Record] = []
        while self._ready and len(taken) < room:
            lane = self._ready.popleft()
            lane.listed = False
            for record in self._sendable(lane, now):
                if len(taken) == room:
                    self._list(lane)
                    break
                record.flying = True
                taken.append(record)
        self.in_flight += len(taken)
        return taken

    def next_due(self) -> float:
        """When an entry may be taken that may not be now; inf if there is none."""
        while self._later:
            due, _, record = self._later[0]
            if record.id in self.records and record.due == due and record.state in WAITING:
                return due
            heappop(self._later)
        return inf

    @property
    def has_ready(self) -> bool:
        """Whether `take` might give something."""
        return bool(self._ready)

    def land(self, record: Record) -> None:
        """It comes back unsent, or without an outcome: it may go again."""
        self._land(record)
        self._list(self._lane(record))

    def settle(self, record: Record, outcome: Outcome, due: float) -> None:
        """It has an outcome other than accepted."""
        self._land(record)
        record.attempts += 1
        record.reason = outcome.reason
        match outcome.decision:
            case "conflict" | "unknown" | "dead":
                self.set_aside(record, outcome.decision)
            case "held":
                self._wait(record, "held", due)
            case _:
                self._wait(record, "pending", due)

    # Decisions about entries.

    def set_aside(self, record: Record, state: EntryState) -> None:
        """For a person. Behind a dead one the lane goes on."""
        was_dead = record.state == "dead"
        self._move(record, state)
        if state == "dead" and not was_dead:
            self._leave_lane(record)

    def hold(self, record: Record, reason: str) -> None:
        """Until `release`."""
        record.reason = reason
        self._wait(record, "held", inf)

    def release(self, record: Record) -> None:
        """It may be tried at once, at its place."""
        was_dead = record.state == "dead"
        self._move(record, "pending")
        record.due, record.reason = -inf, ""
        lane = self._lane(record)
        if was_dead:
            at = sum(1 for other in lane.records if other.number < record.number)
            lane.records.insert(at, record)
        self._list(lane)

    def behind(self, record: Record) -> Iterator[Record]:
        """The entries of its key that wait for it."""
        lane = self._lanes.get((record.topic, record.key))
        return iter(()) if lane is None else (other for other in lane.records if other.number > record.number)

    def moving(self) -> Iterator[Record]:
        """The entries that need nobody's decision or declaration to go on."""
        for lane in self._lanes.values():
            for record in lane.records:
                if record.state in BLOCKING or record.due == inf:
                    break
                yield record

    def in_order(self, states: Iterable[EntryState]) -> list[Record]:
        """Those in the states, oldest first."""
        wanted = set(states)
        return sorted((one for one in self.records.values() if one.state in wanted), key=lambda one: one.number)

    # Inside.

    def _sendable(self, lane: _Lane, now: float) -> Iterator[Record]:
        flying = 0
        for record in lane.records:
            if record.flying:
                flying += 1
                if record.expect is not None or flying >= self._per_key:
                    return
                continue
            if record.state not in WAITING or (record.expect is not None and flying):
                return
            if record.due > now:
                if record.due < inf:
                    heappush(self._later, (record.due, record.number, record))
                return
            flying += 1
            yield record
            if record.expect is not None or flying >= self._per_key:
                return

    def _wait(self, record: Record, state: EntryState, due: float) -> None:
        record.due = due
        self._move(record, state)
        self._list(self._lane(record))  # `take` finds out until when

    def _move(self, record: Record, state: EntryState) -> None:
        self.counts[record.state] -= 1
        self.counts[state] += 1
        record.state = state

    def _land(self, record: Record) -> None:
        if record.flying:
            record.flying = False
            self.in_flight -= 1

    def _lane(self, record: Record) -> _Lane:
        name = (record.topic, record.key)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(name)
        return lane

    def _leave_lane(self, record: Record) -> None:
        lane = self._lane(record)
        if lane.records and lane.records[0] is record:
            lane.records.popleft()
        elif record in lane.records:
            lane.records.remove(record)
        if lane.records:
            self._list(lane)
        else:
            del self._lanes[lane.name]

    def _list(self, lane: _Lane) -> None:
        if not lane.listed:
            lane.listed = True
            self._ready.append(lane)

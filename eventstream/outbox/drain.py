"""Sends what the lanes give to the bus, and writes down what became of it.

One task works in rounds, one commit each: it writes what was answered since the last round, takes what may go next,
and notes of each *that it is being sent* before it is: after a crash, whatever was not noted was certainly never sent.
What was noted and has no answer is sent again with the same id, for as long as the bus remembers ids
(`dedupe_seconds` after the first attempt). After that nobody knows: with `expect` it is sent again all the same,
since a second event would conflict with the first; without it the entry is `unknown`.

    round: [answers] ─┐                             ┌─▶ flights: bus.publish of each ─▶ answers ─▶ next round
           [take]  ───┴─▶ one commit, loads payloads ┘

If the file fails (a full disk) answers are kept here and written later, and nothing new is sent.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from math import inf
from random import Random
from typing import Any, Final

from anyio import CancelScope, create_task_group, current_time, move_on_after
from anyio.abc import TaskGroup

from ..codec import TopicCodec
from ..errors import EventStreamError
from ..events import Position
from ..pipes.signal import Signal
from ..remote.ages import Ages
from . import file
from .bus import Bus, Reachable, Submitting
from .entry import EntryState
from .flights import Body, Flights
from .lanes import Lanes, Record
from .options import Sending
from .outcome import Outcome, outcome_of
from .pace import Pace
from .writer import Writer

__all__ = ("Drain", "Told")

logger: Final = logging.getLogger("eventstream.outbox")

SWEEP: Final = 60.0  # seconds between two looks for entries that are too old
Told = Callable[[Record, EntryState, Position | None], None]


class Drain:
    """The sending half of an outbox.

    Args:
        codecs: Of the declared topics, by name: what can be sent.

    Attributes:
        leaving: Entries that were accepted and are not yet removed from the file, by id.
        trouble: Why nothing goes; "" if it does.
        stopping: Whether nothing new is to be sent.
    """

    def __init__(
        self,
        codecs: Mapping[str, TopicCodec[Any]],
        lanes: Lanes,
        writer: Writer,
        sending: Sending,
        age: float | None,
        told: Told,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self.pace: Pace = Pace(sending.retry, sending.in_flight)
        self.leaving: dict[str, tuple[Record, Position]] = {}
        self.trouble: str = ""
        self.stopping: bool = False
        self._codecs = codecs
        self._lanes = lanes
        self._writer = writer
        self._sending = sending
        self._age = age
        self._told = told
        self._clock = clock
        self._random = random
        self._bus: Bus | None = None
        self._reached = False
        self._reaching: CancelScope | None = None
        self._changed: dict[int, Record] = {}  # answers that are not written yet, by number
        self._paused = 0  # failures of the bus, as they were written last
        self._file_failures = 0
        self._file_until = -inf
        self._swept = -inf
        self._ages = Ages(clock)
        self._wake = Signal()
        self._flights = Flights(codecs, sending.dedupe_seconds, self._answer)
        self._tasks: TaskGroup

    # What the outbox says.

    def use(self, bus: Bus | None, *, at_once: bool) -> None:
        """Sends to this bus from now on; `at_once`: whatever was being waited for."""
        self._bus = bus
        self._reached = False
        if self._reaching is not None:
            self._reaching.cancel()
            self._reaching = None
        if at_once:
            self.resume()

    def resume(self) -> None:
        """There is reason to try everything again, at once."""
        self.pace.wake()
        for record in self._lanes.in_order(("held", "pending")):
            if record.topic in self._codecs and record.due > -inf:
                self._lanes.release(record)
        self.wake()

    def go_on(self, failures: int, until: float) -> None:
        """The bus was left alone by the process before this one, until that POSIX time."""
        self.pace.resume(failures, until - self._clock(), current_time())
        self._paused = failures

    def wake(self) -> None:
        """Something has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until `stopping` is set and what was under way is answered."""
        async with create_task_group() as self._tasks:
            self._tasks.start_soon(self._flights.watch)
            try:
                while True:
                    await self._round()
                    if self.stopping and not self._lanes.in_flight and not self._unwritten:
                        break
                    with move_on_after(self._rest()):
                        await self._wake.wait()
            finally:
                self._flights.abandon()
            self._tasks.cancel_scope.cancel()

    @property
    def _unwritten(self) -> bool:
        return bool(self.leaving or self._changed)

    # Rounds.

    async def _round(self) -> None:
        now = current_time()
        self._grow_older()
        self._expire(now)
        if now < self._file_until:
            return
        taken = self._take(now)
        if taken or self._unwritten or self._paused != self.pace.failures:
            await self._write(taken)

    def _rest(self) -> float:
        """Seconds until there is something to do that nobody will wake us for."""
        now = current_time()
        if now < self._file_until:
            return self._file_until - now
        if self._unwritten or self._paused != self.pace.failures:
            return 0.0
        times = [] if self._age is None else [self._swept + min(SWEEP, self._age)]
        if self._bus is not None and not self.stopping:
            times += [self.pace.until, self._lanes.next_due()]
        return min((time for time in times if time > now), default=inf) - now  # what is due waits for what wakes us

    def _take(self, now: float) -> list[Record]:
        bus, pace = self._bus, self.pace
        room = pace.room - self._lanes.in_flight
        if bus is None or self.stopping or room <= 0 or now < pace.until:
            return []
        if isinstance(bus, Reachable) and not self._reached:
            if self._reaching is None and (self._lanes.has_ready or self._lanes.next_due() <= now):
                self._reaching = CancelScope()
                self._tasks.start_soon(self._reach, bus, self._reaching)
            return []
        taken = [record for record in self._lanes.take(now, room) if self._may_go(record, now)]
        self._reached = not taken  # asked again before the next ones
        return taken

    def _may_go(self, record: Record, now: float) -> bool:
        """Whether it may be sent (again); notes that it is."""
        record.before = record.sent
        if record.sent is not None and now - record.sent >= self._sending.dedupe_seconds:
            if not self._may_repeat(record):
                self._settle(record, Outcome("unknown", _DOUBT.format(self._sending.dedupe_seconds)))
                return False
            record.sent = None
        if record.sent is None:
            record.sent = now
        return True

    def _may_repeat(self, record: Record) -> bool:
        """Whether it may be sent again though it may have been accepted."""
        return record.expect is not None or self._sending.repeat_unknown

    async def _reach(self, bus: Reachable, scope: CancelScope) -> None:
        """Waits until the bus can be reached."""
        with scope:
            try:
                await bus.wait_connected()
            except Exception as error:
                outcome = outcome_of(error)
                self._lose(outcome.reason)
                if outcome.decision == "held":  # it is to be seen that credentials are missing
                    for record in self._lanes.take(current_time(), 1):
                        record.before = record.sent
                        self._settle(record, outcome)
            else:
                self._reached = True
            self._reaching = None
            self.wake()

    async def _write(self, taken: list[Record]) -> None:
        """One commit."""
        leaving, changed, failures = self.leaving, self._changed, self.pace.failures
        self._changed = {}
        done = list(leaving.values())
        now = current_time()
        ahead = self._clock() - now
        rows = [_row(record, ahead) for record in (*changed.values(), *taken)]
        until = now + ahead + self.pace.left(now)

        def work(connection: sqlite3.Connection) -> dict[int, Body | None]:
            if done:
                file.remove(connection, [record.number for record, _ in done])
            if rows:
                file.note(connection, rows)
            if failures != self._paused:
                file.pause(connection, failures, until)
            return file.load(connection, [record.number for record in taken])

        try:
            bodies = await self._writer.do(work)
        except EventStreamError as error:
            self._fail(error, changed, taken)
            return
        self._file_failures, self._paused = 0, failures
        if not self.pace.failures:
            self.trouble = ""
        for record, position in done:
            del leaving[record.id]
            self._told(record, "accepted", position)
        for record in changed.values():
            self._told(record, record.state, None)
        self._send_all(taken, bodies)

    def _fail(self, error: EventStreamError, changed: dict[int, Record], taken: list[Record]) -> None:
        """The file cannot be written: all is as before, and is tried again."""
        if not self._file_failures:  # once for each trouble, not for each attempt
            logger.warning("the outbox sends nothing for now: %s", error)
        self.trouble = str(error)
        self._file_failures += 1
        delay = self._sending.retry.delay(self._file_failures, self._random.random())
        self._file_until = current_time() + delay
        self._changed = {**changed, **self._changed}
        for record in taken:
            record.sent = record.before
            if self._is_here(record):
                self._lanes.land(record)

    # Flights.

    def _send_all(self, taken: list[Record], bodies: dict[int, Body | None]) -> None:
        flights: list[tuple[Record, Body]] = []
        for record in taken:
            body = bodies.get(record.number)
            if not self._is_here(record):  # discarded at this moment
                continue
            if body is None:
                self._settle(record, Outcome("dead", "damaged in the file", refused=True))
            else:
                flights.append((record, body))
        if not flights:
            return
        bus = self._bus
        if bus is None:  # it was taken away meanwhile
            for record, _ in flights:
                self._settle(record, _TAKEN_AWAY)
        elif isinstance(bus, Submitting):
            for record, body in flights:
                self._flights.submit(bus, record, body)
        else:
            patient = isinstance(bus, Reachable)
            for record, body in flights:
                self._flights.start(self._tasks, bus, patient, record, body)

    def _answer(self, record: Record, outcome: Outcome, position: Position | None) -> None:
        if outcome.about_bus:
            self._lose(outcome.reason)
        else:
            self.pace.answered()
        if position is not None:
            if self._is_here(record):
                self._lanes.drop(record)
                self.leaving[record.id] = (record, position)
        else:
            self._settle(record, outcome)
        self.wake()

    def _settle(self, record: Record, outcome: Outcome) -> None:
        if not self._is_here(record):
            return
        if outcome.refused:
            record.sent = record.before  # this attempt committed nothing; one before it may have
            if outcome.decision == "conflict" and record.sent is not None:
                outcome = Outcome("conflict", f"{outcome.reason}; or it is this entry itself, sent before")
        if outcome.decision == "unknown" and self._may_repeat(record):
            outcome = Outcome("retry", outcome.reason)
        due = -inf
        if not outcome.about_bus:
            failures = record.attempts + 1 if outcome.decision == "retry" else _LONG
            due = current_time() + self._sending.retry.delay(failures, self._random.random())
        self._lanes.settle(record, outcome, due)
        self._changed[record.number] = record

    def _lose(self, reason: str) -> None:
        self.trouble = reason
        self._reached = False
        self.pace.lost(current_time(), self._random.random())

    # Time.

    def _grow_older(self) -> None:
        """If this machine slept, its loop's clock stood still, and the bus's memory did not: doubts are older."""
        before = self._ages.slept
        self._ages.now()
        slept = self._ages.slept - before
        if slept > 0.0:
            for record in self._lanes.records.values():
                if record.sent is not None:
                    record.sent -= slept

    def _expire(self, now: float) -> None:
        if self._age is None or now < self._swept + min(SWEEP, self._age):
            return
        self._swept = now
        oldest = self._clock() - self._age
        for record in self._lanes.in_order(("pending", "held")):
            if record.queued < oldest and not record.flying and record.sent is None:
                record.reason = "expired"
                self._lanes.set_aside(record, "dead")
                self._changed[record.number] = record

    def _is_here(self, record: Record) -> bool:
        return self._lanes.records.get(record.id) is record


def _row(record: Record, ahead: float) -> tuple[int, str, str, int, float, float | None]:
    """For the file, whose times are those of a clock that is so far ahead of the loop's."""
    due = 0.0 if record.due in (inf, -inf) else record.due + ahead
    sent = None if record.sent is None else 0.0 if record.sent == -inf else record.sent + ahead
    return record.number, record.state, record.reason, record.attempts, due, sent


_LONG: Final = 64  # failures: the bound of the wait is at its cap
_TAKEN_AWAY: Final = Outcome("retry", "there is no bus", about_bus=True, refused=True)
_DOUBT: Final = "no answer came within {:g} s: it may have been accepted; retry sends it again, discard gives it up"

"""The face of the outbox: keeps what is published, tells what has become of it, and lets people decide."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from math import inf
from os import PathLike
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final, Literal, TypeVar

from anyio import AsyncContextManagerMixin, CancelScope, Event, create_task_group, current_time, move_on_after
from anyio.lowlevel import checkpoint

from ..codec import Keyed, TopicCodec
from ..errors import (
    NotCompacted,
    OutboxClosed,
    UnknownEntry,
)
from ..events import Position, Topic, check_name
from ..topics import current_waker
from . import file
from .bus import Bus
from .drain import Drain
from .entry import STATES, Content, Entry, EntryState, OnChange, OutboxStatistics
from .file import Shape, Stored
from .keeping import Keeping, check_expect
from .known import KnownTopics
from .lanes import Lanes, Record
from .options import OutboxLimits, Sending
from .waiting import Flush, Waiting
from .writer import Writer

__all__ = ("Outbox",)

T = TypeVar("T")

logger: Final = logging.getLogger("eventstream.outbox")

LINGER: Final = 2.0  # seconds that leaving waits for answers, so that nothing is left in doubt that need not be
UNDECLARED: Final = "this outbox does not know the topic's type: declare it"


class Outbox(AsyncContextManagerMixin):
    """Keeps publishes in a file until a bus has accepted them. Use it with `async with`; it can be used once.

    It belongs to the event loop that entered it, and the file to this outbox alone. Entering raises `OutboxUnusable` if
    the file is in use, foreign, newer or damaged, and `NotStored` if the disk fails. What is in the file is sent in
    the background, first in, first out for each key of each topic. Leaving waits for the answers of what is under way,
    at most 2 s; everything else stays in the file for the next time. Enter the bus first, and the outbox within.

    Args:
        path: The file; it is made if there is none. Not on a network's file system.
        bus: An `EventBus`, a `RemoteBus`, or any other `Bus`; None keeps everything until `use`.
        topics: The topics whose entries may already be in the file. Publishing declares a topic, too; entries of topics
            that were not declared are `held`.
        limits: How much it keeps.
        sending: How it sends.
        on_change: Told of each change of an entry, in the loop's thread; what it raises is logged.
        clock: POSIX seconds, for what lasts over a restart.
        random: For ids and jitter; the system's by default.
        connect: Opens a database, as `sqlite3.connect` does; for tests that let the disk fail.

    Attributes:
        on_change: As above; may be set at any time.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        bus: Bus | None = None,
        *,
        topics: Iterable[Topic[Any]] = (),
        limits: OutboxLimits | None = None,
        sending: Sending | None = None,
        on_change: OnChange | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        connect: file.Connect = sqlite3.connect,
    ) -> None:
        if isinstance(topics, Topic):
            raise TypeError(f"topics must be a list of Topics, write [{topics.name}]")
        self._path = Path(path)
        self._bus = _checked(bus)
        self._limits = limits or OutboxLimits()
        self._sending = sending or Sending()
        self.on_change: OnChange | None = on_change
        self._clock = clock
        self._random = random or SystemRandom()
        self._connect = connect
        self._known_topics = KnownTopics()
        self._lanes = Lanes(self._sending.per_key)
        self._waiting = Waiting()
        self._accepted = 0
        self._state: Literal["new", "open", "closed"] = "new"
        self._writer: Writer
        self._drain: Drain
        self._keeping: Keeping
        for topic in topics:
            self._known_topics.add(topic)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Outbox, None]:
        if self._state != "new":
            raise OutboxClosed("closed")
        self._state = "open"
        self._writer = Writer(self._path, self._connect, current_waker())
        failure: BaseException | None = None
        try:
            stored = await self._writer.open()
            self._drain = Drain(
                self._known_topics.codecs,
                self._lanes,
                self._writer,
                self._sending,
                self._limits.age,
                self._told,
                self._clock,
                self._random,
            )
            self._fill(stored)
            async with create_task_group() as tasks:
                drained = Event()
                tasks.start_soon(self._run, drained, name=f"eventstream outbox {self._path.name}")
                try:
                    yield self
                except BaseException as error:
                    failure = error  # raised below, outside the task group, which would wrap it in a group of one
                await self._finish(drained)
                tasks.cancel_scope.cancel()
        finally:
            self._state = "closed"
            await self._writer.aclose()
            self._waiting.close()
        if failure is not None:
            raise failure

    async def _run(self, drained: Event) -> None:
        await self._drain.run()
        drained.set()

    async def _finish(self, drained: Event) -> None:
        self._state = "closed"
        self._drain.stopping = True
        self._drain.wake()
        with CancelScope(shield=True), move_on_after(LINGER):
            await drained.wait()

    def _fill(self, stored: Stored) -> None:
        now, wall = current_time(), self._clock()
        self._known_topics.shapes = stored.shapes
        for record in stored.records:
            wait = min(record.due - wall, self._sending.retry.cap)  # a clock that was set back makes none longer
            record.due = now + wait if wait > 0 else -inf
            if record.sent is not None:  # if the clock was set back meanwhile nobody knows how long ago that was
                record.sent = now - (wall - record.sent) if record.sent <= wall else -inf
            self._lanes.add(record)
            if record.topic not in self._known_topics.codecs and record.state in ("pending", "held"):
                self._lanes.hold(record, UNDECLARED)
        number = stored.records[-1].number if stored.records else 0
        self._keeping = Keeping(self._lanes, self._drain, self._writer, self._limits, self._clock, self._random, number)
        self._drain.go_on(stored.failures, stored.until)
        for codec in self._known_topics.codecs.values():
            self._know(codec.topic)
        self._drain.use(self._bus, at_once=False)

    # Publishing.

    async def publish(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Keeps one event; returns when it is safe on disk, whatever the network does.

        Concurrent calls share a sync of the disk; they are kept, and sent, in the order in which they were called. If
        cancelled, the event may or may not be kept: publish again with the same `id`.

        Args:
            topic: The topic's declaration. The payload is encoded now, so it may be changed afterwards.
            payload: Of the topic's type.
            key: For a topic without a key function; "" by default.
            expect: As of the bus's `publish`, judged when it gets there. If it fails the entry is a `conflict`.
            id: Names this publish, here and on the bus; while an entry of this id is here, publishing it again keeps
                nothing. By default one that no other publish has.
            headers: Texts that travel along; at most 8 KiB together.

        Returns:
            The entry's id.

        Raises:
            OutboxFull: if the quota is used up.
            NotStored: if the disk is full or fails.
            OutboxClosed: if the outbox is not open.
            InvalidName: if a key, id or header is out of bounds, or the id is that of an entry of another topic or key.
            PayloadTypeError, InvalidPayload: if the payload is not of the topic's type, or cannot be encoded.
            TopicConflict: if another declaration of this name was used.
        """
        codec = self._declared(topic)
        found = topic.key_for(payload, key)
        return await self._keeping.keep(topic.name, found, codec.encode_payload(payload), (expect, id, headers))

    async def delete(
        self,
        topic: Topic[Any],
        key: str,
        *,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Keeps a tombstone, for the bus's `delete`. All else is as for `publish`.

        Raises:
            NotCompacted: if the topic is not compacted.
        """
        self._declared(topic)
        if not topic.compacted:
            raise NotCompacted(topic.name, "delete from", "compacted=True")
        return await self._keeping.keep(topic.name, check_name("key", key), None, (expect, id, headers))

    # Topics and buses.

    def declare(self, *topics: Topic[Any]) -> None:
        """Makes the types of topics known, so that their entries can be sent.

        Raises:
            TopicConflict: if another declaration of a name was used.
            OutboxClosed: if the outbox is not open.
        """
        for topic in topics:
            self._declared(topic)

    def use(self, bus: Bus | None) -> None:
        """Sends to this bus from now on, and tries at once all that waits or is held. None: to nobody.

        For a `RemoteBus` that has ended because its credentials were refused. What is under way to the bus before is
        waited for, so let that bus end.
        """
        self._check_open()
        self._drain.use(_checked(bus), at_once=True)

    def _declared(self, topic: Topic[T]) -> TopicCodec[T]:
        self._check_open()
        known = self._known_topics.codecs.get(getattr(topic, "name", ""))  # what is no topic is told so below
        if known is None or known.topic is not topic:
            is_new = known is None
            known = self._known_topics.add(topic)
            if is_new:
                self._know(topic)
        return known

    def _know(self, topic: Topic[Any]) -> None:
        """A topic's entries can be sent from now on; the file is told how it is declared."""
        shape = Shape.of(topic)
        if self._known_topics.shapes.get(topic.name) != shape:
            self._known_topics.shapes[topic.name] = shape
            self._writer.ask(lambda connection: file.declare(connection, [shape]), _log_failure)
        for record in self._lanes.in_order(("held",)):
            if record.topic == topic.name and record.due == inf:
                self._lanes.release(record)
        self._drain.wake()

    # Standing.

    async def wait(self, id: str) -> Position:
        """Waits until an entry is accepted, and off the disk. Held entries are waited for, so give it a deadline.

        Returns:
            The event's position; of entries accepted some time ago, as long as it is remembered (16,384 entries).

        Raises:
            NotAccepted: if it is, or becomes, `conflict`, `unknown` or `dead`, or was discarded, or the outbox is left.
            UnknownEntry: if there is none of this id (any more).
            OutboxClosed: if the outbox is not open.
        """
        self._check_open()
        await checkpoint()
        record = self._lanes.records.get(id)
        if record is None and id in self._drain.leaving:
            record = self._drain.leaving[id][0]
        return await self._waiting.wait(id, record)

    async def flush(self, timeout: float | None = None) -> int:
        """Waits until each entry that is here now was accepted, or stands still until somebody decides about it, or
        declares its topic.

        Args:
            timeout: Seconds to wait at most; None: for ever.

        Returns:
            How many of those entries are still here: 0 if all were accepted.

        Raises:
            OutboxClosed: if the outbox is not open, or is left meanwhile.
        """
        self._check_open()
        await checkpoint()
        now_here = list(self._lanes.records.values())
        leaving = [record for record, _ in self._drain.leaving.values()]
        flush = Flush((*self._lanes.moving(), *leaving))
        self._waiting.flushes.append(flush)
        try:
            with move_on_after(timeout):
                await flush.done.wait()
        finally:
            self._waiting.flushes.remove(flush)
        if flush.left:
            self._check_open()
        gone = self._lanes.records
        return sum(1 for record in now_here if gone.get(record.id) is record)

    def entries(self, state: EntryState | None = None) -> list[Entry]:
        """The entries in a state, or all, oldest first."""
        self._check_open()
        if state is not None and state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, not {state!r}")
        return [record.entry() for record in self._lanes.in_order(STATES if state is None else (state,))]

    async def content(self, id: str) -> Content:
        """What an entry would publish.

        Raises:
            UnknownEntry: if there is none of this id.
            InvalidPayload: if it is not of the topic's type as declared now, or damaged.
            NotStored, OutboxUnusable: if it cannot be read.
        """
        record = self._known(id)
        bodies = await self._writer.do(lambda connection: file.load(connection, [record.number]))
        if record.number not in bodies:
            raise UnknownEntry(id)
        return self._known_topics.content(record, bodies[record.number])

    def statistics(self) -> OutboxStatistics:
        """How many entries there are, and how it goes."""
        self._check_open()
        counts, drain = self._lanes.counts, self._drain
        return OutboxStatistics(
            pending=counts["pending"],
            held=counts["held"],
            conflict=counts["conflict"],
            unknown=counts["unknown"],
            dead=counts["dead"],
            bytes=self._lanes.size,
            in_flight=self._lanes.in_flight,
            accepted=self._accepted,
            paused=drain.pace.left(current_time()),
            trouble=drain.trouble,
        )

    # Decisions.

    async def retry(self, id: str | None = None, *, expect: int | Literal["same", "any"] = "same") -> None:
        """Tries an entry again at once, at its place in its key's order; returns when that is on disk.

        Without an id: everything that waits for an attempt or is held, as if the bus had just come back; entries that
        wait for a person stay. An entry in state `unknown` may be there twice after this. Behind a `dead` one others of
        its key may have been accepted already.

        Args:
            id: The entry's.
            expect: For a conflict: the index to expect now; "any" for none.

        Raises:
            UnknownEntry: if there is none of this id.
            NotStored: if the disk fails; nothing has changed then.
            OutboxClosed: if the outbox is not open.
        """
        self._check_open()
        if id is None:
            await checkpoint()
            self._drain.resume()
            return
        record = self._known(id)
        index = record.expect if expect == "same" else None if expect == "any" else expect
        check_expect(index)
        await checkpoint()
        if record.flying or self._lanes.records.get(id) is not record:
            return  # it goes by itself
        sent = record.sent if record.state in ("pending", "held") else None  # who decides about doubts ends them
        mark = None if sent is None else max(0.0, sent + self._clock() - current_time())
        row = (record.number, "pending", "", record.attempts, 0.0, mark)

        def work(connection: sqlite3.Connection) -> None:
            file.note(connection, [row])
            file.expect(connection, record.number, index)

        def after() -> None:
            if self._lanes.records.get(id) is record and not record.flying:
                record.expect, record.sent = index, sent
                self._release(record)

        await self._writer.do(work, after)

    def _release(self, record: Record) -> None:
        self._lanes.release(record)
        if record.topic not in self._known_topics.codecs:
            self._lanes.hold(record, UNDECLARED)
        self._drain.pace.wake()
        self._drain.wake()

    async def discard(self, id: str) -> None:
        """Gives an entry up; returns when it is off the disk. One that is under way may be accepted all the same.

        Raises:
            UnknownEntry: if there is none of this id.
            NotStored: if the disk fails; nothing has changed then.
            OutboxClosed: if the outbox is not open.
        """
        record = self._known(id)

        def after() -> None:
            if self._lanes.records.get(id) is record:
                self._lanes.drop(record)
                self._told(record, "discarded", None)
                self._drain.wake()

        await self._writer.do(lambda connection: file.remove(connection, [record.number]), after)

    def untyped(self) -> list[Topic[Keyed]]:
        """Declarations, without their types, of the topics that the file knows.

        For programs that only pass entries on, with `declare`. Not on a bus where the topics are used with their types.
        """
        self._check_open()
        return self._known_topics.untyped()

    # Inside.

    def _told(self, record: Record, state: EntryState, position: Position | None) -> None:
        """Something has become of an entry, and is on disk."""
        if position is not None:
            self._accepted += 1
            self._waiting.accepted(record, position)
        elif state in ("conflict", "unknown"):
            self._waiting.stopped(record, state, self._lanes.behind(record))
        elif state in ("dead", "discarded"):
            self._waiting.stopped(record, state, ())
        if self.on_change is not None:
            try:
                self.on_change(record.entry(state))
            except Exception:
                logger.exception("on_change failed for entry %s", record.id)

    def _known(self, id: str) -> Record:
        self._check_open()
        record = self._lanes.records.get(id)
        if record is None:
            raise UnknownEntry(id)
        return record

    def _check_open(self) -> None:
        if self._state != "open":
            raise OutboxClosed(self._state)


def _log_failure(_: None, error: Exception | None) -> None:
    if error is not None:  # the command line then asks the server what it needs to know of the topic
        logger.warning("the declaration of a topic was not kept: %s", error)


def _checked(bus: Bus | None) -> Bus | None:
    if bus is not None and not callable(getattr(bus, "publish", None)):
        raise TypeError(f"bus must be a bus, not {bus!r}; open_bus makes one of a URL")
    return bus

"""Entries on their way: each is given to the bus, and comes back with an outcome.

What is read from the file is checked once, by the topic's type and key as declared now. A bus that calls back
(`Submitting`: a `RemoteBus`) then gets the bytes as they were kept. With any other bus each entry is published by a
task. The tasks are kept and used again, because making one costs as much as a publish. For a bus that does not answer
by itself in the end (see `Reachable`) one more looks from time to time whether an entry has been under way for so long
that the bus may soon forget its id, and cancels that attempt: it has no answer then. (A deadline for each would be
exact, and cost each entry what an attempt in ten thousand needs.)

Rejected: a task for each entry with every bus (waking it twice, and all that it awaits, is half of what an entry costs
over the network).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from anyio import CancelScope, current_time, sleep
from anyio.abc import TaskGroup

from ..codec import TopicCodec
from ..errors import InvalidPayload
from ..events import Position
from ..pipes.signal import Signal
from .bus import Answered, Bus, Submitting
from .lanes import Record
from .outcome import ACCEPTED, Outcome, outcome_of

__all__ = ("Body", "Flights")

Body: TypeAlias = tuple[bytes | None, dict[str, str]]
Answer: TypeAlias = Callable[[Record, Outcome, Position | None], None]

LOOKS: Final = 16  # within the time for which the bus remembers ids; an attempt ends one look before that time is over
UNANSWERED: Final = Outcome("retry", "no answer", about_bus=True)


class _Pilot:
    """One task that publishes."""

    __slots__ = ("called", "patient", "record", "scope")

    def __init__(self) -> None:
        self.called = Signal()
        self.patient = False  # because its bus will answer
        self.record: Record | None = None  # under way
        self.scope = CancelScope()


class Flights:
    """All that is under way.

    Args:
        codecs: Of the declared topics, by name.
        seconds: How long after its first attempt an entry may still be under way.
        answer: Told of each outcome; of one that was cancelled, that there is no answer.
    """

    def __init__(self, codecs: Mapping[str, TopicCodec[Any]], seconds: float, answer: Answer) -> None:
        self._codecs = codecs
        self._seconds = seconds
        self._answer = answer
        self._waiting: deque[tuple[Bus, bool, Record, Body]] = deque()
        self._idle: list[_Pilot] = []
        self._pilots: list[_Pilot] = []  # as many as were ever under way at once
        self._submitted: dict[Record, Submitting] = {}  # without a task

    def submit(self, bus: Submitting, record: Record, body: Body) -> None:
        """Gives an entry to a bus that calls back."""
        payload, headers = body
        try:
            topic = self._codecs[record.topic].topic
            if payload is not None:
                self._checked(record, payload)
            self._submitted[record] = bus
            bus.submit(topic, record.key, payload, (record.expect, record.id, headers), record, self._told)
        except Exception as error:
            self._submitted.pop(record, None)
            self._answer(record, outcome_of(error), None)

    def _told(self, answered: Answered) -> None:
        record, error = answered.about, answered.error
        del self._submitted[record]
        self._answer(record, ACCEPTED if error is None else outcome_of(error), answered.answer)

    def abandon(self) -> None:
        """Nobody waits for answers any more."""
        for bus in set(self._submitted.values()):
            bus.forget(self._told)
        self._submitted.clear()

    def start(self, tasks: TaskGroup, bus: Bus, patient: bool, record: Record, body: Body) -> None:
        """Begins to publish an entry; `patient`: however long the answer takes."""
        self._waiting.append((bus, patient, record, body))
        if self._idle:
            self._idle.pop().called.set()
            return
        pilot = _Pilot()
        self._pilots.append(pilot)
        tasks.start_soon(self._fly, pilot)

    async def watch(self) -> None:
        """Gives up those that are under way for too long; for ever."""
        look = self._seconds / LOOKS
        while True:
            await sleep(look)
            latest = current_time() + look - self._seconds
            for pilot in self._pilots:
                sent = None if pilot.record is None or pilot.patient else pilot.record.sent
                if sent is not None and sent <= latest:
                    pilot.scope.cancel()

    async def _fly(self, pilot: _Pilot) -> None:
        while True:
            with pilot.scope:
                while True:
                    while not self._waiting:
                        self._idle.append(pilot)
                        await pilot.called.wait()
                    bus, patient, record, body = self._waiting.popleft()
                    pilot.record, pilot.patient = record, patient
                    await self._send(bus, record, body)
                    pilot.record = None
            pilot.scope, pilot.record = CancelScope(), None

    async def _send(self, bus: Bus, record: Record, body: Body) -> None:
        outcome = UNANSWERED
        position: Position | None = None
        try:
            position = await self._publish(bus, record, body)
            outcome = ACCEPTED
        except Exception as error:
            outcome = outcome_of(error)
        finally:  # also if it was cancelled: then there is no answer
            self._answer(record, outcome, position)

    async def _publish(self, bus: Bus, record: Record, body: Body) -> Position:
        codec = self._codecs[record.topic]
        payload, headers = body
        if payload is None:
            return await bus.delete(
                codec.topic, record.key, expect=record.expect, id=record.id, headers=headers or None
            )
        decoded = self._checked(record, payload)
        key = record.key if codec.topic.key is None and record.key else None
        return await bus.publish(
            codec.topic, decoded, key=key, expect=record.expect, id=record.id, headers=headers or None
        )

    def _checked(self, record: Record, payload: bytes) -> Any:
        """The payload, which must be what its topic carries by the present declaration."""
        codec = self._codecs[record.topic]
        decoded = codec.decode_payload(record.key, payload)
        given = record.key if codec.topic.key is None else None
        if codec.topic.key_for(decoded, given) != record.key:
            raise InvalidPayload(record.topic, f"its key was {record.key!r}, and is another by the present declaration")
        return decoded

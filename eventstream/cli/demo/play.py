"""The play: which topics there are, who reads them, who publishes, and what is counted at the end. It draws nothing.

All are clients of one server, each with a connection of its own, which is cut every now and then. The flights are
published at the pace of their own times, made faster. Two topics, both compacted:

* `departures`, key = the airport left: its state is the newest departure of each airport. A reader may be 300 events
  behind at the server, so that one which stops reading for a fifth of the week is reset.
* `aircraft`, key = the aircraft's tail number: its state is where each of some two thousand aircraft was last seen,
  so a snapshot of it is worth sharing between those who join late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec
from anyio import create_task_group, current_time, sleep, sleep_until
from anyio.lowlevel import checkpoint

from ...events import Position, Topic
from ...remote import RemoteBus
from ...snapshots import View
from .counting import Published, Tally, count
from .cutting import Cutter
from .flights import Flight
from .readers import Part, Pause, Reader
from .stage import Stage

__all__ = ("AIRCRAFT", "DEPARTURES", "PARTS", "Play", "Result", "Row")

DEPARTURES: Final[Topic[Flight]] = Topic("departures", Flight, key="origin", compacted=True, max_lag=300)
AIRCRAFT: Final[Topic[Flight]] = Topic("aircraft", Flight, key="tail", compacted=True)

PARTS: Final = (
    Part("steady", DEPARTURES),
    Part("newark", DEPARTURES, "EWR"),
    Part("commuter", DEPARTURES, "JFK", pauses=(Pause("away", 0.2, 0.3), Pause("away", 0.55, 0.65))),
    Part("traveller", DEPARTURES, pauses=(Pause("away", 0.4, 0.48),)),
    Part("overdue", DEPARTURES, "LGA", pauses=(Pause("away", 0.2, 0.75),)),  # more than are retained
    Part("stuck", DEPARTURES, pauses=(Pause("stuck", 0.3, 0.52),), window=4096),  # more than its bound
    Part("spotter", AIRCRAFT),
    Part("late", AIRCRAFT, joins=0.5),
    Part("late, too", AIRCRAFT, joins=0.5),
)

SHOWN: Final = 6  # of the latest departures of an airport
CUTS: Final = 24  # times that half of the connections are cut
UNDER_WAY: Final = 32  # flights that may be published at once, if the play is behind its time
NOTHING: Final = Position("-", 0)
LOOK: Final = 0.25  # seconds between two questions to the server
DRAIN_SECONDS: Final = 10.0  # what was not received by then, after the last flight, counts as lost


class Row(msgspec.Struct, frozen=True):
    """One subscriber's line of the final table."""

    part: Part
    tally: Tally


class Result(msgspec.Struct, frozen=True):
    """What was counted.

    Attributes:
        rows: Each subscriber.
        published: Events published, by topic.
        mirrored: Keys that the view shows as they were published last.
        keys: Keys that it should show.
        cuts: Connections that were cut.
        interrupted: Whether the play was cut short.
    """

    rows: tuple[Row, ...]
    published: dict[str, int]
    mirrored: int
    keys: int
    cuts: int
    interrupted: bool

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return self.mirrored == self.keys and all(row.tally.clean for row in self.rows)


class Play:
    """One run.

    Args:
        flights: What is published, in this order.
        speed: Seconds of the flights' time that pass in a second.
        tell: Called with each thing worth telling.

    Attributes:
        stage: How far it is.
        readers: The subscribers.
        latest: The latest departures of each airport, newest first, as the view showed them.
        numbers: What the server told last of each topic, by its name.
        interrupted: Whether it was cut short.
    """

    def __init__(
        self,
        flights: Sequence[Flight],
        speed: float,
        tell: Callable[[str], None],
        parts: Sequence[Part] = PARTS,
    ) -> None:
        self.stage: Stage = Stage(len(flights))
        self.readers: list[Reader] = [Reader(part, self.stage, tell) for part in parts]
        self.latest: dict[str, deque[Flight]] = {}
        self.numbers: Mapping[str, Mapping[str, Any]] = {}
        self.interrupted: bool = False
        self._flights = flights
        self._speed = speed
        self._published: dict[str, list[Published]] = {DEPARTURES.name: [], AIRCRAFT.name: []}
        self._newest: dict[str, tuple[int, Flight]] = {}  # by airport, with its index
        self._heads: dict[str, Position] = {}
        self._mirrored = 0
        self._publishing: anyio.CancelScope | None = None
        self._cutter: Cutter | None = None

    @property
    def now(self) -> Flight:
        """The flight that was published last, or is the first to be."""
        return self._flights[max(self.stage.played - 1, 0)]

    @property
    def cuts(self) -> int:
        """Connections that were cut so far."""
        return 0 if self._cutter is None else self._cutter.cuts

    def interrupt(self) -> None:
        """Publishes no more. Those who are away or stuck come back at once, so that they can be counted."""
        self.interrupted = True
        if self._publishing is not None:
            self._publishing.cancel()

    async def run(self, cutter: Cutter) -> None:
        """Plays to the end, or to the interruption, and until everybody has had everything."""
        self._cutter = cutter
        async with cutter.connect() as bus, bus.view(DEPARTURES) as view:
            await view.ready()
            async with create_task_group() as others:
                others.start_soon(self._follow, view)
                others.start_soon(self._ask, bus)
                others.start_soon(self._cut, cutter)
                async with create_task_group() as readers:
                    for reader in self.readers:
                        await readers.start(reader.run, cutter)
                    await self._publish(bus)
                    self.stage.finish()
                    readers.cancel_scope.deadline = current_time() + DRAIN_SECONDS
                    others.start_soon(self._hurry)
                await self._compare(view)
                others.cancel_scope.cancel()

    def result(self) -> Result:
        """Counts. Call it when `run` has returned."""
        return Result(
            rows=tuple(
                Row(reader.part, count(sorted(self._published[reader.part.topic.name]), reader.frames, reader.part.key))
                for reader in self.readers
            ),
            published={name: len(events) for name, events in self._published.items()},
            mirrored=self._mirrored,
            keys=len(self._newest),
            cuts=self.cuts,
            interrupted=self.interrupted,
        )

    async def _publish(self, bus: RemoteBus) -> None:
        first, begin = self._flights[0].time, current_time()
        room = anyio.Semaphore(UNDER_WAY)
        # What is under way when the play is interrupted is awaited all the same: it may have been published.
        async with create_task_group() as under_way:
            with anyio.CancelScope() as self._publishing:
                for flight in self._flights:
                    if self.interrupted:
                        return
                    due = begin + (flight.time - first).total_seconds() / self._speed
                    if due > current_time():
                        await sleep_until(due)
                    await room.acquire()
                    under_way.start_soon(self._publish_one, bus, flight, room)

    async def _publish_one(self, bus: RemoteBus, flight: Flight, room: anyio.Semaphore) -> None:
        position = await bus.publish(DEPARTURES, flight)
        self._note(DEPARTURES, position, flight.origin)
        newest = self._newest.get(flight.origin)
        if newest is None or newest[0] < position.index:
            self._newest[flight.origin] = position.index, flight
        if flight.tail is not None and flight.status == "departed":
            self._note(AIRCRAFT, await bus.publish(AIRCRAFT, flight), flight.tail)
        self.stage.advance()
        room.release()

    def _note(self, topic: Topic[Flight], position: Position, key: str) -> None:
        self._published[topic.name].append((position.index, key))
        if position.index > self._heads.get(topic.name, NOTHING).index:
            self._heads[topic.name] = position
            self.stage.heads[topic.name] = position.index

    async def _follow(self, view: View[Flight]) -> None:
        async for airports in view.changes():
            for airport in sorted(airports):
                self.latest.setdefault(airport, deque(maxlen=SHOWN)).appendleft(view[airport])
            await checkpoint()

    async def _ask(self, bus: RemoteBus) -> None:
        while True:
            self.numbers = await bus.topics()
            await sleep(LOOK)

    async def _cut(self, cutter: Cutter) -> None:
        for number in range(1, CUTS + 1):
            await self.stage.reached(number / (CUTS + 1))
            if not self.stage.over:
                cutter.cut()

    async def _hurry(self) -> None:
        while True:
            for reader in self.readers:
                reader.hurry()
            await sleep(LOOK)

    async def _compare(self, view: View[Flight]) -> None:
        position = self._heads.get(DEPARTURES.name)
        if position is not None:
            with anyio.move_on_after(DRAIN_SECONDS):
                await view.reached(position)
        self._mirrored = sum(view.get(airport) == flight for airport, (_, flight) in self._newest.items())

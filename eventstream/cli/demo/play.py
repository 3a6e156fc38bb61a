"""The play: which topics there are, who reads them, who publishes, and what is counted at the end. It draws nothing.

The flights are published at the pace of their own times, made faster. Two topics, both compacted:

* `departures`, key = the airport left: its state is the newest departure of each airport. A reader may be 500 events
  behind, so that one which stops reading for a fifth of the week is reset.
* `aircraft`, key = the aircraft's tail number: its state is where each of some two thousand aircraft was last seen,
  so a snapshot of it is worth sharing between those who join late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import msgspec
from anyio import create_task_group, current_time, sleep_until
from anyio.lowlevel import checkpoint

from ...bus import BusStatistics, EventBus
from ...events import Topic
from ...snapshots import View
from .counting import Published, Tally, count
from .flights import Flight
from .readers import Part, Pause, Reader
from .stage import Stage

__all__ = ("AIRCRAFT", "DEPARTURES", "PARTS", "Play", "Result", "Row")

DEPARTURES: Final[Topic[Flight]] = Topic("departures", Flight, key="origin", compacted=True, max_lag=500)
AIRCRAFT: Final[Topic[Flight]] = Topic("aircraft", Flight, key="tail", compacted=True)

PARTS: Final = (
    Part("steady", DEPARTURES),
    Part("newark", DEPARTURES, "EWR"),
    Part("commuter", DEPARTURES, "JFK", pauses=(Pause("away", 0.2, 0.3), Pause("away", 0.55, 0.65))),
    Part("traveller", DEPARTURES, pauses=(Pause("away", 0.4, 0.48),)),
    Part("overdue", DEPARTURES, "LGA", pauses=(Pause("away", 0.25, 0.7),)),  # more than are retained
    Part("stuck", DEPARTURES, pauses=(Pause("stuck", 0.3, 0.5),)),  # more than its bound
    Part("spotter", AIRCRAFT),
    Part("late", AIRCRAFT, joins=0.5),
    Part("late, too", AIRCRAFT, joins=0.5),
)

SHOWN: Final = 6  # of the latest departures of an airport
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
        interrupted: Whether the play was cut short.
    """

    rows: tuple[Row, ...]
    published: dict[str, int]
    mirrored: int
    keys: int
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
        self.interrupted: bool = False
        self._flights = flights
        self._speed = speed
        self._published: dict[str, list[Published]] = {DEPARTURES.name: [], AIRCRAFT.name: []}
        self._newest: dict[str, Flight] = {}
        self._mirrored = 0
        self._publishing: anyio.CancelScope | None = None
        self._bus: EventBus | None = None

    @property
    def now(self) -> Flight:
        """The flight that was published last, or is the first to be."""
        return self._flights[max(self.stage.played - 1, 0)]

    def statistics(self) -> BusStatistics | None:
        """What the bus tells of itself, while there is one."""
        return None if self._bus is None else self._bus.statistics()

    def interrupt(self) -> None:
        """Publishes no more. Those who are away or stuck come back at once, so that they can be counted."""
        self.interrupted = True
        if self._publishing is not None:
            self._publishing.cancel()

    async def run(self) -> None:
        """Plays to the end, or to the interruption, and until everybody has had everything."""
        async with EventBus() as bus, bus.view(DEPARTURES) as view:
            self._bus = bus
            await view.ready()
            async with create_task_group() as others:
                others.start_soon(self._follow, view)
                async with create_task_group() as readers:
                    for reader in self.readers:
                        await readers.start(reader.run, bus)
                    with anyio.CancelScope() as self._publishing:
                        await self._publish(bus)
                    self.stage.finish()
                    readers.cancel_scope.deadline = current_time() + DRAIN_SECONDS
                    for reader in self.readers:
                        reader.hurry()
                await self._compare(bus, view)
                others.cancel_scope.cancel()
            self._bus = None

    def result(self) -> Result:
        """Counts. Call it when `run` has returned."""
        return Result(
            rows=tuple(
                Row(reader.part, count(self._published[reader.part.topic.name], reader.frames, reader.part.key))
                for reader in self.readers
            ),
            published={name: len(events) for name, events in self._published.items()},
            mirrored=self._mirrored,
            keys=len(self._newest),
            interrupted=self.interrupted,
        )

    async def _publish(self, bus: EventBus) -> None:
        first, begin = self._flights[0].time, current_time()
        for flight in self._flights:
            if self.interrupted:
                return
            due = begin + (flight.time - first).total_seconds() / self._speed
            if due > current_time():
                await sleep_until(due)
            await self._publish_one(bus, DEPARTURES, flight, flight.origin)
            self._newest[flight.origin] = flight
            if flight.tail is not None and flight.status == "departed":
                await self._publish_one(bus, AIRCRAFT, flight, flight.tail)
            self.stage.advance()

    async def _publish_one(self, bus: EventBus, topic: Topic[Flight], flight: Flight, key: str) -> None:
        with anyio.CancelScope(shield=True):  # an interruption must not part the event from the note of it
            position = await bus.publish(topic, flight)
            self._published[topic.name].append((position.index, key))

    async def _follow(self, view: View[Flight]) -> None:
        async for airports in view.changes():
            for airport in sorted(airports):
                self.latest.setdefault(airport, deque(maxlen=SHOWN)).appendleft(view[airport])
            await checkpoint()

    async def _compare(self, bus: EventBus, view: View[Flight]) -> None:
        with anyio.move_on_after(DRAIN_SECONDS):
            await view.reached(bus.statistics().topics[DEPARTURES.name].head)
        self._mirrored = sum(view.get(airport) is flight for airport, flight in self._newest.items())

"""A bus over a bad network: every subscriber gets every event after its position, in order, once, or is told.

Clients publish, subscribe and hold views; some read slowly, some leave and come back with the position that they saved.
Meanwhile links are harmed, servers are replaced (before the same bus, or with a bus that knows nothing), stopped
politely, topics refreshed, principals revoked. Then all is healed, and each client publishes once more.

What is true is written down where the server's bus appends. Checked at every frame: an event is the next one of the
epoch that passes the filter; a bookmark passes over nothing; a snapshot is the state at its index, as is a view at
every change. In the end: everybody has the last event; every publish that was answered stands where the answer said,
and none stands twice in one epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Final

import anyio
import anyio.lowlevel
import msgspec

from ...bus import EventBus
from ...errors import EventStreamError, NotAuthorized, PositionLost, SlowSubscriber
from ...events import EARLIEST, Bookmark, Event, Position, Resumed, SnapshotEnd, SnapshotStart, Topic
from ...logs import Entries, MemoryLog, Terms
from ...pipes import Retry
from ...remote import Credentials, Grant, RemoteBus, Server
from ...topics import LiveTopic
from ..faults import Faults, seeded
from ..network import Network
from .harm import harm_links
from .scenario import Note, Scenario

__all__ = ("scenario",)

CLIENTS: Final = 2
KEYS: Final = "abcde"
HARMS: Final = 6  # by hand, one after another, before a pause
PATIENCE: Final = 300.0  # virtual seconds in which everybody has the last event after all was healed


class Fact(msgspec.Struct, frozen=True):
    """A payload. All that are published differ."""

    key: str
    name: str
    padding: str = ""


Record = tuple[int, str, Fact | None]  # index, key, payload


class Truth:
    """What was appended to each epoch of each topic."""

    def __init__(self) -> None:
        self._epochs: dict[tuple[str, str], list[Record]] = {}

    def add(self, topic: str, position: Position, entries: Entries) -> None:
        """A batch was appended."""
        records = self.of(topic, position.epoch)
        records += [(position.index, key, payload) for key, payload in entries]

    def of(self, topic: str, epoch: str) -> list[Record]:
        """All of one epoch."""
        return self._epochs.setdefault((topic, epoch), [])

    def state(self, topic: str, position: Position, passes: Callable[[str], bool]) -> dict[str, Fact]:
        """The newest payload of each key at a position."""
        state: dict[str, Fact] = {}
        for index, key, payload in self.of(topic, position.epoch):
            if index <= position.index and passes(key):
                state.pop(key, None)
                if payload is not None:
                    state[key] = payload
        return state

    def check_publishes(self, answered: list[tuple[str, str, Position]]) -> None:
        """Raises AssertionError: if a publish stands elsewhere than was answered, or twice in one epoch."""
        for (topic, epoch), records in self._epochs.items():
            names = [payload.name for _, _, payload in records if payload is not None]
            if len(names) != len(set(names)):
                raise AssertionError(f"{topic} {epoch} has a publish twice: {sorted(names)}")
        for topic, name, position in answered:
            found = [
                index for index, _, fact in self.of(topic, position.epoch) if fact is not None and fact.name == name
            ]
            if found != [position.index]:
                raise AssertionError(f"{name} was answered with {position} and stands in {topic} at {found}")


class _WrittenDown(MemoryLog):
    """A log whose truth is known."""

    def __init__(self, truth: Truth, random: Random) -> None:
        super().__init__(clock=anyio.current_time, random=random)
        self._truth = truth

    def append_nowait(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        head = live.head
        position = super().append_nowait(live, entries, terms)
        if position.index > head:
            self._truth.add(live.topic.name, position, entries)
        return position


class Reader:
    """What one subscriber knows, and a check of each frame. It outlives its subscriptions.

    Args:
        name: For messages.
        topic: What it reads.
        filters: Of its subscriptions.
        truth: To check against.
    """

    def __init__(self, name: str, topic: Topic[Fact], filters: dict[str, str], truth: Truth) -> None:
        self.name = name
        self.topic = topic
        self.filters = filters
        self.position: Position | None = None
        self.resets: int = 0
        self.got: set[str] = set()
        self._truth = truth
        self._epoch = ""
        self._next = 0  # in the truth of the epoch
        self._collected: dict[str, Fact] | None = None  # set between SnapshotStart and SnapshotEnd
        self._first = True

    def passes(self, key: str) -> bool:
        """Whether its filter lets a key through."""
        return key == self.filters.get("key", key) and key.startswith(self.filters.get("prefix", ""))

    def begin(self) -> None:
        """A new subscription."""
        self._first = True
        self._collected = None

    def hear(self, frame: Any) -> None:
        """Raises AssertionError: if the frame breaks the promise."""
        if self._first is not isinstance(frame, Resumed) and not isinstance(frame, SnapshotStart):
            raise AssertionError(f"{self.name}: {frame} as the first frame, or later: {self._first}")
        match frame:
            case Resumed(position=position):
                if self.position is not None and position != self.position:
                    raise AssertionError(f"{self.name}: asked for {self.position}, resumed at {position}")
                self._stand(position)
            case SnapshotStart(position=position):
                self.resets += not self._first
                self._collected = {}
                self._epoch = position.epoch
            case SnapshotEnd(position=position):
                self._check_state(position)
                self._stand(position)
            case Bookmark(position=position):
                if (missed := self._until(position)) is not None:
                    raise AssertionError(f"{self.name}: {frame} passes over {missed}")
            case Event():
                self._hear_event(frame)
        self._first = False

    def _hear_event(self, event: Event[Fact]) -> None:
        if event.payload is not None:
            self.got.add(event.payload.name)
        if self._collected is not None:
            if event.key in self._collected:
                raise AssertionError(f"{self.name}: {event} twice in a snapshot")
            self._collected[event.key] = event.payload
            return
        records = self._truth.of(self.topic.name, self._epoch)
        while self._next < len(records) and not self.passes(records[self._next][1]):
            self._next += 1
        expected = records[self._next] if self._next < len(records) else None
        if expected != (event.index, event.key, event.payload):
            raise AssertionError(f"{self.name}: {event} instead of {expected}")
        self._next += 1

    def _stand(self, position: Position) -> None:
        self._collected = None
        self._epoch, self._next = position.epoch, 0
        self._until(position)
        records = self._truth.of(self.topic.name, self._epoch)
        while self._next < len(records) and records[self._next][0] <= position.index:
            self._next += 1

    def _until(self, position: Position) -> Record | None:
        """Moves up to a position; stops at an event for this reader, and returns it."""
        records = self._truth.of(self.topic.name, self._epoch)
        if position.epoch != self._epoch:
            raise AssertionError(f"{self.name}: {position} in epoch {self._epoch}")
        while self._next < len(records) and records[self._next][0] <= position.index:
            if self.passes(records[self._next][1]):
                return records[self._next]
            self._next += 1
        return None

    def _check_state(self, position: Position) -> None:
        state = self._truth.state(self.topic.name, position, self.passes)
        if self._collected is None or position.epoch != self._epoch or self._collected != state:
            raise AssertionError(f"{self.name}: the snapshot at {position} is {self._collected}, not {state}")


class _Run:
    def __init__(self, seed: int, note: Note) -> None:
        self.seed = seed
        self.note = note
        self.random = seeded(f"{seed} script")
        self.truth = Truth()
        self.answered: list[tuple[str, str, Position]] = []
        faults = Faults.draw(seed)
        note(f"{faults}")
        self.network = Network(seed, faults, buffer=self.random.choice((2000, 65_536)), trace=note)
        choice = self.random.choice
        self.seconds = choice((1.0, 3.0, 6.0))
        retain, max_lag = choice((3, 10, 1000)), choice((3, 10, 1000))
        self.topics: list[Topic[Fact]] = [
            Topic("facts", Fact, key="key", compacted=True, retain=retain, max_lag=max_lag),
            Topic("news", Fact, retain=retain, max_lag=max_lag),
        ]
        self.window = choice((150, 1000, 1_000_000))
        self.grace = choice((2.0, 60.0))
        self.passing = choice(((), ("client 1",)))  # whose grants expire
        self.slow = choice((0.0, 0.1, 1.0))
        self.bus: EventBus | None = None
        self.server: Server | None = None
        self.lives = 0
        self.ending = anyio.Event()
        self.satisfied = 0

    # The server.

    async def buses(self) -> None:
        """One bus after another."""
        while True:
            self.lives += 1
            log = _WrittenDown(self.truth, seeded(f"{self.seed} log {self.lives}"))
            with anyio.CancelScope() as scope:
                async with EventBus(log, random=seeded(f"{self.seed} bus {self.lives}")) as bus:
                    self.bus = bus
                    await self._servers(bus, scope)
            self.note("the bus is replaced")

    async def _servers(self, bus: EventBus, replace: anyio.CancelScope) -> None:
        while True:
            self.lives += 1
            self.server = Server(
                bus,
                self.topics,
                authenticate=self._authenticate_async if self.lives % 2 else self._authenticate,
                grace=self.grace,
                clock=anyio.current_time,
                random=seeded(f"{self.seed} server {self.lives}"),
            )
            how = ""
            async with anyio.create_task_group() as tasks:
                await tasks.start(self.server.serve, self.network.listen())
                how = await self._next_end()
                self.note(f"the server ends: {how}")
                if how == "politely":
                    await self.server.aclose(linger=1.0)
                tasks.cancel_scope.cancel()
            await anyio.sleep(self.random.random())
            if how == "bus":
                replace.cancel()
                await anyio.lowlevel.checkpoint()

    async def _next_end(self) -> str:
        with anyio.move_on_after(self.random.expovariate(0.4)):
            await self.ending.wait()
            await anyio.sleep_forever()
        if self.ending.is_set():
            await anyio.sleep_forever()
        return self.random.choice(("at once", "politely", "bus"))

    def _authenticate(self, credentials: Credentials) -> Grant | None:
        passing = credentials.token in self.passing and not self.ending.is_set()
        expires = anyio.current_time() + 2.0 if passing else None
        return Grant(credentials.token, expires) if credentials.token else None

    async def _authenticate_async(self, credentials: Credentials) -> Grant | None:
        await anyio.sleep(0.1)
        return self._authenticate(credentials)

    async def trouble(self) -> None:
        """Everything that goes wrong, until it heals."""
        random = seeded(f"{self.seed} harm")
        with anyio.move_on_after(self.seconds):
            while True:
                with suppress(ConnectionRefusedError):
                    await harm_links(self.network, random, HARMS)
                await anyio.sleep(random.random())
                with suppress(EventStreamError):  # between two buses
                    await self._administrate(random)
        self.note("healed")
        self.network.heal()
        self.ending.set()

    async def _administrate(self, random: Random) -> None:
        assert self.bus is not None
        principal = f"client {random.randrange(CLIENTS)}"
        match random.randrange(8):
            case 0:
                self.note(f"{principal} is revoked")
                self.bus.revoke(principal)
            case 1 if self.server is not None:
                self.note(f"{principal} is expelled")
                self.server.revoke(principal)
            case 2:
                topic = random.choice(self.topics)
                self.note(f"{topic.name} is refreshed")
                await self.bus.refresh(topic)

    # A client.

    async def client(self, number: int) -> None:
        """Comes again and again, with a new bus, when it is expelled; until all its readers are satisfied."""
        random = seeded(f"{self.seed} client {number}")
        readers = [self._new_reader(f"client {number} reader {at}", random) for at in range(2)]
        counter = _Counter(f"{number}")
        while True:
            bus = RemoteBus(
                self.network.dial,
                token=f"client {number}",
                window=self.window,
                heartbeat=random.choice((2.0, 10.0)),
                retry=Retry(first=0.1, cap=2.0),
                clock=anyio.current_time,
                random=seeded(f"{self.seed} remote {number} {random.random()}"),
            )
            try:
                async with bus, anyio.create_task_group() as tasks:
                    for reader in readers:
                        tasks.start_soon(self._read, bus, reader, seeded(f"{reader.name} {random.random()}"))
                    tasks.start_soon(self._view, bus)
                    tasks.start_soon(self._publish, bus, counter, seeded(f"{random.random()}"))
                    await self._until_done(readers)
                    tasks.cancel_scope.cancel()
                    return
            except* NotAuthorized:
                self.note(f"client {number} comes again")

    def _new_reader(self, name: str, random: Random) -> Reader:
        topic = random.choice(self.topics)
        filters = random.choice(({}, {"key": random.choice(KEYS)}, {"prefix": random.choice(KEYS)}))
        if topic.key is None:
            filters = {}
        return Reader(name, topic, filters, self.truth)

    async def _read(self, bus: RemoteBus, reader: Reader, random: Random) -> None:
        after: Any = random.choice((None, EARLIEST)) if reader.position is None else reader.position
        while True:
            reader.begin()
            stay = random.choice((3, 30, 10_000))
            try:
                async with bus.subscribe(reader.topic, after=after, **reader.filters) as subscription:  # type: ignore[arg-type]
                    async for frame in subscription.frames():
                        reader.hear(frame)
                        stay -= 1
                        if random.random() < 0.2 and not self.ending.is_set():
                            await anyio.sleep(random.random() * self.slow)
                        reader.position = after = subscription.position
                        if stay < 0 and not self.ending.is_set():
                            break
                        await anyio.lowlevel.checkpoint()
            except (PositionLost, SlowSubscriber) as error:
                self.note(f"{reader.name}: {error}")
                reader.position, after = None, EARLIEST
            except NotAuthorized:
                self.note(f"{reader.name} is revoked")
                await anyio.sleep(0.1)

    async def _view(self, bus: RemoteBus) -> None:
        topic = self.topics[0]
        while True:
            try:
                async with bus.view(topic) as view:
                    await view.ready()
                    async for _ in view.changes():
                        position = view.position
                        assert position is not None
                        state = self.truth.state(topic.name, position, lambda _: True)
                        if dict(view) != state:
                            raise AssertionError(f"a view at {position} is {dict(view)}, not {state}")
            except NotAuthorized:
                await anyio.sleep(0.1)

    async def _publish(self, bus: RemoteBus, counter: _Counter, random: Random) -> None:
        padding = "x" * random.choice((0, 0, 100))
        async with anyio.create_task_group() as tasks:
            while not self.ending.is_set():
                await anyio.sleep(random.expovariate(2))
                for _ in range(random.choice((1, 1, 1, 2, 12))):
                    topic = random.choice(self.topics)
                    facts = [
                        Fact(random.choice(KEYS), counter.next(), padding) for _ in range(random.choice((1, 1, 3)))
                    ]
                    patience = random.choice((0.05, 1000.0, 1000.0))
                    tasks.start_soon(self._publish_facts, bus, topic, facts, patience, random.random() < 0.2)
        last = [Fact(key, counter.next()) for key in KEYS]
        for topic in self.topics:
            for fact in last:
                self.answered.append((topic.name, fact.name, await bus.publish(topic, fact)))
        await self._check_last_view(bus)
        self.satisfied += 1
        await anyio.sleep_forever()

    async def _publish_facts(
        self, bus: RemoteBus, topic: Topic[Fact], facts: list[Fact], patience: float, delete: bool
    ) -> None:
        with anyio.move_on_after(patience):
            if topic.compacted and delete:
                await bus.delete(topic, facts[0].key)
            elif len(facts) == 1:
                self.answered.append((topic.name, facts[0].name, await bus.publish(topic, facts[0])))
            else:
                position = await bus.publish_many(topic, facts)
                self.answered += [(topic.name, fact.name, position) for fact in facts]

    async def _check_last_view(self, bus: RemoteBus) -> None:
        topic = self.topics[0]
        async with bus.view(topic) as view:
            await view.ready()
            await view.reached(await bus.head(topic))

    async def _until_done(self, readers: list[Reader]) -> None:
        await self.ending.wait()
        with anyio.move_on_after(PATIENCE):
            while self.satisfied < CLIENTS or not all(self._has_all(reader) for reader in readers):  # noqa: ASYNC110
                await anyio.sleep(0.5)
            return
        late = [reader.name for reader in readers if not self._has_all(reader)]
        raise AssertionError(f"{self.satisfied} of {CLIENTS} clients have said all; these did not hear it: {late}")

    def _has_all(self, reader: Reader) -> bool:
        """Whether a reader has what the others said last; of a filtered one, or after a snapshot, only its position."""
        assert self.bus is not None
        head = self.bus.statistics().topics[reader.topic.name].head
        records = [record for record in self.truth.of(reader.topic.name, head.epoch) if reader.passes(record[1])]
        position = reader.position
        return not records or (
            position is not None and position.epoch == head.epoch and position.index >= records[-1][0]
        )


class _Counter:
    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"


async def play(seed: int, note: Note) -> None:
    """One run."""
    run = _Run(seed, note)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.buses)
        tasks.start_soon(run.trouble)
        async with anyio.create_task_group() as clients:
            for number in range(CLIENTS):
                clients.start_soon(run.client, number)
        tasks.cancel_scope.cancel()
    run.truth.check_publishes(run.answered)
    if run.network.open_streams:
        raise AssertionError(f"streams were not closed: {run.network.open_streams}")


scenario: Final = Scenario("bus", play)

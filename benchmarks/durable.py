"""Publishing that lasts: events a second until each is acknowledged as stored, beside what else stores them.

`one`: each publish is answered before the next is made. `many`: 100 are under way at a time, in the way that the
client offers: as many publishers here, futures at NATS, one pipeline at Redis, one transaction for SQLite alone. Rows
are compared at the same safety: after a loss of power, or after the death of the process alone.

What is measured beside it: reading all of it back from the file, and an outbox, from its file to a server in another
process.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal, TypeAlias

import anyio

from eventstream import EARLIEST, EventBus, SQLiteLog, Topic, open_bus
from eventstream.outbox import Outbox, OutboxLimits

from .harness import Case, Figures, Plan, Samples, Section
from .network.far import Far
from .network.nats import Nats
from .network.ours import SAMPLES, Ours
from .network.peer import HOST, TOPIC, Sample, as_bytes, server_process
from .network.redis import Redis
from .report import table, times
from .stage import perform

__all__ = ("SECTION",)

Safe: TypeAlias = Literal["power", "process"]
POWER: Final = "power"
PROCESS: Final = "process"  # what an acknowledged event survives the loss of
ONE, MANY = "one", "many"
IN_FLIGHT: Final = 100
SECONDS, WARM_UP = 1.5, 0.1
EVENTS: Final = 100_000  # of a replay
ENTRIES: Final = 20_000  # of an outbox that is drained
KEYS: Final = 1000  # of these: the entries of one key go one after the other

Publish: TypeAlias = Callable[[float], Awaitable[int]]
"""Publishes for so many seconds; returns how many events were acknowledged."""


async def _repeat(step: Callable[[], Awaitable[object]], events: int, seconds: float) -> int:
    """A step of so many events, again and again."""
    done, end = 0, perf_counter() + seconds
    while perf_counter() < end:
        await step()
        done += events
    return done


async def _crowd(step: Callable[[], Awaitable[object]], seconds: float) -> int:
    """A step of one event, by as many publishers as are to be under way."""
    done = 0

    async def publisher() -> None:
        nonlocal done
        own = await _repeat(step, 1, seconds)
        done += own

    async with anyio.create_task_group() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.start_soon(publisher)
    return done


@asynccontextmanager
async def _ours(how: str, safe: Safe) -> AsyncIterator[Publish]:
    topic: Topic[Sample] = Topic(TOPIC, Sample)
    with tempfile.TemporaryDirectory() as folder:
        async with EventBus(SQLiteLog(Path(folder, "events.db"), durability=safe)) as bus:

            async def step() -> None:
                await bus.publish(topic, Sample.make(1))

            yield lambda seconds: _repeat(step, 1, seconds) if how == ONE else _crowd(step, seconds)


@asynccontextmanager
async def _outbox(how: str, safe: Safe) -> AsyncIterator[Publish]:
    """Kept while there is no bus; a file is always safe against a loss of power."""
    topic: Topic[Sample] = Topic(TOPIC, Sample)
    limits = OutboxLimits(entries=10_000_000, bytes=1 << 40)
    with tempfile.TemporaryDirectory() as folder:
        async with Outbox(Path(folder, "outbox.db"), limits=limits) as outbox:

            async def step() -> None:
                await outbox.publish(topic, Sample.make(1))

            yield lambda seconds: _repeat(step, 1, seconds) if how == ONE else _crowd(step, seconds)


@asynccontextmanager
async def _sqlite(how: str, safe: Safe) -> AsyncIterator[Publish]:
    """What the file could take, if nothing but the insertion was to be done."""
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(f"{folder}/events.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if safe == POWER else 'NORMAL'}")
        database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, topic TEXT, body BLOB)")
        events = 1 if how == ONE else IN_FLIGHT

        async def step() -> None:
            rows = [(TOPIC, as_bytes(Sample.make(number))) for number in range(events)]
            database.execute("BEGIN")
            database.executemany("INSERT INTO events (topic, body) VALUES (?, ?)", rows)
            database.execute("COMMIT")

        yield lambda seconds: _repeat(step, events, seconds)
        database.close()


@asynccontextmanager
async def _nats(how: str, safe: Safe) -> AsyncIterator[Publish]:
    import nats

    def configuration(port: int, folder: str) -> list[str]:
        file = Path(folder, "nats.conf")
        sync = "sync_interval: always" if safe == POWER else ""
        file.write_text(f'host: "{HOST}"\nport: {port}\njetstream {{ store_dir: "{folder}/js"\n{sync} }}\n')
        return ["-c", str(file)]

    with server_process("nats-server", configuration) as (_, port):
        connection: Any = await nats.connect(f"nats://{HOST}:{port}")
        stream = connection.jetstream()
        await stream.add_stream(name=TOPIC, subjects=[TOPIC], storage="file")

        async def one() -> None:
            await stream.publish(TOPIC, as_bytes(Sample.make(1)))

        async def many() -> None:
            sent = [await stream.publish_async(TOPIC, as_bytes(Sample.make(1))) for _ in range(IN_FLIGHT)]
            await asyncio.gather(*sent)

        yield lambda seconds: _repeat(one, 1, seconds) if how == ONE else _repeat(many, IN_FLIGHT, seconds)
        await connection.close()


@asynccontextmanager
async def _redis(how: str, safe: Safe) -> AsyncIterator[Publish]:
    from redis.asyncio import Redis as Connection

    def options(port: int, folder: str) -> list[str]:
        sync = "always" if safe == POWER else "everysec"
        address = ("--bind", HOST, "--port", str(port), "--dir", folder, "--save", "")
        return [*address, "--appendonly", "yes", "--appendfsync", sync]

    with server_process("redis-server", options) as (_, port):
        connection: Any = Connection(host=HOST, port=port)

        async def one() -> None:
            await connection.xadd(TOPIC, {"e": as_bytes(Sample.make(1))})

        async def many() -> None:
            async with connection.pipeline(transaction=False) as pipeline:
                for _ in range(IN_FLIGHT):
                    pipeline.xadd(TOPIC, {"e": as_bytes(Sample.make(1))})
                await pipeline.execute()

        yield lambda seconds: _repeat(one, 1, seconds) if how == ONE else _repeat(many, IN_FLIGHT, seconds)
        await connection.aclose()


@dataclass(frozen=True, slots=True)
class _Store:
    """A row."""

    open: Callable[[str, Safe], AbstractAsyncContextManager[Publish]]
    safe: Safe
    missing: Callable[[], list[str]] = list


OURS = "eventstream, SQLiteLog"
STORES: Final = {
    OURS: _Store(_ours, POWER),
    "eventstream, Outbox": _Store(_outbox, POWER),
    "NATS JetStream, sync always": _Store(_nats, POWER, Nats.missing),
    "Redis stream, appendfsync always": _Store(_redis, POWER, Redis.missing),
    "(SQLite alone, synchronous = FULL)": _Store(_sqlite, POWER),
    f'{OURS}(durability="process")': _Store(_ours, PROCESS),
    "NATS JetStream, default sync": _Store(_nats, PROCESS, Nats.missing),
    "Redis stream, appendfsync everysec": _Store(_redis, PROCESS, Redis.missing),
    "(SQLite alone, synchronous = NORMAL)": _Store(_sqlite, PROCESS),
}
DRAIN = "eventstream, Outbox: drained to a server on loopback"
REPLAY, SELECT = f"{OURS}: replay, by batches()", "(SQLite alone: SELECT)"


def cases(plan: Plan) -> list[Case]:
    """Each store with one publish under way and with many; then the replays."""
    stores = [
        Case("durable", row, events, scale=plan.scale)
        for events in (1, IN_FLIGHT)
        for row, store in STORES.items()
        if not store.missing()
    ]
    replays = [Case("durable", row, plan.sizes(EVENTS)[0], scale=plan.scale) for row in (REPLAY, SELECT)]
    return [*stores, *replays, Case("durable", DRAIN, plan.sizes(ENTRIES)[0], scale=plan.scale)]


def measure(case: Case) -> Figures:
    """Events a second."""
    if case.row == DRAIN:
        return perform(lambda _: _drain(case), case.loop)
    if case.row in (REPLAY, SELECT):
        return perform(lambda _: _replay(case), case.loop)
    return perform(lambda _: _publishing(case), case.loop)


async def _publishing(case: Case) -> Figures:
    store = STORES[case.row]
    async with store.open(ONE if case.size == 1 else MANY, store.safe) as publish:
        await publish(WARM_UP)
        start = perf_counter()
        done = await publish(SECONDS * case.scale)
        return {"rate": done / (perf_counter() - start)}


async def _replay(case: Case) -> Figures:
    topic: Topic[Sample] = Topic(TOPIC, Sample)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "events.db")
        if case.row == SELECT:
            return {"rate": case.size / _select(file, case.size)}
        async with EventBus(SQLiteLog(file)) as bus:
            numbers = iter(range(case.size))

            async def publisher() -> None:
                for number in numbers:
                    await bus.publish(topic, Sample.make(number))

            async with anyio.create_task_group() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.start_soon(publisher)
        return {"rate": case.size / await _read(file, topic, case.size)}


async def _read(file: Path, topic: Topic[Sample], count: int) -> float:
    async with EventBus(SQLiteLog(file)) as bus:
        start = perf_counter()
        async with bus.subscribe(topic, after=EARLIEST) as subscription:
            async for batch in subscription.batches():
                count -= len(batch)
                if count <= 0:
                    break
        return perf_counter() - start


def _select(file: Path, count: int) -> float:
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, topic TEXT, body BLOB)")
    rows = ((TOPIC, as_bytes(Sample.make(number))) for number in range(count))
    database.executemany("INSERT INTO events (topic, body) VALUES (?, ?)", rows)
    database.commit()
    start = perf_counter()
    for _ in database.execute("SELECT * FROM events"):
        pass
    took = perf_counter() - start
    database.close()
    return took


async def _drain(case: Case) -> Figures:
    limits, numbers = OutboxLimits(entries=case.size), iter(range(case.size))
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Far(Ours.name, case.loop) as far,
            open_bus(f"tcp://{HOST}:{far.port}") as bus,
            Outbox(Path(folder, "outbox.db"), limits=limits) as outbox,
        ):

            async def publisher() -> None:
                for number in numbers:
                    await outbox.publish(SAMPLES, Sample.make(number, f"boiler-{number % KEYS}"))

            async with anyio.create_task_group() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.start_soon(publisher)
            start = perf_counter()
            outbox.use(bus)
            left = await outbox.flush()
            took = perf_counter() - start
    assert not left
    return {"rate": case.size / took}


def render(samples: Samples) -> str:
    """A table for each safety, one of what is read back, one of the outbox."""
    parts = ["## Durable publishing", *(_of_stores(samples, safe) for safe in (POWER, PROCESS))]
    for what, *rows in (("events read back", REPLAY, SELECT), ("entries sent", DRAIN)):
        cases = [case for case in samples.rounds if case.row in rows]
        rates: list[list[str | float | None]] = [[case.row, samples.median(case, "rate")] for case in cases]
        parts.append(table([f"{cases[0].size:,} {what}; events/s", "rate"], rates))
    return "\n\n".join(parts)


def _of_stores(samples: Samples, safe: Safe) -> str:
    stores = [row for row, store in STORES.items() if store.safe == safe and row in samples.rows()]
    cells: list[list[str | float | None]] = []
    for row in stores:
        cells.append([row])
        for size in (1, IN_FLIGHT):
            ours, store = samples.find(stores[0], size), samples.find(row, size)
            cells[-1] += [samples.median(store, "rate"), _by(samples, ours, store)]
    head = [f"safe against the loss of {safe}; events/s", "1 at a time", "ours is", "100 under way", "ours is"]
    return table(head, cells)


def _by(samples: Samples, ours: Case | None, peer: Case | None) -> str:
    return "" if ours == peer else times(samples.ratio(ours, peer, "rate"))


SECTION = Section("durable", cases, measure, render)

"""Current state: joining a snapshot that is kept, building one, sharing one, and a view that follows."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from time import perf_counter

from anyio.lowlevel import checkpoint

from eventstream import EventBus, SnapshotOptions, SnapshotStart, Subscription, Topic

from .feeds import Reading
from .harness import Case, Figures, Plan, Samples, Section
from .report import number, table
from .stage import Stage, perform, quiet

__all__ = ("SECTION",)

JOINS = 200  # of a timed round
ROUNDS = 5
SHARERS = 1000
JOIN, KEY, SHARE, VIEW = "join", "key", "share", "view"

TOPIC: Topic[Reading] = Topic("sensors", Reading, key="sensor", compacted=True)
OPTIONS = SnapshotOptions(ttl=3600, cache_events=10_000_000, cache_entries=1_000_000)  # kept for the whole measurement


def cases(plan: Plan) -> list[Case]:
    """The row says which of the parts below, the size is the number of keys."""
    parts = [(JOIN, size) for size in plan.sizes(100, 10_000, 1_000_000)]
    parts += [(row, size) for row in (KEY, SHARE, VIEW) for size in plan.sizes(10_000)]
    return [Case("snapshots", row, size, scale=plan.scale) for row, size in parts]


def measure(case: Case) -> Figures:
    """One part."""
    return perform(lambda stage: _PARTS[case.row](case, stage), "asyncio")


def _payloads(keys: int) -> list[Reading]:
    return [Reading(f"boiler-{number}", 21.5, "celsius", True) for number in range(keys)]


def _fill(bus: EventBus, payloads: list[Reading]) -> None:
    for payload in payloads:
        bus.publish_nowait(TOPIC, payload)


async def _first_frame(subscription: Subscription[Reading]) -> None:
    async for frame in subscription.frames():
        assert isinstance(frame, SnapshotStart)
        return


async def _join(case: Case, __: Stage) -> Figures:
    async with EventBus(snapshots=OPTIONS) as bus:
        _fill(bus, _payloads(case.size))
        gc.collect()
        start = perf_counter()
        async with bus.subscribe(TOPIC) as first:
            await _first_frame(first)
        cold = perf_counter() - start
        joining, after = [], []
        for _ in range(ROUNDS):
            await quiet()
            start = perf_counter()
            for _ in range(JOINS):
                subscription = bus.subscribe(TOPIC)
                await _first_frame(subscription)
                subscription.close()
            joining.append((perf_counter() - start) / JOINS)
            after.append(await quiet() / JOINS)
        assert bus.statistics().snapshots.misses == 1
    return {
        "cold": cold * 1e6, "join": statistics.median(joining) * 1e6, "after": statistics.median(after) * 1e6,
    }  # fmt: skip


async def _by_key(case: Case, __: Stage) -> Figures:
    """The first subscriber of each key: its channel and its snapshot are made."""
    payloads = _payloads(case.size)
    async with EventBus(snapshots=OPTIONS) as bus:
        _fill(bus, payloads)
        keys = [payload.sensor for payload in payloads[: case.count(2000, 10)]]
        gc.collect()
        start = perf_counter()
        opened = []
        for key in keys:
            subscription = bus.subscribe(TOPIC, key=key)
            await _first_frame(subscription)
            opened.append(subscription)
        took = perf_counter() - start
        start = perf_counter()
        for key in keys:
            subscription = bus.subscribe(TOPIC, key=key)
            await _first_frame(subscription)
            opened.append(subscription)
        again = perf_counter() - start
        for subscription in opened:
            subscription.close()
    return {"build": took / len(keys) * 1e6, "join": again / len(keys) * 1e6}


async def _shared(case: Case, __: Stage) -> Figures:
    """Subscribers that stand in the middle of one snapshot: they hold places, not copies."""
    sharers = case.count(SHARERS, 10)
    async with EventBus(snapshots=OPTIONS) as bus:
        _fill(bus, _payloads(case.size))
        first = bus.subscribe(TOPIC)
        await first.receive()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        opened = [bus.subscribe(TOPIC) for _ in range(sharers)]
        for subscription in opened:
            for _ in range(case.size // 2):
                subscription.receive_nowait()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        for subscription in [first, *opened]:
            subscription.close()
    return {"bytes": held / sharers}


async def _view(case: Case, __: Stage) -> Figures:
    """From the publish of the last of a thousand events to its sight in the view."""
    payloads = _payloads(case.size)
    several = case.count(1000, 10)
    async with EventBus(snapshots=OPTIONS) as bus:
        _fill(bus, payloads)
        start = perf_counter()
        async with bus.view(TOPIC) as view:
            await view.ready()
            loaded = perf_counter() - start
            applied = []
            for turn in range(case.count(50, 3)):
                for number in range(several):
                    position = bus.publish_nowait(TOPIC, payloads[(turn * several + number) % case.size])
                start = perf_counter()
                await view.reached(position)
                applied.append(several / (perf_counter() - start))
                await checkpoint()
    return {"load": case.size / loaded, "applied": statistics.median(applied)}


_PARTS = {JOIN: _join, KEY: _by_key, SHARE: _shared, VIEW: _view}


def render(samples: Samples) -> str:
    """Two tables."""
    joins = [case for case in samples.rounds if case.row == JOIN]
    columns = {
        "cold": "the first subscriber (the snapshot is built)",
        "join": "each one after it, with its first frame and close",
        "after": "CPU that the loop spends after its close",
    }
    rows: list[list[str | float | None]] = [
        [text, *(samples.median(case, column) for case in joins)] for column, text in columns.items()
    ]
    one = {case.row: case for case in samples.rounds if case.row != JOIN}

    def figure(row: str, column: str) -> str:
        return number(samples.median(one.get(row), column))

    more: list[list[str | float | None]] = [
        ["first subscriber of a key, with its first frame", f"{figure(KEY, 'build')} µs"],
        ["second subscriber of that key", f"{figure(KEY, 'join')} µs"],
        ["memory of a subscriber in the middle of a shared snapshot", f"{figure(SHARE, 'bytes')} bytes"],
        ["view: keys loaded from the snapshot", f"{figure(VIEW, 'load')}/s"],
        ["view: live events applied", f"{figure(VIEW, 'applied')}/s"],
    ]
    keys = one[KEY].size if KEY in one else 0
    return "\n\n".join([
        "## Snapshots",
        "### Joining a compacted topic, by number of keys",
        table(["µs", *(f"{case.size:,}" for case in joins)], rows),
        f"### Of {keys:,} keys",
        table(["", "figure"], more),
    ])  # fmt: skip


SECTION = Section("snapshots", cases, measure, render, most_repeats=3)

"""What is held, and how it is let go.

RSS is what the machine gives; `tracemalloc` counts the interpreter's own blocks, exactly, in a process of its own since
it needs memory itself.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import perf_counter

import anyio
from anyio.lowlevel import checkpoint

from eventstream import EventBus, Topic

from .feeds import FEEDS, OURS, QUEUE, READING, Reading
from .harness import Case, Figures, Plan, Samples, Section
from .report import table
from .stage import Gate, Stage, perform, resident

__all__ = ("SECTION",)

SUBSCRIBERS = 10_000
RETAINED = 1_000_000
BACKLOG = 3_000_000
BOUND = 10_000  # max_lag of the reader that is stuck; ten times as many are published

IDLE, IDLE_TRACED = "idle: ", "idle, traced: "
RETAIN, RETAIN_TRACED = "retain", "retain, traced"
STUCK, STUCK_BURST, UNSTUCK = "stuck", "stuck, one burst", "without a reader"
STUCK_QUEUE = "stuck queue"
DROP_READER, DROP_BUS, DROP_LIST, NO_DROP = "drop reader", "drop bus", "drop list", "drop nothing"


def cases(plan: Plan) -> list[Case]:
    """The row says which of the parts below."""

    def case(row: str, full: int) -> Case:
        return Case("memory", row, plan.sizes(full)[0], scale=plan.scale)

    feeds = [name for name, feed in FEEDS.items() if "asyncio" in feed.loops]
    idle = [case(kind + name, SUBSCRIBERS) for name in feeds for kind in (IDLE, IDLE_TRACED)]
    retained = [case(row, RETAINED) for row in (RETAIN, RETAIN_TRACED)]
    stuck = [case(row, BOUND * 10) for row in (UNSTUCK, STUCK, STUCK_BURST, STUCK_QUEUE)]
    dropped = [case(row, BACKLOG) for row in (NO_DROP, DROP_READER, DROP_BUS, DROP_LIST)]
    return idle + retained + stuck + dropped


def measure(case: Case) -> Figures:
    """One part."""
    part = _idle if case.row.startswith((IDLE, IDLE_TRACED)) else _PARTS[case.row]
    return perform(lambda stage: part(case, stage), "asyncio")


def _held(case: Case) -> int:
    """Bytes held now, by the means that the row names."""
    if not _traced(case):
        return resident()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _traced(case: Case) -> bool:
    return case.row not in (RETAIN,) and not case.row.startswith(IDLE)


async def _idle(case: Case, stage: Stage) -> Figures:
    """Subscribers that have had an event and wait for the next, each with its task."""
    async with AsyncExitStack() as stack:
        feed = FEEDS[case.row.partition(": ")[2]](stage, stack)
        gate = Gate(stage)
        await feed.subscribe(1, gate.sink)  # imports, and what there is once
        await stage.settle()
        if _traced(case):
            tracemalloc.start()
        before = _held(case)
        await feed.subscribe(case.size, gate.sink)
        await stage.settle()
        gate.arm(case.size)
        if feed.awaits:
            await feed.apublish(READING)
        else:
            feed.publish(READING)
        await gate.opened()
        await stage.settle()
        held = _held(case) - before
        await stage.stop()
        return {"bytes": held / case.size}


async def _retained(case: Case, __: Stage) -> Figures:
    async with EventBus() as bus:
        topic: Topic[Reading] = Topic("sensors", Reading, retain=case.size)
        bus.publish_nowait(topic, READING)
        if _traced(case):
            tracemalloc.start()
        before = _held(case)
        for _ in range(case.size):
            bus.publish_nowait(topic, READING)
        return {"bytes": (_held(case) - before) / case.size}


async def _stuck(case: Case, stage: Stage) -> Figures:
    """A reader that took one event and never comes back."""
    topic: Topic[Reading] = Topic("sensors", Reading, retain=0, max_lag=max(1, case.size // 10))
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(EventBus())
        publish: Callable[[Reading], object]
        if case.row == STUCK_QUEUE:
            feed = FEEDS[QUEUE](stage, stack)
            await feed.subscribe(1, lambda _: None)  # its task does not run until the end: stuck
            publish = feed.publish
        else:

            def publish(payload: Reading) -> object:
                return bus.publish_nowait(topic, payload)

        reader = bus.subscribe(topic) if case.row in (STUCK, STUCK_BURST) else None
        publish(READING)
        if reader is not None:
            await reader.receive()
        tracemalloc.start()
        before = _held(case)
        for number in range(case.size):
            publish(READING)
            if number % 1000 == 0 and case.row in (UNSTUCK, STUCK):
                await checkpoint()
        held = _held(case) - before
        if reader is not None:
            reader.close()
    return {"bytes": held}


class _Ticks:
    """A task that asks for a turn of the loop again and again, and notes the longest time between two."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = perf_counter()
        while True:
            await checkpoint()
            now = perf_counter()
            self.longest = max(self.longest, now - last)
            last = now


class _Sentinel:
    """A payload whose end can be seen."""


async def _dropped(case: Case, __: Stage) -> Figures:
    """Millions of events that one reader, or the history, was the last to refer to."""
    n = case.size
    bus = EventBus()
    by_bus = case.row == DROP_BUS
    topic: Topic[object] = Topic("anything", object, retain=n if by_bus else 1024, max_lag=2 * n)
    async with AsyncExitStack() as outer:
        tasks = await outer.enter_async_context(anyio.create_task_group())
        async with AsyncExitStack() as inner:
            await inner.enter_async_context(bus)
            reader = bus.subscribe(topic) if case.row == DROP_READER else None
            plain: list[object] | None = [] if case.row == DROP_LIST else None
            sentinel = _Sentinel()
            gone = weakref.ref(sentinel)
            last = n - max(2048, n // 100)  # behind the newest that the topic retains anyway
            for number in range(n):
                payload: object = sentinel if number == last else READING
                if plain is not None:
                    # What one would keep without a bus: an object an event, and one reference that lets all of them go.
                    plain.append((topic.name, number, payload))
                elif case.row != NO_DROP:
                    bus.publish_nowait(topic, payload)
                payload = None
            del sentinel
            ticks = _Ticks()
            tasks.start_soon(ticks.run)
            await anyio.sleep(0.2)  # the ticker runs, and what the publishing left to be done is done
            ticks.longest = 0.0
            start = perf_counter()
            if by_bus:
                await inner.aclose()
            elif reader is not None:
                reader.close()
            elif plain is not None:
                plain = None
            while case.row != NO_DROP and gone() is not None:
                await checkpoint()
            took = perf_counter() - start
            await anyio.sleep(0.1)
            longest = ticks.longest
        tasks.cancel_scope.cancel()
    return {"pause": longest * 1e3, "took": took * 1e3}


_PARTS = {
    RETAIN: _retained, RETAIN_TRACED: _retained,
    STUCK: _stuck, STUCK_BURST: _stuck, UNSTUCK: _stuck, STUCK_QUEUE: _stuck,
    NO_DROP: _dropped, DROP_READER: _dropped, DROP_BUS: _dropped, DROP_LIST: _dropped,
}  # fmt: skip


def render(samples: Samples) -> str:
    """Four tables."""
    by_row = {case.row: case for case in samples.rounds}

    def figure(row: str, column: str = "bytes", unit: float = 1) -> float | None:
        value = samples.median(by_row.get(row), column)
        return None if value is None else value / unit

    names = [row.removeprefix(IDLE_TRACED) for row in by_row if row.startswith(IDLE_TRACED)]
    idle = [
        [f"**{name}**" if name in OURS else name, figure(IDLE + name, unit=1024), figure(IDLE_TRACED + name, unit=1024)]
        for name in names
    ]
    without = figure(UNSTUCK, unit=1024)
    stuck = [
        ["eventstream, no reader", without],
        ["**eventstream, a stuck reader**", figure(STUCK, unit=1024)],
        ["**… while the loop does not run at all**", figure(STUCK_BURST, unit=1024)],
        ["asyncio.Queue, a stuck reader (references to one payload)", figure(STUCK_QUEUE, unit=1024)],
    ]
    drops = {
        NO_DROP: "nothing (what a tick takes)",
        DROP_READER: "**a reader that is far behind is closed**",
        DROP_BUS: "**a bus that retains them is left**",
        DROP_LIST: "as many tuples in a plain list",
    }
    size = {row: f"{case.size:,}" for row, case in by_row.items()}
    return "\n\n".join([
        "## Memory",
        f"### KiB per idle subscriber with its task, of {size[IDLE + QUEUE]}",
        table(["", "RSS", "tracemalloc"], idle),
        f"### Bytes per retained event beyond its payload, of {size[RETAIN]}",
        table(["", "RSS", "tracemalloc"], [["**eventstream**", figure(RETAIN), figure(RETAIN_TRACED)]]),
        f"### KiB held after {size[STUCK]} events that nobody read, with a bound of a tenth of them",
        table(["", "KiB"], stuck),
        f"### Letting {size[DROP_READER]} events go: the longest pause of the event loop",
        table(
            ["", "longest pause, ms", "freed after, ms"],
            [[text, figure(row, "pause"), figure(row, "took")] for row, text in drops.items()],
        ),
    ])  # fmt: skip


SECTION = Section("memory", cases, measure, render, most_repeats=3)

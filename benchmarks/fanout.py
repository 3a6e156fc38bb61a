"""Every event to every subscriber: deliveries per second, and how long one delivery takes.

The publisher sends a burst, waits until every subscriber has had all of it, and sends the next. Bursts of 1 show what
it costs to wake everybody for each event, bursts of 64 what a busy stream costs, *flood* the publish call alone.
"""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from time import perf_counter, perf_counter_ns

from .feeds import FEEDS, OURS, QUEUE, READING, TRIO_CHANNEL, Feed
from .harness import Case, Figures, Plan, Samples, Section
from .report import table, times
from .stage import Gate, Stage, perform

__all__ = ("SECTION",)

DELIVERIES_1 = 100_000  # of each measurement, about the same for any number of subscribers: a fifth of a second
DELIVERIES_64 = 250_000
TRIO_MOST = 1000  # a measurement with ten times as many takes it ten seconds
FLOOD = 20_000  # events at one subscriber; fewer than the bound at which a reader would be reset


def cases(plan: Plan) -> list[Case]:
    """Rows side by side within a size and loop, so that the two sides of a ratio are seconds apart."""
    return [
        Case("fanout", name, size, loop, plan.scale)
        for size in plan.sizes(1, 100, 1000, 10_000)
        for loop in plan.loops
        for name, feed in FEEDS.items()
        if loop in feed.loops and size <= (TRIO_MOST if loop == "trio" else size)
    ]


def measure(case: Case) -> Figures:
    """All figures of one row."""

    async def main(stage: Stage) -> Figures:
        async with AsyncExitStack() as stack:
            feed = FEEDS[case.row](stage, stack)
            gate = Gate(stage)
            await feed.subscribe(case.size, gate.sink)
            await stage.settle()
            figures = await _throughput(case, feed, gate)
            if case.size == 1:
                figures |= await _latency(case, feed, gate)
                figures |= await _flood(case, feed, gate)
            await stage.stop()  # before the stack closes what the consumers read
            return figures

    return perform(main, case.loop)


async def _throughput(case: Case, feed: Feed, gate: Gate) -> Figures:
    n = case.size
    few = case.count(DELIVERIES_1 // max(n, 4), 10)
    many = max(1, case.count(DELIVERIES_64 // max(n, 4), 10) // 64)
    await _bursts(feed, gate, n, min(few, 200) // 2, 1)  # to warm up
    gc.collect()
    single = await _bursts(feed, gate, n, few, 1)
    gc.collect()
    burst = await _bursts(feed, gate, n, many, 64)
    return {"burst1": n * few / single, "burst64": n * many * 64 / burst}


async def _bursts(feed: Feed, gate: Gate, n: int, bursts: int, size: int) -> float:
    """Seconds."""
    publish, apublish, awaits = feed.publish, feed.apublish, feed.awaits
    start = perf_counter()
    for _ in range(bursts):
        gate.arm(n * size)
        if awaits:
            for _ in range(size):
                await apublish(READING)
        else:
            for _ in range(size):
                publish(READING)
        await gate.opened()
    return perf_counter() - start


async def _latency(case: Case, feed: Feed, gate: Gate) -> Figures:
    """From before the publish to the sink, one event at a time."""
    took = []
    for _ in range(case.count(10_000, 10)):
        gate.arm(1)
        start = perf_counter_ns()
        if feed.awaits:
            await feed.apublish(READING)
        else:
            feed.publish(READING)
        await gate.opened()
        took.append(gate.last - start)
    took.sort()
    return {"p50": took[len(took) // 2] / 1e3, "p99": took[len(took) * 99 // 100] / 1e3}


async def _flood(case: Case, feed: Feed, gate: Gate) -> Figures:
    """Publishes before the consumer runs; where publishing waits for something, it runs in between."""
    events = case.count(FLOOD, 10)
    gate.arm(events)
    start = perf_counter()
    if feed.awaits:
        for _ in range(events):
            await feed.apublish(READING)
    else:
        for _ in range(events):
            feed.publish(READING)
    published = perf_counter() - start
    await gate.opened()
    return {"flood": events / published}


def render(samples: Samples) -> str:
    """Two tables for each loop, and one of what a single subscriber sees."""
    parts = ["## Fan-out"]
    for loop in samples.loops():
        base = TRIO_CHANNEL if loop == "trio" else QUEUE
        for column, title in (("burst1", "one event at a time"), ("burst64", "bursts of 64")):
            parts.append(f"### Deliveries/s on {loop}, {title}, by number of subscribers; ratio to {base}")
            parts.append(_deliveries(samples, loop, base, column))
    parts += ["### One subscriber: latency, and publishing alone", _single(samples)]
    return "\n\n".join(parts)


def _deliveries(samples: Samples, loop: str, base: str, column: str) -> str:
    sizes = [size for size in samples.sizes() if samples.find(base, size, loop) is not None]
    head = ["", *(part for size in sizes for part in (f"{size:,}", "ratio"))]
    rows: list[list[str | float | None]] = []
    for name in samples.rows():
        if samples.find(name, sizes[0], loop) is not None:
            row: list[str | float | None] = [f"**{name}**" if name in OURS else name]
            for size in sizes:
                case = samples.find(name, size, loop)
                row += [
                    samples.median(case, column),
                    times(samples.ratio(case, samples.find(base, size, loop), column)),
                ]
            rows.append(row)
    return table(head, rows)


def _single(samples: Samples) -> str:
    rows: list[list[str | float | None]] = []
    for case in samples.rounds:
        if case.size == 1:
            figures = [samples.median(case, column) for column in ("p50", "p99", "flood")]
            rows.append([f"**{case.row}**" if case.row in OURS else case.row, case.loop, *figures])
    return table(["", "loop", "p50, µs", "p99, µs", "published/s"], rows)


SECTION = Section("fanout", cases, measure, render)

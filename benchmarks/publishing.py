"""What a publish costs: beside the bare appends it is made of, with each thing it can be asked for, and to a crowd.

The event loop does not run in the timed parts, so no reader's work is in them: what is timed is how long the publisher
waits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from time import perf_counter
from typing import Any

from anyio.lowlevel import checkpoint

from eventstream import Event, EventBus, Subscription, Topic
from eventstream.topics import Buffer, Lot, current_waker

from .feeds import FEEDS, OURS, QUEUE, READING, Reading
from .harness import Case, Figures, Plan, Samples, Section
from .report import number, table, times
from .stage import Gate, Stage, perform

__all__ = ("SECTION",)

EVENTS = 20_000  # of a timed round
ROUNDS = 9
BATCH = 100
MAX_LAG = 10_000_000  # never reached: resetting readers is no part of this

Publish = Callable[[int], None]  # publishes so many


def cases(plan: Plan) -> list[Case]:
    """What a publish can be asked for has size 0; the crowd has its size."""
    single = [Case("publishing", row, 0, scale=plan.scale) for row in WAYS]
    crowd = [
        Case("publishing", row, size, scale=plan.scale)
        for size in plan.sizes(1, 100, 10_000)
        for row in (QUEUE, OURS[1])
        if row in FEEDS
    ]
    return single + crowd


def measure(case: Case) -> Figures:
    """ns for each event: the median of the rounds."""
    return perform((lambda stage: _to_crowd(case, stage)) if case.size else (lambda _: _alone(case)), "asyncio")


# One publisher, nobody else.


async def _alone(case: Case) -> Figures:
    events = case.count(EVENTS, BATCH) // BATCH * BATCH
    async with EventBus() as bus:
        publish = WAYS[case.row](bus)
        took = []
        for _ in range(ROUNDS):
            start = perf_counter()
            again = publish(events)
            if again is not None:
                await again
            took.append((perf_counter() - start) / events * 1e9)
            await checkpoint()
    return {"ns": statistics.median(took[1:])}


def _by_list(bus: EventBus) -> Publish:
    """The least: an event object in a list."""
    made: list[Event[Reading]] = []

    def publish(events: int) -> None:
        made.clear()
        clock = time.time
        for index in range(events):
            made.append(Event("sensors", "", index, READING, clock()))  # noqa: PERF401  # the append is what is measured

    return publish


def _by_buffer(bus: EventBus) -> Publish:
    """The linked segments without history, lock, lag accounting and checks."""
    buffer = Buffer(Lot(current_waker()))

    def publish(events: int) -> None:
        clock = time.time
        for index in range(events):
            buffer.append([Event("sensors", "", index, READING, clock())])

    return publish


def _nowait(topic: Topic[Reading], **terms: Any) -> Callable[[EventBus], Publish]:
    def prepare(bus: EventBus) -> Publish:
        def publish(events: int) -> None:
            publish_nowait = bus.publish_nowait
            if terms:
                for _ in range(events):
                    publish_nowait(topic, READING, **terms)
            else:
                for _ in range(events):
                    publish_nowait(topic, READING)

        return publish

    return prepare


def _with_id(bus: EventBus) -> Publish:
    serial = count()

    def publish(events: int) -> None:
        for _ in range(events):
            bus.publish_nowait(PLAIN, READING, id=f"n{next(serial)}")

    return publish


def _with_expect(bus: EventBus) -> Publish:
    newest = 0

    def publish(events: int) -> None:
        nonlocal newest
        for _ in range(events):
            newest = bus.publish_nowait(PLAIN, READING, expect=newest).index

    return publish


def _with_channels(bus: EventBus) -> Publish:
    """100 keys are followed, each event is of one of them: it goes to the topic's buffer and to the key's."""
    keys = [f"boiler-{number}" for number in range(100)]
    payloads = [Reading(key, 21.5, "celsius", True) for key in keys]
    opened = [bus.subscribe(KEYED, key=key) for key in keys]

    def publish(events: int) -> None:
        assert opened, "kept open as long as there is someone to publish"
        publish_nowait = bus.publish_nowait
        for _ in range(events // 100):
            for payload in payloads:
                publish_nowait(KEYED, payload)

    return publish


def _awaited(bus: EventBus) -> Callable[[int], Awaitable[None]]:
    async def publish(events: int) -> None:
        for _ in range(events):
            await bus.publish(PLAIN, READING)

    return publish


def _many(bus: EventBus) -> Callable[[int], Awaitable[None]]:
    payloads = [READING] * BATCH

    async def publish(events: int) -> None:
        for _ in range(events // BATCH):
            await bus.publish_many(PLAIN, payloads)

    return publish


PLAIN: Topic[Reading] = Topic("plain", Reading, max_lag=MAX_LAG)
KEYED: Topic[Reading] = Topic("keyed", Reading, key="sensor", max_lag=MAX_LAG)
COMPACTED: Topic[Reading] = Topic("compacted", Reading, key="sensor", compacted=True, max_lag=MAX_LAG)

BARE = "publish_nowait"
WAYS: dict[str, Callable[[EventBus], Callable[[int], Awaitable[None] | None]]] = {
    "list.append of an event": _by_list,
    "append to linked segments": _by_buffer,
    BARE: _nowait(PLAIN),
    "… with a key": _nowait(KEYED),
    "… compacted": _nowait(COMPACTED),
    "… headers=": _nowait(PLAIN, headers={"trace": "4bf92f3577b34da6"}),
    "… id=": _with_id,
    "… expect=": _with_expect,
    "… 100 keys followed": _with_channels,
    "await publish": _awaited,
    f"await publish_many, {BATCH} a batch": _many,
}


# One publisher, and a crowd that waits.


async def _to_crowd(case: Case, stage: Stage) -> Figures:
    async with AsyncExitStack() as stack:
        ours = case.row in OURS
        gate = Gate(stage)
        if ours:
            bus = await stack.enter_async_context(EventBus())
            for _ in range(case.size):
                stage.spawn(_read(bus.subscribe(PLAIN), gate))

            def publish() -> None:
                bus.publish_nowait(PLAIN, READING)
        else:
            feed = FEEDS[case.row](stage, stack)
            await feed.subscribe(case.size, gate.sink)

            def publish() -> None:
                feed.publish(READING)

        await stage.settle()
        # A queue for each costs a subscriber's work with each publish, so fewer are enough to tell.
        events = case.count(1000, 10) if ours else case.count(max(20, 20_000 // case.size), 10)
        took = []
        for _ in range(ROUNDS):
            gate.arm(events * case.size)
            start = perf_counter()
            for _ in range(events):
                publish()
            took.append((perf_counter() - start) / events * 1e9)
            await gate.opened()
            await stage.settle()  # all are parked again
        await stage.stop()
    return {"ns": statistics.median(took[1:])}


async def _read(subscription: Subscription[Reading], gate: Gate) -> None:
    async with subscription:
        async for batch in subscription.batches():
            gate.sink_many(len(batch))


def render(samples: Samples) -> str:
    """Two tables."""
    ways: list[list[str | float | None]] = []
    bare = samples.find(BARE, 0)
    for row in WAYS:
        case = samples.find(row, 0)
        ways.append([row, samples.median(case, "ns"), times(samples.ratio(case, bare, "ns"))])
    crowd: list[list[str | float | None]] = []
    sizes = [size for size in samples.sizes() if size]
    for row in dict.fromkeys(case.row for case in samples.rounds if case.size):
        one, all_ = samples.find(row, sizes[0]), [samples.find(row, size) for size in sizes]
        slower = samples.ratio(one, all_[-1], "ns")  # rates are the inverse of the times
        crowd.append([row, *(_rate(samples.median(case, "ns")) for case in all_), times(slower)])
    head = ["published/s by waiting subscribers", *(f"{size:,}" for size in sizes), f"{sizes[-1]:,} to 1"]
    return "\n\n".join([
        "## Publishing",
        "### What a publish costs",
        table(["", "ns an event", "to publish_nowait"], ways),
        "### Publishing to a crowd that waits",
        table(head, crowd),
    ])  # fmt: skip


def _rate(ns: float | None) -> str:
    return number(None if ns is None else 1e9 / ns)


SECTION = Section("publishing", cases, measure, render)

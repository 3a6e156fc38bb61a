"""Coming back: what it costs to subscribe after a position, by how many events are retained.

A position is found by bisection, so the number should not matter. What closing such a subscription leaves for the loop
to do is measured too: the CPU time until the process is quiet again, by subscription.
"""

from __future__ import annotations

import statistics
from random import Random
from time import perf_counter

from eventstream import EventBus, Position, Topic

from .feeds import Reading
from .harness import Case, Figures, Plan, Samples, Section
from .report import table
from .stage import Stage, perform, quiet

__all__ = ("SECTION",)

SUBSCRIPTIONS = 500  # of a timed round
ROUNDS = 5
KEYS = 100
WHOLE, KEY = "all events", "one key of 100"


def cases(plan: Plan) -> list[Case]:
    """Two rows at each size."""
    return [
        Case("resume", row, size, scale=plan.scale)
        for size in plan.sizes(1000, 10_000, 100_000, 1_000_000)
        for row in (WHOLE, KEY)
    ]


def measure(case: Case) -> Figures:
    """µs a subscription."""
    return perform(lambda stage: _resume(case, stage), "asyncio")


async def _resume(case: Case, __: Stage) -> Figures:
    keys = min(KEYS, max(1, case.size // 2))
    payloads = [Reading(f"boiler-{number}", 21.5, "celsius", True) for number in range(keys)]
    key = payloads[0].sensor if case.row == KEY else None
    topic: Topic[Reading] = Topic("sensors", Reading, key="sensor", retain=case.size)
    random = Random(7)  # the same places in every run
    async with EventBus() as bus:
        for number in range(case.size):
            head = bus.publish_nowait(topic, payloads[number % keys])
        # The newest events are left out, so that after each place there is one of the key to come.
        places = [Position(head.epoch, random.randrange(case.size - keys + 1)) for _ in range(SUBSCRIPTIONS)]
        keep = bus.subscribe(
            topic, key=key
        )  # so that the key's channel is there already, as it is where a key is in use
        opening, to_first, after = [], [], []
        for _ in range(ROUNDS):
            await quiet()
            start = perf_counter()
            for place in places:
                bus.subscribe(topic, key=key, after=place).close()
            opening.append((perf_counter() - start) / len(places))
            after.append(await quiet() / len(places))
            start = perf_counter()
            for place in places:
                subscription = bus.subscribe(topic, key=key, after=place)
                subscription.receive_nowait()
                subscription.close()
            to_first.append((perf_counter() - start) / len(places))
            await quiet()
        keep.close()
    return {
        "open": statistics.median(opening) * 1e6,
        "first": statistics.median(to_first) * 1e6,
        "after": statistics.median(after) * 1e6,
    }


def render(samples: Samples) -> str:
    """A column for each number retained."""
    sizes = samples.sizes()
    head = ["µs", *(f"{size:,}" for size in sizes)]
    columns = {
        "open": "subscribe(after=…), close()",
        "first": "… with the first event",
        "after": "CPU that the loop spends after the close",
    }
    rows: list[list[str | float | None]] = [
        [f"{row}: {text}", *(samples.median(samples.find(row, size), column) for size in sizes)]
        for row in samples.rows()
        for column, text in columns.items()
    ]
    return "\n\n".join(["## Resume", "### Subscribing after a position, by events retained", table(head, rows)])


SECTION = Section("resume", cases, measure, render, most_repeats=3)

"""A program that publishes to a log in a file, says what was acknowledged, and is killed at any moment.

    python publish_until_killed.py FILE RUN

Each line that it prints is one event that was acknowledged: topic, index, payload. Runs with an odd number sync
nothing, so that the event loop writes too: what a kill must not lose is the same.
"""

from __future__ import annotations

import os
import sys
from random import Random
from typing import Any

import anyio

from eventstream import EventBus, LogError, Retention, SQLiteLog, Topic

plain = Topic("plain", str, retain=16)
state: Topic[Any] = Topic("state", dict, key="k", compacted=True, retain=16)
trimmed = Topic("trimmed", str, retain=16)


def tell(topic: str, index: int, payload: str) -> None:
    os.write(1, f"{topic} {index} {payload}\n".encode())  # at once: nothing is buffered when the end comes


async def main(path: str, run: str) -> None:
    random = Random(int(run))
    log = SQLiteLog(path, durability="process" if int(run) % 2 else "power", topics={"trimmed": Retention(events=50)})
    async with EventBus(log) as bus, anyio.create_task_group() as tasks:

        async def publish(name: int) -> None:
            for number in range(1_000_000):
                text = f"{run}.{name}.{number}." + "x" * random.randrange(2000)
                tell("plain", (await bus.publish(plain, text, id=f"{run}.{name}.{number}")).index, text[:20])

        async def change() -> None:
            for number in range(1_000_000):
                key = f"k{random.randrange(5)}"
                if random.random() < 0.2:
                    tell("state", (await bus.delete(state, key)).index, f"{key} -")
                else:
                    position = await bus.publish(state, {"k": key, "v": f"{run}.{number}"})
                    tell("state", position.index, f"{key} {run}.{number}")

        async def trim() -> None:
            for number in range(1_000_000):
                position = await bus.publish_many(trimmed, [f"{run}.{number}"] * 20)
                tell("trimmed", position.index, f"{run}.{number}")
                if number % 10 == 0:
                    await log.trim()

        for name in range(4):
            tasks.start_soon(publish, name)
        tasks.start_soon(change)
        tasks.start_soon(trim)


if __name__ == "__main__":
    try:
        anyio.run(main, sys.argv[1], sys.argv[2])
    except LogError as error:
        print(f"error {error}", flush=True)
        sys.exit(1)

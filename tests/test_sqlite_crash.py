"""A process that publishes is killed at any moment, again and again, on one file. What it was told stays true."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from publish_until_killed import plain, state, trimmed

from eventstream import EARLIEST, EventBus, SQLiteLog, Topic

KILLS = int(os.environ.get("EVENTSTREAM_KILLS", "12"))
PROGRAM = Path(__file__).with_name("publish_until_killed.py")
FOUND_HERE = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}


class Account:
    """Everything that was ever acknowledged."""

    def __init__(self) -> None:
        self.events: dict[str, dict[int, str]] = {"plain": {}, "state": {}, "trimmed": {}}
        self.epochs: dict[str, str] = {}

    def add(self, lines: list[str]) -> None:
        for line in lines:
            topic, index, payload = line.split(" ", 2)
            assert int(index) not in self.events[topic], f"{line}: this index was given twice"
            self.events[topic][int(index)] = payload


def kill_one(path: str, run: int, random: Random) -> list[str]:
    """Runs the program until it is killed: early, or after some events. Returns the whole lines that it printed."""
    child = subprocess.Popen([sys.executable, PROGRAM, path, str(run)], stdout=subprocess.PIPE, env=FOUND_HERE)
    assert child.stdout is not None
    first = b""
    if random.random() < 0.8:
        first = child.stdout.readline()
        time.sleep(random.random() * 0.2)
    else:
        time.sleep(random.random() * 0.6)  # maybe while it opens the file
    child.kill()
    rest = child.stdout.read()
    child.stdout.close()
    child.wait()
    lines = (first + rest).decode().split("\n")
    return lines[:-1]  # the last is empty, or torn


async def read(bus: EventBus, topic: Topic[Any]) -> list[Any]:
    head = (await bus.head(topic)).index
    events: list[Any] = []
    if bus.statistics().topics[topic.name].floor == head:
        return events
    async with bus.subscribe(topic, after=EARLIEST) as subscription:
        async for batch in subscription.batches():
            events += batch
            if batch[-1].index == head:
                return events
    raise AssertionError("closed")


async def check(path: str, account: Account) -> None:
    async with EventBus(SQLiteLog(path)) as bus:
        for topic in (plain, state, trimmed):
            acknowledged = account.events[topic.name]
            epoch = (await bus.head(topic)).epoch
            if acknowledged:
                assert account.epochs.setdefault(topic.name, epoch) == epoch
            assert (await bus.head(topic)).index >= max(acknowledged, default=0)
        events = await read(bus, plain)
        assert [event.index for event in events] == list(range(1, len(events) + 1))
        assert len({event.payload.rsplit(".", 1)[0] for event in events}) == len(events)
        found = {event.index: event.payload[:20] for event in events}
        assert account.events["plain"].items() <= found.items()
        await check_state(bus, account)
        later = await read(bus, trimmed)
        floor = bus.statistics().topics["trimmed"].floor
        batches = {event.index: event.payload for event in later}
        assert list(batches) == list(range(floor + 1, (await bus.head(trimmed)).index + 1))
        assert all([event.index for event in later].count(index) == 20 for index in batches)
        acknowledged = {index: text for index, text in account.events["trimmed"].items() if index > floor}
        assert acknowledged.items() <= batches.items()


async def check_state(bus: EventBus, account: Account) -> None:
    events = await read(bus, state)
    found = {
        event.index: f"{event.key} -" if event.payload is None else f"{event.key} {event.payload['v']}"
        for event in events
    }
    assert list(found) == list(range(1, len(events) + 1))
    assert account.events["state"].items() <= found.items()
    expected: dict[str, object] = {}
    for event in events:
        expected.pop(event.key, None)
        if event.payload is not None:
            expected[event.key] = event.payload
    async with bus.view(state) as view:
        await view.ready()
        assert dict(view) == expected


@pytest.mark.may_block
@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_was_acknowledged_is_there_once_in_order(tmp_path: Path) -> None:
    path, account, random = str(tmp_path / "events.db"), Account(), Random(1)
    for run in range(KILLS):
        account.add(kill_one(path, run, random))
        await check(path, account)
    assert all(account.events.values())
    total = {topic: len(events) for topic, events in account.events.items()}
    print(f"{KILLS} kills, acknowledged and found: {total}")

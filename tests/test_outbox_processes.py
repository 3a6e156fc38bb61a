"""The outbox in processes that are killed: a device that publishes, on its way to a real server.

How often is for the environment to say: OUTBOX_KILLS (10), OUTBOX_EVENTS (1200).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from cli_support import ENVIRONMENT, Stream, free_port, server

from eventstream import EARLIEST, Topic
from eventstream.outbox import Entry, Outbox
from eventstream.remote import RemoteBus, open_bus
from eventstream.testing import CuttingProxy

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("OUTBOX_KILLS", "10"))
EVENTS = int(os.environ.get("OUTBOX_EVENTS", "1200"))
KEYS = 10
notes: Topic[Any] = Topic("notes", dict, retain=1_000_000, max_lag=1_000_000)

CONFIG = """
[[topics]]
name = "notes"
retain = 1000000
max_lag = 1000000
"""
DEVICE = """
import sys, anyio
from eventstream import Topic
from eventstream.outbox import Outbox
from eventstream.remote import open_bus

notes = Topic("notes", dict, retain=1_000_000, max_lag=1_000_000)
path, url, first, last, keys = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

async def publish(outbox, key):
    for n in range(first + (key - first) % keys, last, keys):
        await outbox.publish(notes, {"n": n}, key=f"k{n % keys}", expect=0 if n == 0 else None)
        print(n, flush=True)

async def main():
    async with open_bus(url) as bus, Outbox(path, bus, topics=[notes]) as outbox:
        print("open", flush=True)
        async with anyio.create_task_group() as tasks:
            for key in range(keys):
                tasks.start_soon(publish, outbox, key)
        print("published", flush=True)
        print("left", await outbox.flush(), flush=True)

anyio.run(main)
"""


def keeping_all(folder: Path) -> tuple[str, str]:
    """Options of a server that forgets no event of the test; a topic that clients make has bounds."""
    config = folder / "bus.toml"
    config.write_text(CONFIG)
    return "--config", str(config)


class Device:
    """A process that publishes the numbers of a range, and says which ones are safe."""

    def __init__(self, path: Path, url: str, first: int, last: int) -> None:
        arguments = [sys.executable, "-c", DEVICE, str(path), url, str(first), str(last), str(KEYS)]
        self.popen = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.out = Stream(self.popen.stdout)
        self.err = Stream(self.popen.stderr)

    def kill(self) -> list[int]:
        """Ends it at once; what it had said was safe."""
        self.popen.kill()
        return self.end()

    def end(self) -> list[int]:
        self.popen.wait(60)
        lines = self.out.all()
        self.err.all()
        for stream in (self.popen.stdout, self.popen.stderr):
            assert stream is not None
            stream.close()
        return [int(line) for line in lines if line.isdigit()]


@contextmanager
def device(*arguments: Any) -> Iterator[Device]:
    started = Device(*arguments)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            started.kill()


async def arrived(url: str) -> list[tuple[str, int]]:
    """The key and number of all events, in order."""
    async with open_bus(url) as bus:
        assert isinstance(bus, RemoteBus)
        head = (await bus.head(notes)).index
        async with bus.subscribe(notes, after=EARLIEST) as subscription:
            events = [await subscription.receive() for _ in range(head)]
    return [(event.key, event.payload["n"]) for event in events]


def check(safe: set[int], events: list[tuple[str, int]], here: list[Entry]) -> None:
    """Each that was safe is there once, in the order of its key."""
    numbers = [n for _, n in events]
    assert len(numbers) == len(set(numbers)), "doubled"
    assert len(safe - set(numbers)) == len(here), "lost"
    for key in range(KEYS):
        of_key = [n for name, n in events if name == f"k{key}"]
        assert of_key == sorted(of_key), "out of order"


@pytest.mark.unmeasured
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_killed_at_any_moment(tmp_path: Path, anyio_backend: str) -> None:
    """It publishes and drains; also the opening, the recovery of the file, and the file's making are interrupted."""
    random = Random(KILLS)
    path, safe = tmp_path / "box", set[int]()
    with server(*keeping_all(tmp_path)) as (url, _):
        for kill in range(KILLS):
            with device(path, url, kill * 1_000_000, (kill + 1) * 1_000_000) as process:
                if kill % 5:
                    process.out.wait_for("open")
                    await anyio.to_thread.run_sync(time.sleep, random.random() * 0.3)
                else:
                    await anyio.to_thread.run_sync(time.sleep, random.random() * 1.5)
                safe.update(process.kill())
        async with open_bus(url) as bus, Outbox(path, bus, topics=[notes]) as outbox:
            await outbox.flush()
            here = outbox.entries()
            assert [entry.state for entry in here[:1]] in ([], ["conflict"])
        check(safe, await arrived(url), [])
    assert len(safe) > KILLS
    print(f"{KILLS} kills, {len(safe)} entries were safe")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_offline_story(tmp_path: Path, anyio_backend: str) -> None:
    """No server while a device publishes and is killed twice; the server comes, is cut off, stops, goes on, is killed
    while it takes events, and comes back with its log.

    The first event of one key conflicts: it is kept, those behind it wait, and all others arrive once, in order.
    """
    path, safe = tmp_path / "box", set[int]()
    port = free_port()
    async with CuttingProxy(port, seed=5, cuts=8, mean_bytes=20_000) as proxy:
        url, address = f"tcp://127.0.0.1:{proxy.port}", f"tcp://127.0.0.1:{port}"
        for part in range(2):  # nobody listens behind the proxy
            with device(path, url, part * EVENTS // 3, (part + 1) * EVENTS // 3) as process:
                await anyio.to_thread.run_sync(process.out.wait_for, "published")
                safe.update(process.kill())
        log = (*keeping_all(tmp_path), "--log", f"sqlite:///{tmp_path / 'log'}")
        with server(*log, listen=address) as (_, served):
            async with open_bus(address) as bus:
                await bus.publish(notes, {"n": -1}, key="k0")
            with device(path, url, 2 * EVENTS // 3, EVENTS) as process:
                await anyio.to_thread.run_sync(process.out.wait_for, "open")
                served.send(signal.SIGSTOP)
                await anyio.sleep(0.5)
                served.send(signal.SIGCONT)
                await anyio.sleep(0.3)
                served.send(signal.SIGKILL)  # with publishes under way; what it had committed is in its log
                served.wait()
                with server(*log, listen=address):
                    left = await anyio.to_thread.run_sync(process.out.wait_for, r"left (\d+)")
                    safe.update(process.end())
                    events = await arrived(address)
        assert proxy.cuts
    assert safe == {*range(EVENTS)}
    async with Outbox(path, topics=[notes]) as outbox:
        here = outbox.entries()
    assert len(here) == int(left[1]) == EVENTS // KEYS
    assert here[0].state == "conflict"
    assert "is at index 1, not 0" in here[0].reason
    assert {(entry.state, entry.key) for entry in here[1:]} == {("pending", "k0")}
    check(safe, [event for event in events if event[1] >= 0], here)
    assert len(events) == EVENTS - EVENTS // KEYS + 1
    shown = subprocess.run(
        [sys.executable, "-m", "eventstream.cli", "outbox", "list", str(path), "--state", "conflict", "--json"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert [json.loads(line)["id"] for line in shown.stdout.splitlines()] == [here[0].id]

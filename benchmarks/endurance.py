"""`python -m benchmarks.endurance`: many subscribers of one server for a long time; does anything get lost, or grow?

    publisher ──▶ `eventstream serve` (a process) ──▶ subscribers, each over a connection of its own (two processes)

The subscribers read a topic of numbers at a steady rate. Each counts what is missing or doubled, and every reset; the
memory of the server and of the subscribers is written down while it goes on (Linux: resident pages). Nothing
must be lost, and what is held after the first half must not grow. Exit code 0 if so.

    python -m benchmarks.endurance --clients 1000 --seconds 180 --rate 10 --cut 5
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio

from eventstream import Event, Resumed, Topic
from eventstream.remote import RemoteBus, open_bus
from eventstream.testing import CuttingProxy

TOPIC: Final = Topic("numbers", int, retain=100_000)
LAST: Final = -1  # the number that ends it
PROCESSES: Final = 2  # of subscribers
SLACK: Final = 1.1  # by which memory may differ between the middle and the end
ROOT: Final = Path(__file__).parents[1]


def raise_limit(files: int) -> None:
    """A connection is a file, at both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        if hard != resource.RLIM_INFINITY and hard < files:
            raise SystemExit(f"{files} open files are needed, {hard} are allowed (ulimit -Hn): use fewer --clients")
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def megabytes(pid: int) -> float:
    """What a process holds now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Count:
    """What one subscriber got."""

    def __init__(self) -> None:
        self.expected: int | None = None
        self.got = self.lost = self.doubled = self.resets = 0

    def add(self, number: int) -> None:
        self.got += 1
        if self.expected is not None and number > self.expected:
            self.lost += number - self.expected
        elif self.expected is not None and number < self.expected:
            self.doubled += 1
            return
        self.expected = number + 1


async def subscribe(bus: RemoteBus, count: Count, ready: anyio.Semaphore) -> None:
    """Reads until the last number."""
    async with bus, bus.subscribe(TOPIC) as subscription:
        async for frame in subscription.frames():
            if isinstance(frame, Event):
                if frame.payload == LAST:
                    return
                count.add(frame.payload)
            elif isinstance(frame, Resumed):
                ready.release()
            else:
                count.resets += 1


async def subscribers(url: str, number: int) -> None:
    """One process of them: says when all are there, and in the end what they got."""
    counts = [Count() for _ in range(number)]
    ready = anyio.Semaphore(0)
    async with anyio.create_task_group() as tasks:
        for at, count in enumerate(counts):
            bus = open_bus(url)
            assert isinstance(bus, RemoteBus)
            tasks.start_soon(subscribe, bus, count, ready)
            if at % 20 == 19:
                await anyio.sleep(0.05)  # not all at once: the system's queue of connections is short
        for _ in counts:
            await ready.acquire()
        print("ready", flush=True)
    names = ("got", "lost", "doubled", "resets")
    print(json.dumps({name: sum(getattr(count, name) for count in counts) for name in names}), flush=True)


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[Any]:
    """A child, which is gone afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = await anyio.open_process([sys.executable, *arguments], env=environment, stderr=None, cwd=ROOT)
    try:
        yield child
    finally:
        with anyio.CancelScope(shield=True):
            if child.returncode is None:
                child.terminate()
            await child.aclose()


async def line(child: Any) -> str:
    """The next line that a child prints."""
    text = b""
    while not text.endswith(b"\n"):
        text += await child.stdout.receive(1)
    return text.decode().strip()


async def publish(url: str, options: argparse.Namespace, pids: dict[str, int]) -> list[dict[str, float]]:
    """At a steady rate; returns how much memory there was, now and then."""
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    total = int(options.seconds * options.rate)
    bus = open_bus(url)
    async with bus:
        for number in range(total):
            late = began + number / options.rate - time.monotonic()
            if late > 0:
                await anyio.sleep(late)
            await bus.publish(TOPIC, number)
            if number % max(1, total // options.samples) == 0:
                samples.append({name: megabytes(pid) for name, pid in pids.items()})
                at = time.monotonic() - began
                held = ", ".join(f"{name} {size:.1f} MB" for name, size in samples[-1].items())
                print(f"{at:6.1f} s  {number:8,} published  {held}", flush=True)
        samples.append({name: megabytes(pid) for name, pid in pids.items()})
        await bus.publish(TOPIC, LAST)
    return samples


async def run(options: argparse.Namespace) -> int:
    """Everything; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bus.toml"
        config.write_text(f'[[topics]]\nname = "{TOPIC.name}"\nretain = {TOPIC.retain}\n')
        serve = ("-m", "eventstream.cli", "serve", "--listen", "tcp://127.0.0.1:0", "--config", str(config))
        async with process(*serve) as server:
            url = (await line(server)).removeprefix("listening at ")
            port = int(url.rpartition(":")[2])
            async with CuttingProxy(port, seed=1, cuts=0) as proxy:
                target = f"tcp://127.0.0.1:{proxy.port}" if options.cut else url
                return await load(options, server, url, target, proxy)


async def load(options: argparse.Namespace, server: Any, url: str, target: str, proxy: CuttingProxy) -> int:
    share = options.clients // PROCESSES
    arguments = ("-m", "benchmarks.endurance", "--subscribe", target, "--clients", str(share))
    async with process(*arguments) as one, process(*arguments) as two, anyio.create_task_group() as tasks:
        for child in (one, two):
            await line(child)
        print(f"{2 * share} subscribers are there", flush=True)

        async def cut() -> None:
            while True:
                await anyio.sleep(options.cut)
                proxy.cut()

        if options.cut:
            tasks.start_soon(cut)
        pids = {"server": server.pid, "subscribers": one.pid}
        samples = await publish(url, options, pids)
        results = [json.loads(await line(child)) for child in (one, two)]
        tasks.cancel_scope.cancel()
    total = {name: sum(result[name] for result in results) for name in results[0]}
    expected = int(options.seconds * options.rate) * 2 * share
    print(f"expected {expected:,}, " + ", ".join(f"{name} {number:,}" for name, number in total.items()))
    middle, last = samples[len(samples) // 2], samples[-1]
    grown = [name for name in last if last[name] > SLACK * middle[name]]
    print(f"memory after the first half: {'grew: ' + ', '.join(grown) if grown else 'flat'}; cut: {proxy.cuts}")
    kept = total["got"] == expected and not (total["lost"] or total["doubled"] or total["resets"])
    return 0 if kept and not grown else 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.endurance")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rate", type=float, default=10.0, help="events a second")
    parser.add_argument("--cut", type=float, default=0.0, help="cut all connections every so many seconds")
    parser.add_argument("--samples", type=int, default=12, help="how often memory is written down")
    parser.add_argument("--subscribe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_limit(3 * options.clients + 100)
    if options.subscribe:
        anyio.run(subscribers, options.subscribe, options.clients)
        return 0
    return anyio.run(run, options)


if __name__ == "__main__":
    sys.exit(main())

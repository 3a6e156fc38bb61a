"""The bus over the network, beside NATS and Redis with their Python clients.

Two processes for us (server and publisher; clients), three for the others (server; publisher; clients). The process
that measures holds the clients.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import perf_counter_ns, process_time
from typing import Any, Final

import anyio

from .harness import Case, Figures, Plan, Samples, Section
from .network.far import PEERS, Far
from .network.ours import Ours
from .network.peer import Client, Sample
from .report import table, times
from .stage import perform

__all__ = ("SECTION",)

FLOOD, PACED, REPLAY, STATE = "flood", "paced", "replay", "state"
DELIVERIES: Final = 100_000  # of a flood, to all clients together
LEAST: Final = 100  # events of a flood
RATE: Final = 1000  # events a second
RATE_SECONDS: Final = 1.0
EVENTS: Final = 100_000  # of a replay, to one client
SHARE: Final = 20  # so many times fewer to each of many
KEYS: Final = 10_000
MANY: Final = 100
ROUNDS: Final = 5  # but one where many come late to much: some peers take half a minute for it
FILES: Final = 8192


def cases(plan: Plan) -> list[Case]:
    """The row says the part and the peer; the peers of a part and size take turns."""
    loops = [loop for loop in plan.loops if loop != "trio"]  # the others' clients are asyncio's
    return [
        Case("remote", f"{part}: {name}", size, loop, plan.scale, ROUNDS if size < MANY or part == FLOOD else 1)
        for loop in loops
        for part, sizes in ((FLOOD, (1, 10, MANY, 1000)), (PACED, (1, 10)), (REPLAY, (1, MANY)), (STATE, (1, MANY)))
        for size in plan.sizes(*sizes)
        for name, peer in PEERS.items()
        if not peer.missing()
    ]


def measure(case: Case) -> Figures:
    """One part of one peer; `size` clients."""
    part, _, name = case.row.partition(": ")
    main = {FLOOD: _flood, PACED: _paced, REPLAY: _replay, STATE: _state}[part]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))

    async def run(_: object) -> Figures:
        async with AsyncExitStack() as stack:
            far = await stack.enter_async_context(Far(name, case.loop))
            crowd = _Crowd(name, far.port, stack)
            return await main(case, far, crowd)

    return perform(run, case.loop)


class _Crowd:
    """The clients."""

    def __init__(self, name: str, port: int, stack: AsyncExitStack) -> None:
        self._peer, self._port, self._stack = PEERS[name], port, stack
        self.clients: list[Client] = []

    async def connect(self, count: int) -> None:
        """Makes so many connections, a few at a time, each in a task that holds it until the end."""
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(tasks.cancel_scope.cancel)
        few = anyio.CapacityLimiter(20)

        async def hold(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with AsyncExitStack() as stack:
                async with few:
                    self.clients.append(await stack.enter_async_context(self._peer.client(self._port)))
                task_status.started()
                await anyio.sleep_forever()

        async with anyio.create_task_group() as coming:
            for _ in range(count):
                coming.start_soon(tasks.start, hold)

    async def each(self, work: Callable[[Client], Any]) -> None:
        """Lets all clients do something at once, and waits for all."""
        async with anyio.create_task_group() as tasks:
            for client in self.clients:
                tasks.start_soon(work, client)


class _Count:
    """Counts down to the last one."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.done = anyio.Event()
        self.last = 0

    def one(self, _: object = None) -> None:
        """One of them."""
        self.left -= 1
        if not self.left:
            self.last = perf_counter_ns()
            self.done.set()


async def _following(crowd: _Crowd, sink: Callable[[Sample], None], stack: AsyncExitStack) -> None:
    started = _Count(len(crowd.clients))
    tasks = await stack.enter_async_context(anyio.create_task_group())
    stack.callback(tasks.cancel_scope.cancel)
    for client in crowd.clients:
        tasks.start_soon(client.follow, started.one, sink)
    await started.done.wait()


async def _flood(case: Case, far: Far, crowd: _Crowd) -> Figures:
    """All at once, to all."""
    count = case.count(max(LEAST, DELIVERIES // case.size))
    target = _Count(0)
    async with AsyncExitStack() as stack:
        await crowd.connect(case.size)
        await _following(crowd, lambda _: target.one(), stack)
        for events in (min(count, 200), count):  # the first to warm up
            target = _Count(events * case.size)
            gc.collect()
            server, used = (await far.ask("look"))["cpu"], process_time()
            await far.order("publish", events, 0)
            await target.done.wait()
            used = process_time() - used
            began = (await far.answer())["began"]
        server = (await far.ask("look"))["cpu"] - server
        deliveries = count * case.size
        return {
            "rate": deliveries / (target.last - began) * 1e9,
            "server": server / deliveries * 1e6,
            "client": used / deliveries * 1e6,
        }


async def _paced(case: Case, far: Far, crowd: _Crowd) -> Figures:
    """At a steady rate: how long until each has it."""
    count = case.count(int(RATE * RATE_SECONDS))
    late: list[int] = []
    target = _Count(count * case.size)

    def sink(sample: Sample) -> None:
        late.append(perf_counter_ns() - sample.sent)
        target.one()

    async with AsyncExitStack() as stack:
        await crowd.connect(case.size)
        await _following(crowd, sink, stack)
        server, used = (await far.ask("look"))["cpu"], process_time()
        await far.ask("publish", count, RATE)
        await target.done.wait()
        used = process_time() - used
        server = (await far.ask("look"))["cpu"] - server
    late.sort()
    return {
        "p50": late[len(late) // 2] / 1e3,
        "p99": late[len(late) * 99 // 100] / 1e3,
        "server": server / len(late) * 1e6,
        "client": used / len(late) * 1e6,
    }


async def _replay(case: Case, far: Far, crowd: _Crowd) -> Figures:
    """All that is kept, to those who come late."""
    count = case.count(EVENTS if case.size == 1 else EVENTS // SHARE)
    await far.ask("keep", count)
    await crowd.connect(case.size)
    target = _Count(count * case.size)
    server, used, start = (await far.ask("look"))["cpu"], process_time(), perf_counter_ns()
    await crowd.each(lambda client: client.replay(count, target.one))
    used, took = process_time() - used, perf_counter_ns() - start
    assert target.left == 0
    server = (await far.ask("look"))["cpu"] - server
    total = count * case.size
    return {"rate": total / took * 1e9, "server": server / total * 1e6, "client": used / total * 1e6}


async def _state(case: Case, far: Far, crowd: _Crowd) -> Figures:
    """The whole state, to those who come late."""
    keys = case.count(KEYS)
    await far.ask("fill", keys)
    await crowd.connect(case.size)
    target = _Count(case.size)

    def complete(size: int) -> None:
        assert size == keys
        target.one()

    server = (await far.ask("look"))["cpu"]
    used, start = process_time(), perf_counter_ns()
    async with anyio.create_task_group() as tasks:
        for client in crowd.clients:
            tasks.start_soon(client.mirror, complete)
        await target.done.wait()
        used = process_time() - used
        tasks.cancel_scope.cancel()
    server = (await far.ask("look"))["cpu"] - server
    total = keys * case.size
    return {"ms": (target.last - start) / 1e6, "server": server / total * 1e6, "client": used / total * 1e6}


def render(samples: Samples) -> str:
    """A table for each part."""
    loops = samples.loops()

    def rows(part: str, size: int, *columns: str) -> list[list[str | float | None]]:
        """One for each peer and loop: the columns, and the ratio of ours to the first of them."""
        found: list[list[str | float | None]] = []
        for loop in loops:
            ours = samples.find(f"{part}: {Ours.name}", size, loop)
            for name in PEERS:
                case = samples.find(f"{part}: {name}", size, loop)
                if case is not None:
                    ratio = times(samples.ratio(ours, case, columns[0]))
                    label = f"**{name}**" if case is ours else name
                    found.append([label, loop, f"{size:,}", *(samples.median(case, c) for c in columns), ratio])
        return found

    def part(title: str, name: str, heads: list[str], *columns: str) -> list[str]:
        sizes = sorted({case.size for case in samples.rounds if case.row.startswith(f"{name}: ")})
        head = ["", "loop", "clients", *heads, "ours to it"]
        return [f"### {title}", table(head, [row for size in sizes for row in rows(name, size, *columns)])]

    spent = ["server CPU, µs an event", "client CPU, µs an event"]
    return "\n\n".join([
        "## Remote",
        *part("A flood to all clients", FLOOD, ["delivered/s", *spent], "rate", "server", "client"),
        *part(f"{RATE:,} events a second", PACED, ["p50, µs", "p99, µs", *spent], "p50", "p99", "server", "client"),
        *part("Kept events to late joiners", REPLAY, ["events/s", *spent], "rate", "server", "client"),
        *part(f"A state of {KEYS:,} keys to late joiners", STATE, ["ms", *spent], "ms", "server", "client"),
    ])  # fmt: skip


SECTION = Section("remote", cases, measure, render, most_repeats=ROUNDS)

"""Backed pipes, beside the connections that carry them.

One process measures, a second one is the other end of a loopback connection. Both rows run the same code on either
end; below `BackedPipe` is a TCP stream of anyio like the one beside it, so a ratio is the price of the pipe.
"""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Awaitable, Callable
from time import perf_counter, perf_counter_ns

import anyio
from anyio.abc import ByteStream, SocketStream, TaskStatus
from anyio.lowlevel import checkpoint

from eventstream.pipes import BackedPipe, Pipe

from .harness import Case, Figures, Plan, Samples, Section
from .loopback import HOST, PIPE, RAW, Order, Peer, ask, held, opened
from .report import table, times
from .stage import perform

__all__ = ("SECTION",)

LARGE, SMALL = 64 * 1024, 200  # bytes of a write
GATHERED = 64  # small messages in one write, of the row that shows what gathering alone does
SECONDS, WARM_UP = 0.7, 0.2  # of a stream
TRIPS, RESUMES, IDLE = 4000, 200, 500
RING = 1024 * 1024  # bytes; the default

STREAM, ECHO, RESUME, HELD, TRACED, FULL = "stream", "echo", "resume", "held", "held, traced", "full"
RAW_GATHERED = "(raw, 64 messages a write)"
ONE, MANY = "one object", "an object each"  # what a full ring holds
BARS = {(STREAM, LARGE): "≥ 0.6x", (STREAM, SMALL): "≥ 5x", (ECHO, SMALL): "≤ 1.5x"}


def cases(plan: Plan) -> list[Case]:
    """The row says the part and the kind; the two kinds stand side by side."""

    def case(part: str, kind: str, size: int, loop: str = "asyncio") -> Case:
        return Case("pipes", f"{part}: {kind}", size, loop, plan.scale)

    found: list[Case] = []
    for loop in plan.loops:
        found += [case(STREAM, kind, LARGE, loop) for kind in (RAW, PIPE)]
        found += [case(STREAM, kind, SMALL, loop) for kind in (RAW, PIPE, RAW_GATHERED)]
        found += [case(part, kind, SMALL, loop) for part in (ECHO, RESUME) for kind in (RAW, PIPE)]
        found += [case(part, kind, plan.sizes(IDLE)[0], loop) for part in (HELD, TRACED) for kind in (RAW, PIPE)]
    return found + [case(FULL, kind, size) for size in (LARGE, SMALL) for kind in (MANY, ONE)]


def measure(case: Case) -> Figures:
    """One part of one kind."""
    part, _, kind = case.row.partition(": ")
    if part == FULL:
        return perform(lambda _: _full(case, kind), case.loop)
    main = {STREAM: _stream, ECHO: _echo, RESUME: _resume, HELD: _idle, TRACED: _idle}[part]
    with Peer(PIPE if kind == PIPE else RAW, case.loop) as peer:

        async def dial() -> SocketStream:
            return await anyio.connect_tcp(HOST, peer.port)

        return perform(lambda _: main(case, kind, dial), case.loop)


Dial = Callable[[], Awaitable[SocketStream]]


async def _stream(case: Case, kind: str, dial: Dial) -> Figures:
    """The peer writes without a pause; we count for a while what arrives. Writes a second."""
    messages = GATHERED if kind == RAW_GATHERED else 1
    async with opened(kind, dial) as stream:
        await ask(stream, Order.SEND, case.size * messages)
        await _count(stream, WARM_UP * case.scale)
        return {"rate": await _count(stream, SECONDS * case.scale) / case.size}


async def _count(stream: ByteStream, seconds: float) -> float:
    """Bytes a second, from one arrival to another."""
    await stream.receive(LARGE)
    start = now = perf_counter()
    count = 0
    while now < start + seconds or not count:
        count += len(await stream.receive(LARGE))
        now = perf_counter()
    return count / (now - start)


async def _echo(case: Case, kind: str, dial: Dial) -> Figures:
    """Round trips of one message after another."""
    message = bytes(case.size)
    taken = []
    async with opened(kind, dial) as stream:
        await ask(stream, Order.ECHO)
        trips = case.count(TRIPS, 10)
        for _ in range(trips // 10 + trips):
            start = perf_counter_ns()
            await _round_trip(stream, message)
            taken.append(perf_counter_ns() - start)
    return _percentiles(taken[trips // 10 :])


async def _round_trip(stream: ByteStream, message: bytes) -> None:
    await stream.send(message)
    left = len(message)
    while left:
        left -= len(await stream.receive(left))


def _percentiles(taken: list[int]) -> Figures:
    """Of nanoseconds, in microseconds."""
    taken.sort()
    return {"p50": statistics.median(taken) / 1e3, "p99": taken[len(taken) * 99 // 100] / 1e3}


async def _resume(case: Case, kind: str, dial: Dial) -> Figures:
    """A connection is lost: how long until a message sent right after that has come back."""
    message = bytes(case.size)
    turns = case.count(RESUMES, 3)
    return await (_resume_pipe if kind == PIPE else _resume_raw)(message, turns, dial)


async def _resume_pipe(message: bytes, turns: int, dial: Dial) -> Figures:
    connection: SocketStream | None = None

    async def dial_and_note() -> SocketStream:
        nonlocal connection
        connection = await dial()
        return connection

    taken = []
    async with BackedPipe(dial_and_note) as pipe:
        await ask(pipe, Order.ECHO)
        for _ in range(turns):
            await _round_trip(pipe, message)
            await _healthy(pipe)
            assert connection is not None
            start = perf_counter_ns()
            await anyio.aclose_forcefully(connection)
            await _round_trip(pipe, message)
            taken.append(perf_counter_ns() - start)
        assert pipe.statistics().links == turns + 1
    return _percentiles(taken)


async def _healthy(pipe: Pipe) -> None:
    """Waits until the link has proved itself: one that is lost before is dialed again only after a pause."""
    while pipe.statistics().round_trip is None:
        await checkpoint()


async def _resume_raw(message: bytes, turns: int, dial: Dial) -> Figures:
    """What is at least to be done: a dial, and the round trip. (What was under way is lost.)"""
    taken = []
    for _ in range(turns):
        start = perf_counter_ns()
        stream = await dial()
        await ask(stream, Order.ECHO)
        await _round_trip(stream, message)
        taken.append(perf_counter_ns() - start)
        await anyio.aclose_forcefully(stream)
    return _percentiles(taken)


async def _idle(case: Case, kind: str, dial: Dial) -> Figures:
    """Bytes of an end that has had a message and waits for the next, with the task that waits."""
    count = case.size

    async def idle(*, task_status: TaskStatus[None]) -> None:
        async with opened(kind, dial) as stream:
            await ask(stream, Order.ECHO)
            await _round_trip(stream, bytes(SMALL))
            task_status.started()
            await stream.receive()

    async with opened(kind, dial) as control, anyio.create_task_group() as tasks:
        await tasks.start(idle)  # imports, and what there is once
        if case.row.startswith(TRACED):
            tracemalloc.start()
            await ask(control, Order.TRACE)
        await anyio.sleep(0.1)
        ours, theirs = held(), await ask(control, Order.HELD)
        for _ in range(count):
            await tasks.start(idle)
        await anyio.sleep(0.1)  # acknowledgements that wait have gone out
        figures = {"client": (held() - ours) / count, "server": (await ask(control, Order.HELD) - theirs) / count}
        tasks.cancel_scope.cancel()
    return figures


async def _full(case: Case, kind: str) -> Figures:
    """Bytes held by a ring that is full; what the writes carry is counted with it."""

    async def never() -> ByteStream:
        await anyio.sleep_forever()
        raise AssertionError

    async with BackedPipe(never, capacity=RING, linger=0) as pipe:
        await anyio.sleep(0.01)
        tracemalloc.start()
        before = held()
        message = bytes(case.size)
        for _ in range(RING // case.size):
            await pipe.send(message if kind == ONE else bytes(case.size))
        del message
        return {"bytes": held() - before, "carried": pipe.statistics().in_ring}


def render(samples: Samples) -> str:
    """Five tables."""
    names = {RAW: RAW, PIPE: f"**{PIPE}**", RAW_GATHERED: RAW_GATHERED}
    number = next(case.size for case in samples.rounds if case.row.startswith(HELD))

    def find(part: str, kind: str, size: int, loop: str) -> Case | None:
        return samples.find(f"{part}: {kind}", size, loop)

    def pair(part: str, kind: str, size: int, loop: str, column: str, unit: float = 1) -> list[str | float | None]:
        """A median, and its ratio to raw."""
        case = find(part, kind, size, loop)
        value = samples.median(case, column)
        ratio = samples.ratio(case, find(part, RAW, size, loop), column)
        return [None if value is None else value * unit, times(ratio)]

    def rows(cells: Callable[[str, str], list[str | float | None]], *more: str) -> list[list[str | float | None]]:
        return [[names[kind], loop, *cells(kind, loop)] for loop in samples.loops() for kind in (RAW, *more, PIPE)]

    def idle(kind: str, loop: str) -> list[str | float | None]:
        found = [find(part, kind, number, loop) for part in (HELD, TRACED)]
        values = [samples.median(case, end) for end in ("client", "server") for case in found]
        return [None if value is None else value / 1024 for value in values]

    def full(kind: str, size: int) -> list[str | float | None]:
        case = find(FULL, kind, size, "asyncio")
        values = [samples.median(case, column) for column in ("carried", "bytes")]
        return [None if value is None else f"{value:,.0f}" for value in values]

    def bar(part: str, size: int) -> str:
        return f"to raw ({BARS[part, size]})"

    streams = ["64 KiB writes, MB/s", bar(STREAM, LARGE), "200-byte writes/s", bar(STREAM, SMALL)]
    ends = [f"{end} end, {means}" for end in ("client", "server") for means in ("RSS", "tracemalloc")]
    return "\n\n".join([
        "## Pipes",
        "### One direction, two processes",
        table(
            ["", "loop", *streams],
            rows(
                lambda kind, loop: [
                    *pair(STREAM, kind, LARGE, loop, "rate", LARGE / 1e6), *pair(STREAM, kind, SMALL, loop, "rate"),
                ],
                RAW_GATHERED,
            ),
        ),
        "### Round trip of 200 bytes",
        table(
            ["", "loop", "p50, µs", bar(ECHO, SMALL), "p99, µs", "to raw"],
            rows(lambda kind, loop: pair(ECHO, kind, SMALL, loop, "p50") + pair(ECHO, kind, SMALL, loop, "p99")),
        ),
        "### From the loss of a healthy connection to the next round trip (raw: a dial and a round trip)",
        table(
            ["", "loop", "p50, µs", "to raw", "p99, µs", "to raw"],
            rows(lambda kind, loop: pair(RESUME, kind, SMALL, loop, "p50") + pair(RESUME, kind, SMALL, loop, "p99")),
        ),
        f"### KiB per idle pipe or connection with its task, of {number}",
        table(["", "loop", *ends], rows(idle)),
        f"### Bytes held by a full ring of {RING:,}, with what it carries",
        table(
            ["writes", "carried", "held"],
            [
                [f"{size:,} bytes, {kind}", *full(kind, size)]
                for size in (LARGE, SMALL)
                for kind in (MANY, ONE)
            ],
        ),
    ])  # fmt: skip


SECTION = Section("pipes", cases, measure, render, most_repeats=5)

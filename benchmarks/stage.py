"""Where a measurement plays: an event loop, tasks beside it, and the gate that says when all deliveries were made.

The gate's `sink` is the one function that every subscriber of every peer calls for every event, so what it costs is in
all rows alike.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from time import perf_counter_ns, process_time
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

__all__ = ("Gate", "Stage", "perform", "quiet", "resident")

T = TypeVar("T")


class Stage(ABC):
    """What differs between event loops."""

    @abstractmethod
    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs it beside; cancelled at the end."""

    @abstractmethod
    def signal(self) -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
        """What sets, and what waits for, something that happens once: the cheapest that the loop has."""

    @abstractmethod
    async def stop(self) -> None:
        """Cancels all that was spawned, and waits for its end."""

    async def settle(self) -> None:
        """Lets all that was spawned come to rest."""
        for _ in range(5):
            await anyio.sleep(0.002)


class _AsyncioStage(Stage):
    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(coroutine))

    def signal(self) -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return (lambda: future.set_result(None)), (lambda: future)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class _TrioStage(Stage):
    def __init__(self) -> None:
        self._nursery: Any = None

    async def hold(self, task_status: Any) -> None:
        import trio

        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            await coroutine

        self._nursery.start_soon(run)

    def signal(self) -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
        import trio

        event = trio.Event()
        return event.set, event.wait

    async def stop(self) -> None:
        self._nursery.cancel_scope.cancel()
        while self._nursery.child_tasks:
            await anyio.lowlevel.checkpoint()


def perform(main: Callable[[Stage], Coroutine[Any, Any, T]], loop: str) -> T:
    """Runs `main` on a loop; returns what it returns."""
    if loop == "trio":
        return _perform_on_trio(main)
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    async def run() -> T:
        stage = _AsyncioStage()
        try:
            return await main(stage)
        finally:
            await stage.stop()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run())


def _perform_on_trio(main: Callable[[Stage], Coroutine[Any, Any, T]]) -> T:
    import trio

    async def run() -> T:
        stage = _TrioStage()
        async with trio.open_nursery() as nursery:
            await nursery.start(stage.hold)
            result = await main(stage)
            nursery.cancel_scope.cancel()
        return result

    return trio.run(run)


class Gate:
    """Counts deliveries down; opens at the last one.

    Attributes:
        last: When the last one was made, in ns.
    """

    __slots__ = ("_left", "_open", "_stage", "_wait", "last")

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._left = -1  # what comes while nothing is expected opens nothing
        self.last = 0

    def arm(self, deliveries: int) -> None:
        """Expects so many."""
        self._left = deliveries
        self._open, self._wait = self._stage.signal()

    def sink(self, event: object) -> None:
        """One delivery."""
        self._left -= 1
        if not self._left:
            self.last = perf_counter_ns()
            self._open()

    def sink_many(self, deliveries: int) -> None:
        """Several at once, where the deliveries are not what is measured."""
        self._left -= deliveries
        if not self._left:
            self._open()

    async def opened(self) -> None:
        """Waits for the last delivery."""
        await self._wait()


async def quiet() -> float:
    """Waits until nothing runs in the background any more; returns the CPU seconds that it took until then."""
    start = process_time()
    while True:
        before = process_time()
        await anyio.sleep(0.02)
        if process_time() - before < 0.001:
            return process_time() - start


def resident() -> int:
    """Bytes of this process in memory, after the garbage has gone. 0 where the system does not tell."""
    gc.collect()
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * mmap.PAGESIZE if status.exists() else 0

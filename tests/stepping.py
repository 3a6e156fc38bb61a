"""An event loop that stands still between two calls, for tests that are plain functions: state machines.

The usual way to reach a loop from a plain function is a portal to a thread that runs it. Then each call waits for
another thread, at the mercy of the machine's scheduler, and what runs between two calls is left to chance. Here the
test's own thread turns the loop, as often as a call needs and no more; and time stands still but for `pass_time`. So a
run is the same each time, and a task that never ends is an error after so many turns, not a hang.

How a loop is turned once: asyncio's is told to stop, then to run; a trio run is the guest of a list of callbacks. Both
have a main task that never sleeps, so neither ever waits for the operating system (a guest would do so in a thread).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from inspect import isawaitable
from typing import Any, Final

import trio
from anyio import create_task_group
from anyio.lowlevel import checkpoint
from trio.testing import MockClock

PATIENCE: Final = 100_000  # turns after which a call counts as hanging


class Stepped:
    """Runs functions in an event loop, each to its end. Close it."""

    def __init__(self) -> None:
        self._starting: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._closing = False

    def turn(self) -> None:
        """Lets all tasks run that can, once."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """What was to happen within that time happens in the next turns."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancels all that still runs, and ends the loop."""
        raise NotImplementedError

    def start(self, function: Callable[..., object], *arguments: object) -> Future[Any]:
        """Will call a function in a task of its own, from the next turn on."""
        future: Future[Any] = Future()

        async def run() -> None:
            try:
                result = function(*arguments)
                future.set_result(await result if isawaitable(result) else result)
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        self._starting.append(run)
        return future

    def call(self, function: Callable[..., object], *arguments: object) -> Any:
        """Turns the loop until a function has returned, and returns what it did."""
        return self.wait_for(self.start(function, *arguments))

    def wait_for(self, future: Future[Any]) -> Any:
        """Turns the loop until a call has ended that was started before."""
        for _ in range(PATIENCE):
            if future.done():
                return future.result()
            self.turn()
        raise AssertionError("the call hangs")

    async def _main(self) -> None:
        async with create_task_group() as tasks:
            while not self._closing:
                while self._starting:
                    tasks.start_soon(self._starting.popleft())
                await checkpoint()
            tasks.cancel_scope.cancel()


class SteppedAsyncio(Stepped):
    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._now = 0.0
        self._loop.time = lambda: self._now  # type: ignore[method-assign]  # there is no way but this
        self._task = self._loop.create_task(self._main())

    def turn(self) -> None:
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()

    def pass_time(self, seconds: float) -> None:
        self._now += seconds

    def close(self) -> None:
        self._closing = True
        with self._runner:
            self._loop.run_until_complete(self._task)


class SteppedTrio(Stepped):
    def __init__(self) -> None:
        super().__init__()
        self._turns: deque[Callable[[], object]] = deque()
        self._ended: list[Any] = []  # how the run ended
        self._clock = MockClock()
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._turns.append,
            done_callback=self._ended.append,
            clock=self._clock,
        )

    def turn(self) -> None:
        self._turns.popleft()()

    def pass_time(self, seconds: float) -> None:
        self._clock.jump(seconds)

    def close(self) -> None:
        self._closing = True
        while not self._ended:
            self.turn()
        self._ended[0].unwrap()

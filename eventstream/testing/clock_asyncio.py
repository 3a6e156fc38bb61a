"""Simulated time on asyncio: a loop whose selector jumps the clock instead of blocking.

asyncio asks its selector to wait until the next timer. Ours looks for real events without waiting, and if there are
none, lets the loop's clock jump by the time it was asked to wait: so a timer is due as soon as nothing else is ready.
If there is no timer either, nothing can ever happen, and the run ends with `Deadlock`.

The order of callbacks is asyncio's own, first in, first out: the seed does not shuffle it, because asyncio promises
that order and programs rely on it. What is left to chance in a run are sets of tasks and cancel scopes, which are gone
through in the order of their addresses; see `_Task` and `ordered_scopes`.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from itertools import count
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio
from anyio._backends import _asyncio as backend

from .stuck import Deadlock, OutOfTime, SimulationError, where

__all__ = ("run_on_asyncio",)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

CLEANING: Final = 60.0  # virtual seconds more that cancelled tasks have after the limit: enough for any sane timeout
_serials = count()


def run_on_asyncio(main: Callable[[], Coroutine[Any, Any, T]], limit: float) -> T:
    """Runs `main` in simulated time. See `run_simulated`."""
    loops: list[SimulatedLoop] = []

    def new_loop() -> SimulatedLoop:
        loops.append(SimulatedLoop(limit))
        return loops[-1]

    try:
        with ordered_scopes():
            return anyio.run(main, backend="asyncio", backend_options={"loop_factory": new_loop})
    except Exception as error:
        first = loops[0].stuck if loops else None
        if first is None or error is first:
            raise
        raise first from error  # while its tasks were being cancelled something else went wrong


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing is left to do.

    Args:
        limit: Seconds of virtual time after which `OutOfTime` ends the run.

    Attributes:
        stuck: What ended the run, if it could not go on.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self._now = 0.0
        self._limit = limit
        self.stuck: SimulationError | None = None
        super().__init__(_JumpingSelector(self.jump))
        self.set_task_factory(_new_task)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As always, except that a timer that never comes is not kept: it would hide a deadlock."""
        if when == math.inf:
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def jump(self, seconds: float | None) -> None:
        """Lets time pass. None: for ever.

        Raises:
            Deadlock: if it would pass for ever.
            OutOfTime: if it would pass the limit.
        """
        if seconds is None:
            raise self._end(Deadlock(self._now, self._waiting()))
        if self._now + seconds > self._limit:
            now, self._now = self._limit, self._limit
            self._limit += CLEANING
            raise self._end(OutOfTime(now, self._waiting()))
        self._now += seconds

    def _end(self, error: SimulationError) -> SimulationError:
        self.stuck = self.stuck or error
        return error

    def _waiting(self) -> list[str]:
        tasks = sorted(asyncio.all_tasks(self), key=hash)  # by serial number
        return [f"{task.get_name()}: {where(task.get_coro())}" for task in tasks]


class _JumpingSelector(selectors.BaseSelector):
    """Never waits. Everything else is the system's selector's: a loop needs one for its own wake-up socket."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        self._jump = jump
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready and (timeout is None or timeout > 0):
            self._jump(timeout)
        return ready

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


class _Task(asyncio.Task[T]):
    """A task whose hash is its serial number, so that sets of tasks are gone through in the same order in each run.

    It may stay equal to itself alone: different hashes for different objects keep what sets and dicts rely on.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._serial = next(_serials)
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._serial


def _new_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T] | Generator[Any, None, T], **options: Any
) -> asyncio.Task[T]:
    return _Task(coroutine, loop=loop, **options)


class _OrderedSet(dict[Any, None]):
    """As much of a set as anyio's backend uses, gone through in the order of adding."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def remove(self, item: Any) -> None:
        del self[item]


@contextmanager
def ordered_scopes() -> Iterator[None]:
    """Lets anyio keep a scope's tasks and child scopes in the order in which they came.

    anyio cancels them in the order of a set, which is that of their addresses: the one thing that made runs with the
    same seed differ. It makes these sets by the name `set`, which this shadows in that one module. An ordered set is
    a set for whatever else runs meanwhile, so this does not harm other threads.
    """
    backend.__dict__["set"] = _OrderedSet
    try:
        yield
    finally:
        del backend.__dict__["set"]

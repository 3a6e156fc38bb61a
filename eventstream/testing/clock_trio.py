"""Simulated time on trio: its own `MockClock`, a seeded scheduler, and an instrument that sees when all is stuck.

trio runs the tasks that are ready in random order, on purpose. For Hypothesis it has a switch that first puts them in
the order of their birth and then shuffles them with a random source of its own; pytest-trio uses it too. Seeded with
our seed, the order of tasks becomes part of what a seed explores: this makes trio the better backend to simulate on.

`MockClock` jumps when all tasks wait for a time, and would spin for ever if they wait for nothing; and a limit by a
cancel scope is no limit for shielded code. So an instrument watches.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import anyio
import outcome
import trio
from trio._core import _run as scheduler
from trio.testing import MockClock

from .stuck import Deadlock, OutOfTime, SimulationError, where

__all__ = ("run_on_trio",)

T = TypeVar("T")

CLEANING: Final = 60.0  # virtual seconds more that cancelled tasks have after the limit: enough for any sane timeout
IDLE: Final = 3  # turns in which nothing could run: in the first of them trio wakes `wait_all_tasks_blocked`


def run_on_trio(main: Callable[[], Awaitable[T]], seed: int, limit: float) -> T:
    """Runs `main` in simulated time. See `run_simulated`."""
    watch = _Watch(limit)

    async def watched() -> T | None:
        watch.main = trio.lowlevel.current_task()
        with watch.scope:
            return await main()
        return None

    options = {"clock": MockClock(autojump_threshold=0), "instruments": [watch]}
    try:
        with seeded_scheduling(seed):
            result = anyio.run(watched, backend="trio", backend_options=options)
    except Exception as error:
        if watch.stuck is None:
            raise
        raise watch.stuck from error
    if watch.stuck is not None:
        raise watch.stuck
    return result  # type: ignore[return-value]  # it is None without an error only if main returned None


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """Lets trio choose the order of tasks from a seed."""
    switch, source = "_ALLOW_DETERMINISTIC_SCHEDULING", scheduler._r
    before, state = getattr(scheduler, switch), source.getstate()
    setattr(scheduler, switch, True)
    source.seed(f"{seed} trio")
    try:
        yield
    finally:
        setattr(scheduler, switch, before)
        source.setstate(state)


class _Watch(trio.abc.Instrument):
    """Ends a run that cannot go on: first by cancelling it, then by an error in whatever still waits.

    Attributes:
        main: The task that runs `main`.
        scope: What `main` runs in.
        stuck: Why the run was ended.
    """

    def __init__(self, limit: float) -> None:
        self.main: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()
        self.stuck: SimulationError | None = None
        self._limit = limit
        self._idle = 0
        self._forcing = False

    def before_io_wait(self, timeout: float) -> None:
        context: Any = scheduler.GLOBAL_RUN_CONTEXT
        if timeout or context.runner.runq:  # the public statistics say so too, for a tenth of what a turn costs
            self._idle = 0
            return
        self._idle += 1
        now = trio.lowlevel.current_statistics()
        time = trio.current_time()
        if time > self._limit:
            self._limit = time + CLEANING
            self._end(OutOfTime(time, self._waiting()))
        elif self._idle >= IDLE and now.seconds_to_next_deadline == math.inf and not now.run_sync_soon_queue_size:
            self._idle = 0
            self._end(Deadlock(time, self._waiting()))
        elif self._forcing:
            self._force()

    def _end(self, error: SimulationError) -> None:
        if self.stuck is None:
            self.stuck = error
            self.scope.cancel()
        else:
            self._forcing = True

    def _force(self) -> None:
        """Throws the error into every task that waits for something else than its own child tasks.

        Nothing else ends code that is shielded. What it waited for still knows it: the run is broken, and ends.
        """
        assert self.stuck is not None
        self._forcing = False
        for task in self._tasks():
            if not any(nursery.child_tasks for nursery in task.child_nurseries):
                trio.lowlevel.reschedule(task, outcome.Error(self.stuck))

    def _waiting(self) -> list[str]:
        return [f"{task.name}: {where(task.coro)}" for task in self._tasks()]

    def _tasks(self) -> Iterator[trio.lowlevel.Task]:
        """The tasks of the run, without trio's own."""
        left = [] if self.main is None else [self.main]
        while left:
            task = left.pop(0)
            yield task
            left += sorted((child for nursery in task.child_nurseries for child in nursery.child_tasks), key=_age)


def _age(task: trio.lowlevel.Task) -> int:
    return task._counter

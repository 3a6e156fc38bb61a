"""Simulated time: an async program runs as fast as it computes, and its sleeps and timeouts take no time.

When all tasks wait, time jumps to the next deadline; the same seed gives the same run. So a test can wait an hour for a
heartbeat, and a failing run of a thousand can be run again. The two loops are in modules of their own.

What is *not* simulated: sockets, processes, worker threads (nobody waits for them: time jumps on, and a run that has
nothing else ends with `Deadlock`), `time.monotonic`, `os.urandom`, and the order of sets of strings, which follows
`PYTHONHASHSEED`. `eventstream.testing.simulate` sets the latter.

Rejected: a clock as an argument of everything (code that has one can still be simulated; code that has none could not),
freezing time by patching `time` (the event loop would not know).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeVar, TypeVarTuple

from .clock_asyncio import run_on_asyncio

__all__ = ("run_simulated",)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

DAY: Final = 86_400.0


def run_simulated(
    main: Callable[[*Arguments], Awaitable[T]],
    *args: *Arguments,
    seed: int = 0,
    backend: Literal["trio", "asyncio"] = "trio",
    limit: float = DAY,
) -> T:
    """Runs an async function in simulated time, from beginning to end.

    The clock that `anyio.current_time` reads begins at 0 and stands still while any task can run. The `random` module
    is seeded for the time of the run, and put back after it.

    Args:
        main: What to run. Pass keyword arguments by `functools.partial`.
        *args: Its arguments.
        seed: Decides everything that is random in the loop: on trio the order in which ready tasks run; on asyncio
            that order is fixed. Code under test takes its own randomness from `random`, or from a seed that you pass.
        backend: The event loop.
        limit: Virtual seconds that the run may last. Default: a day.

    Returns:
        What `main` returned.

    Raises:
        Deadlock: if all tasks wait and there is no timer. The text says where they wait.
        OutOfTime: if the limit is reached.
        RuntimeError: if an event loop runs in this thread already, or trio is asked for and not installed.
        LookupError: if there is no such backend.

    Whatever `main` raises comes out as it is. A run that is stuck is cancelled first, so `finally` blocks run.

    Not for two threads at once: a seeded scheduler is one for the process.
    """

    async def call() -> T:
        return await main(*args)

    with _seeded(seed):
        if backend == "asyncio":
            return run_on_asyncio(call, limit)
        if backend == "trio":
            try:
                from .clock_trio import run_on_trio
            except ModuleNotFoundError as error:
                raise RuntimeError(
                    'trio is not installed: pip install "eventstream[testing]", or simulate on asyncio'
                ) from error
            return run_on_trio(call, seed, limit)
        raise LookupError(f"no such backend: {backend!r}; there are 'trio' and 'asyncio'")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(f"{seed} random")
    try:
        yield
    finally:
        random.setstate(state)

"""How a simulated run says that it cannot go on, and where its tasks are.

Both loops end a run that is stuck with these errors; the text names every task and the line it waits at, because a
deadlock that is found in the ten thousandth seed has to be understood from what is printed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

__all__ = ("Deadlock", "OutOfTime", "SimulationError", "where")

LOOPS = (str(Path(anyio.__file__).parent), str(Path(inspect.__file__).with_name("asyncio")), "/trio/", "\\trio\\")
SHOWN = 40  # tasks that an error names; a deadlock of more is not understood by reading more


class SimulationError(Exception):
    """A simulated run could not go on. Whose fault: the code that was run, or its use of something not simulated.

    Attributes:
        time: Virtual seconds since the run began.
        tasks: For each task its name and where it waits.
    """

    problem = "the simulation cannot go on"

    def __init__(self, time: float, tasks: Iterable[str]) -> None:
        self.time = time
        self.tasks: tuple[str, ...] = tuple(tasks)
        lines = [f"{self.problem}, {time:g} virtual seconds after the start. Tasks:"]
        lines += [f"  {task}" for task in self.tasks[:SHOWN]]
        if len(self.tasks) > SHOWN:
            lines.append(f"  and {len(self.tasks) - SHOWN} more")
        super().__init__("\n".join(lines))


class Deadlock(SimulationError):
    """All tasks wait, and none for a time: nothing can ever happen. (Sockets and worker threads are not waited for.)"""

    problem = "deadlock: all tasks wait, and no timer will wake one (sockets and threads are not waited for)"


class OutOfTime(SimulationError):
    """The run went on past its limit of virtual time."""

    problem = "the limit of virtual time is reached"


def where(coroutine: Any) -> str:
    """The line at which a suspended coroutine waits: the innermost that is not the event loop's or anyio's own."""
    found = "not started"
    while coroutine is not None:
        frame: FrameType | None = next(
            (
                getattr(coroutine, name)
                for name in ("cr_frame", "gi_frame", "ag_frame")
                if getattr(coroutine, name, None) is not None
            ),
            None,
        )
        if frame is not None and not any(loop in frame.f_code.co_filename for loop in LOOPS):
            found = f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        coroutine = next(
            (
                getattr(coroutine, name)
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if getattr(coroutine, name, None) is not None
            ),
            None,
        )
    return found

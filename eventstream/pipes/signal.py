"""Wakes one task, as often as there is a reason (`Signal`); or all that wait for the next change of something (`News`).

A signal stands twice on the way of every message, so it waits with what the event loop itself offers: a future on
asyncio, a rescheduled task on trio. Rejected: an `anyio.Event` for each wait (it costs twice as much, for waiters that
are never more than one); a memory channel (its buffer would count wake-ups, of which only "at least one" matters).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from anyio import Event
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from trio.lowlevel import Abort, RaiseCancelT, Task

__all__ = ("News", "Signal")


class Signal:
    """A flag with one waiter. Being set twice before the waiter looks is being set once."""

    __slots__ = ("_future", "_is_set", "_loop", "_task")

    def __init__(self) -> None:
        self._is_set = False
        self._loop: object = None  # asyncio's loop or trio's token, from the first wait on
        self._future: asyncio.Future[None] | None = None  # of the waiter, on asyncio
        self._task: Task | None = None  # the waiter, on trio

    def set(self) -> None:
        """Wakes the waiter, or lets the next `wait` return at once."""
        if self._is_set:
            return
        self._is_set = True
        if self._future is not None:
            if not self._future.done():  # else it is being cancelled
                self._future.set_result(None)
        elif self._task is not None:
            from trio.lowlevel import reschedule  # installed, since trio runs that task

            task, self._task = self._task, None
            reschedule(task)

    async def wait(self) -> None:
        """Returns as soon as the flag is set, and clears it. Cancelled, it leaves the flag as it is."""
        while not self._is_set:
            if self._loop is None:
                self._loop = current_token().native_token
            if isinstance(self._loop, asyncio.AbstractEventLoop):
                await self._wait_on_asyncio(self._loop)
            else:
                await self._wait_on_trio()
        self._is_set = False

    async def _wait_on_asyncio(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future = loop.create_future()
        try:
            await self._future
        finally:
            self._future = None

    async def _wait_on_trio(self) -> None:
        from trio.lowlevel import current_task, wait_task_rescheduled

        self._task = current_task()
        await wait_task_rescheduled(self._give_up)

    def _give_up(self, _: RaiseCancelT) -> Abort:
        from trio.lowlevel import Abort

        self._task = None
        return Abort.SUCCEEDED


class News:
    """Something changed that any number of tasks may wait for; rarely one does, so an event is made only then."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: Event | None = None

    @property
    def awaited(self) -> bool:
        """Whether anybody waits."""
        return self._event is not None

    def tell(self) -> None:
        """Wakes all who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Returns when `tell` is called next."""
        if self._event is None:
            self._event = Event()
        await self._event.wait()

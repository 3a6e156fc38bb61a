"""A client's publishes that wait for their commit, and their answers.

They have their places in the log already, so the connection goes on with what comes next: one client, too, shares the
syncs of the disk among all that it has under way. Written by the connection's receiving task, emptied by one that lives
as long as anything waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from anyio import Event
from anyio.abc import TaskGroup

from ..events import Position
from ..logs import Pending

__all__ = ("Line",)

MOST: Final = 1024  # as many as the log writes in one go


class Line:
    """Answers what stands in it, in its order.

    Args:
        answer: Waits for the position, and tells the client.
    """

    def __init__(self, answer: Callable[[int, Awaitable[Position]], Awaitable[None]]) -> None:
        self._answer = answer
        self._waiting: deque[tuple[int, Pending]] = deque()
        self._emptied = Event()

    def __len__(self) -> int:
        return len(self._waiting)

    async def add(self, request: int, pending: Pending, tasks: TaskGroup) -> None:
        """Puts one at the end. Waits if the line is too long: then until nobody is left in it."""
        if len(self._waiting) >= MOST:
            await self.emptied()
        self._waiting.append((request, pending))
        if len(self._waiting) == 1:
            self._emptied = Event()
            tasks.start_soon(self._run)

    async def emptied(self) -> None:
        """Waits until all that stand in it have their answers."""
        while self._waiting:
            await self._emptied.wait()

    async def _run(self) -> None:
        while self._waiting:
            request, pending = self._waiting[0]
            await self._answer(request, pending.wait())
            self._waiting.popleft()
        self._emptied.set()

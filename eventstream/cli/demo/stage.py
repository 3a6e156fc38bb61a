"""How far the play is: the one clock that all who act in it go by.

It counts flights, not seconds. So who leaves after a fifth of the week leaves after the same flight whatever the speed,
and the table at the end is the same each time but for what a busy computer adds.
"""

from __future__ import annotations

import math

import anyio
from sortedcontainers import SortedKeyList

__all__ = ("Stage",)


class Stage:
    """Counts what was played.

    Args:
        total: How many flights there are.

    Attributes:
        played: How many were published.
        over: Whether no more will be.
        heads: By topic, the index of the event that was published last.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.played: int = 0
        self.over: bool = False
        self.heads: dict[str, int] = {}
        self._waiting: SortedKeyList[tuple[int, anyio.Event], int] = SortedKeyList(key=lambda entry: entry[0])

    @property
    def progress(self) -> int:
        """In percent; 100 only when all were played."""
        return 100 * self.played // self.total

    def advance(self) -> None:
        """One more flight was published."""
        self.played += 1
        self._wake()

    def finish(self) -> None:
        """No more come, whether or not all were played. Nobody waits any longer."""
        self.over = True
        self._wake()

    def passed(self, part: float) -> bool:
        """Whether this part of the flights was played."""
        return self.over or self.played >= math.ceil(part * self.total)

    async def reached(self, part: float) -> None:
        """Waits until this part of the flights was played, or the play is over."""
        if not self.passed(part):
            event = anyio.Event()
            self._waiting.add((math.ceil(part * self.total), event))
            await event.wait()

    def _wake(self) -> None:
        while self._waiting and (self.over or self._waiting[0][0] <= self.played):
            self._waiting.pop(0)[1].set()

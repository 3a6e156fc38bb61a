"""Wakes one task, as often as there is a reason: a flag that a task can wait for.

Rejected: one `anyio.Event` for each wake-up that is due (most are set while nobody waits, and an event costs ten times
a flag); a memory channel (its buffer would count wake-ups, of which only "at least one" matters).
"""

from __future__ import annotations

from anyio import Event

__all__ = ("Signal",)


class Signal:
    """A flag with one waiter. Being set twice before the waiter looks is being set once."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: Event | None = None

    def set(self) -> None:
        """Wakes the waiter, or lets the next `wait` return at once."""
        self._is_set = True
        if self._waiter is not None:
            self._waiter.set()

    async def wait(self) -> None:
        """Returns as soon as the flag is set, and clears it. Cancelled, it leaves the flag as it is."""
        while not self._is_set:
            self._waiter = Event()
            try:
                await self._waiter.wait()
            finally:
                self._waiter = None
        self._is_set = False

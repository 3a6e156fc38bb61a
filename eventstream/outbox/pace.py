"""How many entries may be on their way at once, and how long a bus that cannot be reached is left alone. Pure.

As many as were answered lately, plus one for each answer: after a failure one entry tries the way for all, so that a
dead or half-dead bus is not given a backlog of which nobody would then know what became of it.
"""

from __future__ import annotations

from typing import Final

from ..pipes import Retry

__all__ = ("Pace",)

FIRST: Final = 16  # entries: not one, or the first that gets no answer would hold up all others from the start


class Pace:
    """The one gate in front of the bus.

    Attributes:
        room: How many may be on their way.
        failures: How often in a row the bus could not be reached. Kept over restarts.
        until: When it is tried again, on the clock of the caller; -inf if it is not left alone.
    """

    __slots__ = ("_most", "_retry", "failures", "room", "until")

    def __init__(self, retry: Retry, most: int) -> None:
        self._retry = retry
        self._most = most
        self.room: int = min(FIRST, most)
        self.failures: int = 0
        self.until: float = float("-inf")

    def answered(self) -> None:
        """The bus spoke, whatever it said."""
        self.failures = 0
        self.until = float("-inf")
        if self.room < self._most:
            self.room += 1

    def lost(self, now: float, roll: float) -> None:
        """The bus could not be reached. Many that were under way and fail together are one failure."""
        if now >= self.until:
            self.failures += 1
            self.until = now + self._retry.delay(self.failures, roll)
        self.room = 1

    def resume(self, failures: int, seconds: float, now: float) -> None:
        """Goes on where another process has stopped; a clock that was set meanwhile makes no wait longer than usual."""
        self.failures = failures
        self.until = now + min(max(seconds, 0.0), self._retry.cap)

    def wake(self) -> None:
        """There is reason to believe that the bus is back."""
        self.until = float("-inf")

    def left(self, now: float) -> float:
        """Seconds for which it is still left alone."""
        return max(0.0, self.until - now)

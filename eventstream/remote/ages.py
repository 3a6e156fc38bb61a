"""How old something is, also if this machine slept meanwhile.

The clock of an event loop stands still while its machine sleeps (on Linux, and on others), and the memory of whoever
was awake does not. A publish that was said before the lid was closed is an hour old when it is opened, whatever the
loop says. The wall clock knows; but it may be set. So the loop's clock counts, and besides it what the wall clock has
run ahead of it: if in doubt, things are older. Used by a client for its requests, by a server for its clients, and by
an outbox for its entries without an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from anyio import current_time

__all__ = ("Ages",)

SLEPT: Final = 1.0  # seconds: more than a clock is ever corrected at once by slowing or hurrying it


class Ages:
    """A clock that goes on in sleep, to be read in one event loop. Only differences mean anything.

    Args:
        clock: The time in POSIX seconds.
        loop_clock: That of the event loop.

    Attributes:
        slept: Seconds of sleep that were noticed up to the last look.
    """

    def __init__(self, clock: Callable[[], float], loop_clock: Callable[[], float] = current_time) -> None:
        self._clock = clock
        self._loop_clock = loop_clock
        self._ahead: float | None = None  # by how much the wall clock was, when it was looked at last
        self.slept: float = 0.0

    def now(self) -> float:
        """Seconds. Never less than before, nor than the loop's clock has gone on."""
        now = self._loop_clock()
        ahead = self._clock() - now
        if self._ahead is not None and ahead - self._ahead > SLEPT:
            self.slept += ahead - self._ahead
        self._ahead = ahead
        return now + self.slept

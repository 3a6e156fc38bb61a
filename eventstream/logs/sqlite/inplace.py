"""When the event loop may write by itself: a publish that comes alone, with `durability="process"`. Pure.

Such a commit syncs nothing. It copies a few pages into memory of the kernel, in some 20 µs; the way to the thread and
back takes five times that, and three times the CPU. So the loop does it, under these conditions, of which the `Writer`
looks after the first:

* Nothing is on its way (order), the thread is at rest (its lock is tried, never waited for), and what the publish has
  to know of its topic was read before.
* Few come at once, and they are small: what a crowd publishes is one transaction in the thread.
* It is not the one that moves what is in the write-ahead file to its place, nor the first one after that: both sync. So
  SQLite does not do so by itself at a commit (`wal_autocheckpoint = 0`); the thread is asked to, now and then.
* The kernel does not make writers wait, as it does when a disk is overrun. A write that took long is the last one here
  for a while, and for twice as long if the next such comes soon.

Rejected: the same with `durability="power"` (a sync stops the loop for as long as the disk likes); a thread that spins
for a while before it sleeps (it takes the interpreter's lock from the loop, so each publish takes longer).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

__all__ = ("InPlace",)

CROWD: Final = 8  # publishes that come at once: from there on a transaction in the thread is faster
MOST_BYTES: Final = 16_384  # of a publish: four pages
SLOW: Final = 0.005  # seconds that a write may take
LEAST_REST, MOST_REST = 1.0, 64.0  # seconds; so a disk that is overrun stops the loop about once a minute


class InPlace:
    """Decides, and looks how long it takes.

    Args:
        clock: Seconds, from anywhere, that never go back.
    """

    __slots__ = ("_clock", "_rest", "_resumes", "_started")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rest = LEAST_REST
        self._resumes = -math.inf
        self._started = 0.0

    def begin(self, size: int, others: int) -> bool:
        """Whether a publish of so many bytes, that came with so many others, may be written here now."""
        if others >= CROWD or size > MOST_BYTES:
            return False
        self._started = self._clock()
        return self._started >= self._resumes

    def end(self) -> None:
        """It was."""
        now = self._clock()
        if now - self._started > SLOW:
            self._rest = min(2 * self._rest, MOST_REST) if now - self._resumes < self._rest else LEAST_REST
            self._resumes = now + self._rest

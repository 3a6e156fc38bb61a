"""The clock by which a log tells how long it has known an id.

A wall clock may be set, or jump when its machine wakes up: one that goes ahead by more than the dedupe window would
make a log forget all ids at that moment, and append again what it has. So ages are told by a clock that only goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ("steadied",)


def steadied(clock: Callable[[], float]) -> Callable[[], float]:
    """POSIX seconds as they are now, and from then on as if nobody would set the clock.

    Any clock but the system's is taken as it is: who gives one says how the time goes.
    """
    if clock is not time.time:
        return clock
    ahead = time.time() - time.monotonic()
    return lambda: time.monotonic() + ahead

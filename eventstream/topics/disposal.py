"""Lets go of long chains a little at a time.

When the last reference to a chain of millions of events is dropped, the interpreter frees them all in that one
statement: a fifth of a second in which the loop does nothing else. So whoever drops a place passes it here, and the
bus's housekeeping walks the chain: each step frees the segment behind it, a few in each turn of the loop. The walk ends
where somebody else refers to the chain, since nothing behind that place would be freed. It has a second use: what is
dropped under a topic's lock is not freed there, where a payload's finalizer could run.

Whether somebody else refers to a segment is asked of the interpreter's reference counts. A wrong answer, as on an
interpreter that counts otherwise, costs a pause or some needless steps, never a leak.

`drop` and `cut` are safe from any thread, also under a lock; `step` belongs to the housekeeping.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Final

from .buffer import Segment

__all__ = ("Disposal",)

FEWEST_STEPS: Final = 64  # segments in one turn: 8,192 events, about half a millisecond
MOST_STEPS: Final = 1024  # reached when a publisher drops more in each turn than is freed in it
CUT: Final = 4  # segments that a publisher frees for each one it fills: more than it can ever drop

_references: Final[Callable[[object], int]] = getattr(sys, "getrefcount", lambda _: 0)


class Disposal:
    """The chains that still have to be freed.

    Args:
        call: Called, from any thread, when there is something to do again.
    """

    __slots__ = ("_call", "_chains", "_steps")

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._chains: deque[Segment] = deque()
        self._steps = FEWEST_STEPS

    def __bool__(self) -> bool:
        return bool(self._chains)

    def drop(self, segment: Segment) -> None:
        """Will free what only the caller's one variable refers to. A tail alone is left to the interpreter."""
        # That variable, the parameter, the argument of the question itself: three.
        if segment.next is not None and _references(segment) <= 3:
            self._chains.append(segment)
            self._call()

    def cut(self) -> list[Segment]:
        """Takes a few segments off a chain, to be freed by the caller when no lock is held any more.

        A publisher that leaves the loop no turn would else fill the memory with what its laggards let go.
        """
        cut: list[Segment] = []
        try:
            segment: Segment | None = self._chains.popleft()
        except IndexError:
            return cut  # the housekeeping, in another thread, was quicker
        for _ in range(CUT):
            if segment is None or _references(segment) > 3:
                break
            cut.append(segment)
            segment = segment.next
        else:
            if segment is not None:
                self._chains.appendleft(segment)
        return cut

    def step(self) -> None:
        """Frees a few more segments of the oldest chain, more and more as long as there are any."""
        segment: Segment | None = self._chains.popleft()
        for _ in range(self._steps):
            if segment is None or _references(segment) > 2:
                break
            segment = segment.next
        else:
            if segment is not None:
                self._chains.appendleft(segment)
        self._steps = min(2 * self._steps, MOST_STEPS) if self._chains else FEWEST_STEPS

"""Finds readers that are past their bound, at one comparison an event.

Every reader of a buffer, and everything else that pins its events, has a *deadline*: the number of events at which it
is overtaken if it does not move. The deadlines stand in one sorted structure; a publish compares its count with the
earliest alone. When that is passed the reader's true place is asked: most have moved on and get a new deadline.

What it costs: a look at a reader that has moved is paid for by the events that it read since the last look, so the
whole is O(log n) for each event *delivered* at worst, and nothing for each event published while all keep up.
Readers do nothing for it. Written and read under the topic's lock.
"""

from __future__ import annotations

import sys
from itertools import count
from typing import Protocol, TypeAlias

from sortedcontainers import SortedList

__all__ = ("Laggards", "Tracked", "Watch")


class Tracked(Protocol):
    """What pins events of a buffer: a reader, a snapshot.

    Attributes:
        watch: Set and used by the one `Laggards` that watches it.
    """

    watch: Watch | None

    def deadline(self, published: int) -> int:
        """The count of published events up to which it may stay where it now is."""
        ...

    def overtaken(self, published: int) -> None:
        """It is past its bound: let go of everything, at once."""


Watch: TypeAlias = tuple[int, int, Tracked]  # deadline, a number that breaks ties, who


class Laggards:
    """The deadlines of all that pins one buffer."""

    __slots__ = ("_latest", "_serial", "_watches", "due")

    def __init__(self) -> None:
        self._watches: SortedList[Watch] = SortedList()
        self._serial = count()
        self._latest = 0
        self.due: int = sys.maxsize  # Invariant: no deadline is earlier

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, tracked: Tracked, published: int) -> None:
        """Watches `tracked` from here on."""
        assert tracked.watch is None, "who pins events of two buffers is watched in one of them"
        deadline = tracked.deadline(published)
        if deadline == self._latest:
            deadline = self._latest  # thousands of readers that came at the same event share one number
        self._latest = deadline
        tracked.watch = (deadline, next(self._serial), tracked)
        self._watches.add(tracked.watch)
        self.due = min(self.due, tracked.watch[0])

    def discard(self, tracked: Tracked) -> None:
        """Forgets it. Does nothing if it is not watched."""
        if tracked.watch is not None:
            self._watches.discard(tracked.watch)
            tracked.watch = None
            self._look()

    def check(self, published: int) -> None:
        """Call when `published > due`: overtakes those that are past their bound."""
        while self._watches and published > self._watches[0][0]:
            tracked = self._watches.pop(0)[2]
            tracked.watch = None
            if published > tracked.deadline(published):
                tracked.overtaken(published)
            else:
                self.add(tracked, published)
        self._look()

    def _look(self) -> None:
        self.due = self._watches[0][0] if self._watches else sys.maxsize

"""Finds readers that are past their bound, at one comparison an event.

Every reader of a buffer, and everything else that pins its events, has a *deadline*: the number of events at which it
is overtaken if it does not move. The deadlines stand in one sorted structure; a publish compares its count with the
earliest alone. When that is passed the reader's true place is asked: most have moved on and get a new deadline.

What it costs: a look at a reader that has moved is paid for by the events that it read since the last look, so the
whole is O(log n) for each event *delivered* at worst, and nothing for each event published while all keep up.
Readers do nothing for it. Written and read under the topic's lock.

A deadline is kept as one number, its *watch*, with its owner, so that being watched costs nobody an object beyond that
number: a tuple in the structure would be a thirtieth of what an idle subscriber weighs.
"""

from __future__ import annotations

import sys
from itertools import count
from operator import attrgetter
from typing import Final, Protocol, TypeAlias

from sortedcontainers import SortedKeyList

__all__ = ("Laggards", "Tracked", "Watch")

Watch: TypeAlias = int  # a deadline, and a number that breaks ties: no two are the same, and the earliest is the least
SHIFT: Final = 32  # bits of that number


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


class Laggards:
    """The deadlines of all that pins one buffer."""

    __slots__ = ("_serial", "_watches", "due")

    def __init__(self) -> None:
        self._watches: SortedKeyList[Tracked, Watch] = SortedKeyList(key=attrgetter("watch"))
        self._serial = count()
        self.due: int = sys.maxsize  # Invariant: no deadline is earlier

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, tracked: Tracked, published: int) -> None:
        """Watches `tracked` from here on."""
        assert tracked.watch is None, "who pins events of two buffers is watched in one of them"
        deadline = tracked.deadline(published)
        tracked.watch = (deadline << SHIFT) + next(self._serial) % (1 << SHIFT)
        self._watches.add(tracked)
        self.due = min(self.due, deadline)

    def discard(self, tracked: Tracked) -> None:
        """Forgets it. Does nothing if it is not watched."""
        if tracked.watch is not None:
            self._watches.discard(tracked)
            tracked.watch = None
            self._look()

    def clear(self) -> None:
        """Forgets all: their buffer is finished."""
        for tracked in self._watches:
            tracked.watch = None
        self._watches.clear()
        self._look()

    def check(self, published: int) -> None:
        """Call when `published > due`: overtakes those that are past their bound."""
        while self._watches and published > self._earliest():
            tracked = self._watches.pop(0)
            tracked.watch = None
            if published > tracked.deadline(published):
                tracked.overtaken(published)
            else:
                self.add(tracked, published)
        self._look()

    def _look(self) -> None:
        self.due = self._earliest() if self._watches else sys.maxsize

    def _earliest(self) -> int:
        watch = self._watches[0].watch
        assert watch is not None, "who is watched has a watch"
        return watch >> SHIFT

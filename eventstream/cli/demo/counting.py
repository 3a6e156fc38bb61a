"""Counts what a subscriber got against what was published. Pure: lists in, numbers out.

The demo's table is worth as much as this module, so it believes nobody: neither the positions that the bus reports nor
the subscriber's own counters, only the list of what was published and the list of every frame that was received.

The contract that it checks. A subscriber's record is a row of *lives*. A life begins with a snapshot (the first one
maybe with `Resumed`) and ends with the next snapshot, before which the subscriber was told to forget what it knew.

* Within a life every event after its beginning comes once and in order, also across leaving and coming back.
* What was published between the last event of a life and the end of the next life's snapshot is covered by that
  snapshot, if it told the newest event of each key. A hole *before* that last event is a loss all the same: no
  snapshot excuses it.
* After the last life's beginning everything comes, up to the end of what was published.

So `published == delivered + by_snapshot + lost` for each subscriber.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from ...events import Event, Frame, Resumed, SnapshotEnd, SnapshotStart

__all__ = ("Published", "Tally", "count")

Published: TypeAlias = tuple[int, str]
"""(index, key) of one published event."""


class Tally(msgspec.Struct, frozen=True):
    """What one subscriber got.

    Attributes:
        published: Events of its topic and key, from its beginning on: 0 if it never began.
        delivered: Those that it was handed one by one.
        by_snapshot: Those that a snapshot spoke for.
        lost: Those that it should have got and did not.
        duplicated: Events that it got once too often.
        astray: Events out of their order, of another key, or never published.
        resets: How often it was told to forget what it knew.
    """

    published: int = 0
    delivered: int = 0
    by_snapshot: int = 0
    lost: int = 0
    duplicated: int = 0
    astray: int = 0
    resets: int = 0

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.duplicated or self.astray)


def count(published: Sequence[Published], frames: Iterable[Frame[Any]], key: str | None = None) -> Tally:
    """Counts one subscriber.

    Args:
        published: All events of its topic, each with an index of its own, in the order of their indexes.
        frames: Everything that it received, in order, over all its subscriptions.
        key: The key that it followed; None for all.
    """
    counter = _Counter([event for event in published if key in (None, event[1])])
    for frame in frames:
        counter.take(frame)
    return counter.finish()


class _Counter:
    """Goes through one record."""

    def __init__(self, published: list[Published]) -> None:
        self._published = published
        self._key_of = dict(published)
        self._told: dict[str, int] | None = None  # Invariant: set between SnapshotStart and SnapshotEnd
        self._origin: int | None = None  # what the subscriber is owed begins after this index
        self._begin: int | None = None  # after this index its present life gets everything; None before the first life
        self._last = 0  # the greatest index of the present life
        self._life: set[int] = set()  # what came in the present life
        self._delivered: set[int] = set()
        self._covered: set[int] = set()
        self._lost: set[int] = set()
        self._duplicated = self._astray = self._resets = 0

    def take(self, frame: Frame[Any]) -> None:
        if isinstance(frame, Event):
            self._take_event(frame)
        elif isinstance(frame, SnapshotStart):
            self._told = {}
            self._origin = 0  # a snapshot answers for everything before it
            self._resets += frame.reason != "new"
        elif isinstance(frame, SnapshotEnd):
            self._end_snapshot(frame.position.index)
        elif isinstance(frame, Resumed):
            self._resume(frame.position.index)

    def finish(self) -> Tally:
        if self._origin is None:
            return Tally(astray=self._astray)
        end = self._published[-1][0] if self._published else 0
        self._begin = self._begin or 0  # its first snapshot was never complete: it is owed everything
        self._close_life(end)
        # Where two lives judge one event differently, the worse judgement stands: lost, then delivered, then covered.
        delivered = self._delivered - self._lost
        return Tally(
            published=len(self._between(self._origin, end)),
            delivered=len(delivered),
            by_snapshot=len(self._covered - self._lost - delivered),
            lost=len(self._lost),
            duplicated=self._duplicated,
            astray=self._astray,
            resets=self._resets,
        )

    def _take_event(self, event: Event[Any]) -> None:
        index = event.index
        if self._key_of.get(index) != event.key or self._origin is None:
            self._astray += 1
        elif self._told is not None:
            self._duplicated += event.key in self._told
            self._told[event.key] = index
        elif index in self._life or index <= (self._begin or 0):
            self._duplicated += 1
        else:
            self._astray += index < self._last
            self._life.add(index)
            self._last = max(self._last, index)

    def _resume(self, index: int) -> None:
        # Only the first one begins anything. Later ones excuse nothing: what the life had before, it must not get
        # again, and what it had not, it must still get, whatever position they name.
        self._told = None
        if self._origin is None:
            self._origin = self._begin = self._last = index
        elif self._begin is None:  # it left its first snapshot half-read, and was not given it again
            self._begin = 0

    def _end_snapshot(self, end: int) -> None:
        told, self._told = self._told or {}, None
        newest = {key: index for index, key in self._between(0, end)}
        wrong = {key for key, index in newest.items() if told.get(key) != index}
        self._lost.update(newest[key] for key in wrong)  # not known any more, even if it was delivered before
        self._lost.update(index for index, key in self._between(self._last, end) if key in wrong)
        self._covered.update(index for index, key in self._between(0, end) if key not in wrong)
        self._close_life(self._last)
        self._begin = self._last = end

    def _close_life(self, until: int) -> None:
        """Judges the life that ought to have had everything up to an index."""
        if self._begin is not None:
            self._lost.update(index for index, _ in self._between(self._begin, until) if index not in self._life)
        self._delivered |= self._life
        self._life = set()

    def _between(self, after: int, until: int) -> list[Published]:
        """What was published after one index, up to another."""
        first = bisect_right(self._published, after, key=_index)
        return self._published[first : bisect_right(self._published, until, key=_index)]


def _index(event: Published) -> int:
    return event[0]

"""Keeps complete snapshots for a while, so that many who join share one.

Bounded three ways: by time (`ttl`), by entries and events (the least recently used goes first), and by the live tail:
who joins a cached snapshot also reads all live events since it was taken, and the cache pins those; when they outnumber
the snapshot, a new one is cheaper for everybody.

All deadlines stand in one sorted structure, and the bus's one housekeeping task sweeps it. No timer an entry, so none
that could evict its entry's successor. Belongs to the loop's thread, but for `Entry.overtaken`, which empties its entry
from wherever the publisher is; emptied entries count as absent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

import msgspec
from sortedcontainers import SortedDict

from ..topics import Disposal, Watch
from .chain import Snapshot

__all__ = ("CacheStatistics", "Entry", "SnapshotCache")

Name: TypeAlias = tuple[str, str | None]  # topic, key (None: the whole topic)


class CacheStatistics(msgspec.Struct, frozen=True):
    """The cache of a bus at one moment.

    Attributes:
        entries: Snapshots kept.
        events: Events in them.
        hits: Subscriptions that started from a kept snapshot, or joined one that was being built.
        misses: Subscriptions that had one built.
        evicted: Snapshots that were let go for whatever reason.
    """

    entries: int
    events: int
    hits: int
    misses: int
    evicted: int


class Entry:
    """One cached snapshot, tracked as a laggard of the channel that it leads to."""

    __slots__ = ("_disposal", "_tail", "deadline_time", "pinned", "size", "snapshot", "watch")

    def __init__(self, snapshot: Snapshot, disposal: Disposal, least_tail: int) -> None:
        self.snapshot: Snapshot | None = snapshot
        self._tail = max(len(snapshot), least_tail)
        self.size: int = len(snapshot)
        self.pinned: int = snapshot.pinned
        self.deadline_time: tuple[float, int] = (0.0, 0)
        self._disposal = disposal
        self.watch: Watch | None = None

    def deadline(self, published: int) -> int:
        """Until the live tail behind it has outgrown it."""
        return self.pinned + self._tail

    def overtaken(self, published: int) -> None:
        """A new snapshot is cheaper than the tail."""
        self.empty()

    def empty(self) -> None:
        """Lets the snapshot go; its present readers keep what they read. Safe from any thread."""
        snapshot, self.snapshot = self.snapshot, None
        if snapshot is not None:
            first, snapshot.first = snapshot.first, None
            if first is not None:
                self._disposal.drop(first)


class SnapshotCache:
    """The cache of one bus.

    Args:
        ttl: Seconds that a snapshot is kept; 0 keeps none.
        entries: How many are kept.
        events: How many events they may have together.
        now: A monotonic clock, in seconds.
        call: Called when there is something to sweep after there was nothing.
    """

    def __init__(
        self, ttl: float, entries: int, events: int, now: Callable[[], float], call: Callable[[], object]
    ) -> None:
        self._ttl = ttl
        self._most_entries = entries
        self._most_events = events
        self._now = now
        self._call = call
        self._entries: OrderedDict[Name, Entry] = OrderedDict()  # least recently used first
        self._deadlines: SortedDict[tuple[float, int], Name] = SortedDict()
        self._serial = count()
        self._events = 0
        self._evicted = 0
        self.hits = 0
        self.misses = 0

    def get(self, topic: str, key: str | None) -> Snapshot | None:
        """The kept snapshot, now the most recently used."""
        name = (topic, key)
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.snapshot is None or self._now() >= entry.deadline_time[0]:
            self.evict(topic, key)
            return None
        self._entries.move_to_end(name)
        return entry.snapshot

    def put(self, topic: str, snapshot: Snapshot, disposal: Disposal, least_tail: int) -> Entry | None:
        """Keeps a complete snapshot in place of the one before. Returns None if it is not kept at all.

        It is kept while the live tail behind it has no more events than itself, or than `least_tail`.
        """
        name = (topic, snapshot.key)
        self.evict(*name)
        if self._ttl <= 0 or len(snapshot) > self._most_events or self._most_entries <= 0:
            return None
        entry = Entry(snapshot, disposal, least_tail)
        if not self._entries:
            self._call()
        entry.deadline_time = (self._now() + self._ttl, next(self._serial))
        self._entries[name] = entry
        self._deadlines[entry.deadline_time] = name
        self._events += entry.size
        while len(self._entries) > self._most_entries or self._events > self._most_events:
            self.evict(*next(iter(self._entries)))
        return entry

    def evict(self, topic: str, key: str | None) -> None:
        """Lets one snapshot go, if it is kept."""
        entry = self._entries.pop((topic, key), None)
        if entry is not None:
            del self._deadlines[entry.deadline_time]
            self._events -= entry.size
            self._evicted += 1
            entry.empty()

    def evict_topic(self, topic: str) -> None:
        """Lets all snapshots of a topic go."""
        for name in [name for name in self._entries if name[0] == topic]:
            self.evict(*name)

    def sweep(self) -> float | None:
        """Lets go of what is too old. Returns when to sweep next, or None if there is nothing to wait for."""
        while self._deadlines:
            (deadline, _), name = self._deadlines.peekitem(0)
            if deadline > self._now():
                return float(deadline)
            self.evict(*name)
        return None

    def statistics(self) -> CacheStatistics:
        """The counters."""
        return CacheStatistics(
            entries=len(self._entries),
            events=self._events,
            hits=self.hits,
            misses=self.misses,
            evicted=self._evicted,
        )

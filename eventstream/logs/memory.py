"""The log without a disk: a commit is the append itself. The history lives as long as the bus."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from random import Random, SystemRandom
from typing import Final

from ..errors import Conflict, IndexOrder
from ..events import MAX_INDEX, NO_HEADERS, Event, Position
from ..topics import AnyEvent, LiveTopic, walk
from .log import Entries, Terms
from .steady import steadied

__all__ = ("MemoryLog",)

DEDUPE_SECONDS: Final = 120.0  # as JetStream's default: longer than any retry of a publish that is still wanted
DEDUPE_IDS: Final = 65_536  # per topic; about 10 MB of ids at the worst


class MemoryLog:
    """The default log. Safe from any thread.

    Args:
        clock: Gives events their time, in POSIX seconds.
        random: Where epochs come from; give a seeded one only to simulations.
        dedupe_seconds: How long an id is remembered, 120 s by default; 65,536 ids at most for each topic.
            `remembers` tells how far back that goes.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        dedupe_seconds: float = DEDUPE_SECONDS,
    ) -> None:
        if not dedupe_seconds >= 0:
            raise ValueError(f"dedupe_seconds must be a number of at least 0, not {dedupe_seconds!r}")
        self._clock = clock
        self._steady = steadied(clock)
        self._random = random or SystemRandom()
        self._window = dedupe_seconds
        self._memories: dict[str, _Memory] = {}
        self._expecting = False  # whether any topic was ever asked to expect something

    async def open(self) -> None:
        """There is nothing to open."""

    def attach(self, live: LiveTopic) -> None:
        """Begins with an empty history, in a new epoch: nothing outlives the bus."""
        live.begin(f"{self._random.getrandbits(64):016x}")  # no two lives of any topic anywhere share one

    def append_nowait(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        """As `Log.append`, at once."""
        clock, lock = self._clock, live.lock
        acquire, release = lock.acquire, lock.release  # called by local names, which the interpreter does faster
        now = clock()  # outside of the lock, as all that is not ours
        acquire()  # what `with lock` does, which by hand takes a fifth of a publish less
        if lock.held:
            lock.refuse()
        lock.held = True
        try:
            index = live.head + 1
            headers = NO_HEADERS
            steady = 0.0
            if terms is not None:
                steady = self._steady()
                index = self._index_on(terms, live, entries, steady)
                if index <= live.head:
                    return Position(live.epoch, index)
                headers = terms.headers
            if index > MAX_INDEX:
                raise IndexOrder(live.topic.name, index, live.head)
            name = live.topic.name
            if len(entries) == 1:
                key, payload = entries[0]
                events: list[AnyEvent] = [Event(name, key, index, payload, now, headers)]
            else:
                events = _batch(name, entries, index, now, headers)
            live.append(events)
            if terms is not None or self._expecting:
                memory = self._memory(live)
                if terms is not None and terms.id is not None:
                    memory.remember(terms.id, steady, index)
                if memory.keys is not None:
                    memory.keys.add(live, events)
            return Position(live.epoch, index)
        finally:
            dropped = lock.dropped
            if dropped:
                lock.dropped = []  # `dropped` lives until this function ends, and the lock is released
            lock.held = False
            release()

    async def append(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        """As `Log.append`; does not wait."""
        return self.append_nowait(live, entries, terms)

    def remembers(self, live: LiveTopic) -> float:
        """The window, or less if ids have come so fast that there was no room for all of them."""
        memory = self._memories.get(live.topic.name)
        if memory is None or memory.epoch != live.epoch:
            return self._window
        return min(self._window, max(0.0, self._steady() - memory.forgotten))

    async def refresh(self, live: LiveTopic) -> Position:
        """Begins again, as if the topic had never been used."""
        self.attach(live)
        return live.position

    async def aclose(self) -> None:
        """Forgets everything."""
        self._memories.clear()

    def _index_on(self, terms: Terms, live: LiveTopic, entries: Entries, now: float) -> int:
        """The index that a publish gets, or got when its id first came: then it is not above the head."""
        memory = self._memory(live)
        if terms.id is not None:
            first = memory.index_of(terms.id, now - self._window)
            if first is not None:
                return first
        if terms.expect is not None:
            self._expecting = True
            if memory.keys is None:  # a topic that never expects anything pays nothing for it
                memory.keys = _Keys(live)
            key = entries[0][0]
            actual = memory.keys.newest(live, key)
            if actual != terms.expect:
                raise Conflict(live.topic.name, key, terms.expect, actual)
        index = live.head + 1 if terms.index is None else terms.index
        if index <= live.head:
            raise IndexOrder(live.topic.name, index, live.head)
        return index

    def _memory(self, live: LiveTopic) -> _Memory:
        """What is remembered of the topic's present life."""
        memory = self._memories.get(live.topic.name)
        if memory is None or memory.epoch != live.epoch:
            memory = self._memories[live.topic.name] = _Memory(live.epoch)
        return memory


def _batch(name: str, entries: Entries, index: int, now: float, headers: Mapping[str, str]) -> list[AnyEvent]:
    # A function of its own: where there is a comprehension, all that it uses becomes slower to use.
    return [Event(name, key, index, payload, now, headers) for key, payload in entries]


class _Memory:
    """What is remembered of one life of a topic: the ids of its recent publishes, and, once asked for, its keys."""

    __slots__ = ("_ids", "epoch", "forgotten", "keys")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.keys: _Keys | None = None
        self.forgotten: float = -math.inf  # when the newest id came that is not known any more for want of room
        self._ids: OrderedDict[str, tuple[float, int]] = OrderedDict()  # oldest first

    def index_of(self, id: str, since: float) -> int | None:
        """The index that an id was given, if that was not before `since`."""
        found = self._ids.get(id)
        return found[1] if found is not None and found[0] >= since else None

    def remember(self, id: str, now: float, index: int) -> None:
        """Oldest ids go first, so the number bounds memory and `index_of` alone judges the age."""
        self._ids.pop(id, None)
        self._ids[id] = (now, index)
        if len(self._ids) > DEDUPE_IDS:
            _, (self.forgotten, _) = self._ids.popitem(last=False)


class _Keys:
    """The newest index of each key, for `expect`.

    A key is known as long as its newest event is retained; the living keys of a compacted topic, always. That bounds
    its memory.
    """

    __slots__ = ("_bound", "_gone", "_newest")

    def __init__(self, live: LiveTopic) -> None:
        self._newest: dict[str, int] = {}
        self._gone: set[str] = set()  # keys of a compacted topic whose newest event is a tombstone
        self._bound = 1024
        for event in live.state():
            self._newest[event.key] = event.index
        for events in walk((live.history.oldest(), 0)):
            self.add(live, events)

    def add(self, live: LiveTopic, events: list[AnyEvent]) -> None:
        for event in events:
            self._newest[event.key] = event.index
            if event.payload is None:
                self._gone.add(event.key)
            else:
                self._gone.discard(event.key)
        if len(self._newest) > self._bound:
            self._forget(live)

    def newest(self, live: LiveTopic, key: str) -> int:
        index = self._newest.get(key, 0)
        return index if self._known(live, key, index, live.history.floor) else 0

    def _known(self, live: LiveTopic, key: str, index: int, floor: int) -> bool:
        return index > floor or (live.topic.compacted and key not in self._gone)

    def _forget(self, live: LiveTopic) -> None:
        floor = live.history.floor
        self._newest = {key: index for key, index in self._newest.items() if self._known(live, key, index, floor)}
        self._gone &= self._newest.keys()
        self._bound = 2 * len(self._newest) + 1024  # so that forgetting costs each publish a constant

"""Starts readers: acts on what `splice.plan` decides, and shares snapshots among all who need one.

One object a topic. It knows where the topic's state comes from (compaction, the application's source, or nowhere),
which build is running for which key, and what the bus's cache keeps. Single flight: who comes while a build runs reads
along, and who comes while a compacted topic's state is still being loaded from the log gets it with all others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from ..errors import EventStreamError, PositionLost, SlowSubscriber, SnapshotFailed
from ..events import Earliest, Position, ResetReason, Resumed, SnapshotStart
from ..topics import Cursor, Disposal, LiveTopic, Past, Waker
from .build import Build, Source
from .cache import Entry, SnapshotCache
from .chain import Snapshot
from .compaction import Compaction
from .rereading import Rereading, Run
from .splice import Extent, FromSnapshot, Lost, Reread, Resume, plan

__all__ = ("SnapshotOptions", "TopicOpening")


logger: Final = logging.getLogger("eventstream.snapshots")

WORTH_A_TAIL: Final = 128  # live events: to read as many takes microseconds, to run a source maybe seconds


class SnapshotOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a bus builds and keeps snapshots.

    Attributes:
        ttl: Seconds that a snapshot is shared by new subscribers; 0 shares none. 10 by default: long enough for a
            storm of reconnects, short enough that the live tail behind it stays small.
        timeout: Seconds that a source may take, 30 by default.
        max_events: Events that one snapshot may have, 10 million by default.
        cache_entries: Snapshots kept at most, 1,024 by default.
        cache_events: Events kept at most in all snapshots together, 1 million by default.
    """

    ttl: float = 10.0
    timeout: float = 30.0
    max_events: int = 10_000_000
    cache_entries: int = 1024
    cache_events: int = 1_000_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")


class TopicOpening:
    """Where the readers of one topic start.

    Attributes:
        bound: How many events its readers may be behind.
        disposal: Frees what they let go of.
        compaction: The topic's state, if it is compacted.
        source: The application's own source, if one is registered.
    """

    def __init__(
        self,
        live: LiveTopic,
        waker: Waker,
        cache: SnapshotCache,
        options: SnapshotOptions,
        clock: Callable[[], float],
        spawn: Run,
    ) -> None:
        self.bound: int = live.topic.max_lag
        self.disposal: Disposal = live.disposal
        self.compaction: Compaction | None = None
        self.source: Source | None = None
        self._live = live
        self._waker = waker
        self._cache = cache
        self._options = options
        self._clock = clock
        self._spawn = spawn
        self._builds: dict[str | None, Build] = {}
        self._awaited: dict[str | None, Snapshot] = {}  # by key: what is given out when the state is loaded
        self._loading: Past | None = None
        self._tracked: dict[str | None, Entry] = {}
        if live.topic.compacted:
            self.compaction = Compaction()
            live.compaction = self.compaction

    @property
    def has_snapshot(self) -> bool:
        """Whether readers can start from a snapshot."""
        return self.source is not None or self.compaction is not None

    def open(self, cursor: Cursor, after: Position | Earliest | None) -> None:
        """Places a new cursor, or closes it with the reason why that cannot be."""
        live = self._live
        then: Callable[[], object] | None = None
        with live.lock:
            extent = self._extent()
            start = plan(after, extent, has_snapshot=self.has_snapshot)
            live.follow(cursor)
            cursor.epoch = live.epoch
            if isinstance(start, Resume):
                cursor.pending = Resumed(Position(live.epoch, start.index))
                live.place(cursor, start.index)
            elif isinstance(start, Reread):
                cursor.pending = Resumed(Position(live.epoch, start.index))
                then = self._reread(cursor, start.index)
            elif isinstance(start, FromSnapshot):
                known = after.index if isinstance(after, Position) and after.epoch == live.epoch else 0
                then = self._place(cursor, start.reason, min(known, live.head))
        if isinstance(start, Lost):
            live.end(cursor, self._lost(start.position, extent))
        if then is not None:
            then()

    def reopen(self, cursor: Cursor, reason: ResetReason) -> None:
        """Places a cursor anew that was interrupted.

        Raises:
            SlowSubscriber, PositionLost: if there is no snapshot to start from.
        """
        live = self._live
        then: Callable[[], object] | None = None
        with live.lock:
            live.lagged += reason == "lagged"
            extent = self._extent()
            if self.has_snapshot:
                then = self._place(cursor, reason, cursor.settled if cursor.epoch == live.epoch else 0)
        if then is not None:
            then()
        elif not self.has_snapshot:
            if reason == "lagged":
                raise SlowSubscriber(live.topic.name, cursor.lag, live.topic.max_lag)
            raise self._lost(Position(cursor.epoch, cursor.settled), extent)

    def switch(self, cursor: Cursor) -> None:
        """Leads a cursor on that caught up with its key's history, or with a page of the log's."""
        detour = cursor.detour
        if isinstance(detour, Rereading):
            detour.go_on()
        else:
            self._live.switch(cursor)

    def restart(self) -> None:
        """The topic's history began anew: nothing that was built or kept leads to it."""
        self._cache.evict_topic(self._live.topic.name)
        self._tracked.clear()
        builds, self._builds = self._builds, {}
        awaited, self._awaited = self._awaited, {}
        self._loading = None
        for key, build in builds.items():
            build.abandon(self._refreshed(key))
        for key, snapshot in awaited.items():
            snapshot.fail(self._refreshed(key))

    def forget(self, key: str) -> None:
        """A key's channel is gone: its snapshot leads nowhere, so it goes too."""
        self._cache.evict(self._live.topic.name, key)
        self._tracked.pop(key, None)
        self._awaited.pop(key, None)
        build = self._builds.pop(key, None)
        if build is not None:
            build.abandon(SnapshotFailed(self._live.topic.name, key, "abandoned", "all its subscribers left"))

    # In tasks of the bus.

    async def _run(self, build: Build, source: Source) -> None:
        try:
            await build.run(source, self._options.timeout)
        finally:
            self._finish(build)

    def _finish(self, build: Build) -> None:
        """A build has run: keep what it made."""
        snapshot = build.snapshot
        if self._builds.get(snapshot.key) is build:
            del self._builds[snapshot.key]
            if snapshot.last is not None:
                with self._live.lock:
                    self._keep(snapshot)

    async def _load(self, past: Past) -> None:
        """Completes a compacted topic's state by what its log knows, and gives it to all who wait for it."""
        error: EventStreamError | None = None
        state = None
        try:
            state = await past.state()
        except EventStreamError as caught:
            error = caught
        finally:
            if self._loading is past:
                self._loading = None
        if self._live.past is not past:
            return  # refreshed meanwhile: all who waited were told
        awaited, self._awaited = self._awaited, {}
        if state is None:
            logger.warning("the state of topic %r cannot be read", self._live.topic.name, exc_info=error)
            for key, snapshot in awaited.items():
                detail = "the log could not be read"
                failure = SnapshotFailed(self._live.topic.name, key, "raised", detail)
                failure.__cause__ = error
                snapshot.fail(failure)
            return
        with self._live.lock:
            assert self.compaction is not None
            self.compaction.adopt(state, self._live.lock.dropped)
        for snapshot in awaited.values():
            self._give(snapshot)

    def _give(self, snapshot: Snapshot) -> None:
        """Fills a snapshot that was awaited with the state as it is now."""
        live = self._live
        with live.lock:
            if not live.has_channel(snapshot.key):
                return
            fill = self._fill(snapshot)
        fill()

    # Under the topic's lock.

    def _reread(self, cursor: Cursor, after: int) -> Callable[[], None]:
        live = self._live
        assert live.past is not None, "nothing but a log's past lies before what is in memory"
        rereading = Rereading(live, live.past, cursor, self._waker, self._spawn)
        rereading.begin(after)
        return rereading.ask

    def _place(self, cursor: Cursor, reason: ResetReason, known: int) -> Callable[[], object] | None:
        """At the start of a snapshot that is not older than what the reader knows: nobody is sent back in time.

        Returns what has to be done without the lock: to start a source, or to fill a compacted topic's snapshot.
        """
        live, key = self._live, cursor.key
        cursor.pending = SnapshotStart(Position(live.epoch, 0), reason)
        snapshot = self._shared(key, known)
        then: Callable[[], object] | None = None
        if snapshot is not None:
            self._cache.hits += 1
        else:
            self._cache.misses += 1
            snapshot, then = self._state(key) if self.source is None else self._build(key, self.source)
        live.place_in(cursor, snapshot)
        return then

    def _shared(self, key: str | None, known: int) -> Snapshot | None:
        """What another reader's arrival has made already, or is making."""
        epoch = self._live.epoch
        build = self._builds.get(key)
        if build is not None and build.snapshot.error is None and build.snapshot.epoch == epoch:
            build.head = max(build.head, known)
            return build.snapshot
        awaited = self._awaited.get(key)
        if awaited is not None:
            return awaited
        snapshot = self._cache.get(self._live.topic.name, key)
        if snapshot is None or snapshot.epoch != epoch or (snapshot.index or 0) < known:
            return None
        return snapshot

    def _state(self, key: str | None) -> tuple[Snapshot, Callable[[], object] | None]:
        """A compacted topic's snapshot is complete as soon as it was copied, and the whole was loaded once."""
        assert self.compaction is not None
        live = self._live
        past = live.past
        snapshot = Snapshot(self._waker, key, live.epoch, live.channel(key).buffer.count)
        if past is None or not self.compaction.partial:
            return snapshot, self._fill(snapshot)
        self._awaited[key] = snapshot
        if self._loading is past:
            return snapshot, None
        self._loading = past
        return snapshot, lambda: self._spawn(lambda: self._load(past))

    def _fill(self, snapshot: Snapshot) -> Callable[[], None]:
        assert self.compaction is not None
        live = self._live
        state, index, place = self.compaction.state(snapshot.key), live.head, live.channel(snapshot.key).buffer.end()

        def fill() -> None:
            snapshot.extend(state)
            snapshot.complete(index, place)
            with live.lock:
                self._keep(snapshot)

        return fill

    def _build(self, key: str | None, source: Source) -> tuple[Snapshot, Callable[[], object] | None]:
        build = Build(self._live, self._waker, key, clock=self._clock, limit=self._options.max_events)
        self._builds[key] = build
        return build.snapshot, lambda: self._spawn(lambda: self._run(build, source))

    def _keep(self, snapshot: Snapshot) -> None:
        live, key = self._live, snapshot.key
        if snapshot.epoch != live.epoch or not live.has_channel(key):
            return
        laggards = live.channel(key).laggards
        old = self._tracked.pop(key, None)
        if old is not None:
            laggards.discard(old)
        least_tail = 0 if self.source is None else WORTH_A_TAIL
        entry = self._cache.put(live.topic.name, snapshot, live.disposal, least_tail)
        if entry is None:
            snapshot.first = None
        else:
            self._tracked[key] = entry
            laggards.add(entry, live.channel(key).buffer.count)

    def _extent(self) -> Extent:
        live = self._live
        floor = live.floor
        recent = floor if live.past is None else live.history.reach
        return Extent(live.epoch, floor, live.head, max(live.head, live.horizon), recent)

    def _refreshed(self, key: str | None) -> SnapshotFailed:
        return SnapshotFailed(self._live.topic.name, key, "refreshed", "the topic was refreshed")

    def _lost(self, position: Position, extent: Extent) -> PositionLost:
        return PositionLost(self._live.topic.name, position, extent.epoch, extent.floor, extent.head)

"""The hub: publishes through a log, opens subscriptions and views, and owns the tasks that serve them.

What it holds of a topic is a `LiveTopic` (the events) and a `TopicOpening` (where readers start). It adds nothing to
the path of an event but checks: a publish goes to the log, the log appends to the topic, readers follow the topic.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random, SystemRandom
from threading import RLock, get_ident
from types import TracebackType
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..errors import BusClosed, NotAuthorized, NotCompacted, NowaitUnsupported, TopicConflict
from ..events import Earliest, Event, Position, Topic, check_name
from ..logs import Entries, Log, MemoryLog, NowaitLog, Terms
from ..snapshots import Mirrors, SnapshotCache, SnapshotOptions, Source, TopicOpening, View
from ..topics import LiveTopic, Subscription, Waker, current_waker
from .arguments import check_after, check_filter, terms
from .handlers import Handler, Handlings, OnError
from .housekeeping import Housekeeping
from .room import Room
from .statistics import BusStatistics

__all__ = ("EventBus",)

T = TypeVar("T")
S = TypeVar("S", bound=Source)


class EventBus:
    """An in-process event bus with history. Use it with `async with`; it can be used once.

    It belongs to the event loop that entered it. `publish_nowait` may be called from any thread; everything else only
    from that loop's thread. Leaving `async with` closes all subscriptions (their readers get `BusClosed`), ends the
    bus's tasks, and frees its memory.

    Args:
        log: Where events are kept; a `MemoryLog` by default.
        snapshots: How snapshots are built and kept.
        on_error: Called with (error, event or None) for whatever goes wrong in a handler; it is logged in any case.
        clock: Gives events their time, in POSIX seconds; those of snapshots, and of the default log.
        random: For the jitter of retries, and the epochs of the default log.
    """

    def __init__(
        self,
        log: Log | None = None,
        *,
        snapshots: SnapshotOptions | None = None,
        on_error: OnError | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        if log is not None and not callable(getattr(log, "attach", None)):
            raise TypeError(f"log must be a log such as SQLiteLog(path), not {log!r}; a URL goes to open_bus")
        self._random = random or SystemRandom()
        self._log: Log = MemoryLog(clock=clock, random=self._random) if log is None else log
        self._nowait = self._log if isinstance(self._log, NowaitLog) else None
        self._options = snapshots or SnapshotOptions()
        self._clock = clock
        self._rooms: dict[str, Room] = {}
        self._known: dict[Topic[Any], Room] = {}  # by the object that first declared it: the fast way
        self._declaring = RLock()  # a topic may be used first by a thread that publishes
        self._sources: dict[str, tuple[Topic[Any], Source]] = {}
        self._handlings = Handlings(on_error)
        self._mirrors = Mirrors(self._running, self._random)
        self._tasks: TaskGroup | None = None  # Invariant: set while the bus runs
        self._context: AbstractAsyncContextManager[None] | None = None
        self._closed = False
        self._waker: Waker
        self._housekeeping: Housekeeping
        self._cache: SnapshotCache

    async def __aenter__(self) -> EventBus:
        if self._context is not None:
            raise BusClosed("closed" if self._closed else "running")
        self._context = self._lifetime()
        await self._context.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._context is None:
            raise BusClosed("new")
        await self._context.__aexit__(exc_type, exc_value, traceback)

    @asynccontextmanager
    async def _lifetime(self) -> AsyncGenerator[None, None]:
        self._waker = current_waker()
        self._housekeeping = Housekeeping(self._waker, lambda: [room.live for room in list(self._rooms.values())])
        options = self._options
        self._cache = SnapshotCache(
            options.ttl, options.cache_entries, options.cache_events, anyio.current_time, self._housekeeping.call
        )
        failure: BaseException | None = None
        try:
            await self._log.open()
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._housekeeping.run, self._cache, name="eventstream housekeeping")
                try:
                    self._handlings.start(self._tasks)
                    yield
                except BaseException as error:
                    if _is_cancellation(error):
                        raise
                    failure = error  # raised below, outside the task group, which would wrap it in a group of one
                finally:
                    tasks = self._tasks
                    await self._close()
                    tasks.cancel_scope.cancel()
        finally:
            self._closed = True
            try:
                with anyio.CancelScope(shield=True):
                    await self._log.aclose()
            finally:
                if failure is not None:  # it came first: a cancellation that came too, or what failed later, follows it
                    raise failure

    async def _close(self) -> None:
        with self._declaring:
            self._closed = True
            self._tasks = None
            rooms = list(self._rooms.values())
            self._rooms, self._known = {}, {}
        for room in rooms:
            room.live.close()
        with anyio.CancelScope(shield=True):  # short: frees a million events in about a tenth of a second
            await self._housekeeping.free()

    # Publishing.

    async def publish(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """Publishes one event; returns when it is committed and can be read. Never waits for a subscriber.

        Always a checkpoint. If cancelled while a log that has to wait commits, the event may or may not have been
        published: publish again with the same `id`. Concurrent calls are safe; they are committed in some order.

        Args:
            topic: The topic's declaration.
            payload: Of the topic's type; shared by all readers from now on, so do not change it.
            key: For a topic without a key function; "" by default.
            expect: Publish only if the key's newest event has this index; 0 if it must have none. A key is known
                while its newest event is retained, or is the living state of a compacted topic.
            id: Names this publish: the same again within the dedupe window (2 minutes) appends nothing.
            headers: Texts that travel along; at most 8 KiB together.
            index: The event's index, for an application with an order of its own (a database's sequence).

        Returns:
            The event's position; for a repeated `id`, that of the first.

        Raises:
            PayloadTypeError: if the payload's class is not the topic's.
            InvalidName: if a key, id or header is out of bounds.
            TopicConflict: if the bus knows another topic of this name.
            Conflict: if the key is not where you expect it.
            IndexOrder: if the given index is not above the head, or no index is left after a given one.
            BusClosed: if the bus is not running.
        """
        room = self._known.get(topic) or self._declare(topic)
        entries = ((topic.key_for(payload, key), payload),)
        return await self._append(room, entries, terms(expect, id, headers, index))

    async def publish_many(
        self,
        topic: Topic[T],
        payloads: Iterable[T],
        *,
        key: str | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """Publishes several events as one atomic batch at one index: all or none, and no reader sees a part of it.

        An empty batch appends nothing. All else is as for `publish`.
        """
        room = self._known.get(topic) or self._declare(topic)
        entries = tuple([(topic.key_for(payload, key), payload) for payload in payloads])
        if not entries:
            await checkpoint()
            return room.live.position
        return await self._append(room, entries, terms(None, id, headers, index))

    async def delete(
        self,
        topic: Topic[Any],
        key: str,
        *,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """Publishes a tombstone: an event whose payload is None, after which the key is gone from the state.

        Raises:
            NotCompacted: if the topic is not compacted. See `publish` for all else.
        """
        room = self._known.get(topic) or self._declare(topic)
        if not topic.compacted:
            raise NotCompacted(topic.name, "delete from", "compacted=True")
        entries = ((check_name("key", key), None),)
        return await self._append(room, entries, terms(expect, id, headers, index))

    def publish_nowait(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """Publishes at once, from any thread. Only with a log in memory. Arguments and errors are `publish`'s.

        Readers run when the event loop next does: a loop that only publishes should `await` now and then.

        Raises:
            NowaitUnsupported: if the log has to wait to commit.
        """
        room = self._known.get(topic) or self._declare(topic)
        if self._nowait is None:
            raise NowaitUnsupported(type(self._log).__name__)
        entries = ((topic.key_for(payload, key), payload),)
        waker = self._waker
        if get_ident() != waker.thread:
            waker.foreign = True
        if expect is None and id is None and headers is None and index is None:  # the usual case, without a call
            return self._nowait.append_nowait(room.live, entries)
        return self._nowait.append_nowait(room.live, entries, terms(expect, id, headers, index))

    @property
    def can_nowait(self) -> bool:
        """Whether `publish_nowait` is possible: whether the log commits without waiting."""
        return self._nowait is not None

    async def refresh(self, topic: Topic[Any]) -> Position:
        """The application's state was replaced: begins a new epoch at index 0.

        Cached snapshots are gone, a compacted topic is empty, and every subscriber starts again: from a snapshot
        (`reason="refreshed"`), or, where there is none, with `PositionLost`.

        Returns:
            The new epoch's position 0.
        """
        room = self._known.get(topic) or self._declare(topic)
        await checkpoint()
        return await self._log.refresh(room.live)

    async def _append(self, room: Room, entries: Entries, terms: Terms | None) -> Position:
        # Before, not after: what is cancelled here was not published.
        await (checkpoint_if_cancelled() if self._nowait is None else checkpoint())  # one that waits is one by itself
        return await self._log.append(room.live, entries, terms)

    # Reading.

    def subscribe(
        self,
        topic: Topic[T],
        *,
        key: str | None = None,
        prefix: str | None = None,
        after: Position | str | Earliest | None = None,
        principal: Hashable | None = None,
        authorize: Callable[[Event[T]], bool] | None = None,
    ) -> Subscription[T]:
        """Opens a subscription; from this call on it misses no event. Use it with `async with`.

        Args:
            topic: The topic's declaration.
            key: Only this key's events. Others neither wake the reader nor count for its lag.
            prefix: Only events whose key starts so.
            after: None: a topic with a snapshot starts with it, another from now on. A position (or the text of
                one): go on after it. `EARLIEST`: all that is retained.
            principal: Whose subscription it is, for `revoke`.
            authorize: Says of each event whether this reader may have it. What it refuses is passed over; what it
                raises ends the read, and the next read asks again.

        Raises:
            InvalidName: if `key` or `prefix` is out of bounds.
            InvalidPosition: if `after` is a text, but of no position.
            ValueError: if both `key` and `prefix` are given.
            TopicConflict, BusClosed: as for `publish`.

        What depends on the history, such as `PositionLost`, is raised by the first read.
        """
        room = self._known.get(topic) or self._declare(topic)
        key, prefix = check_filter(key, prefix)
        return Subscription(
            room.live,
            room.opening,
            self._waker,
            key=key,
            prefix=prefix,
            after=check_after(after),
            principal=principal,
            authorize=authorize,
        )

    def view(self, topic: Topic[T], *, key: str | None = None, prefix: str | None = None) -> View[T]:
        """The topic's present state as a mapping key -> payload. Use it with `async with`; equal views share one.

        Raises:
            NotCompacted: if the topic is neither compacted nor has a snapshot source.
            InvalidName, ValueError, TopicConflict, BusClosed: as for `subscribe`.
        """
        room = self._known.get(topic) or self._declare(topic)
        key, prefix = check_filter(key, prefix)
        if not room.opening.has_snapshot:
            raise NotCompacted(topic.name, "view", "compacted=True or a source registered with @bus.snapshot")
        return self._mirrors.view(
            (topic.name, key, prefix),
            lambda after: self.subscribe(topic, key=key, prefix=prefix, after=after),
            lambda: self.head(topic),
        )

    def snapshot(self, topic: Topic[Any]) -> Callable[[S], S]:
        """Registers the application's own source of a topic's state. A decorator; call it before subscribers come.

            @bus.snapshot(prices)
            async def source(key: str | None, append: Append) -> int:
                for row in await table.rows(key):        # all of them if key is None
                    append(Price(row.symbol, row.bid))
                return row_version                       # the index at which all of this holds

        It runs in a task of the bus, outside every lock, once for all who wait. The returned index says which events it
        knows of: those above it follow. It may be ahead of what was published; if it is behind, the events in
        between must still be retained.

        Raises:
            ValueError: if the topic has a source already.
        """

        self._check_open()

        def register(source: S) -> S:
            known = self._sources.get(topic.name)
            if known is not None:
                raise ValueError(f"topic {topic.name!r} has a snapshot source already")
            self._sources[topic.name] = (topic, source)
            if topic.name in self._rooms:
                self._declare(topic).opening.source = source
            return source

        return register

    def on(
        self, topic: Topic[T], *, key: str | None = None, prefix: str | None = None
    ) -> Callable[[Handler[T]], Handler[T]]:
        """Registers an async handler, called with each event, one at a time, in order. A decorator.

        Each handler has a subscription of its own, from this call on, or from the moment when the bus starts: a topic
        with a snapshot starts with that. What it raises is logged and given to `on_error`; it goes on with the next
        event. After a reset, which `on_error` is told of too, it goes on with the snapshot; where there is none, from
        then on.
        """
        key, prefix = check_filter(key, prefix)
        self._check_open()
        return self._handlings.decorator(lambda: self.subscribe(topic, key=key, prefix=prefix))

    def revoke(self, principal: Hashable) -> int:
        """Closes all subscriptions of a principal, at once; their readers get `NotAuthorized`.

        They get nothing more, not even what was published before. Returns how many there were.

        Raises:
            ValueError: if it is None, which is nobody.
        """
        self._running()
        if principal is None:
            raise ValueError("principal None is nobody: give what subscribe(principal=...) was given")
        revoked = 0
        for room in list(self._rooms.values()):  # a thread may use a new topic just now
            for cursor in [cursor for cursor in room.live.cursors if cursor.principal == principal]:
                room.live.end(cursor, NotAuthorized(principal))
                revoked += 1
        return revoked

    async def head(self, topic: Topic[Any]) -> Position:
        """The position of the topic's newest event. A checkpoint: in another process the bus has to ask.

        Raises:
            TopicConflict, BusClosed: as for `publish`.
        """
        room = self._known.get(topic) or self._declare(topic)
        await checkpoint()
        return room.live.position

    def dedupe_seconds(self, topic: Topic[Any]) -> float:
        """For how many seconds back the ids of publishes to a topic are known: an older one may be appended again.

        Raises:
            TopicConflict, BusClosed: as for `publish`.
        """
        return self._log.remembers((self._known.get(topic) or self._declare(topic)).live)

    def statistics(self) -> BusStatistics:
        """What the bus holds at this moment."""
        self._running()
        topics = {name: room.live.statistics() for name, room in list(self._rooms.items())}
        return BusStatistics(
            topics=topics,
            snapshots=self._cache.statistics(),
            subscribers=sum(topic.subscribers for topic in topics.values()),
            views=len(self._mirrors),
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._tasks is None else "running"
        return f"<EventBus {state} with {len(self._rooms)} topics on {type(self._log).__name__}>"

    # Topics.

    def _declare(self, topic: Topic[Any]) -> Room:
        """The room of a topic that is used for the first time, or was declared by another object. From any thread."""
        if not isinstance(topic, Topic):
            raise TypeError(f"topic must be a Topic, not {topic!r}")
        with self._declaring:
            self._running()
            room = self._rooms.get(topic.name)
            if room is None:
                room = self._furnish(topic)
                self._rooms[topic.name] = self._known[topic] = room
            difference = room.topic.differs_in(topic)
        if difference is not None:
            raise TopicConflict(topic.name, difference)
        return room

    def _furnish(self, topic: Topic[Any]) -> Room:
        room = Room(topic, self._housekeeping)
        room.live = LiveTopic(topic, self._waker, self._housekeeping.disposal, room)
        room.opening = TopicOpening(room.live, self._waker, self._cache, self._options, self._clock, self._spawn)
        declared, room.opening.source = self._sources.get(topic.name, (topic, None))
        difference = declared.differs_in(topic)
        if difference is not None:
            raise TopicConflict(topic.name, difference)
        self._log.attach(room.live)
        return room

    def _spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._running().start_soon(run, name="eventstream snapshot")

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("closed")

    def _running(self) -> TaskGroup:
        tasks = self._tasks
        if tasks is None:
            raise BusClosed("closed" if self._closed else "new")
        return tasks


def _is_cancellation(error: BaseException) -> bool:
    """Whether the task group has to see it: a cancellation, alone or among other errors."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(cancelled) is not None
    return isinstance(error, cancelled)

"""A topic as it lives on one bus: its epoch and head, the buffer of all its events, a channel for each followed key.

One lock a topic. Under it: commit and append (so that events stand in the buffer in the order of their commits), the
placing of new readers (so that none slips in between the look at the head and the place), and laggards. No user code
runs under it, nothing is awaited under it. Readers that read do not take it.

The topic's own channel, `whole`, has all events and a history. A key's channel has that key's events from the moment
when somebody first followed the key, and no history: who comes with an older position reads the whole topic's history,
filtered, up to there. It is dropped when its last reader leaves. So a reader of one key never wakes for another, and
keys that nobody follows cost nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ..errors import BusClosed, EventStreamError
from ..events import Position, Topic
from .buffer import AnyEvent, Segment
from .channel import Channel
from .cursor import Chain, Cursor, Detour
from .disposal import Disposal
from .history import History
from .lock import TopicLock
from .parking import Waker
from .past import Past

__all__ = ("Care", "LiveTopic", "TopicStatistics")


class StateOfKeys(Protocol):
    """What keeps the newest event of each key of a compacted topic."""

    def observe(self, events: list[AnyEvent], dropped: list[object]) -> None: ...

    def clear(self, partial: bool) -> object: ...

    def state(self, key: str | None) -> list[AnyEvent]: ...


class Care(Protocol):
    """Who looks after what a topic does not do itself."""

    def grown(self) -> None:
        """A segment was filled: idle readers may want a bookmark. Any thread, under the topic's lock."""

    def unfollowed(self, key: str) -> None:
        """The last reader of a key has left."""

    def begun(self) -> None:
        """Another life of the history has begun."""


class TopicStatistics(msgspec.Struct, frozen=True):
    """A topic at one moment.

    Attributes:
        head: The position of its newest event.
        floor: The oldest index that can be resumed from, from memory or from the log.
        published: Events appended in this epoch.
        retained: Events that can be resumed through.
        subscribers: Open subscriptions.
        keys: Keys that somebody follows alone.
        lag: How many events the slowest subscriber is behind.
        lagged: How often a subscriber was told that it fell behind its bound.
    """

    head: Position
    floor: int
    published: int
    retained: int
    subscribers: int
    keys: int
    lag: int
    lagged: int


class LiveTopic:
    """One topic on one bus.

    Attributes:
        topic: Its declaration.
        lock: Held for every change; see the module's text.
        epoch: The life of its history.
        head: The index of its newest event, or of where the log stood when the bus opened it.
        grown: Whether a segment was filled since bookmarks were last given out.
        horizon: The greatest index that any snapshot spoke for: a source may be ahead of the bus for a moment, and
            who resumes from what it said must not be taken for a stranger.
        closed: Whether the bus has closed: nothing is appended any more.
        past: What the log keeps further back than memory; None if that is nothing. Set by the log.
        compaction: Told of each batch, under the lock, before it can be read; asked for the state of all keys.
    """

    __slots__ = (
        "_bookmarked", "_care", "_channels", "_fading", "_waker", "closed", "compaction", "cursors", "disposal",
        "epoch", "grown", "head", "history", "horizon", "lagged", "lock", "past", "topic", "whole",
    )  # fmt: skip

    epoch: str
    head: int
    horizon: int
    whole: Channel
    history: History

    def __init__(self, topic: Topic[Any], waker: Waker, disposal: Disposal, care: Care) -> None:
        self.topic: Topic[Any] = topic
        self.lock: TopicLock = TopicLock(topic.name)
        self.closed: bool = False
        self.disposal: Disposal = disposal
        self.past: Past | None = None
        self.compaction: StateOfKeys | None = None
        self.cursors: dict[Cursor, None] = {}
        self.lagged: int = 0
        self.grown: bool = False
        self._bookmarked = 0
        self._waker = waker
        self._care = care
        self._channels: dict[str, Channel] = {}
        self._fading: Segment | None = None  # no longer retained, and freed at the loop's next turn
        self._begin("", 0)

    def begin(self, epoch: str, head: int = 0) -> None:
        """Starts a life of the history after index `head`; all readers have to start again. In the loop's thread."""
        with self.lock:
            old = self.history.oldest()
            for channel in (self.whole, *self._channels.values()):
                channel.laggards.clear()
            self.lock.dropped.append(self._channels)
            self._begin(epoch, head)
            cursors = list(self.cursors)
            for cursor in cursors:
                cursor.interrupt("refreshed")
                cursor.channel = None
        self.disposal.drop(old)
        for cursor in cursors:
            cursor.discard(cursor.settled)
            cursor.spot.wake()
        self._care.begun()

    def close(self) -> None:
        """Ends its last life with the bus. In the loop's thread."""
        with self.lock:
            self.closed = True
            cursors = list(self.cursors)
        for cursor in cursors:
            self.end(cursor, BusClosed("closed"))
        self.begin(self.epoch, self.head)

    def _begin(self, epoch: str, head: int) -> None:
        self.epoch = epoch
        self.head = self.horizon = head
        self.lock.dropped.append(self._fading)
        self._fading = None
        self.whole = Channel(self._waker)
        self.history = History(self.whole.buffer, self.topic.retain, head)
        if self.compaction is not None:
            self.lock.dropped.append(self.compaction.clear(self.past is not None and head > 0))
        self._channels = {key: Channel(self._waker, old.readers) for key, old in self._channels.items()}

    # Writing, under the lock.

    def append(self, events: list[AnyEvent]) -> None:
        """Adds one committed batch, all of one index above the head. The lock must be held.

        Raises:
            BusClosed: if the bus has closed.
        """
        if self.closed:
            raise BusClosed("closed")
        whole = self.whole
        segment = whole.buffer.append(events)
        if self.compaction is not None:
            self.compaction.observe(events, self.lock.dropped)
        if self._channels:
            self._route(events)
        self.head = events[0].index  # after the channels: a reader that sees it and finds no more has seen all
        whole.follow_up()
        if segment is not None:
            self._retain(segment)  # after the wake-up: what is freed then is freed behind the readers' backs

    def _retain(self, segment: Segment) -> None:
        """A segment was begun, so an old one may be let go of: from the loop, since freeing it takes ten publishes."""
        old = self.history.add(segment)
        if old is not None:
            if self._fading is None:
                self._waker.call_soon(self._fade)
            self.lock.dropped.append(self._fading)  # nothing, unless the loop had no turn since
            self._fading = old
        if self.disposal:
            self.lock.dropped.append(self.disposal.cut())
        if self._bookmarked and segment.start and not self.grown:
            self.grown = True
            self._care.grown()

    def _fade(self) -> None:
        self._fading = None

    def _route(self, events: list[AnyEvent]) -> None:
        channels = self._channels
        if len(events) == 1:
            channel = channels.get(events[0].key)
            if channel is not None:
                channel.append(events)
            return
        for key in dict.fromkeys(event.key for event in events):
            channel = channels.get(key)
            if channel is not None:
                channel.append([event for event in events if event.key == key])

    def state(self) -> list[AnyEvent]:
        """The newest event of each living key, if the topic is compacted. The lock must be held."""
        return [] if self.compaction is None else self.compaction.state(None)

    # Placing readers, under the lock.

    @property
    def floor(self) -> int:
        """The oldest index that can be resumed from, from memory or from the log."""
        floor = self.history.floor
        return floor if self.past is None else min(floor, self.past.floor)

    @property
    def position(self) -> Position:
        """The head, with its epoch."""
        return Position(self.epoch, self.head)

    def channel(self, key: str | None) -> Channel:
        """The channel of a key that somebody follows, or the whole topic's."""
        return self.whole if key is None else self._channels[key]

    def has_channel(self, key: str | None) -> bool:
        """Whether there is that channel."""
        return key is None or key in self._channels

    def follow(self, cursor: Cursor) -> None:
        """A new reader. The lock must be held."""
        self.cursors[cursor] = None
        if cursor.key is not None and cursor.key not in self._channels:
            self._channels[cursor.key] = Channel(self._waker)
        self.channel(cursor.key).readers += 1

    def place(self, cursor: Cursor, after: int) -> None:
        """Puts a reader after an index that can be resumed from. The lock must be held."""
        cursor.epoch = self.epoch
        channel = self.channel(cursor.key)
        if after >= self.head:
            cursor.enter(channel, channel.buffer.end(), after)
            if after > self.head:
                cursor.skip_to(after)
        elif cursor.key is None:
            cursor.enter(channel, self.history.find(after), after)
        else:
            cursor.enter(self.whole, self.history.find(after), after)
            cursor.catch_up(Detour(self.whole.buffer.end(), channel, channel.buffer.end(), self.head))
        self._watch(cursor)

    def place_in(self, cursor: Cursor, snapshot: Chain) -> None:
        """Puts a reader at the start of a snapshot that leads to this topic. The lock must be held."""
        assert snapshot.first is not None, "only snapshots that are shared are given to new readers"
        cursor.epoch = self.epoch
        cursor.enter(self.channel(cursor.key), (snapshot.first, 0), 0)
        cursor.follow(snapshot)
        self._watch(cursor)

    def switch(self, cursor: Cursor) -> None:
        """A reader has caught up with its key's history and goes on in the key's channel. Takes the lock."""
        with self.lock:
            detour = cursor.detour
            if isinstance(detour, Detour):  # it was not interrupted meanwhile
                self.whole.laggards.discard(cursor)
                cursor.enter(detour.channel, detour.place, detour.after)
                self._watch(cursor)

    def end(self, cursor: Cursor, reason: EventStreamError) -> None:
        """A reader is closed; the first reason stays. Takes the lock. In the loop's thread."""
        unfollowed = None
        with self.lock:
            if cursor not in self.cursors:
                return
            del self.cursors[cursor]
            self.want_bookmarks(cursor, False)
            index = self.settled(cursor)
            if cursor.channel is not None:
                cursor.channel.laggards.discard(cursor)
                cursor.channel = None
            channel = self.channel(cursor.key)
            channel.readers -= 1
            if not channel.readers and cursor.key is not None:
                unfollowed = cursor.key
                del self._channels[unfollowed]
        cursor.close(reason, index)
        if cursor.spot.occupied:
            cursor.spot.wake()
        if unfollowed is not None:
            self._care.unfollowed(unfollowed)

    def settled(self, cursor: Cursor) -> int:
        """The index up to which a reader has had all that is for it."""
        head = self.head  # before `idle`: what is appended in between makes the reader busy, not the head too great
        index = cursor.settled
        return max(index, head) if cursor.idle and cursor.epoch == self.epoch else index

    def _watch(self, cursor: Cursor) -> None:
        channel = cursor.channel
        assert channel is not None
        channel.laggards.add(cursor, channel.buffer.count)

    def want_bookmarks(self, cursor: Cursor, wanted: bool) -> None:
        """A reader past whom events go wants to be told of its position, or does not any more."""
        wanted = wanted and cursor.filtered
        self._bookmarked += wanted - cursor.wants_bookmarks
        cursor.wants_bookmarks = wanted

    def give_bookmarks(self) -> None:
        """Tells those who want it where they now stand. In the loop's thread."""
        self.grown = False
        for cursor in self.cursors:
            if cursor.wants_bookmarks and cursor.idle:
                cursor.bookmark_due = True
                cursor.spot.wake()

    def statistics(self) -> TopicStatistics:
        """A snapshot of the counters, taken under the lock."""
        with self.lock:
            return TopicStatistics(
                head=self.position,
                floor=self.floor,
                published=self.whole.buffer.count,
                retained=len(self.history) if self.past is None else max(len(self.history), self.past.retained),
                subscribers=len(self.cursors),
                keys=len(self._channels),
                lag=max((cursor.lag for cursor in self.cursors), default=0),
                lagged=self.lagged,
            )

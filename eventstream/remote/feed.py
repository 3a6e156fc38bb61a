"""One subscription, at the client: what the server says of it becomes a buffer that an ordinary `Subscription` reads.

So all ways of reading, and all their rules, are those of the bus itself. The feed plays the part that a topic and its
snapshots play there: it places the reader where the server's marks say, and appends the events as they come.

It also knows how far it has come (`at`), which is ahead of the reader by what is buffered here; when the client has to
subscribe anew, that is where the server is asked to go on. What is buffered is bounded by the credit that the server
was given: bytes of events, given back when the reader takes them. So here are at most the window, one list more, and
the list in the reader's hands.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ..codec import TopicCodec
from ..errors import EventStreamError, PositionLost
from ..events import Earliest, Position, ResetReason, Resumed, SnapshotStart, Topic
from ..snapshots.chain import Snapshot
from ..topics import Cursor, Disposal, LiveTopic, Subscription, SubscriptionStatistics, Waker
from .messages import Mark

__all__ = ("Feed", "RemoteSubscription", "Upstream")

NEVER: Final = 2**62  # a lag that is not reached: the server decides who is too far behind
UNKNOWN: Final = "-"  # the epoch of a reader that has heard nothing yet: resuming from it starts anew, explicitly

T = TypeVar("T")


class Upstream(Protocol):
    """What a feed tells the server."""

    def grant(self, feed: Feed, size: int) -> None:
        """There is room for so many more bytes."""

    def ask_bookmark(self, feed: Feed) -> None:
        """Where does it stand?"""

    def leave(self, feed: Feed) -> None:
        """The reader has gone."""


class Feed:
    """Where one `RemoteSubscription` reads.

    Args:
        number: The client's number for it.
        codec: Of its topic.
        filters: Its key and prefix.
        after: Where the reader asked to start.
        window: Bytes of events that may be here unread.
        upstream: The client.
        waker: Of the client's event loop.
    """

    def __init__(
        self,
        number: int,
        codec: TopicCodec[Any],
        filters: tuple[str | None, str | None],
        after: Position | Earliest | None,
        window: int,
        upstream: Upstream,
        waker: Waker,
    ) -> None:
        self.number = number
        self.codec = codec
        self.key: str | None = filters[0]
        self.prefix: str | None = filters[1]
        self.after = after
        self.window = window
        self.started: bool = False  # whether the first frame has come
        self.at: Position | None = None
        self.cursor: Cursor
        self._upstream = upstream
        self._waker = waker
        self._snapshot: Snapshot | None = None  # Invariant: set between SnapshotStart and SnapshotEnd
        self._coming: tuple[SnapshotStart, Snapshot] | None = None  # for a reader that was reset and did not look yet
        self._arrived: deque[list[int]] = deque()  # [events not taken yet, bytes] of each list that came
        self._owed = 0  # bytes that were taken and not yet granted again
        topic = codec.topic
        quiet: Topic[Any] = Topic(topic.name, topic.type, retain=0, max_lag=NEVER)
        self.bound: int = NEVER
        # What the reader lets go is bounded by the window: it is freed as the next events or snapshot come.
        self.disposal: Disposal = Disposal(lambda: None)
        self.live: LiveTopic = LiveTopic(quiet, waker, self.disposal, self)

    # As the opening of its subscription.

    def open(self, cursor: Cursor, after: Position | Earliest | None) -> None:
        """The reader waits for the server's first word."""
        live = self.live
        self.cursor = cursor
        with live.lock:
            live.follow(cursor)
            cursor.enter(live.whole, live.whole.buffer.end(), 0)

    def reopen(self, cursor: Cursor, reason: ResetReason) -> None:
        """The reader was reset: it goes on with the snapshot that is coming."""
        assert self._coming is not None, "a reader is reset by the start of a snapshot"
        (start, snapshot), self._coming = self._coming, None
        self._place(start, snapshot)

    def _place(self, start: SnapshotStart, snapshot: Snapshot) -> None:
        live, cursor = self.live, self.cursor
        with live.lock:
            cursor.pending = start
            live.place_in(cursor, snapshot)
        snapshot.first = None  # what this one reader has read is not kept

    def switch(self, cursor: Cursor) -> None:
        """Never needed: the server filters."""

    # As who cares for its topic.

    def begun(self) -> None:
        """Nothing is kept."""

    def grown(self) -> None:
        """Bookmarks come from the server."""

    def unfollowed(self, key: str) -> None:
        """There are no keys here."""

    # What the server says.

    def mark(self, mark: Mark) -> None:
        """Takes in a frame that is no event."""
        position = Position(mark.epoch, mark.index)
        match mark.kind:
            case "resumed":
                self._resumed(position)
            case "start":
                self._start(position, mark.reason)
            case "end":
                self._end(position)
            case "bookmark":
                self._bookmark(position)
        if self._snapshot is None:
            self.at = position

    def events(self, data: bytes | memoryview) -> None:
        """Takes in a list of events.

        Raises:
            InvalidPayload: if they are not of the topic's type.
        """
        events = self.codec.decode_events(data)
        if not events:
            return
        self._arrived.append([len(events), len(data)])
        if self._snapshot is not None:
            self._snapshot.extend(events)
            return
        live = self.live
        with live.lock:
            live.append(events)
            live.head = events[-1].index  # a list is not a batch: its events have indexes of their own
        self.at = Position(live.epoch, live.head)

    def close(self, error: EventStreamError) -> None:
        """The subscription has ended, and why."""
        self.live.end(self.cursor, error)

    def _resumed(self, position: Position) -> None:
        live, cursor = self.live, self.cursor
        if self._snapshot is not None:  # asked to start it again, the server has none any more
            self._upstream.leave(self)
            self.close(PositionLost(live.topic.name, Position(live.epoch, 0), position.epoch, 0, position.index))
        elif not self.started:  # else after a new connection: the reader need not know
            self.started = True
            with live.lock:
                live.epoch, live.head = position.epoch, position.index
                cursor.epoch = position.epoch
                cursor.pending = Resumed(position)
                cursor.enter(live.whole, live.whole.buffer.end(), position.index)
            cursor.spot.wake()

    def _start(self, position: Position, reason: ResetReason) -> None:
        live, cursor = self.live, self.cursor
        untold = self._coming[0] if self._coming else cursor.pending
        if isinstance(untold, SnapshotStart):
            reason = untold.reason  # the reader has not heard of the last one: this one is in its place
        self._forget_arrived()
        if self.started:
            cursor.interrupt(reason)
            live.begin(position.epoch)
            while live.disposal:
                live.disposal.step()
        else:
            live.epoch = position.epoch
        start = SnapshotStart(position, reason)
        self._snapshot = Snapshot(self._waker, None, position.epoch, live.whole.buffer.count)
        if self.started:
            self._coming = start, self._snapshot
        else:
            self.started = True
            self._place(start, self._snapshot)
        self.at = position
        cursor.spot.wake()

    def _end(self, position: Position) -> None:
        if self._snapshot is None:
            return
        live = self.live
        with live.lock:
            live.head = position.index
            self._snapshot.complete(position.index, live.whole.buffer.end())
        self._snapshot = None

    def _bookmark(self, position: Position) -> None:
        if position.epoch == self.live.epoch:
            self.live.head = max(self.live.head, position.index)
            self.cursor.bookmark_due = True
            self.cursor.spot.wake()

    # Credit.

    def taken(self, count: int) -> None:
        """The reader takes so many events: their bytes are granted to the server again, half a window at a time."""
        left = count
        while left and self._arrived:
            first = self._arrived[0]
            if first[0] > left:
                first[0] -= left
                break
            left -= first[0]
            self._owed += first[1]
            self._arrived.popleft()
        self._grant()

    def _forget_arrived(self) -> None:
        self._owed += sum(size for _, size in self._arrived)
        self._arrived.clear()
        self._grant()

    def _grant(self) -> None:
        if 2 * self._owed >= self.window:
            size, self._owed = self._owed, 0
            self._upstream.grant(self, size)

    def credit(self) -> int:
        """What a new connection may send at first."""
        room = self.window - sum(size for _, size in self._arrived)
        self._owed = min(room, 0)  # a list larger than the room for it was taken: that much is not granted again
        return max(room, 0)

    def ask_bookmark(self) -> None:
        """The reader wants to know where it stands."""
        self._upstream.ask_bookmark(self)

    def leave(self) -> None:
        """The reader has gone."""
        self._upstream.leave(self)


class RemoteSubscription(Subscription[T]):
    """A subscription of a bus in another process. All that `Subscription` says holds; besides:

    Its first frame says where it starts, and comes from the server; until then its position is what was given as
    `after`, or one that nothing can be resumed from. Lost connections are not seen here: it waits, and goes on where it
    was. If the server's history has changed meanwhile, it is told so as any other reader is.

    Raises (besides):
        InvalidPayload: if an event is not of the topic's type.
        UnknownTopic, LimitReached: if the server refuses it.
    """

    __slots__ = ("_feed",)

    def __init__(self, feed: Feed, waker: Waker) -> None:
        super().__init__(feed.live, feed, waker, taken=feed.taken)
        self._feed = feed
        self._prefix = feed.prefix

    @property
    def position(self) -> Position:
        """As of `Subscription`. Before the first frame: what was given as `after`."""
        if self._feed.started:
            return super().position
        after = self._feed.after
        return after if isinstance(after, Position) else Position(UNKNOWN, 0)

    def request_bookmark(self) -> None:
        """Asks the server for a `Bookmark`."""
        self._feed.ask_bookmark()

    def statistics(self) -> SubscriptionStatistics:
        """What it did so far; `lag` counts what has arrived here."""
        return msgspec.structs.replace(super().statistics(), key=self._feed.key)

    def close(self) -> None:
        """Ends it, as of `Subscription`; the server is told."""
        super().close()
        self._feed.leave()

"""A subscription: one reader's cursor with the async ways of reading it.

All ways share one kind of async generator, which the subscription owns. It hands out events in the very coroutine that
waits for them, which is as fast as Python can, and it is used again by the next `async for` after a `break`. What a
reader knows stands in the cursor, never in the generator: cancelling a read loses nothing, ways of reading can be
mixed, and a generator that is left behind needs no closing.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable
from enum import Enum
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec
from anyio import BusyResourceError, WouldBlock
from anyio.lowlevel import checkpoint

from ..errors import EventStreamError, SubscriptionClosed, SubscriptionReset
from ..events import Bookmark, Earliest, Event, Frame, Position, SnapshotStart
from .buffer import AnyEvent
from .cursor import Cursor, Guide, Mark, Select, Step, Taken
from .live import LiveTopic
from .parking import Lot, Spot, Waker, current_waker

__all__ = ("Opening", "Subscription", "SubscriptionStatistics")

T = TypeVar("T")

CHUNKS: Final = 8  # read without waiting before other tasks get a turn: at most 1,024 events of less than 1 ms


class Opening(Guide, Protocol):
    """Decides where readers start. Implemented by the snapshots' floor; takes the topic's lock."""

    def open(self, cursor: Cursor, after: Position | Earliest | None) -> None:
        """Places a new cursor, or closes it with the reason why that cannot be."""


class SubscriptionStatistics(msgspec.Struct, frozen=True):
    """A subscription at one moment.

    Attributes:
        topic: The topic's name.
        key: The key it follows, or None.
        prefix: The prefix of the keys it follows, or None.
        position: Up to where everything was handed out.
        lag: Events published, or in its snapshot, and not handed out yet.
        delivered: Events handed out since it was opened.
        resets: How often it was told to start again.
    """

    topic: str
    key: str | None
    prefix: str | None
    position: Position
    lag: int
    delivered: int
    resets: int


class _Reading(Protocol):
    """What the standard type of async generators leaves out."""

    ag_running: bool
    ag_frame: object | None

    async def __anext__(self) -> Any: ...

    def asend(self, value: None, /) -> Coroutine[Any, Any, Any]: ...

    def __aiter__(self) -> AsyncIterator[Any]: ...


class _Unready:
    """Waits for no event."""

    def ready(self) -> bool:
        return False


def _aside() -> Spot:
    """A place to wait where no event comes by."""
    waker = current_waker()
    spot = waker.spot(_Unready())
    spot.lot = Lot(waker)
    return spot


class _Way(Enum):
    EVENTS = 1
    BATCHES = 2
    FRAMES = 3
    CHUNKS = 4


_ONE_BY_ONE: Final = (_Way.EVENTS, _Way.FRAMES)
_TELLING: Final = (_Way.FRAMES, _Way.CHUNKS)  # ways of reading that tell of marks


class Subscription(Generic[T]):
    """A reader of one topic. Made by `bus.subscribe(...)`; use it with `async with`.

    Everything after its position comes in order, once, or it is told explicitly that it must start again. One task
    reads at a time: another gets an error while one waits. Publishers never wait for it: past `max_lag` events behind,
    it starts again from a snapshot.

    `async for event in subscription` gives events alone and ends when you close the subscription. It waits when
    there are none, and lets other tasks run after every thousand events that needed no waiting. Cancelling it
    loses nothing: the next read goes on with the next event.

    Raises (all ways of reading):
        anyio.BusyResourceError: if another task is waiting in a read of this subscription.
        SubscriptionReset: if it has to start again; the next read starts with the snapshot. Not by `frames()`.
        SlowSubscriber: if it fell behind its bound and the topic has no snapshot.
        PositionLost: if `after` cannot be resumed, or the topic was refreshed, and the topic has no snapshot.
        SnapshotFailed: if its snapshot could not be built.
        NotAuthorized: if its principal was revoked.
        BusClosed: if the bus was closed.
    """

    __slots__ = ("_cursor", "_iterator", "_live", "_prefix", "_way")

    def __init__(
        self,
        live: LiveTopic,
        opening: Opening,
        waker: Waker,
        *,
        key: str | None = None,
        prefix: str | None = None,
        after: Position | Earliest | None = None,
        principal: Hashable | None = None,
        authorize: Callable[[Event[T]], bool] | None = None,
        taken: Taken | None = None,
    ) -> None:
        self._live = live
        self._prefix = prefix
        self._iterator: _Reading | None = None
        self._way = _Way.EVENTS
        select = _selection(prefix, authorize)
        cursor = self._cursor = Cursor(opening, waker, key=key, select=select, taken=taken, principal=principal)
        opening.open(cursor, after)

    # Reading.

    def __aiter__(self) -> AsyncIterator[Event[T]]:
        return self._read_by(_Way.EVENTS)

    def batches(self) -> AsyncIterator[list[Event[T]]]:
        """The fast way: lists of what is there, never empty, at most a segment (128 events) or one batch long.

        A published batch is never split between two lists. The list is yours. The position moves past a whole list
        when it is handed out.
        """
        return self._read_by(_Way.BATCHES)

    def frames(self) -> AsyncIterator[Frame[T]]:
        """Events and everything else that a mirror of the state has to know.

        The first frame is `Resumed` or `SnapshotStart`. After a `SnapshotStart` forget what you know; the state is
        complete at `SnapshotEnd`. `Bookmark` tells a reader that gets only some of the events its position now and
        then. A reset in mid-stream is a `SnapshotStart` with its reason, not an exception.
        """
        return self._read_by(_Way.FRAMES)

    def chunks(self) -> AsyncIterator[list[Event[T]] | Mark]:
        """As `frames()`, with the events in lists as `batches()` gives them: for those who pass everything on."""
        return self._read_by(_Way.CHUNKS)

    async def receive(self) -> Event[T]:
        """Waits for the next event. Always a checkpoint. Cancelling it loses nothing.

        Raises:
            SubscriptionClosed: if you closed the subscription. See the class for all others.
        """
        await checkpoint()
        try:
            return cast("Event[T]", await self._read_by(_Way.EVENTS).__anext__())
        except StopAsyncIteration:
            raise SubscriptionClosed(self._live.topic.name) from None

    def receive_nowait(self) -> Event[T]:
        """The next event, if it is there already.

        Raises:
            anyio.WouldBlock: if there is none yet.
            SubscriptionClosed: if you closed the subscription. See the class for all others.
        """
        self._check_unread()
        cursor = self._cursor
        while True:
            for event in cursor.rest:
                return event
            step = self._advance()
            if step is None:
                raise WouldBlock
            if isinstance(step, list):
                cursor.chunk, cursor.rest = step, iter(step)
            elif step is not False:
                self._tell(step)

    async def hold(self) -> bool:
        """Waits without reading: until `release` is called, or the subscription has ended, and returns False then.

        For those who pass events on and have nowhere to put them now. Publishers do not wake it.
        """
        cursor = self._cursor
        if self.has_ended:
            return False
        if cursor.spot.occupied:
            raise BusyResourceError("reading from")
        reading, aside = cursor.spot, _aside()
        cursor.spot = aside
        try:
            await aside
        finally:
            cursor.spot = reading
            if aside.lot is None:  # its place was taken away meanwhile
                reading.lot = None
        return not self.has_ended

    def release(self) -> None:
        """Lets `hold` return."""
        self._cursor.spot.wake()

    # Standing.

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be handed out."""
        return self._cursor.closed is not None

    @property
    def position(self) -> Position:
        """Up to where everything was handed out: save it, and resume from it with `after=`.

        While an event is in your hands it is that event's position, or lies before its batch while more of that are
        to come. In a snapshot it is that of `SnapshotStart`. When all was handed out it follows the
        topic's head, also if that moves by events which are not for this reader.
        """
        return Position(self._cursor.epoch, self._live.settled(self._cursor))

    @property
    def lag(self) -> int:
        """How many events are published, or in the snapshot, and not handed out. With `prefix`, of all keys."""
        return self._cursor.lag

    def request_bookmark(self) -> None:
        """Asks for a `Bookmark` among the `frames()`, as soon as all else was handed out."""
        cursor = self._cursor
        cursor.bookmark_due = True
        cursor.spot.wake()

    def statistics(self) -> SubscriptionStatistics:
        """What it did so far."""
        cursor = self._cursor
        return SubscriptionStatistics(
            topic=self._live.topic.name,
            key=cursor.key,
            prefix=self._prefix,
            position=self.position,
            lag=cursor.lag,
            delivered=cursor.delivered - cursor.left,
            resets=cursor.resets,
        )

    def __repr__(self) -> str:
        cursor = self._cursor
        state = "open" if cursor.closed is None else type(cursor.closed).__name__
        return f"<Subscription {self._live.topic.name!r} key={cursor.key!r} {state} at {self.position}>"

    # Closing.

    def close(self) -> None:
        """Ends it: a task that waits in a loop leaves the loop, one in `receive` gets `SubscriptionClosed`.

        Events that are there already are not handed out any more. Idempotent; call it from the bus's event loop.
        """
        self._live.end(self._cursor, SubscriptionClosed(self._live.topic.name))

    async def __aenter__(self) -> Subscription[T]:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The one generator.

    def _read_by(self, way: _Way) -> _Reading:
        self._check_unread()
        iterator = self._iterator
        if iterator is None or iterator.ag_frame is None or way is not self._way:
            telling = way in _TELLING
            reading = self._read(way in _ONE_BY_ONE, telling)
            iterator = self._iterator = _begin(cast("_Reading", reading))
            self._live.want_bookmarks(self._cursor, telling)
            self._way = way
        return iterator

    def _check_unread(self) -> None:
        if self._cursor.spot.occupied or (self._iterator is not None and self._iterator.ag_running):
            raise BusyResourceError("reading from")

    async def _read(self, one_by_one: bool, frames: bool) -> AsyncGenerator[Any, None]:
        yield None  # see `_begin`
        # Every idle subscriber pays for each name here, and for each value that is on the stack at once.
        step: Any
        cursor = self._cursor
        chunks = 0
        while True:
            if one_by_one:
                for step in cursor.rest:
                    yield step
            elif cursor.chunk and (step := cursor.take()):
                yield step
            try:
                step = cursor.advance()
            except EventStreamError:
                if self._ended_by_its_user():
                    return
                raise
            if step is None:
                if frames and (step := self._bookmark()):
                    yield step
                    continue
                chunks = 0
                await cursor.spot
                continue
            if step is not False:
                if isinstance(step, list):
                    if one_by_one:
                        cursor.chunk, cursor.rest = step, iter(step)
                    else:
                        yield step
                elif frames:
                    yield step
                else:
                    self._tell(step)
                chunks += 1
                if chunks < CHUNKS:
                    continue
            chunks = 0
            await checkpoint()

    def _advance(self) -> Step:
        try:
            return self._cursor.advance()
        except EventStreamError as error:
            self._end(error)
            raise

    def _end(self, error: EventStreamError) -> None:
        self._live.end(self._cursor, error)

    def _ended_by_its_user(self) -> bool:
        """Ends it with the error that is being handled."""
        error = sys.exception()
        assert isinstance(error, EventStreamError)
        self._end(error)
        return isinstance(error, SubscriptionClosed)

    def _tell(self, mark: Mark) -> None:
        """Plain reading has no word for frames, but must not hide a reset."""
        if isinstance(mark, SnapshotStart) and mark.reason != "new":
            raise SubscriptionReset(self._live.topic.name, mark.reason, mark.position)

    def _bookmark(self) -> Bookmark | None:
        cursor = self._cursor
        if not cursor.bookmark_due or not cursor.idle:  # it stays due while a snapshot or history is on its way
            return None
        cursor.bookmark_due = False
        return Bookmark(self.position)


def _begin(iterator: _Reading) -> _Reading:
    """Runs a generator to its first `yield`, unseen by the event loop.

    A loop takes note of each asynchronous generator, so as to close what its user leaves behind. This one holds nothing
    that needs closing: the note would be an eighth of what a subscriber weighs, and trio's warning about it untrue.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        iterator.asend(None).send(None)
    except StopIteration:
        return iterator
    finally:
        sys.set_asyncgen_hooks(*hooks)
    raise AssertionError("a generator's first step is its first yield")


def _selection(prefix: str | None, authorize: Callable[[Any], bool] | None) -> Select | None:
    if prefix is None and authorize is None:
        return None

    def select(events: list[AnyEvent]) -> list[AnyEvent]:
        if prefix is not None:
            events = [event for event in events if event.key.startswith(prefix)]
        return events if authorize is None else [event for event in events if authorize(event)]

    return select

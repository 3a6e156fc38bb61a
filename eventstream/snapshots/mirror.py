"""Follows a topic and keeps its state as a mapping, for all views that ask for the same.

Double-buffered: a new snapshot is collected beside the mapping that is served, and takes its place at once when it is
complete, so nobody ever sees half a reset. While the source is away the last mapping goes on being served, and its
age tells how old it is. Written by the mirror's own task alone; read by the views, in the same loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakSet

import anyio
import msgspec

from ..errors import BusClosed, EventStreamError, NotCompacted, PositionLost, SnapshotFailed, SubscriptionClosed
from ..events import Event, Position, SnapshotEnd, SnapshotStart
from ..topics import Subscription
from .changes import Changes

__all__ = ("Mirror", "ViewStatistics")

T = TypeVar("T")

FIRST_RETRY: Final = 0.2  # seconds; doubles with each failure, up to the last, each time with full jitter
LAST_RETRY: Final = 30.0


class Subscribe(Protocol[T]):
    """Opens a subscription of what the mirror follows."""

    def __call__(self, after: Position | None, /) -> Subscription[T]: ...


class ViewStatistics(msgspec.Struct, frozen=True):
    """A view at one moment.

    Attributes:
        position: Up to where its mapping is complete; None before the first snapshot.
        entries: Keys in the mapping.
        age: Seconds since it was last known to be current; 0 while it follows.
        resets: Mappings that were replaced as a whole.
        failures: Failed attempts to build a snapshot in a row.
    """

    position: Position | None
    entries: int
    age: float
    resets: int
    failures: int


class Mirror(Generic[T]):
    """Follows a topic for all views that ask for the same. Run in a task of the bus; changed by that task alone.

    Args:
        topic: The topic's name.
        subscribe: Opens a subscription after a position.
        head: Tells the topic's present head.
        random: For the jitter of retries.
        away: Seconds for which nobody could have told of a change; 0 while somebody can. None: somebody always can.

    Attributes:
        current: The mapping that is served.
        users: Views that share it.
        scope: Cancel it to end the mirror.
    """

    def __init__(
        self,
        topic: str,
        subscribe: Subscribe[T],
        head: Callable[[], Awaitable[Position]],
        random: Random,
        away: Callable[[], float] | None = None,
    ) -> None:
        self.topic = topic
        self.users = 0
        self.current: dict[str, T] = {}
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.changes: WeakSet[Changes] = WeakSet()  # each belongs to who looks at it, and may be forgotten any time
        self._subscribe = subscribe
        self._head = head
        self._random = random
        self._away = away
        self._subscription: Subscription[T] | None = None
        self._next: dict[str, T] | None = None  # Invariant: set between SnapshotStart and SnapshotEnd
        self._held: Position | None = None  # up to where `current` was complete when it was last changed
        self._left: float | None = anyio.current_time()  # when it was left behind; None while it follows
        self._error: EventStreamError | None = None
        self._failure: SnapshotFailed | None = None
        self._failures = 0
        self._resets = 0
        self._waiting = 0
        self._moved = anyio.Event()  # set, and replaced, when those who wait should look again

    async def run(self) -> None:
        """Follows until it is cancelled or ends for good. Raises nothing but cancellation."""
        try:
            with self.scope:
                await self._keep_following()
        finally:  # cancelled: the last view was left, or the bus is closing while some still wait
            self._end(BusClosed("closed"))

    async def _keep_following(self) -> None:
        while self._error is None:
            try:
                async with self._subscribe(self._held) as self._subscription:
                    await self._follow(self._subscription)
            except SnapshotFailed as error:
                self._leave_behind()
                self._failures += 1
                self._failure = error
                self.wake()
                await anyio.sleep(self._pause())
            except EventStreamError as error:
                self._end(error)

    async def _follow(self, subscription: Subscription[T]) -> None:
        async for frame in subscription.chunks():
            if isinstance(frame, list):
                if self._next is None:
                    self._apply(frame)
                else:
                    _collect(self._next, frame)
            elif isinstance(frame, SnapshotStart):
                self._leave_behind()
                self._next = {}
            elif isinstance(frame, SnapshotEnd):
                self._swap()
                self._hold(frame.position)
            elif self._held is None:  # there is nothing to start from: only a bus elsewhere can find that out so late
                raise NotCompacted(self.topic, "view", "compacted=True or a source registered with @bus.snapshot")
            else:  # Resumed, Bookmark
                self._left = None
                self._hold(frame.position)
            if self._waiting:
                self.wake()
        raise SubscriptionClosed(self.topic)

    def _apply(self, events: list[Event[T]]) -> None:
        """Without a break, so that the last of a batch has come when others look."""
        assert self._held is not None, "live events follow a position"
        if not self.changes:
            _collect(self.current, events)
        else:
            for event in events:
                existed = event.key in self.current
                _collect(self.current, [event])
                for changes in self.changes:
                    changes.note(event.key, existed, event.payload is not None)
        self._held = Position(self._held.epoch, events[-1].index)

    def _swap(self) -> None:
        assert self._next is not None, "a snapshot ends after it has started"
        old, self.current, self._next = self.current, self._next, None
        self._resets += self._held is not None
        self._failures = 0
        self._left = None
        if self.changes:
            for key in old.keys() | self.current.keys():
                # By identity: to compare payloads would run user code, and what is equal may be named all the same.
                if key not in old or key not in self.current or old[key] is not self.current[key]:
                    for changes in self.changes:
                        changes.note(key, key in old, key in self.current)

    def _hold(self, position: Position) -> None:
        self._held = position
        self.wake()

    def _leave_behind(self) -> None:
        self._next = None
        if self._left is None:
            self._left = anyio.current_time()

    def _end(self, error: EventStreamError) -> None:
        """There will be no more; the first reason stays."""
        if self._error is None:
            self._leave_behind()
            self._error = error
            for changes in self.changes:
                changes.end(error)
            self.wake()

    def wake(self) -> None:
        """Lets those who wait look again."""
        self._moved.set()
        self._moved = anyio.Event()

    def _pause(self) -> float:
        return self._random.uniform(0, min(LAST_RETRY, FIRST_RETRY * 2 ** min(self._failures - 1, 10)))

    # For the views.

    @property
    def position(self) -> Position | None:
        """Up to where `current` is complete; None before the first snapshot."""
        if self._left is None and self._subscription is not None:
            return self._subscription.position
        return self._held

    @property
    def age(self) -> float:
        """Seconds since `current` was left behind; 0 while it follows."""
        behind = 0.0 if self._left is None else anyio.current_time() - self._left
        return behind if self._away is None else max(behind, self._away())

    async def ready(self, check: Callable[[], object]) -> None:
        """Waits for the first state, or for the next attempt at it to fail, or for `check` to raise.

        A snapshot may be a shared one, and a little old: while the topic is followed, waits also for what was
        published before the call.
        """
        failures = self._failures
        while self._held is None:
            self._check(check)
            if self._failures > failures:
                assert self._failure is not None
                raise self._failure.with_traceback(None)
            await self._moved.wait()
        while self._left is None:
            with suppress(PositionLost):  # refreshed meanwhile: there is another head
                await self.reached(await self._head(), check)
                return

    async def reached(self, position: Position, check: Callable[[], object]) -> None:
        """Waits until `current` has what was published at a position, or for `check` to raise."""
        while True:
            self._check(check)
            mine = self.position
            if mine is not None and mine.epoch == position.epoch and mine.index >= position.index:
                return
            moved = self._moved  # before the question, as asking another process takes time
            head = await self._head()
            if position.epoch != head.epoch or position.index > head.index:
                raise PositionLost(self.topic, position, head.epoch, 0, head.index)
            if self._subscription is not None:
                self._subscription.request_bookmark()  # it may stand there with no event of its own to tell it by
            self._waiting += 1
            try:
                await moved.wait()
            finally:
                self._waiting -= 1

    def _check(self, check: Callable[[], object]) -> None:
        check()
        if self._error is not None:
            raise self._error.with_traceback(None)

    def statistics(self) -> ViewStatistics:
        """The counters."""
        return ViewStatistics(
            position=self.position,
            entries=len(self.current),
            age=self.age,
            resets=self._resets,
            failures=self._failures,
        )


def _collect(mapping: dict[str, T], events: list[Event[T]]) -> None:
    for event in events:
        if event.payload is None:
            mapping.pop(event.key, None)
        else:
            mapping[event.key] = event.payload

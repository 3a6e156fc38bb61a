"""A view: one user's handle on the state of a topic as a mapping. What keeps it current is a `mirror`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar
from weakref import WeakSet

from anyio import BusyResourceError

from ..errors import SubscriptionClosed
from ..events import Position
from .changes import Changes
from .mirror import Mirror, ViewStatistics

__all__ = ("View",)

T = TypeVar("T")


class View(Mapping[str, T]):
    """The present state of a topic: key -> payload, read-only. Made by `bus.view(...)`; use it with `async with`.

    It changes only while you await something: what you read between two awaits is of one moment, and a published
    batch or a reset is seen whole or not at all. To go through it across awaits take a copy: `dict(view)`.
    After `async with` it keeps its last mapping and follows no more.
    """

    def __init__(self, topic: str, acquire: Callable[[], Mirror[T]], release: Callable[[Mirror[T]], None]) -> None:
        self._topic = topic
        self._acquire = acquire
        self._release = release
        self._mirror: Mirror[T] | None = None
        self._changes: WeakSet[Changes] = WeakSet()
        self._open = False

    async def __aenter__(self) -> View[T]:
        if self._open:
            raise BusyResourceError("using")
        if self._mirror is not None:
            raise SubscriptionClosed(self._topic)
        self._mirror = self._acquire()
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._open:
            return
        mirror = self._following()
        self._open = False
        for changes in self._changes:
            mirror.changes.discard(changes)
            changes.end(SubscriptionClosed(mirror.topic))
        mirror.wake()
        self._release(mirror)

    async def ready(self) -> None:
        """Waits until there is a first complete state, with all that was published before the call.

        Returns the last known state at once while the source is away. Cancelling it changes nothing; any number of
        tasks may wait.

        Raises:
            SnapshotFailed: if the attempt at it fails while you wait; the view itself tries again and again.
                BusClosed: if the bus was closed.
            SubscriptionClosed: if the view is not open.
        """
        await self._following().ready(self._following)

    async def reached(self, position: Position) -> None:
        """Waits until the state has what was published at `position`: read your writes.

        Cancelling it changes nothing; any number may wait. It waits as long as the source is away.

        Raises:
            PositionLost: if the position is not of the topic's present epoch, or above its head.
            BusClosed: if the bus was closed.
            SubscriptionClosed: if the view is not open.
            TypeError: if it is no `Position`.
        """
        if not isinstance(position, Position):
            raise TypeError(f"position must be a Position (Position.parse makes one of its text), not {position!r}")
        await self._following().reached(position, self._following)

    def changes(self) -> AsyncIterator[frozenset[str]]:
        """The keys that changed since the last look, from now on; look them up in the view.

        Never empty. Who looks seldom gets more keys at once, not more looks. A removed key is no longer in the view;
        after a reset, keys may be named whose new payload is equal to the old one.
        One task may wait at each iterator. It ends with the view.
        """
        mirror = self._following()
        changes = Changes()
        self._changes.add(changes)
        mirror.changes.add(changes)
        return changes

    @property
    def position(self) -> Position | None:
        """Up to where the state is complete; None before the first snapshot."""
        return self._following().position

    @property
    def age(self) -> float:
        """Seconds since the state was last known to be current; 0 while the view follows the topic."""
        return self._following().age

    def statistics(self) -> ViewStatistics:
        """What it did so far."""
        return self._following().statistics()

    def __getitem__(self, key: str) -> T:
        return self._shown()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    def __contains__(self, key: object) -> bool:
        return key in self._shown()

    def __repr__(self) -> str:
        return f"<View of {len(self)} keys>"

    def _shown(self) -> Mapping[str, T]:
        return {} if self._mirror is None else self._mirror.current

    def _following(self) -> Mirror[T]:
        if self._mirror is None or not self._open:
            raise SubscriptionClosed(self._topic)
        return self._mirror

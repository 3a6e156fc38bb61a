"""Runs an application's snapshot source, once for all who wait for it.

The live place is taken before the source runs, so whatever is committed while it runs is either in what the source
read or behind that place. The source runs in a task of the bus, outside every lock; a subscriber that leaves does not
stop it. What it returns is checked before anybody can take it for the truth.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from threading import get_ident
from typing import Any, Final, Protocol, TypeAlias, TypeGuard

from anyio import CancelScope, get_cancelled_exc_class, move_on_after
from anyio.lowlevel import checkpoint_if_cancelled

from ..errors import EventStreamError, InvalidName, PayloadTypeError, SnapshotFailed
from ..events import MAX_INDEX, Event, check_headers
from ..topics import LiveTopic, Place, Waker, Watch, walk
from .chain import Snapshot

__all__ = ("Append", "Build", "Source")

logger: Final = logging.getLogger("eventstream.snapshots")


class Append(Protocol):
    """Given to a source: adds one payload to the snapshot.

    Args:
        payload: Of the topic's type.
        key: For a topic without a key function; by default the key that was asked for.
        index: The index of the change that made this state, if the source knows it.
        time: When it was made, in POSIX seconds; now by default.
        headers: As for `publish`.

    Raises:
        PayloadTypeError, InvalidName: if the payload or its key is not the topic's.
    """

    def __call__(  # noqa: D102  # see above
        self,
        payload: Any,
        *,
        key: str | None = None,
        index: int = 0,
        time: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None: ...


Source: TypeAlias = Callable[[str | None, Append], Awaitable[int]]

TOO_LONG: Final = object()
TOO_LATE: Final = "append was called after the source had returned"


class Build:
    """One run of a source. Tracked as a laggard: while it runs it pins the live events behind its place.

    Attributes:
        snapshot: What it builds; may be read already.
        head: The snapshot will hold at this index or a later one: the topic's head when it began, or, if somebody
            joined who knew more, what that one knew.
    """

    def __init__(
        self, live: LiveTopic, waker: Waker, key: str | None, *, clock: Callable[[], float], limit: int
    ) -> None:
        """Takes the live place; the topic's lock must be held."""
        channel = live.channel(key)
        self.snapshot: Snapshot = Snapshot(waker, key, live.epoch, channel.buffer.count)
        self._live = live
        self._waker = waker
        self._clock = clock
        self._limit = limit
        self._place: Place | None = channel.buffer.end()
        self.head: int = live.head
        self._greatest = 0
        self._scope = CancelScope()
        self._channel = channel
        self.watch: Watch | None = None
        channel.laggards.add(self, channel.buffer.count)

    async def run(self, source: Source, timeout: float) -> None:
        """Runs the source to its end, or to its failure. Raises nothing but cancellation."""
        try:
            with self._scope:
                await self._run(source, timeout)
        finally:
            self._place = None
            with self._live.lock:
                self._channel.laggards.discard(self)

    async def _run(self, source: Source, timeout: float) -> None:
        try:
            self._finish(await self._ask(source, timeout))
        except SnapshotFailed as error:
            self.snapshot.fail(error)
        except (PayloadTypeError, InvalidName) as error:
            self._fail(self._error("payload", str(error)), error)
        except Exception as error:
            self._fail(self._error("raised", f"the source raised {type(error).__name__}"), error)

    async def _ask(self, source: Source, timeout: float) -> object:
        index: object = TOO_LONG
        with move_on_after(timeout):
            try:
                outcome = source(self.snapshot.key, self._append)
                if not isawaitable(outcome):
                    raise self._error("raised", "the source is not async: write 'async def'")
                index = await outcome
            except get_cancelled_exc_class() as error:
                await checkpoint_if_cancelled()  # raises, unless it was something of the source's that was cancelled
                raise self._error("raised", "the source let a cancellation out that was not its own") from error
        if index is TOO_LONG:
            raise self._error("timeout", f"the source took more than {timeout:g} s")
        return index

    def abandon(self, error: EventStreamError) -> None:
        """Nobody needs it any more, or it can never be right. In the loop's thread."""
        self.snapshot.fail(error)
        self._scope.cancel()

    # For laggards: under the topic's lock, maybe in another thread.

    def deadline(self, published: int) -> int:
        """It may fall behind as far as a reader may."""
        return self.snapshot.pinned + self._live.topic.max_lag

    def overtaken(self, published: int) -> None:
        """Fails, and lets the live events go."""
        behind = published - self.snapshot.pinned
        self._place = None
        self.snapshot.fail(self._error("lagged", f"{behind} events were published while the source ran"))
        self._waker.call_soon(self._scope.cancel)

    # What the source calls, and what becomes of its answer.

    def _append(
        self,
        payload: Any,
        *,
        key: str | None = None,
        index: int = 0,
        time: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        topic, snapshot = self._live.topic, self.snapshot
        if get_ident() != self._waker.thread:
            self._waker.foreign = True
        if snapshot.last is not None or snapshot.error is not None:
            raise snapshot.error or RuntimeError(TOO_LATE)
        key = topic.key_for(payload, snapshot.key if key is None and topic.key is None else key)
        if snapshot.key is not None and key != snapshot.key:
            raise self._error("payload", f"the source was asked for key {snapshot.key!r} and appended {key!r}")
        if not _is_index(index):
            raise self._error("index", f"the source appended an event with index {index!r}")
        if len(snapshot) >= self._limit:
            raise self._error("size", f"the source appended more than {self._limit} events")
        self._greatest = max(self._greatest, index)
        when = self._clock() if time is None else time
        snapshot.extend([Event(topic.name, key, index, payload, when, check_headers(headers))])

    def _finish(self, index: object) -> None:
        if not _is_index(index):
            raise self._error("index", f"the source returned {index!r}, not the index at which its state holds")
        if index < self._greatest:
            raise self._error("index", f"the source returned {index} after it had appended index {self._greatest}")
        live, snapshot = self._live, self.snapshot
        with live.lock:
            if self._place is None or snapshot.error is not None or live.epoch != snapshot.epoch:
                return
            if index < self.head:
                self._bridge(index)
                index = self.head
            live.horizon = max(live.horizon, index)
            snapshot.complete(index, self._place)

    def _bridge(self, index: int) -> None:
        """The state is older than the place: the events in between are retained, and become part of it."""
        floor = self._live.history.floor
        if index < floor:
            raise self._error("index", f"the source answered for index {index}, events are retained after {floor}")
        between = [
            event
            for events in walk(self._live.history.find(index))
            for event in events
            if event.index <= self.head and self.snapshot.key in (None, event.key)
        ]
        self.snapshot.extend(between)

    def _error(self, why: str, detail: str) -> SnapshotFailed:
        return SnapshotFailed(self._live.topic.name, self.snapshot.key, why, detail)

    def _fail(self, error: SnapshotFailed, cause: Exception) -> None:
        # Who waits may be a view, which tries again by itself, or another process, which must not see the inside.
        logger.warning("the snapshot source of topic %r failed", error.topic, exc_info=cause)
        error.__cause__ = cause
        self.snapshot.fail(error)


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INDEX

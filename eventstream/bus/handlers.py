"""Callbacks for those who want them: each handler reads a subscription of its own, in a task of the bus.

A handler that raises is told about and goes on with the next event; a slow one holds up nobody else, and is reset like
any slow reader. Nothing that goes wrong here is silent: it is logged (topic, key and index, never the payload) and
given to the bus's `on_error`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, TypeAlias, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from ..errors import BusClosed, EventStreamError, PositionLost, SlowSubscriber, SnapshotFailed, SubscriptionReset
from ..events import Event
from ..topics import Subscription

__all__ = ("Handler", "Handlings", "OnError")

T = TypeVar("T")
Handler: TypeAlias = Callable[[Event[T]], Awaitable[object]]
OnError: TypeAlias = Callable[[Exception, Event[Any] | None], object]

PAUSE: Final = 1.0  # seconds before a failed snapshot is asked for again
_logger: Final = logging.getLogger("eventstream.handlers")


class Handlings:
    """All handlers of one bus, local or remote.

    Args:
        on_error: As of `EventBus`.
    """

    def __init__(self, on_error: OnError | None) -> None:
        self._on_error = on_error
        self._all: list[Handling] = []
        self._tasks: TaskGroup | None = None

    def start(self, tasks: TaskGroup) -> None:
        """The bus runs: starts those that are registered, and from now on each when it is."""
        self._tasks = tasks
        for handling in self._all:
            handling.start(tasks)

    def decorator(self, subscribe: Callable[[], Subscription[T]]) -> Callable[[Handler[T]], Handler[T]]:
        """What `bus.on` returns."""

        def register(handler: Handler[T]) -> Handler[T]:
            handling = Handling(subscribe, handler, self._on_error)
            self._all.append(handling)
            if self._tasks is not None:
                handling.start(self._tasks)
            return handler

        return register


class Handling:
    """Feeds one handler."""

    def __init__(
        self, subscribe: Callable[[], Subscription[Any]], handler: Handler[Any], on_error: OnError | None
    ) -> None:
        self._subscribe = subscribe
        self._handler = handler
        self._on_error = on_error

    def start(self, tasks: TaskGroup) -> None:
        """Subscribes at once, so that nothing is missed before the task first runs.

        Raises:
            EventStreamError: if that is refused.
        """
        tasks.start_soon(self._run, self._subscribe(), name="eventstream handler")

    async def _run(self, subscription: Subscription[Any]) -> None:
        """Until the bus closes, or refuses to go on. Raises nothing but cancellation."""
        while True:
            try:
                async with subscription:
                    await self._serve(subscription)
            except BusClosed:
                return
            except (SlowSubscriber, PositionLost) as error:
                self._report(error, None)  # the missed events are gone: go on from now
            except SnapshotFailed as error:
                self._report(error, None)
                await anyio.sleep(PAUSE)
            except EventStreamError as error:  # of a server that refuses it
                self._report(error, None)
                return
            try:
                subscription = self._subscribe()
            except EventStreamError:  # the bus has just ended, and has said why
                return

    async def _serve(self, subscription: Subscription[Any]) -> None:
        while True:
            try:
                async for event in subscription:
                    await self._handle(event)
            except SubscriptionReset as error:
                self._report(error, None)  # the snapshot's events come next

    async def _handle(self, event: Event[Any]) -> None:
        try:
            outcome = self._handler(event)
            if not isawaitable(outcome):
                raise TypeError("a handler must be async: write 'async def', or let it return what can be awaited")
            await outcome
        except anyio.get_cancelled_exc_class() as error:
            await checkpoint_if_cancelled()  # raises, unless it was something of the handler's that was cancelled
            self._report(RuntimeError(f"the handler let a cancellation out that was not its own: {error!r}"), event)
        except Exception as error:
            self._report(error, event)

    def _report(self, error: Exception, event: Event[Any] | None) -> None:
        name = getattr(self._handler, "__qualname__", repr(self._handler))
        if event is None:
            _logger.warning("handler %s: %s", name, error)
        else:
            _logger.error(
                "handler %s failed at topic %r, key %r, index %d", name, event.topic, event.key, event.index,
                exc_info=error,
            )  # fmt: skip
        if self._on_error is not None:
            try:
                self._on_error(error, event)
            except Exception:
                _logger.exception("on_error failed for handler %s", name)

"""Tells which keys of a view changed, to those who look when they like."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio

from ..errors import EventStreamError, SubscriptionClosed

__all__ = ("Changes",)


class Changes(AsyncIterator[frozenset[str]]):
    """Which keys changed since the last look. One consumer.

    Bounded: a key that came and went between two looks is not told, so there are never more than the keys of then
    and now.
    """

    def __init__(self) -> None:
        self._existed: dict[str, bool] = {}  # changed key -> whether it was there at the last look
        self._some = anyio.Event()
        self._end: EventStreamError | None = None

    def note(self, key: str, existed: bool, exists: bool) -> None:
        """A key was set or removed."""
        existed_at_look = self._existed.setdefault(key, existed)
        if not existed_at_look and not exists:
            del self._existed[key]
        elif not self._some.is_set():
            self._some.set()

    def end(self, error: EventStreamError) -> None:
        """There will be no more."""
        self._end = error
        self._some.set()

    async def __anext__(self) -> frozenset[str]:
        while True:
            await self._some.wait()
            keys = frozenset(self._existed)
            self._existed.clear()
            if keys:
                if self._end is None:
                    self._some = anyio.Event()
                return keys
            if self._end is not None:
                if isinstance(self._end, SubscriptionClosed):
                    raise StopAsyncIteration
                raise self._end.with_traceback(None)
            self._some = anyio.Event()

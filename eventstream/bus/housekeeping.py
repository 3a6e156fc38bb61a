"""The bus's one background task for what nobody waits for: old snapshots, long chains, bookmarks.

Idle when there is nothing to do: it sleeps until it is called, or until the next cached snapshot is too old.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from ..snapshots import SnapshotCache
from ..topics import Disposal, LiveTopic, Lot, Waker

__all__ = ("Housekeeping",)

BOOKMARK_SECONDS: Final = 1.0  # at most so often: a bookmark wakes readers for nothing but their position


class Housekeeping:
    """Waits at a spot like any reader.

    Args:
        waker: Of the bus's loop.
        topics: The bus's topics, asked for anew each time.
    """

    def __init__(self, waker: Waker, topics: Callable[[], Iterable[LiveTopic]]) -> None:
        self.disposal: Disposal = Disposal(self.call)
        self._spot = waker.spot(self)
        self._spot.lot = self._lot = Lot(waker)
        self._topics = topics
        self._called = False
        self._grown = False
        self._bookmarks_at = -math.inf

    def call(self) -> None:
        """There is something to do. Safe from any thread."""
        self._called = True
        self._lot.wake()

    def call_for_bookmarks(self) -> None:
        """A topic has grown past its idle readers. Safe from any thread."""
        if not self._grown:
            self._grown = True
            self.call()

    async def run(self, cache: SnapshotCache) -> None:
        """Until cancelled."""
        while True:
            self._called = False
            await self.free()
            until = min(cache.sweep() or math.inf, self._give_bookmarks())
            if self._called:  # by what it just did itself
                continue
            with anyio.CancelScope(deadline=until):
                await self._spot

    async def free(self) -> None:
        """Frees all that was dropped, a little in each turn of the loop."""
        while self.disposal:
            self.disposal.step()
            await checkpoint()

    def _give_bookmarks(self) -> float:
        """Gives them if it is time; returns when to look again."""
        if not self._grown:
            return math.inf
        now = anyio.current_time()
        if now >= self._bookmarks_at:
            self._grown = False
            self._bookmarks_at = now + BOOKMARK_SECONDS
            for live in self._topics():
                if live.grown:
                    live.give_bookmarks()
            return math.inf
        return self._bookmarks_at

    def ready(self) -> bool:
        """For the spot: whether it was called since it last looked."""
        return self._called

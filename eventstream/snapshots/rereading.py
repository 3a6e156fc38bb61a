"""A reader further back than memory: its events come from the log, page by page, until memory can go on.

    log ──page──▶ private buffer ──until──▶ the next page … ──▶ live buffer

Each reader has a buffer of its own, which holds no live events: such a reader is never too slow for the publisher. It
asks for a page when it begins with the one before, so at most two wait for it, however long the history and however
slow the reader. At the end of each page it looks whether memory reaches back to there; if so, it is placed in the live
buffer under the topic's lock, so nothing is lost or doubled between the two. From then on the log is not asked again.

Belongs to the loop's thread. Rejected: one chain from the oldest event to the newest for all who come (a slow reader
pins it whole), and a place in the live buffer taken at the beginning (a reader that stops would pin that).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeAlias

from ..errors import EventStreamError
from ..topics import AnyEvent, Buffer, Cursor, LiveTopic, Lot, Page, Past, Place, Waker
from ..topics.buffer import SEGMENT_SIZE

__all__ = ("Rereading", "Run", "stretches")

Run: TypeAlias = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]

AHEAD: Final = 2  # pages: the one that is read, and the one that follows


class Rereading:
    """One reader's way through the log.

    Args:
        live: The topic.
        past: What its log keeps; of the present life.
        cursor: The reader. Its `detour` is this as long as it reads from the log.
        spawn: Runs a read in a task of the bus.

    Attributes:
        until: Where the cursor stops next: at the end of its page; None while there is none.
    """

    __slots__ = (
        "_asking", "_behind", "_buffer", "_cursor", "_error", "_live", "_pages", "_past", "_read", "_spawn", "until",
    )  # fmt: skip

    def __init__(self, live: LiveTopic, past: Past, cursor: Cursor, waker: Waker, spawn: Run) -> None:
        self._live = live
        self._past = past
        self._cursor = cursor
        self._spawn = spawn
        self._buffer = Buffer(Lot(waker))
        self._pages: deque[tuple[Place, int]] = deque()  # of each page not yet used up: its end, and the index there
        self._read = 0  # up to which index the log was read
        self._behind = 0
        self._asking = False
        self._error: EventStreamError | None = None
        self.until: Place | None = None

    def begin(self, after: int) -> None:
        """Places the cursor. Under the topic's lock; ask for the first page when it is released."""
        self._read = after
        self._cursor.enter(None, self._buffer.end(), after)
        self._cursor.catch_up(self)

    def ask(self) -> None:
        """Has the next page read, if there is room for it."""
        if not self._asking and self._error is None and len(self._pages) < AHEAD:
            self._asking = True
            self._spawn(self._fetch)

    def go_on(self) -> None:
        """The cursor has used up a page, or all that will come. Takes the topic's lock.

        Raises:
            EventStreamError: what the log answered in place of a further page.
        """
        live, cursor = self._live, self._cursor
        with live.lock:
            if cursor.detour is not self:
                return  # interrupted meanwhile
            if not self._pages:
                assert self._error is not None, "without a page it has nowhere to stop"
                raise self._error.with_traceback(None)
            place, index = self._pages.popleft()
            if index >= live.history.reach:
                live.place(cursor, index)
                return
            cursor.enter(None, place, index)
            cursor.catch_up(self)
            self._stop()
        self.ask()

    def behind(self, seen: int) -> int:
        """What is in the buffer, and what the log had after it."""
        return self._buffer.count - seen + self._behind

    async def _fetch(self) -> None:
        page: Page | None = None
        error: EventStreamError | None = None
        try:
            page = await self._past.read(self._read, self._cursor.key)
        except EventStreamError as caught:
            error = caught
        live, cursor = self._live, self._cursor
        self._asking = False
        with live.lock:
            if cursor.detour is not self:
                return  # it has left, or starts again: nobody wants this any more
            if error is not None:
                self._error = error
                self._stop()
            elif page is None:
                cursor.interrupt("expired")
            else:
                self._add(page)
        if cursor.interrupted is not None:
            cursor.spot.wake()
            return
        self._buffer.lot.wake()
        if page is not None and page.index < live.history.reach:
            self.ask()

    def _add(self, page: Page) -> None:
        for events in stretches(page.events):
            self._buffer.append(events)
        self._behind = page.behind
        self._read = page.index
        self._pages.append((self._buffer.end(), page.index))
        self._stop()

    def _stop(self) -> None:
        """At the end of its page, or, where there is none because of an error, of what there is."""
        self.until = self._pages[0][0] if self._pages else self._buffer.end() if self._error is not None else None


def stretches(events: list[AnyEvent]) -> Iterator[list[AnyEvent]]:
    """Cuts a list into pieces of about a segment, none of which splits a batch."""
    start, count = 0, len(events)
    while start < count:
        stop = min(start + SEGMENT_SIZE, count)
        while start < stop < count and events[stop].index == events[stop - 1].index:
            stop -= 1
        if stop == start:  # a batch longer than that
            stop = start + SEGMENT_SIZE
            while stop < count and events[stop].index == events[start].index:
                stop += 1
        yield events[start:stop]
        start = stop

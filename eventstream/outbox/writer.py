"""The thread that alone touches the file. Whatever was asked for while it worked becomes one commit: all who publish
at that time share one sync.

    loop ──ask(work, then)──▶ queue ──▶ thread: BEGIN, all works, COMMIT ──▶ loop: then(result, error) of each

`then` is called in the loop's thread, after the commit, in the order of asking, also if nobody waits any more: what is
on disk and what is in memory must not part because somebody was cancelled.

If a commit of several fails, each is tried alone, so that one that is too large for a full disk fails by itself. After
a failed commit SQLite's file is as before it; yet what the disk has taken of it may turn up after a power loss. So an
error here means: not kept, or maybe. With its id a publish can be repeated.

Rejected: anyio's worker threads (another thread each time, a semaphore, twice the way; SQLite wants one); a lock around
the connection (the loop would wait for it).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, TypeVar

from anyio import CancelScope, Event

from ..pipes.signal import Signal
from ..topics import Waker
from .file import Connect, Stored, close_file, failure, insert, open_file, read_all, tidy

__all__ = ("Writer",)

T = TypeVar("T")

MOST: Final = 2048  # requests of one commit: a bound on how long the first of them waits for the last


def _nothing() -> None:
    """Nothing depends on it."""


class _Request(Generic[T]):
    __slots__ = ("error", "result", "row", "then", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], T] | None,
        row: tuple[Any, ...],
        then: Callable[[T | None, Exception | None], None],
    ) -> None:
        self.work = work
        self.row = row
        self.then = then
        self.result: T | None = None
        self.error: Exception | None = None


class Writer:
    """Works for one event loop. `open` once, then ask, then `aclose`."""

    def __init__(self, path: Path, connect: Connect, waker: Waker) -> None:
        self._path = path
        self._connect = connect
        self._waker = waker
        self._queue: SimpleQueue[_Request[Any] | None] = SimpleQueue()
        self._ended = Event()
        self._thread = Thread(target=self._run, name=f"eventstream outbox {path.name}", daemon=True)
        self._opening: _Request[Stored]

    async def open(self) -> Stored:
        """Opens the file and reads its index.

        Raises:
            OutboxUnusable, NotStored: as of `open_file` and `read_all`.
        """
        opened = Signal()
        self._opening = _Request(None, (), lambda *_: opened.set())
        self._thread.start()
        with CancelScope(shield=True):  # the thread has the file; who is cancelled here closes it then
            await opened.wait()
        if self._opening.error is not None:
            raise self._opening.error
        assert self._opening.result is not None
        return self._opening.result

    def insert(self, row: tuple[Any, ...], then: Callable[[None, Exception | None], None]) -> None:
        """Asks for a new entry. Many of them are one statement."""
        self._queue.put(_Request(None, row, then))

    def ask(self, work: Callable[[sqlite3.Connection], T], then: Callable[[T | None, Exception | None], None]) -> None:
        """Asks for something else."""
        self._queue.put(_Request(work, (), then))

    async def do(self, work: Callable[[sqlite3.Connection], T], after: Callable[[], None] = _nothing) -> T:
        """As `ask`, and waits. Cancelled, it may or may not be done; if it is, `after` is called all the same.

        Raises:
            NotStored, OutboxUnusable: if it was not, or maybe.
        """
        done = Signal()
        answer: list[Any] = []

        def then(result: T | None, error: Exception | None) -> None:
            answer[:] = (result, error)
            if error is None:
                after()
            done.set()

        self.ask(work, then)
        await done.wait()
        result, error = answer
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Does what was asked for, and closes the file. Idempotent; waits for the disk, also if cancelled."""
        if self._thread.is_alive() and not self._ended.is_set():
            self._queue.put(None)
            with CancelScope(shield=True):
                await self._ended.wait()

    # In the thread.

    def _run(self) -> None:
        try:
            connection = open_file(self._path, self._connect)
            try:
                self._opening.result = read_all(connection, self._path)
            except BaseException:
                close_file(connection)
                raise
        except Exception as error:
            self._opening.error = failure(self._path, error)
            self._waker.call_soon(partial(self._tell_opened, ended=True))
            return
        self._waker.call_soon(partial(self._tell_opened, ended=False))
        try:
            self._work(connection)
        finally:
            with suppress(sqlite3.Error):  # only space is not given back; closing must go on
                tidy(connection)
            with suppress(sqlite3.Error):  # all that was promised was committed before
                close_file(connection)
            self._waker.call_soon(self._ended.set)

    def _tell_opened(self, *, ended: bool) -> None:
        if ended:
            self._ended.set()
        self._opening.then(None, None)

    def _work(self, connection: sqlite3.Connection) -> None:
        going = True
        while going:
            first = self._queue.get()
            if first is None:
                return
            requests = [first]
            with suppress(Empty):
                while len(requests) < MOST:
                    more = self._queue.get_nowait()
                    if more is None:
                        going = False
                        break
                    requests.append(more)
            self._commit(connection, requests)
            self._waker.call_soon(partial(_tell, requests))

    def _commit(self, connection: sqlite3.Connection, requests: list[_Request[Any]]) -> None:
        try:
            _in_transaction(connection, requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].result = None
                requests[0].error = failure(self._path, error)
                return
            for request in requests:
                self._commit(connection, [request])


def _in_transaction(connection: sqlite3.Connection, requests: list[_Request[Any]]) -> None:
    if connection.in_transaction:  # an earlier rollback failed, with the disk
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = [request.row for request in requests if request.work is None]
        if rows:  # first: nobody asks for anything about an entry before he was told of it
            insert(connection, rows)
        for request in requests:
            if request.work is not None:
                request.result = request.work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # what failed first is what is told; SQLite rolls back by itself then
                connection.execute("ROLLBACK")
        raise


def _tell(requests: list[_Request[Any]]) -> None:
    for request in requests:
        request.then(request.result, request.error)

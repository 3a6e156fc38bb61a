"""The thread that writes: takes what has gathered, makes one transaction of it, and tells the event loop in order.

    tasks ──Append──▶ queue ──▶ one transaction, one fsync ──▶ loop: append to the topics, wake the tasks

However many publish at once, they share the fsync; one that publishes alone waits for nothing but the thread. What is
published while a transaction is being written gathers for the next. If a transaction fails, its publishes are tried
one by one, so that only those fail that must. Where nothing is synced, the loop itself writes what comes alone, while
the thread is at rest (`inplace`): whoever uses the store holds the lock, and the loop never waits for it.

Rejected: a worker thread for each commit (a hop that costs as much as the fsync); an asyncio task that writes by itself
(an fsync stops the loop for as long as the disk likes).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final

from anyio.lowlevel import checkpoint

from ...errors import BusClosed, EventStreamError
from ...events import NO_HEADERS, Event, Position
from ...topics import AnyEvent, LiveTopic, Lot, Waker
from .faults import fault
from .inplace import InPlace
from .life import Life
from .store import Publish, Store

__all__ = ("Append", "Job", "Writer", "nothing")

MOST_PUBLISHES: Final = 1024  # in one transaction: some milliseconds of work, which is what a reader may have to wait
MOST_BYTES: Final = 4 << 20  # of payloads in one transaction
QUEUED: Final = 8192  # publishes on their way: as much as is written in a tenth of a second
QUEUED_BYTES: Final = 64 << 20
TENDED: Final = 256  # events between two looks while there is no rest: a look keeps the loop waiting for its lock
TENDED_HERE: Final = 1024  # the same of those that the loop writes: it has to wake the thread for that
TENDED_BYTES: Final = 8 << 20  # the same of large ones: half of what one look may remove
IDLE_SECONDS: Final = 1.0  # between two looks at what else is to be done

logger: Final = logging.getLogger("eventstream.logs")


class Job:
    """What the thread is asked to do, and the task that waits for it.

    Args:
        work: Called in the thread, outside of a transaction.
        done: Called in the loop's thread with what `work` returned, after all that was asked before.
    """

    __slots__ = ("_done", "_work", "error", "once", "result")

    def __init__(self, work: Callable[[], Any], done: Callable[[Any], object] | None = None) -> None:
        self._work = work
        self._done = done
        self.once: Any = None
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """In the thread. Raises what the work raises."""
        self.result = self._work()

    def deliver(self) -> None:
        """In the loop's thread, if it did not fail."""
        if self._done is not None:
            self._done(self.result)

    def ready(self) -> bool:
        """For a spot: nothing is there before it is waited for."""
        return False


class Append(Job):
    """A publish."""

    __slots__ = ("finished", "index", "is_new", "life", "live", "publish")

    life: Life

    def __init__(self, live: LiveTopic, publish: Publish) -> None:
        self.live: LiveTopic = live
        self.publish: Publish = publish
        self.index: int = 0
        self.is_new: bool = False
        self.finished: bool = False
        self.once: Any = None
        self.error: BaseException | None = None

    async def wait(self) -> Position:
        """Until it is delivered (see `Pending`)."""
        if not self.finished:
            await self.once
        if self.error is not None:
            raise self.error
        return Position(self.life.epoch, self.index)

    def deliver(self) -> None:
        """Appends what is committed now."""
        if not self.is_new:
            return
        live, publish, index = self.live, self.publish, self.index
        name, at = live.topic.name, publish.at
        headers = NO_HEADERS if publish.terms is None else publish.terms.headers
        events: list[AnyEvent] = [Event(name, key, index, payload, at, headers) for key, payload in publish.entries]
        with live.lock:
            if not live.closed:  # else it is in the file all the same, and nobody here can read it any more
                live.append(events)


class Writer:
    """Owns the store from `start` to `stop`.

    Args:
        path: The file, for errors.
        store: What is written to.
        waker: Of the bus's loop.
        tend: Called now and then, in the thread: does a little of what else has to be done, and returns whether more
            is left. Its argument is what was just written to, or None if nothing is waiting to be written.
        in_place: Says when the loop may write; None: never.
    """

    def __init__(
        self,
        path: str,
        store: Store,
        waker: Waker,
        tend: Callable[[set[Life] | None], bool],
        in_place: InPlace | None = None,
    ) -> None:
        self._path = path
        self._store = store
        self._waker = waker
        self._tend = tend
        self._in_place = in_place
        self._coming = 0  # publishes at the checkpoint before they are written
        self._working = threading.Lock()  # who uses the store holds it
        self._wanted = False  # by the thread
        self._is_asked = False  # to look whether something is due
        self._untended: set[Life] = set()
        self._events = 0  # written since it was tended
        self._bytes = 0  # of them
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._written: deque[Sequence[Job]] = deque()
        self._told = False
        self._room = Lot(waker)
        self._queued = 0
        self._queued_bytes = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="eventstream log", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Lets it write what was put, and end. Call `join` in a worker thread then. Who waits for room is refused."""
        self._stopped = True
        self._queue.put(None)
        self._room.wake()

    def join(self) -> None:
        """Waits for the end."""
        if self._thread.ident is not None:
            self._thread.join()

    # In the loop's thread.

    def put(self, job: Job) -> None:
        """Asks for something, waits for nothing. Any thread."""
        self._queue.put(job)

    async def wait_for(self, job: Job) -> None:
        """Asks for something and waits until it is delivered.

        Raises:
            EventStreamError: what it failed with.
        """
        self._check_running()
        once = job.once = self._waker.once()
        self._queue.put(job)
        await once
        if job.error is not None:
            raise job.error

    async def submit(self, job: Append) -> None:
        """Asks for a publish; waits before that if too much is on its way.

        Raises:
            BusClosed: if the writer was stopped: nothing is put behind the end.
        """
        size = job.publish.size
        while self._queued >= QUEUED or (self._queued and self._queued_bytes + size > QUEUED_BYTES):
            spot = self._waker.spot(job)
            spot.lot = self._room
            await spot
        self._check_running()
        self._queued += 1
        self._queued_bytes += size
        job.once = self._waker.once()
        self._queue.put(job)

    def _check_running(self) -> None:
        if self._stopped:
            raise BusClosed("closed")

    async def append(self, job: Append) -> None:
        """As `submit`, but for one publish at a time. A checkpoint, before anything is done."""
        if self._in_place is not None:
            self._coming += 1
            try:
                await checkpoint()
            finally:
                self._coming -= 1
            self._check_running()
            if self._write_here(self._in_place, job):
                return
        await self.submit(job)

    def _write_here(self, in_place: InPlace, job: Append) -> bool:
        """Writes a publish on the loop, if that can be. Returns whether it was."""
        size = job.publish.size
        if self._queued or self._wanted or not in_place.begin(size, self._coming):
            return False
        if not self._working.acquire(blocking=False):
            return False
        try:
            life = self._store.lives[job.live.topic.name]
            if self._written or not life.known:  # what the thread has done is not known here yet, or much to be read
                return False
            self._write([job])
        finally:
            self._working.release()
        job.finished = True
        self._finish(job)
        in_place.end()
        self._look()
        return True

    def _look(self) -> None:
        """Wakes the thread if it has something to do but to write."""
        if not self._is_asked and (self._events >= TENDED_HERE or self._is_checkpoint_due()):
            self._is_asked = True
            self._queue.put(_LOOK)

    def _deliver(self) -> None:
        self._told = False
        written = self._written
        while written:
            for job in written.popleft():
                if isinstance(job, Append):
                    self._queued -= 1
                    self._queued_bytes -= job.publish.size
                    job.finished = True
                self._finish(job)
        self._room.wake()

    def _finish(self, job: Job) -> None:
        try:
            if job.error is None:
                job.deliver()
        except BaseException as error:
            job.error = error
        if job.once is not None:
            self._waker.happen(job.once)

    # In the writer's thread.

    def _run(self) -> None:
        held: Job | None = None
        busy = True
        while True:
            job = held or self._next(busy)
            if job is None:
                return
            with self._alone():
                held = self._work(job)
            self._tell()
            self._is_asked = False
            if self._events >= TENDED or self._bytes >= TENDED_BYTES or self._is_checkpoint_due():
                self._tend_safely(self._untended)
            busy = job is not _LOOK  # else the loop is about to write again, and there is no moment to be used

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The store is the thread's. Said before: else the loop, which only tries, might come first for ever."""
        self._wanted = True
        with self._working:
            self._wanted = False
            yield

    def _next(self, busy: bool) -> Job | None:
        while True:
            try:
                return self._queue.get(timeout=0.001 if busy else IDLE_SECONDS)
            except Empty:
                busy = self._tend_safely(None)

    def _work(self, job: Job) -> Job | None:
        """Does one thing, or writes all publishes that have gathered. Returns what came behind these."""
        if not isinstance(job, Append):
            if job is not _LOOK:
                self._do(job)
            return None
        group, size, held = [job], job.publish.size, None
        while len(group) < MOST_PUBLISHES and size < MOST_BYTES:
            try:
                following = self._queue.get_nowait()
            except Empty:
                break
            if not isinstance(following, Append):
                if following is None:
                    self._queue.put(None)  # nothing is put behind it
                held = following
                break
            group.append(following)
            size += following.publish.size
        self._write(group)
        self._written.append(group)
        return held

    def _do(self, job: Job) -> None:
        try:
            job.run()
        except sqlite3.Error as error:
            self._roll_back()
            job.error = fault(self._path, error)
        except Exception as error:
            self._roll_back()
            job.error = error
        self._written.append([job])

    def _write(self, group: list[Append]) -> None:
        """Commits publishes, or notes their errors. By who holds the lock."""
        store = self._store
        try:
            for job in group:
                self._take(job)
            store.commit()
        except BaseException as error:
            self._roll_back()
            if not isinstance(error, Exception):
                raise  # Ctrl-C on the loop: what nobody is told of is not committed with the next
            if len(group) > 1:
                for job in group:
                    job.error = None
                    self._write([job])
                return
            group[0].error = fault(self._path, error) if isinstance(error, sqlite3.Error) else error
        self._events += sum([len(job.publish.entries) for job in group])
        self._bytes += sum([job.publish.size for job in group])

    def _take(self, job: Append) -> None:
        life = job.life = self._store.lives[job.live.topic.name]
        self._untended.add(life)
        head = life.head
        try:
            job.index = self._store.append(life, job.publish)
            job.is_new = job.index > head
        except EventStreamError as error:
            job.error = error

    def _roll_back(self) -> None:
        try:
            self._store.rollback()
        except sqlite3.Error as error:
            logger.error("%s: a transaction cannot be rolled back: %s", self._path, error)

    def _tell(self) -> None:
        if self._written and not self._told:
            self._told = True
            self._waker.call_soon(self._deliver)

    def _is_checkpoint_due(self) -> bool:
        """Where the loop may write, so that SQLite must not do it by itself at a commit."""
        return self._in_place is not None and self._store.is_checkpoint_due

    def _tend_safely(self, written: set[Life] | None) -> bool:
        try:
            with self._alone():
                self._events = self._bytes = 0
                self._untended = set()
                if self._is_checkpoint_due():
                    self._store.checkpoint()
                return self._tend(written)
        except sqlite3.Error as error:  # it is tried again when something else was written
            logger.warning("%s: upkeep failed, and is tried again later: %s", self._path, error)
        except Exception:  # whatever it is, publishing goes on
            logger.exception("%s: upkeep failed", self._path)
        return False


def nothing() -> None:
    """What a job does that is waited for because of what stands before it."""


_LOOK: Final = Job(nothing)  # wakes the thread

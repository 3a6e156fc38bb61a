"""`SQLiteLog`: what a bus is given. Puts the parts together, and stands between the loop and the threads."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from os import PathLike, fspath
from os.path import realpath
from random import Random, SystemRandom
from typing import Any, Final, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from ...codec import TopicCodec, pack_headers
from ...errors import BusClosed
from ...events import Position
from ...topics import AnyEvent, LiveTopic, Page, current_waker
from ..log import Entries, Terms
from ..steady import steadied
from .faults import fault
from .file import Connect, Durability, connect, load, open_reading, open_writing
from .inplace import InPlace
from .life import DEDUPE_IDS, Life
from .owner import Ownership
from .pages import read_page, read_state
from .retention import DEFAULT, Retention
from .store import Publish, Store
from .trimming import Trimming
from .writer import Append, Job, Writer, nothing

__all__ = ("DEDUPE_SECONDS", "SQLiteLog")

T = TypeVar("T")

DEDUPE_SECONDS: Final = 120.0  # as for the log in memory
STEPS: Final = 3  # of trimming while publishes wait: more than is written between two looks
READERS: Final = 4  # threads that read at once; others wait their turn


class SQLiteLog:
    """A log in a SQLite file: what it has acknowledged is there after a restart, in the same epoch.

    Belongs to one bus. The event loop never waits for the disk: the file is read and written by threads. Many
    publishers share an fsync. With `durability="process"` the loop itself writes a publish that comes alone, into
    memory of the system; after a write that took longer than 5 ms, as on a disk that is overrun, the thread does it
    for a while.

    Args:
        path: The file; made if it does not exist, for its owner alone to read. Symbolic links are followed, once.
            Beside it stand `<path>-wal`, `<path>-shm` and `<path>.lock`.
        durability: `power` (the default): what is acknowledged survives a loss of power. `process`: it survives the
            end of this process, however it comes; the last moments before a loss of power may be missing, never
            anything from the middle.
        retention: What is kept of each topic; a million events or 1 GiB by default.
        topics: What is kept of single topics, by name, in place of that.
        dedupe_seconds: How long an id is remembered, 120 s by default; 65,536 ids at most for each topic.
        clock: Gives events their time, in POSIX seconds, and says how old they are.
        random: Where epochs come from; give a seeded one only to simulations.
        connect: Opens the file: for tests, which let it fail.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        durability: Durability = "power",
        retention: Retention = DEFAULT,
        topics: Mapping[str, Retention] | None = None,
        dedupe_seconds: float = DEDUPE_SECONDS,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        connect: Connect = connect,
    ) -> None:
        if durability not in ("power", "process"):
            raise ValueError(f"durability must be 'power' or 'process', not {durability!r}")
        self._path = fspath(path)
        self._durability: Durability = durability
        self._retention = retention
        self._retentions = dict(topics or {})
        self._window = dedupe_seconds
        self._clock = clock
        self._steady = clock
        self._random = random or SystemRandom()
        self._connect = connect
        self._attaching = threading.Lock()
        self._lives: dict[str, Life] = {}
        self._codecs: dict[str, TopicCodec[Any]] = {}
        self._number = 0
        self._owner: Ownership | None = None
        self._store: Store | None = None
        self._writer: Writer | None = None
        self._trimming: Trimming
        self._tended = 0.0
        self._borrowing = threading.Lock()  # for the next one, and for whether they are to be closed
        self._connections: list[sqlite3.Connection] = []
        self._limiter: CapacityLimiter

    async def open(self) -> None:
        """Takes the file, checks it, and reads where its topics stand.

        Raises:
            LogInUse: if another log has it, in any process.
            LogRefused: if it is no log, damaged, or of a later version; nothing in it was changed.
            LogError: if it cannot be read or written.
        """
        if self._owner is not None:
            raise BusClosed("running")
        waker = current_waker()
        self._limiter = CapacityLimiter(READERS)
        await to_thread.run_sync(self._open)
        assert self._store is not None
        in_place = InPlace(time.monotonic) if self._durability == "process" else None
        self._writer = Writer(self._path, self._store, waker, self._tend, in_place)
        self._writer.start()

    def _open(self) -> None:
        self._path = realpath(self._path)  # it stays the same file if the program goes to another directory
        owner = Ownership(self._path)
        self._steady = steadied(self._clock)  # in the file are times of the clock as it is now
        try:
            connection = open_writing(self._path, self._connect, self._durability)
            try:
                self._lives, ended, self._number = load(self._path, connection)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            owner.release()
            raise
        self._owner = owner
        self._store = Store(connection, self._lives, self._window)
        self._trimming = Trimming(self._store, ended)

    def attach(self, live: LiveTopic) -> None:
        """Goes on with the topic's history; begins one if the file has none."""
        name, compacted = live.topic.name, live.topic.compacted
        writer = self._running()
        with self._attaching:
            life = self._lives.get(name)
            if life is None:
                life = self._lives[name] = self._new_life(name, compacted)
            elif life.compacted is not compacted:
                life.compacted = compacted
        self._codecs[name] = TopicCodec(live.topic)
        if self._store is not None:
            store = self._store
            writer.put(Job(lambda: store.declare(life, self._steady())))  # who publishes is told, should that fail
        live.past = _Past(self, live, life)
        live.begin(life.epoch, life.head)

    async def append(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        """Commits, in a transaction with others that come at the same time, then appends to `live`.

        If cancelled while it waits, the batch may or may not be appended.

        Raises:
            Conflict, IndexOrder: as of `Log.append`.
            InvalidPayload: if a payload cannot be encoded, or the batch has more than 256 MiB.
            LogFull: if there is no room for it; nothing was appended.
            LogFailed: if the disk fails.
        """
        writer, job = self._running(), self._job(live, entries, terms)
        await writer.append(job)
        return await job.wait()

    async def submit(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Append:
        """As `append`, but returns when the batch has its place in the order; `wait` for it then.

        Not a checkpoint, unless too much is on its way.
        """
        writer, job = self._running(), self._job(live, entries, terms)
        await writer.submit(job)
        return job

    def _job(self, live: LiveTopic, entries: Entries, terms: Terms | None) -> Append:
        name = live.topic.name
        encode = self._codecs[name].encode_payload
        headers = None if terms is None else pack_headers(name, terms.headers)
        times = (self._clock(), self._steady())
        publish = Publish(entries, [encode(payload) for _, payload in entries], headers, terms, times)
        publish.check(name)
        return Append(live, publish)

    def remembers(self, live: LiveTopic) -> float:
        """The window, or less if ids have come so fast that there was no room for all of them."""
        life = self._lives[live.topic.name]
        if life.ids is None and life.retained > DEDUPE_IDS:
            return 0.0  # they are just being read
        return min(self._window, max(0.0, self._steady() - life.forgotten))

    async def refresh(self, live: LiveTopic) -> Position:
        """Ends the topic's life, and begins another. What it had is removed in the background."""
        writer = self._running()
        assert self._store is not None
        store, name = self._store, live.topic.name

        def replace() -> Life:
            with self._attaching:
                new = self._new_life(name, live.topic.compacted)
            old = store.lives[name]
            was_stored = old.stored
            store.replace(old, new)
            if was_stored:
                self._trimming.ended.append(old.number)
            return new

        def begin(life: Life) -> None:
            live.past = _Past(self, live, life)
            live.begin(life.epoch)

        job = Job(replace, begin)
        await writer.wait_for(job)
        return Position(job.result.epoch, 0)

    async def trim(self) -> None:
        """Does at once what retention asks for, and otherwise happens by and by.

        Raises:
            LogError: if the disk fails.
        """
        writer = self._running()
        more = True
        while more:  # in steps, with publishes in between
            job = Job(self._trim_all)
            await writer.wait_for(job)
            more = job.result

    async def aclose(self) -> None:
        """Writes what was published, and closes the file. Idempotent."""
        writer, self._writer = self._writer, None
        owner, self._owner = self._owner, None
        with anyio.CancelScope(shield=True):
            if writer is not None:
                writer.stop()
            if owner is not None:
                await to_thread.run_sync(self._close, writer, owner)

    def _close(self, writer: Writer | None, owner: Ownership) -> None:
        try:
            with ExitStack() as stack:  # whatever fails, everything is closed, and the owner's lock let go at last
                stack.callback(owner.release)
                if writer is not None:
                    writer.join()
                with self._borrowing:  # who reads at this moment closes its own
                    store, self._store = self._store, None
                    connections, self._connections = self._connections, []
                if store is not None:
                    stack.callback(store.connection.close)
                for connection in connections:
                    stack.callback(connection.close)
        except sqlite3.Error as error:
            raise fault(self._path, error) from error

    # Reading, in worker threads.

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `read` in a thread, with a connection of its own.

        Raises:
            LogError: if the file cannot be read.
        """
        return await to_thread.run_sync(self._read, read, limiter=self._limiter)

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        with self._borrowing:
            if self._store is None:
                raise BusClosed("closed")
            connection = self._connections.pop() if self._connections else None
        if connection is None:
            connection = open_reading(self._path, self._connect)
        try:
            result = read(connection)
        except sqlite3.Error as error:
            connection.close()
            raise fault(self._path, error) from error
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        return result

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._borrowing:
            if self._store is not None:
                self._connections.append(connection)
                return
        connection.close()

    async def settle(self) -> None:
        """Returns when all that was committed before the call was appended."""
        await self._running().wait_for(Job(nothing))

    def codec(self, topic: str) -> TopicCodec[Any]:
        """What encodes a topic's payloads."""
        return self._codecs[topic]

    # What else is to be done, in the writer's thread.

    def _tend(self, written: set[Life] | None) -> bool:
        if written is not None:
            return self._trim_busy(written)
        more = self._trim_all()
        return self._trimming.sweep() or self._trimming.give_back() or more

    def _trim_busy(self, written: set[Life]) -> bool:
        """While publishes wait: only what would grow without bound, and once a second what has become too old."""
        trimming = self._trimming
        now = time.monotonic()
        for life in written:
            retention = self._retentions.get(life.topic, self._retention)
            for _ in range(STEPS):
                if trimming.is_pressing(life, retention):
                    trimming.trim(life, retention, self._clock())
        if now - self._tended > 1.0:
            self._tended = now
            self._trim_all()
        return False

    def _trim_all(self) -> bool:
        more = False
        for life in list(self._lives.values()):
            more |= self._trimming.trim(life, self._retentions.get(life.topic, self._retention), self._clock())
        return more

    def _new_life(self, topic: str, compacted: bool) -> Life:
        self._number += 1
        return Life(self._number, topic, f"{self._random.getrandbits(64):016x}", compacted, stored=False)

    def _running(self) -> Writer:
        if self._writer is None:
            raise BusClosed("closed")
        return self._writer


class _Past:
    """A life as its readers see it (see `topics.Past`)."""

    __slots__ = ("_life", "_live", "_log")

    def __init__(self, log: SQLiteLog, live: LiveTopic, life: Life) -> None:
        self._log = log
        self._live = live
        self._life = life

    @property
    def floor(self) -> int:
        return self._life.floor

    @property
    def retained(self) -> int:
        return self._life.retained

    async def read(self, after: int, key: str | None) -> Page | None:
        life, codec = self._life, self._log.codec(self._life.topic)
        return await self._log.read(lambda connection: read_page(connection, life, codec, after, key))

    async def state(self) -> dict[str, AnyEvent]:
        life, codec = self._life, self._log.codec(self._life.topic)
        state = await self._log.read(lambda connection: read_state(connection, life, codec))
        await self._log.settle()
        return state

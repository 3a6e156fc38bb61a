"""Looks after the file from outside: tells what is in it, verifies it, copies it, gives its unused space back.

To tell, to verify and to copy do not need the owner's lock: they read, beside a bus that publishes. All calls block.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

import msgspec

from ...codec import keys_of, list_of
from ...errors import InvalidPayload, LogRefused
from .faults import fault
from .file import check, connect, load, make_private, open_writing
from .life import Life
from .owner import Ownership
from .store import Store
from .trimming import Trimming

__all__ = ("FileInfo", "TopicInfo", "backup", "compact", "info", "reading", "verify")

PAGES: Final = 1024  # copied at once: 4 MiB, after which a publish gets its turn


class TopicInfo(msgspec.Struct, frozen=True):
    """A topic as a file has it.

    Attributes:
        topic: Its name.
        epoch: The life of its history.
        compacted: Whether its newest event of each key is kept for ever.
        head: The index of its newest event.
        floor: The oldest index that can be resumed from.
        events: How many events can be resumed through.
        bytes: How much they take, encoded.
    """

    topic: str
    epoch: str
    compacted: bool
    head: int
    floor: int
    events: int
    bytes: int


class FileInfo(msgspec.Struct, frozen=True):
    """A log's file.

    Attributes:
        path: Where it is.
        size: Its bytes, without those in `<path>-wal`.
        unused: Bytes of it that later events will use.
        topics: What is in it.
    """

    path: str
    size: int
    unused: int
    topics: list[TopicInfo]


@contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to a log that may have an owner; nothing is changed by it.

    Raises:
        LogRefused: if there is no such log.
        LogError: if it cannot be read.
    """
    if not os.path.exists(path):
        raise LogRefused(path, "unreachable", "there is no such file")
    try:
        check(path)
        with closing(connect(path)) as connection:
            connection.execute("PRAGMA query_only = ON")
            yield connection
    except sqlite3.Error as error:
        raise fault(path, error) from error


def info(path: str) -> FileInfo:
    """What is in a file.

    Raises:
        LogError: as of `reading`.
    """
    with reading(path) as connection:
        lives, _, _ = load(path, connection)
        page = connection.execute("PRAGMA page_size").fetchone()[0]
        unused = connection.execute("PRAGMA freelist_count").fetchone()[0]
        topics = [
            TopicInfo(
                topic=life.topic,
                epoch=life.epoch,
                compacted=life.compacted,
                head=life.head,
                floor=life.floor,
                events=life.retained,
                bytes=life.size,
            )
            for life in lives.values()
        ]
        return FileInfo(path, os.path.getsize(path), unused * page, topics)


def verify(path: str) -> Iterator[str]:
    """Reads everything; gives a line for each thing that is wrong. None: all is as it should be.

    Raises:
        LogRefused: if it is no log, or so damaged that it cannot be read.
        LogError: if it cannot be read.
    """
    with reading(path) as connection:
        for (line,) in connection.execute("PRAGMA integrity_check"):
            if line != "ok":
                yield f"SQLite: {line}"
        lives, _, _ = load(path, connection)
        for life in lives.values():
            yield from _verify(connection, life)


def _verify(connection: sqlite3.Connection, life: Life) -> Iterator[str]:
    where = f"topic {life.topic!r}"
    seq, total = life.floor_seq, life.floor_total
    tables = life.tables
    rows = connection.execute(f"SELECT idx, seq, total, count, body FROM {tables.events} ORDER BY idx")  # noqa: S608
    known = f"SELECT EXISTS (SELECT 1 FROM {tables.keys} WHERE key = ? AND idx = ?)"  # noqa: S608
    for index, row_seq, row_total, count, body in rows:
        try:
            events = keys_of(list_of(count, body))
        except InvalidPayload as error:
            yield f"{where}, index {index}: {error.why}"
            continue
        if any(found != index for _, found, _ in events):
            yield f"{where}, index {index}: an event says that it has another index"
        if index > life.floor:
            seq, total = seq + count, total + len(body)
            if (row_seq, row_total) != (seq, total):
                yield f"{where}, index {index}: {seq} events were expected up to here, the row says {row_seq}"
                seq, total = row_seq, row_total
            for key in {key for key, _, _ in events if key}:
                if not connection.execute(known, (key, index)).fetchone()[0]:
                    yield f"{where}, index {index}: its key {key!r} is not in the table of keys"


def backup(path: str, target: str, told: Callable[[int, int], object] | None = None) -> None:
    """Copies a log as it is at one moment, while it is published to. The copy is a log, with epochs of its own.

    For whoever goes on with the copy goes on from an older moment: the next event there gets an index that another
    event has had, and a position saved since then must not be taken for one of this history.

    Args:
        path: The log.
        target: A file that does not exist.
        told: Called with the pages that are copied, and with all of them.

    Raises:
        LogRefused: if there is no such log, or the target exists, or cannot be made.
        LogError: if the disk fails.
    """
    if os.path.exists(target):
        raise LogRefused(target, "foreign", "this file exists already, and a backup does not replace anything")

    def tell(_: int, remaining: int, pages: int) -> None:
        if told is not None:
            told(pages - remaining, pages)

    with reading(path) as connection:
        connection.execute("BEGIN")
        load(path, connection)  # the moment: else SQLite would begin anew after each publish, and never end
        partial = f"{target}.partial"
        try:
            _remove(partial)
            make_private(partial)
        except OSError as error:
            raise LogRefused(target, "unreachable", f"it cannot be made: {error.strerror}") from error
        try:
            _copy(connection, partial, tell)
            os.replace(partial, target)  # a torn copy never has the name of a whole one
        except (sqlite3.Error, OSError) as error:
            raise fault(target, error) from error
        finally:
            _remove(partial)  # what failed for want of room does not keep it


def _copy(connection: sqlite3.Connection, partial: str, tell: Callable[[int, int, int], object]) -> None:
    with closing(connect(partial)) as copy:
        connection.backup(copy, pages=PAGES, progress=tell)
        for (number,) in copy.execute("SELECT number FROM lives WHERE NOT ended").fetchall():
            copy.execute("UPDATE lives SET epoch = ? WHERE number = ?", (secrets.token_hex(8), number))
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # closing would do so too, and fail silently


def _remove(partial: str) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.remove(partial + end)


def compact(path: str) -> tuple[int, int]:
    """Gives all unused space back to the disk. Nobody else may use the log meanwhile; needs as much room again.

    Returns:
        The file's bytes before and after.

    Raises:
        LogInUse: if a bus has it open.
        LogError: as of `SQLiteLog.open`.
    """
    with reading(path):
        before = os.path.getsize(path)
    owner = Ownership(path)
    try:
        connection = open_writing(path, connect, "power")
        try:
            lives, ended, _ = load(path, connection)
            trimming = Trimming(Store(connection, lives, 0.0), ended)
            while trimming.sweep():
                pass
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise fault(path, error) from error
        finally:
            connection.close()
    finally:
        owner.release()
    return before, os.path.getsize(path)

"""The outbox's file: made, opened, checked, read and written. All of it blocks, and runs in the writer's thread.

    topics   what is needed to publish to a topic without its declaration
    entries  what was published, never changed: number, id, topic, key, payload (NULL: a tombstone), headers, …, sum
    progress what has become of an entry: state, reason, attempts, next one, first unanswered one. None yet: no row
    pause    for how long the bus is left alone

SQLite in WAL mode with `synchronous=FULL`: a commit returns when the disk has it. `locking_mode=EXCLUSIVE` is the lock
against a second process; the system takes it away from a process that dies. The file is made under another name and
linked into its place, so that under its own name there is never half a one, and a foreign one is never touched: it
is told by its first bytes, before SQLite opens it.

On Unix that lock goes when *any* descriptor of the file is closed by its process: one who looked at the first bytes of
a file that this process has would take it away, and let another process in. So each process knows its own files.

An entry carries a checksum, because SQLite notices a damaged page only where its structure is damaged.

Rejected: one row for all of an entry (to note an attempt would write its payload again); a file for each entry (a
rename and two syncs); a lock file (it outlives its owner).
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

import msgspec

from ..codec import pack_headers
from ..errors import NotStored, OutboxUnusable
from ..events import Topic
from .lanes import ABOUT, Record

__all__ = (
    "Connect",
    "Shape",
    "Stored",
    "close_file",
    "failure",
    "insert",
    "load",
    "note",
    "open_file",
    "read_all",
    "remove",
)

Connect: TypeAlias = Callable[..., sqlite3.Connection]

APPLICATION: Final = 0x45764F62  # "EvOb", at byte 68 of the file
VERSION: Final = 1  # at byte 60
HEADER: Final = b"SQLite format 3\0"

SCHEMA: Final = f"""
    PRAGMA page_size=4096;
    PRAGMA auto_vacuum=INCREMENTAL;
    CREATE TABLE topics (
        name TEXT PRIMARY KEY, keyed INTEGER NOT NULL, compacted INTEGER NOT NULL,
        retain INTEGER NOT NULL, max_lag INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE entries (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB,
        headers BLOB NOT NULL, expect INTEGER, queued REAL NOT NULL, sum INTEGER NOT NULL
    );
    CREATE TABLE progress (
        number INTEGER PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL,
        due REAL NOT NULL, sent REAL
    );
    CREATE TABLE pause (one INTEGER PRIMARY KEY, failures INTEGER NOT NULL, until REAL NOT NULL);
    PRAGMA application_id={APPLICATION};
    PRAGMA user_version={VERSION};
"""

INSERT: Final = "INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?)"
NOTE: Final = "INSERT OR REPLACE INTO progress VALUES (?,?,?,?,?,?)"
AT_ONCE: Final = 64  # entries that one statement reads or removes: the same each time, so it is prepared once
THESE: Final = f"WHERE number IN ({','.join('?' * AT_ONCE)})"
LOAD: Final = f"SELECT number, id, topic, key, payload, headers, sum FROM entries {THESE}"  # noqa: S608  question marks
REMOVE: Final = (f"DELETE FROM entries {THESE}", f"DELETE FROM progress {THESE}")  # noqa: S608  as above
SCAN: Final = """
    SELECT number, id, topic, key, length(payload), length(headers), expect, queued, state, reason, attempts, due, sent
    FROM entries LEFT JOIN progress USING (number) ORDER BY number
"""
UNREACHABLE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)  # a wrong path
FAULTS: Final = {sqlite3.SQLITE_FULL: "full", sqlite3.SQLITE_CORRUPT: "damaged", sqlite3.SQLITE_NOTADB: "damaged"}


class Shape(msgspec.Struct, frozen=True):
    """What is kept of a topic's declaration: all but its type."""

    name: str
    keyed: bool
    compacted: bool
    retain: int
    max_lag: int

    @classmethod
    def of(cls, topic: Topic[Any]) -> Shape:
        """Of a declaration."""
        return cls(topic.name, topic.key is not None, topic.compacted, topic.retain, topic.max_lag)


class Stored(msgspec.Struct):
    """All that a file holds but the contents of the entries.

    Attributes:
        records: In order, with `due` in POSIX seconds.
        shapes: Of the topics.
        failures: How often in a row the bus could not be reached.
        until: Until when it is left alone, in POSIX seconds.
    """

    records: list[Record]
    shapes: dict[str, Shape]
    failures: int
    until: float


# Opening.

_opening: Final = Lock()  # held while a file is opened: what follows holds for several at once, too
_ours: Final[dict[tuple[int, int], sqlite3.Connection]] = {}  # by device and inode, whatever the path was


def open_file(path: Path, connect: Connect) -> sqlite3.Connection:
    """Opens the file, or makes it; `close_file` it then.

    Raises:
        OutboxUnusable: if it cannot be the outbox of this program, now.
        NotStored: if it cannot be made, or the disk fails.
    """
    with _opening:
        try:
            if not path.exists():
                _make(path, connect)
            about = path.stat()
        except (OSError, sqlite3.Error) as error:
            raise _unopened(path, error) from error
        if (about.st_dev, about.st_ino) in _ours:
            raise OutboxUnusable(str(path), "busy", "it is open in this process")
        connection = _ours[about.st_dev, about.st_ino] = _open(path, connect)
        return connection


def close_file(connection: sqlite3.Connection) -> None:
    """Closes it, and lets others have it."""
    with _opening:
        try:
            connection.close()
        finally:
            for name in [name for name, one in _ours.items() if one is connection]:
                del _ours[name]


def _open(path: Path, connect: Connect) -> sqlite3.Connection:
    try:
        _check_header(path)
        connection = connect(path, isolation_level=None, check_same_thread=False, timeout=0.0)
    except (OSError, sqlite3.Error) as error:
        raise _unopened(path, error) from error
    try:
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "journal_size_limit=16777216"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN IMMEDIATE")  # takes the lock for as long as the connection lives
        connection.execute("COMMIT")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise OutboxUnusable(str(path), "damaged", str(found))
    except sqlite3.Error as error:
        connection.close()
        raise failure(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _unopened(path: Path, error: OSError | sqlite3.Error) -> Exception:
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        return OutboxUnusable(str(path), "unreachable", os.strerror(error.errno))
    return failure(path, error)


def _make(path: Path, connect: Connect) -> None:
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.new-", dir=path.parent)  # only its owner can read it
    os.close(handle)
    try:
        with closing(connect(name, isolation_level=None)) as connection:
            connection.executescript(SCHEMA)  # with SQLite's usual syncs
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        _put_in_place(name, path)
    finally:
        with suppress(FileNotFoundError):  # it was renamed
            os.unlink(name)
    _sync_folder(path.parent)


def _put_in_place(name: str, path: Path) -> None:
    try:
        os.link(name, path)
    except FileExistsError:
        return  # another process was faster: its file is as good, and its lock will tell
    except OSError:  # a file system without links: whoever is slower wins here, and the other is told of its lost file
        os.rename(name, path)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and need not be
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(100)
    if len(start) < 100 or not start.startswith(HEADER):
        raise OutboxUnusable(str(path), "foreign", "it is no SQLite database")
    if int.from_bytes(start[68:72], "big") != APPLICATION:
        raise OutboxUnusable(str(path), "foreign", "it is the database of another program")
    version = int.from_bytes(start[60:64], "big")
    if version > VERSION:
        raise OutboxUnusable(str(path), "newer", f"it has version {version}, this program knows {VERSION}")


def failure(path: Path, error: BaseException) -> Exception:
    """What went wrong, in our words."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        kind = 0 if code is None else code & 0xFF
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return OutboxUnusable(str(path), "busy", str(error))
        why = FAULTS.get(kind, "failed")
        if why == "damaged":
            return OutboxUnusable(str(path), why, str(error))
        return NotStored(str(path), why, str(error))
    if isinstance(error, OSError):
        return NotStored(str(path), "full" if error.errno == 28 else "failed", error.strerror or str(error))
    return error if isinstance(error, Exception) else RuntimeError(str(error))


# Reading.


def read_all(connection: sqlite3.Connection, path: Path) -> Stored:
    """The whole index.

    Raises:
        OutboxUnusable: if what it says cannot be.
    """
    connection.execute("DELETE FROM progress WHERE number NOT IN (SELECT number FROM entries)")  # discarded in flight
    records: list[Record] = []
    seen: set[str] = set()
    for number, id, topic, key, payload, headers, expect, queued, state, *rest in connection.execute(SCAN):
        size = ABOUT + len(id) + len(topic) + len(key) + (payload or 0) + headers
        record = Record(number, id, topic, key, queued=queued, size=size, expect=expect)
        if state is not None:
            record.state = state
            record.reason, record.attempts, record.due, record.sent = rest
        if state not in (None, "pending", "held", "conflict", "unknown", "dead") or id in seen:
            raise OutboxUnusable(str(path), "damaged", f"entry {number} has an impossible state or id")
        seen.add(id)
        records.append(record)
    shapes = {
        name: Shape(name, bool(keyed), bool(compacted), retain, max_lag)
        for name, keyed, compacted, retain, max_lag in connection.execute("SELECT * FROM topics")
    }
    failures, until = connection.execute("SELECT failures, until FROM pause").fetchone() or (0, 0.0)
    return Stored(records, shapes, int(failures), float(until))


def load(connection: sqlite3.Connection, numbers: list[int]) -> dict[int, tuple[bytes | None, dict[str, str]] | None]:
    """Payload and headers of entries; None for one that is damaged."""
    bodies: dict[int, tuple[bytes | None, dict[str, str]] | None] = {}
    for some in _in_parts(numbers):
        for number, *parts, total in connection.execute(LOAD, some):
            bodies[number] = (parts[3], _headers(parts[4])) if _sum(*parts) == total else None
    return bodies


def _in_parts(numbers: list[int]) -> Iterator[list[int]]:
    """As many as one statement takes; what the last one lacks is filled up with a number that no entry has."""
    for at in range(0, len(numbers), AT_ONCE):
        some = numbers[at : at + AT_ONCE]
        yield some + [-1] * (AT_ONCE - len(some))


def _headers(data: bytes) -> dict[str, str]:
    return msgspec.msgpack.decode(data, type=dict[str, str]) if data else {}


# Writing.


def row_of(record: Record, payload: bytes | None, headers: Mapping[str, str]) -> tuple[Any, ...]:
    """A new entry, for `insert`.

    Raises:
        InvalidPayload: if a header cannot be encoded.
    """
    encoded = pack_headers(record.topic, headers) or b""
    parts = (record.id, record.topic, record.key, payload, encoded)
    return (record.number, *parts, record.expect, record.queued, _sum(*parts))


def _sum(id: str, topic: str, key: str, payload: bytes | None, headers: bytes) -> int:
    total = zlib.crc32(f"{id}\0{topic}\0{key}\0{payload is None}\0".encode())
    return zlib.crc32(headers, zlib.crc32(payload or b"", total))


def insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    """New entries."""
    connection.executemany(INSERT, rows)


def declare(connection: sqlite3.Connection, shapes: Iterable[Shape]) -> None:
    """What is known of topics."""
    rows = [msgspec.structs.astuple(shape) for shape in shapes]
    connection.executemany("INSERT OR REPLACE INTO topics VALUES (?,?,?,?,?)", rows)


def note(connection: sqlite3.Connection, rows: list[tuple[int, str, str, int, float, float | None]]) -> None:
    """What has become of entries: number, state, reason, attempts, due and sent."""
    connection.executemany(NOTE, rows)


def expect(connection: sqlite3.Connection, number: int, index: int | None) -> None:
    """An entry expects another index, or none."""
    connection.execute("UPDATE entries SET expect=? WHERE number=?", (index, number))


def remove(connection: sqlite3.Connection, numbers: list[int]) -> None:
    """Entries that are done."""
    for some in _in_parts(numbers):
        for statement in REMOVE:
            connection.execute(statement, some)


def pause(connection: sqlite3.Connection, failures: int, until: float) -> None:
    """For how long the bus is left alone."""
    connection.execute("INSERT OR REPLACE INTO pause VALUES (1,?,?)", (failures, until))


def tidy(connection: sqlite3.Connection) -> None:
    """Gives back the space of what is gone; called when the file is closed."""
    connection.executescript("PRAGMA incremental_vacuum")  # `execute` would take one step of it, which is one page

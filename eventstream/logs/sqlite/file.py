"""Opens the file, makes it, or refuses it, and says how SQLite is to treat it.

What is refused is not changed. A file that does not exist, or is empty, becomes a log in one transaction, so that a
process that dies in between leaves either nothing or a log.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ...errors import LogRefused
from .faults import fault
from .life import Life
from .owner import is_ours
from .tables import APPLICATION_ID, FORMAT, SCHEMA

__all__ = ("Connect", "Durability", "check", "connect", "load", "make_private", "open_reading", "open_writing")

Connect: TypeAlias = Callable[[str], sqlite3.Connection]
Durability: TypeAlias = Literal["power", "process"]

MAGIC: Final = b"SQLite format 3\0"
STATEMENTS: Final = 512  # prepared at once: some dozen of each of the topics in use
CACHE_KIB: Final = 16_384  # of pages, for the writer; the same for each of four readers at most
WAL_BYTES: Final = 64 << 20  # what the write-ahead file is cut back to after it had to grow


def connect(path: str) -> sqlite3.Connection:
    """A connection that any one thread at a time may use, and that begins no transaction by itself."""
    return sqlite3.connect(
        f"{Path(path).absolute().as_uri()}", uri=True, isolation_level=None, check_same_thread=False,
        cached_statements=STATEMENTS,
    )  # fmt: skip


def open_writing(path: str, connect: Connect, durability: Durability) -> sqlite3.Connection:
    """The owner's connection to a log, which is made if there is none.

    Raises:
        LogRefused: if the file is no log, damaged, or of a later version.
        LogError: if it cannot be read or written.
    """
    is_new = _look(path)
    try:
        if is_new:
            make_private(path)
        connection = connect(path)
    except OSError as error:
        raise LogRefused(path, "unreachable", f"it cannot be made: {error.strerror}") from error
    except sqlite3.Error as error:
        raise LogRefused(path, "unreachable", f"it cannot be opened: {error}") from error
    try:
        if not is_new:
            _check(path, connection)
        _set_up(connection, durability)
        if is_new or _is_blank(connection):
            _create(connection)
        return connection
    except sqlite3.Error as error:
        connection.close()
        raise fault(path, error) from error
    except BaseException:
        connection.close()
        raise


def make_private(path: str) -> None:
    """Makes an empty file that only its owner may read. What SQLite makes beside it gets the same rights."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def open_reading(path: str, connect: Connect) -> sqlite3.Connection:
    """One more connection to the same log, that cannot change it."""
    try:
        connection = connect(path)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.Error as error:
        raise fault(path, error) from error


def load(path: str, connection: sqlite3.Connection) -> tuple[dict[str, Life], list[int], int]:
    """All living topics; the numbers of lives that have ended and still have tables; the greatest number there is.

    Reads the first and last rows of each, so damage there is found here.
    """
    lives: dict[str, Life] = {}
    ended: list[int] = []
    greatest = 0
    try:
        for row in connection.execute("SELECT * FROM lives ORDER BY number").fetchall():
            number, topic, epoch, compacted, floor, floor_seq, floor_total, is_over = row
            greatest = number
            if is_over:
                ended.append(number)
                continue
            life = lives[topic] = Life(number, topic, epoch, bool(compacted), stored=True)
            life.floor, life.floor_seq, life.floor_total = floor, floor_seq, floor_total
            last = connection.execute(life.tables.last).fetchone()
            # A compacted topic may have nothing left but the state below its floor.
            life.head, life.seq, life.total = max(last or (0, 0, 0), (floor, floor_seq, floor_total))
            life.mixed = bool(connection.execute(life.tables.has_keys).fetchone()[0])
    except sqlite3.Error as error:
        raise LogRefused(path, "damaged", f"SQLite says: {error}") from error
    return lives, ended, greatest


def check(path: str) -> None:
    """Looks at a log that may be in use, and changes nothing.

    Not at the bytes of a file that this process has open: SQLite's locks on a file go when any descriptor of it is
    closed by their process, and then others would take the log for one that nobody uses.

    Raises:
        LogRefused: if the file is no log, damaged, or of a later version.
    """
    if not is_ours(path) and _look(path):
        raise LogRefused(path, "foreign", "this file is empty")
    connection = connect(path)
    try:
        _check(path, connection)
    finally:
        connection.close()


def _look(path: str) -> bool:
    """Whether there is nothing yet. Looks at the first bytes, before SQLite may touch the file."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise LogRefused(path, "unreachable", "its directory does not exist") from None
        return True
    except OSError as error:
        raise LogRefused(path, "unreachable", f"it cannot be read: {error.strerror}") from error
    if not header:
        return not os.path.exists(f"{path}-wal")
    if not header.startswith(MAGIC):
        raise LogRefused(path, "foreign", "this is not a log, nor any SQLite database")
    if len(header) < 100:
        raise LogRefused(path, "damaged", "it ends within its header")
    return False


def _check(path: str, connection: sqlite3.Connection) -> None:
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        blank = _is_blank(connection)
        if application == APPLICATION_ID and version <= FORMAT:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            size = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute("SELECT count(*) FROM lives").fetchone()
            wanted = os.path.getsize(path)
            if wanted < pages * size and not os.path.exists(f"{path}-wal"):
                raise LogRefused(path, "damaged", f"it has {wanted} bytes and should have {pages * size}: it is torn")
            return
    except sqlite3.Error as error:
        raise LogRefused(path, "damaged", f"SQLite says: {error}") from error
    if application == APPLICATION_ID:
        detail = f"its format is {version}, and this version of eventstream knows {FORMAT}"
        raise LogRefused(path, "newer", detail)
    if not blank or application:
        raise LogRefused(path, "foreign", "this is a SQLite database of another program")


def _is_blank(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()[0]


def _set_up(connection: sqlite3.Connection, durability: Durability) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file; then space can be given back in steps
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
    if durability == "process":
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # that would sync at a commit: the writer does it apart
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    connection.execute("PRAGMA cell_size_check = ON")  # a damaged page is noticed when it is read


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute("COMMIT")

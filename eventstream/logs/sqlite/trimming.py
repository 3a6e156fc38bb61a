"""Removes what retention lets go, and lives that have ended, in steps between publishes. The writer's thread alone.

Each step is a transaction of its own, of a bounded number of batches and bytes. Its pages are used again by later
events; when a quarter of the file is unused, some pages are given back to the disk at each turn.

A compacted topic keeps the newest event of each living key below its floor. Of a key whose newest event is above the
floor, or a tombstone, nothing is kept there; an older event goes at the latest when its successor is trimmed, so at
most one for each key waits for that.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from ...codec import keys_of, list_of
from .life import Life
from .retention import Retention
from .store import Store
from .tables import Tables

__all__ = ("STEP", "STEP_BYTES", "Trimming")

STEP: Final = 512  # batches: some milliseconds, which a publish may have to wait
STEP_BYTES: Final = 16 << 20  # of them: the keys of those that go are looked at
UNUSED: Final = 1024  # pages that may be unused in any file: 4 MiB
GIVE_BACK: Final = 256  # pages at each turn


class Trimming:
    """Keeps lives within their bounds.

    Args:
        store: What writes to the same file.
        ended: Numbers of lives that have ended and still have tables.
    """

    def __init__(self, store: Store, ended: list[int]) -> None:
        self._store = store
        self._connection = store.connection
        self.ended: list[int] = ended

    def is_pressing(self, life: Life, retention: Retention) -> bool:
        """Whether more than a step has gathered: by and by is not soon enough then."""
        over = 0 if retention.bytes is None else life.size - retention.bytes
        return over > STEP_BYTES or retention.excess(life.retained, life.size) > STEP

    def trim(self, life: Life, retention: Retention, now: float) -> bool:
        """One step. Returns whether there may be more to do.

        Raises:
            sqlite3.Error: if it cannot be done now; then nothing has changed.
        """
        if not life.stored or life.head == life.floor:
            return False
        if retention.seconds is None and retention.excess(life.retained, life.size) <= 0:
            return False
        limits = (STEP, life.floor_total + STEP_BYTES, *retention.limits(life.seq, life.total, now))
        found = self._connection.execute(life.tables.oldest_excess, (life.floor, *limits)).fetchone()
        if found is None:
            return False
        with _Transaction(self._connection):
            self._remove(life, found[0], now)
            values = (*found, life.number)
            sql = "UPDATE lives SET floor = ?, floor_seq = ?, floor_total = ? WHERE number = ?"
            self._connection.execute(sql, values)
        life.floor, life.floor_seq, life.floor_total = found
        return True

    def sweep(self) -> bool:
        """One step of removing a life that has ended. Returns whether there is more to do."""
        if not self.ended:
            return False
        number = self.ended[0]
        tables = Tables(number)
        with _Transaction(self._connection):
            removed = sum([self._connection.execute(sql, (STEP,)).rowcount for sql in tables.empty])
            if not removed:
                for sql in tables.drop():
                    self._connection.execute(sql)
                self._connection.execute("DELETE FROM ids WHERE life = ?", (number,))
                self._connection.execute("DELETE FROM lives WHERE number = ?", (number,))
        if not removed:
            self.ended.pop(0)
        return bool(self.ended)

    def give_back(self) -> bool:
        """Gives some unused pages back to the disk. Returns whether there is more to do."""
        unused = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
        if unused <= UNUSED or 4 * unused <= pages:
            return False
        self._connection.execute(f"PRAGMA incremental_vacuum({GIVE_BACK})").fetchall()
        return True

    def _remove(self, life: Life, to: int, now: float) -> None:
        """Removes all batches up to an index that need not stay."""
        connection, tables = self._connection, life.tables
        since = now - self._store.window
        connection.execute("DELETE FROM ids WHERE life = ? AND time < ?", (life.number, since))
        connection.execute(tables.keep_ids, (life.number, life.floor, to, since))
        if not life.mixed:
            connection.execute(tables.delete, (to,))
            return
        count, bodies = connection.execute(tables.bodies, (life.floor, to)).fetchone()
        events = keys_of(list_of(count, bytes.fromhex(bodies)))
        keys = {key for key, _, _ in events}
        if life.compacted:
            self._compact(life, to, keys, {(key, index) for key, index, is_nil in events if is_nil})
        else:
            connection.execute(tables.delete, (to,))
            connection.execute(tables.delete_keys, (to, _json(keys)))

    def _compact(self, life: Life, to: int, keys: set[str], tombstones: set[tuple[str, int]]) -> None:
        """Removes of these keys all but the newest event, and that too if it is a tombstone or above."""
        connection, tables, names = self._connection, life.tables, _json(keys)
        candidates = self._indexes(tables.indexes_of_keys, (to, names))
        candidates |= self._indexes(tables.indexes, (life.floor, to))
        kept: list[str] = []
        for key, newest in connection.execute(tables.newest_of_keys, (names,)).fetchall():
            if newest <= to and (key, newest) not in tombstones:
                connection.execute(tables.delete_key, (key, newest - 1))
                kept.append(key)
        connection.execute(tables.delete_keys, (to, _json(keys - set(kept))))
        gone = candidates - self._indexes(tables.indexes_of_keys, (to, names))
        gone -= self._needed(life, {index for index in gone if index <= life.floor})
        connection.execute(tables.delete_at, (_json(gone),))

    def _needed(self, life: Life, indexes: set[int]) -> set[int]:
        """Those below the floor that are batches, and hold the newest event of some other key."""
        connection, needed = self._connection, set[int]()
        if not indexes:
            return needed
        for count, body in connection.execute(life.tables.several_at, (_json(indexes),)).fetchall():
            events = keys_of(list_of(count, body))
            of_keys = connection.execute(life.tables.newest_of_keys, (_json({key for key, _, _ in events}),))
            newest = dict(of_keys.fetchall())
            needed |= {index for key, index, _ in events if newest.get(key) == index}
        return needed

    def _indexes(self, sql: str, values: tuple[object, ...]) -> set[int]:
        text = self._connection.execute(sql, values).fetchone()[0]
        return set(msgspec.json.decode(text, type=list[int])) if text else set()


class _Transaction:
    """Takes back what fails."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _json(values: set[str] | set[int]) -> str:
    return msgspec.json.encode(list(values)).decode()

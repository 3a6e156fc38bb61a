"""Writes: batches into lives, in transactions. Whoever holds the writer's lock: its thread, or the event loop.

A publish is decided here (its index, whether its id was there before, what it expects) against what the writer knows,
then inserted with all others of its transaction, in one statement for each power of two. Nothing is appended to a
topic before its transaction is in the file.
"""

from __future__ import annotations

import math
import sqlite3
from collections import OrderedDict
from typing import Final

from ...codec import pack_event
from ...errors import Conflict, IndexOrder, InvalidPayload
from ...events import MAX_INDEX
from ..log import Entries, Terms
from .life import DEDUPE_IDS, Life
from .tables import FORMAT

__all__ = ("LARGEST", "Publish", "Store")

LARGEST: Final = 256 << 20  # bytes of a batch: it is read in hex, and SQLite's texts end at a billion
PAGES: Final = 4000  # between two checkpoints: 16 MiB, since each takes some milliseconds
PAGE_BYTES: Final = 1024  # of events that make one more page change: an upper bound


class Publish:
    """One publish: all that the writer has to know of it, with its payloads encoded.

    Attributes:
        at: The time of its events.
        steady: The same for its id, by a clock that nobody sets.
    """

    __slots__ = ("at", "entries", "headers", "payloads", "size", "steady", "terms")

    def __init__(
        self,
        entries: Entries,
        payloads: list[bytes],
        headers: bytes | None,
        terms: Terms | None,
        times: tuple[float, float],
    ) -> None:
        self.entries: Entries = entries
        self.payloads: list[bytes] = payloads
        self.headers: bytes | None = headers
        self.terms: Terms | None = terms
        self.at: float = times[0]
        self.steady: float = times[1]
        self.size: int = len(payloads[0]) if len(payloads) == 1 else sum(map(len, payloads))

    def check(self, topic: str) -> None:
        """Refuses what could be written and never read.

        Raises:
            InvalidPayload: if it is too large.
        """
        if self.size > LARGEST:
            raise InvalidPayload(topic, f"{self.size} bytes in one batch, and a file takes at most {LARGEST}")

    def pack(self, index: int) -> bytes:
        """The batch as it stands in the file."""
        at, headers = self.at, self.headers
        if len(self.payloads) == 1:
            return pack_event(self.entries[0][0], index, at, self.payloads[0], headers)
        pairs = zip(self.entries, self.payloads, strict=True)
        return b"".join([pack_event(key, index, at, payload, headers) for (key, _), payload in pairs])


class Store:
    """What is in the file, for the one who writes it.

    Args:
        connection: The owner's.
        lives: The present life of each topic, by name.
        window: Seconds that an id is remembered.
    """

    def __init__(self, connection: sqlite3.Connection, lives: dict[str, Life], window: float) -> None:
        self.connection: sqlite3.Connection = connection
        self.lives: dict[str, Life] = lives
        self.window: float = window
        self._touched: dict[Life, None] = {}
        self._rows = 0  # changed up to the last checkpoint
        self._bytes = 0  # published since then

    def append(self, life: Life, publish: Publish) -> int:
        """Decides on one publish, and takes it into the present transaction.

        Returns:
            Its index; one that is not above the head before is that of the first publish with its id.

        Raises:
            Conflict, IndexOrder: as of `Log.append`; nothing was taken in.
        """
        entries, terms, at = publish.entries, publish.terms, publish.at
        index = life.head + 1
        id = None
        if terms is not None:
            id = terms.id
            if id is not None and (first := self._index_of(life, id, publish.steady - self.window)) is not None:
                return first
            if terms.expect is not None:
                actual = self._newest(life, entries[0][0])
                if actual != terms.expect:
                    raise Conflict(life.topic, entries[0][0], terms.expect, actual)
            if terms.index is not None:
                index = terms.index
        if not life.head < index <= MAX_INDEX:
            raise IndexOrder(life.topic, index, life.head)
        self._touch(life)
        self._bytes += publish.size
        if not life.stored:
            self._create(life)
        self._note_keys(life, entries, index)
        life.add(index, at, id, len(entries), publish.pack(index))
        if id is not None:
            life.fresh[id] = (publish.steady, index)
        return index

    def commit(self) -> None:
        """Makes the transaction last.

        Raises:
            sqlite3.Error: if that cannot be; call `rollback` then.
        """
        statements = [statement for life in self._touched for statement in life.inserts()]
        connection = self.connection
        if len(statements) == 1 and not connection.in_transaction:
            connection.execute(*statements[0])  # a transaction of its own, in one step
        else:
            self._execute(statements)
            if connection.in_transaction:
                connection.execute("COMMIT")
        for life in self._touched:
            life.adopt()
        self._touched.clear()

    def rollback(self) -> None:
        """Nothing of the transaction has happened."""
        for life in self._touched:
            life.undo()
        self._touched.clear()
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether enough has gathered in the write-ahead file, as far as we can tell from outside."""
        rows = self.connection.total_changes - self._rows
        return rows + self._bytes // PAGE_BYTES >= PAGES

    def checkpoint(self) -> None:
        """Moves what is in the write-ahead file to its place, but for what somebody is still reading.

        Also begins that file anew, by writing something: the first write after a checkpoint syncs, so it is done here.

        Raises:
            sqlite3.Error: if it cannot be done; nothing is lost.
        """
        self._rows, self._bytes = self.connection.total_changes, 0  # also if it fails: not at once again
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self.connection.execute(f"PRAGMA user_version = {FORMAT}")

    def declare(self, life: Life, now: float) -> None:
        """Writes down that a life has begun, or that its topic is declared in another way; recalls its ids."""
        self._touch(life)
        if not life.stored:
            self._create(life)
        else:
            was = self.connection.execute("SELECT compacted FROM lives WHERE number = ?", (life.number,)).fetchone()
            if was != (life.compacted,):
                values: list[object] = [life.compacted, life.number]
                self._execute([("UPDATE lives SET compacted = ? WHERE number = ?", values)])
                if life.compacted:
                    self._execute([(life.tables.forget_keys, [life.floor])])
        self.commit()
        if life.ids is None:
            self._load_ids(life, now - self.window)

    def replace(self, old: Life, new: Life) -> None:
        """Ends one life and begins another."""
        self._touch(new)
        self._execute([("UPDATE lives SET ended = 1 WHERE number = ?", [old.number])])
        self._create(new)
        self.commit()
        self.lives[new.topic] = new

    def _touch(self, life: Life) -> None:
        if not self._touched and self.connection.in_transaction:  # one that failed, and could not be rolled back then
            self.connection.execute("ROLLBACK")
        if life not in self._touched:
            life.begin()
            self._touched[life] = None

    def _create(self, life: Life) -> None:
        row: list[object] = [life.number, life.topic, life.epoch, life.compacted]
        create = [(statement, list[object]()) for statement in life.tables.create()]
        self._execute([*create, ("INSERT INTO lives VALUES (?, ?, ?, ?, 0, 0, 0, 0)", row)])
        life.stored = True

    def _execute(self, statements: list[tuple[str, list[object]]]) -> None:
        if statements and not self.connection.in_transaction:
            self.connection.execute("BEGIN IMMEDIATE")
        for sql, values in statements:
            self.connection.execute(sql, values)

    def _index_of(self, life: Life, id: str, since: float) -> int | None:
        found = life.fresh.get(id)
        if found is None:
            if life.ids is None:
                self._load_ids(life, since)
            assert life.ids is not None
            found = life.ids.get(id)
        return found[1] if found is not None and found[0] >= since else None

    def _load_ids(self, life: Life, since: float) -> None:
        """Those that the file knows, oldest first."""
        if not life.stored:
            life.ids = OrderedDict()
            return
        connection = self.connection
        kept = connection.execute("SELECT id, idx, time FROM ids WHERE life = ? AND time >= ?", (life.number, since))
        rows = kept.fetchall()
        first = self._first_since(life, since)
        rows += connection.execute(life.tables.recent_ids, (first, DEDUPE_IDS + 1)).fetchall()
        rows.sort(key=lambda row: row[1])
        if len(rows) > DEDUPE_IDS:
            life.forgotten = rows[-DEDUPE_IDS - 1][2]
        life.ids = OrderedDict((id, (time, index)) for id, index, time in rows[-DEDUPE_IDS:])

    def _first_since(self, life: Life, since: float) -> int:
        """The index of the first batch of a time, by halves: times grow with indexes, but for a clock that was set."""
        low, high = life.floor + 1, life.head + 1
        while low < high:
            middle = (low + high) // 2
            index, time = self.connection.execute(life.tables.first_from, (middle,)).fetchone() or (high, math.inf)
            if time >= since:
                high = middle
            else:
                low = index + 1
        return low

    def _newest(self, life: Life, key: str) -> int:
        """The index of a key's newest event, if that is retained or the key's living state; else 0."""
        if not life.stored:
            return 0
        self._touch(life)
        self._execute(life.inserts())
        if key or life.mixed:
            index = self.connection.execute(life.tables.newest_of_key, (key,)).fetchone()[0] or 0
        else:
            index = life.head
        return index if index > life.floor or life.compacted else 0

    def _note_keys(self, life: Life, entries: Entries, index: int) -> None:
        if not life.mixed:
            if not entries[0][0] and not any(key for key, _ in entries):
                return
            life.mixed = True
            if life.head > life.floor:  # up to now nothing had a key, so "" is at the head
                life.keys += ("", life.head)
        for key, _ in entries:
            life.keys += (key, index)

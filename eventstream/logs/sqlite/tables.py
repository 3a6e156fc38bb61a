"""What is in the file, and every statement that touches it.

    lives                 one row for each life of each topic: epoch, floor, whether it has ended
    events_<life>         a row for each batch: rowid = index; its events as the codec packs them
    keys_<life>           (key, index) of each event with a key: for `expect`, `key=` and compaction
    ids                   ids within the dedupe window whose batches were trimmed; all others stand with their batch

Decisions:

* Tables of their own for each life. The index is the rowid, so that a publish appends at the right edge of one tree,
  and a reader walks it without a second look-up. A life that has ended is emptied in steps and dropped.
* A batch is one row, so nothing can split it. Its bytes are those that travel over the network.
* `seq` and `total` count events and bytes since the life began. The difference of two rows says how many lie between
  them, so there are no counters that each publish would have to write, and none that could disagree with the rows.
* Rows are aggregated *in SQL* (`group_concat(hex(body))`): the interpreter's lock is given away at each row that SQLite
  steps to, and a busy event loop takes up to 5 ms to give it back. A page is one step, and so is a group of inserts.
* What is aggregated is bounded in bytes too, or large payloads would make texts longer than SQLite has (1 GB), and
  could be written but never read or trimmed. Rows are counted before that, so no query runs on to a table's end.

Numbers of lives come from the file alone, never from outside, so the texts below cannot be used to inject anything.
"""

from __future__ import annotations

from typing import Final

__all__ = ("APPLICATION_ID", "COLUMNS", "FORMAT", "SCHEMA", "Tables")

APPLICATION_ID: Final = 0x65767374  # "evst": what `file` shows of it, and how a foreign database is known
FORMAT: Final = 1  # the file's user_version; a greater one is refused
COLUMNS: Final = 7  # of events_<life>

SCHEMA: Final = (
    "CREATE TABLE lives (number INTEGER PRIMARY KEY, topic TEXT NOT NULL, epoch TEXT NOT NULL, "
    "compacted INTEGER NOT NULL, floor INTEGER NOT NULL, floor_seq INTEGER NOT NULL, floor_total INTEGER NOT NULL, "
    "ended INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX living ON lives (topic) WHERE NOT ended",
    "CREATE TABLE ids (life INTEGER NOT NULL, id TEXT NOT NULL, idx INTEGER NOT NULL, time REAL NOT NULL, "
    "PRIMARY KEY (life, id)) WITHOUT ROWID",
)


class Tables:
    """The statements for one life."""

    __slots__ = ("_inserts", "_key_inserts", "events", "keys")

    def __init__(self, number: int) -> None:
        self.events: str = f"events_{number}"
        self.keys: str = f"keys_{number}"
        self._inserts: dict[int, str] = {}
        self._key_inserts: dict[int, str] = {}

    def create(self) -> tuple[str, str]:
        """Makes both tables."""
        return (
            f"CREATE TABLE {self.events} (idx INTEGER PRIMARY KEY, seq INTEGER NOT NULL, total INTEGER NOT NULL, "
            "count INTEGER NOT NULL, time REAL NOT NULL, id TEXT, body BLOB NOT NULL)",
            f"CREATE TABLE {self.keys} (key TEXT NOT NULL, idx INTEGER NOT NULL, PRIMARY KEY (key, idx)) WITHOUT ROWID",
        )

    def drop(self) -> tuple[str, str]:
        """Removes both tables."""
        return f"DROP TABLE IF EXISTS {self.events}", f"DROP TABLE IF EXISTS {self.keys}"

    def insert(self, rows: int) -> str:
        """Adds so many batches in one step."""
        sql = self._inserts.get(rows)
        if sql is None:
            sql = self._inserts[rows] = f"INSERT INTO {self.events} VALUES {_values(rows, COLUMNS)}"
        return sql

    def insert_keys(self, rows: int) -> str:
        """Adds so many (key, index) in one step. A batch may have a key twice."""
        sql = self._key_inserts.get(rows)
        if sql is None:
            sql = self._key_inserts[rows] = f"INSERT OR IGNORE INTO {self.keys} VALUES {_values(rows, 2)}"
        return sql

    @property
    def last(self) -> str:
        """The newest batch: idx, seq, total."""
        return f"SELECT idx, seq, total FROM {self.events} ORDER BY idx DESC LIMIT 1"

    @property
    def newest_of_key(self) -> str:
        """(key) -> the index of its newest event, or None."""
        return f"SELECT max(idx) FROM {self.keys} WHERE key = ?"

    @property
    def has_keys(self) -> str:
        """Whether any event has a key."""
        return f"SELECT EXISTS (SELECT 1 FROM {self.keys})"

    @property
    def recent_ids(self) -> str:
        """(from, how many) -> id, idx, time of the newest batches that were published with an id, newest first."""
        return f"SELECT id, idx, time FROM {self.events} WHERE id NOT NULL AND idx >= ? ORDER BY idx DESC LIMIT ?"

    @property
    def first_from(self) -> str:
        """(from) -> idx, time of the first batch from there on."""
        return f"SELECT idx, time FROM {self.events} WHERE idx >= ? ORDER BY idx LIMIT 1"

    @property
    def standing(self) -> str:
        """(life, after) -> of the life: ended, floor; of the first batch after: idx, total; of the last: idx, seq."""
        return (
            "SELECT l.ended, l.floor, f.idx, f.total, n.idx, n.seq FROM lives l "
            f"LEFT JOIN (SELECT idx, total FROM {self.events} WHERE idx > ?2 ORDER BY idx LIMIT 1) f "
            f"LEFT JOIN (SELECT idx, seq FROM {self.events} ORDER BY idx DESC LIMIT 1) n WHERE l.number = ?1"
        )

    @property
    def page(self) -> str:
        """(from, total at most, rows) -> events, last idx, last seq, bodies in hex."""
        return (
            "SELECT sum(count), max(idx), max(seq), group_concat(hex(body), '') FROM (SELECT count, idx, seq, body "
            f"FROM {self.events} WHERE idx >= ?1 AND idx <= (SELECT max(idx) FROM (SELECT idx, total "
            f"FROM {self.events} WHERE idx >= ?1 ORDER BY idx LIMIT ?3) WHERE total <= ?2) ORDER BY idx)"
        )

    @property
    def page_of_key(self) -> str:
        """(key, after, rows, bytes) -> rows, whether they are all, events, last idx, last seq, bodies in hex.

        The row that passes the bound of bytes is the last one.
        """
        return (
            f"WITH near AS MATERIALIZED (SELECT k.idx AS idx, length(e.body) AS size FROM {self.keys} k "
            f"JOIN {self.events} e ON e.idx = k.idx WHERE k.key = ?1 AND k.idx > ?2 ORDER BY k.idx LIMIT ?3), "
            "page AS MATERIALIZED (SELECT idx FROM (SELECT idx, sum(size) OVER (ORDER BY idx) - size AS before "
            "FROM near) WHERE before < ?4) "
            "SELECT count(*), count(*) = (SELECT count(*) FROM near) AND count(*) < ?3, sum(count), max(idx), "
            f"max(seq), group_concat(hex(body), '') FROM (SELECT count, idx, seq, body FROM {self.events} "
            "WHERE idx IN (SELECT idx FROM page) ORDER BY idx)"
        )

    @property
    def newest(self) -> str:
        """(bytes, rows) -> rows of so many indexes at most, as a list in JSON: of each key the newest, in order.

        Of several that are together larger than the bound of bytes, one may pass it.
        """
        return (
            "SELECT '[' || group_concat(idx) || ']' FROM (SELECT idx, sum(size) OVER (ORDER BY idx) / ?1 AS part, "
            "(row_number() OVER (ORDER BY idx) - 1) / ?2 AS nth FROM (SELECT n.idx AS idx, length(e.body) AS size "
            f"FROM (SELECT DISTINCT idx FROM (SELECT max(idx) AS idx FROM {self.keys} GROUP BY key)) n "
            f"JOIN {self.events} e ON e.idx = n.idx)) GROUP BY part, nth ORDER BY part, nth"
        )

    @property
    def at(self) -> str:
        """(indexes as JSON) -> rows, events, bodies in hex, in order."""
        return (
            "SELECT count(*), sum(count), group_concat(hex(body), '') FROM (SELECT count, body "
            f"FROM {self.events} WHERE idx IN (SELECT value FROM json_each(?)) ORDER BY idx)"
        )

    @property
    def oldest_excess(self) -> str:
        """(floor, rows, total of those, seq, total, since) -> idx, seq, total of the last of the oldest that may go.

        What stands before a batch that is too old is too old itself, whatever time a clock that was set has given it.
        """
        return (
            f"WITH page AS MATERIALIZED (SELECT idx, seq, total, time FROM {self.events} WHERE idx > ?1 ORDER BY idx "
            "LIMIT ?2) SELECT idx, seq, total FROM page WHERE total <= max(?3, (SELECT min(total) FROM page)) "
            "AND (seq <= ?4 OR total <= ?5 OR idx <= (SELECT max(idx) FROM page WHERE time < ?6)) "
            "ORDER BY idx DESC LIMIT 1"
        )

    @property
    def bodies(self) -> str:
        """(floor, up to) -> events, bodies in hex."""
        return (
            "SELECT sum(count), group_concat(hex(body), '') FROM (SELECT count, body "
            f"FROM {self.events} WHERE idx > ? AND idx <= ? ORDER BY idx)"
        )

    @property
    def keep_ids(self) -> str:
        """(life, floor, up to, since): saves the ids of batches that go."""
        return (
            f"INSERT OR REPLACE INTO ids SELECT ?, id, idx, time FROM {self.events} "
            "WHERE idx > ? AND idx <= ? AND id NOT NULL AND time >= ?"
        )

    @property
    def delete(self) -> str:
        """(up to): of the batches."""
        return f"DELETE FROM {self.events} WHERE idx <= ?"

    @property
    def delete_keys(self) -> str:
        """(up to, keys as JSON)."""
        return f"DELETE FROM {self.keys} WHERE idx <= ? AND key IN (SELECT value FROM json_each(?))"

    @property
    def empty(self) -> tuple[str, str]:
        """(rows): removes some of each table."""
        some = f"DELETE FROM {self.events} WHERE idx IN (SELECT idx FROM {self.events} LIMIT ?)"
        keys = f"DELETE FROM {self.keys} WHERE (key, idx) IN (SELECT key, idx FROM {self.keys} LIMIT ?)"
        return some, keys

    # Of a compacted topic.

    @property
    def forget_keys(self) -> str:
        """(floor): of events that went while it was not compacted. What still has its event is its state."""
        return (
            f"DELETE FROM {self.keys} WHERE idx <= ? "
            f"AND NOT EXISTS (SELECT 1 FROM {self.events} e WHERE e.idx = {self.keys}.idx)"
        )

    @property
    def newest_of_keys(self) -> str:
        """(keys as JSON) -> rows of key, newest idx."""
        return f"SELECT key, max(idx) FROM {self.keys} WHERE key IN (SELECT value FROM json_each(?)) GROUP BY key"

    @property
    def indexes_of_keys(self) -> str:
        """(up to, keys as JSON) -> the indexes of these keys, as a list in JSON, or None."""
        return (
            f"SELECT '[' || group_concat(idx) || ']' FROM (SELECT DISTINCT idx FROM {self.keys} "
            "WHERE idx <= ? AND key IN (SELECT value FROM json_each(?)))"
        )

    @property
    def delete_key(self) -> str:
        """(key, up to)."""
        return f"DELETE FROM {self.keys} WHERE key = ? AND idx <= ?"

    @property
    def several_at(self) -> str:
        """(indexes as JSON) -> rows of count, body: of the batches with several events."""
        return f"SELECT count, body FROM {self.events} WHERE idx IN (SELECT value FROM json_each(?)) AND count > 1"

    @property
    def delete_at(self) -> str:
        """(indexes as JSON)."""
        return f"DELETE FROM {self.events} WHERE idx IN (SELECT value FROM json_each(?))"

    @property
    def indexes(self) -> str:
        """(floor, up to) -> the indexes of the batches, as a list in JSON, or None."""
        return f"SELECT '[' || group_concat(idx) || ']' FROM {self.events} WHERE idx > ? AND idx <= ?"


def _values(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)

"""One life of a topic's history, as the writer knows it. Changed by who holds the writer's lock.

What the file says is read once, when the log is opened; from then on this is the truth about the end of the history,
and the file follows. A transaction that fails is taken back by `undo`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .tables import COLUMNS, Tables

__all__ = ("DEDUPE_IDS", "Life")

DEDUPE_IDS: Final = 65_536  # per topic; about 10 MB of ids at the worst
MOST_ROWS: Final = 256  # in one statement: 1,792 parameters of the 32,766 that SQLite takes


class Life:
    """The end of a history, and what was added to it in the present transaction.

    Attributes:
        number: Names its tables.
        epoch: Names it to readers.
        compacted: Whether its newest event of each key is kept for ever.
        stored: Whether it stands in the file.
        head, seq, total: Of the newest batch: its index, and the events and bytes up to it.
        floor, floor_seq, floor_total: The same of the newest batch that was trimmed.
        mixed: Whether there are events with a key: those without stand in the table of keys only then.
        ids: The index and time of each id within the window, oldest first; None until first needed.
        forgotten: When the newest id came that is not known any more for want of room.
        fresh: The ids of the present transaction.
        rows, keys: What is to be inserted, flat.
    """

    __slots__ = (
        "_before", "compacted", "epoch", "floor", "floor_seq", "floor_total", "forgotten", "fresh", "head",
        "ids", "keys", "mixed", "number", "rows", "seq", "stored", "tables", "topic", "total",
    )  # fmt: skip

    def __init__(self, number: int, topic: str, epoch: str, compacted: bool, *, stored: bool) -> None:
        self.number: int = number
        self.topic: str = topic
        self.epoch: str = epoch
        self.compacted: bool = compacted
        self.stored: bool = stored
        self.tables: Tables = Tables(number)
        self.head: int = 0
        self.seq: int = 0
        self.total: int = 0
        self.floor: int = 0
        self.floor_seq: int = 0
        self.floor_total: int = 0
        self.mixed: bool = False
        self.ids: OrderedDict[str, tuple[float, int]] | None = None
        self.forgotten: float = -math.inf
        self.fresh: dict[str, tuple[float, int]] = {}
        self.rows: list[object] = []
        self.keys: list[object] = []
        self._before: tuple[int, int, int, bool, bool] = (0, 0, 0, False, stored)

    @property
    def known(self) -> bool:
        """Whether all that a publish has to know of it was read."""
        return self.stored and self.ids is not None

    @property
    def retained(self) -> int:
        """How many events can be resumed through."""
        return self.seq - self.floor_seq

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return self.total - self.floor_total

    def begin(self) -> None:
        """A transaction begins."""
        self._before = (self.head, self.seq, self.total, self.mixed, self.stored)

    def undo(self) -> None:
        """It failed."""
        self.head, self.seq, self.total, self.mixed, self.stored = self._before
        self.fresh.clear()
        self.rows.clear()
        self.keys.clear()

    def adopt(self) -> None:
        """It is in the file."""
        if self.fresh:
            assert self.ids is not None, "ids are looked up before they are given"
            for id, found in self.fresh.items():
                self.ids.pop(id, None)
                self.ids[id] = found
            self.fresh.clear()
            while len(self.ids) > DEDUPE_IDS:
                _, (self.forgotten, _) = self.ids.popitem(last=False)

    def add(self, index: int, time: float, id: str | None, count: int, body: bytes) -> None:
        """Takes a batch in, to be inserted."""
        self.head = index
        self.seq += count
        self.total += len(body)
        self.rows += (index, self.seq, self.total, count, time, id, body)

    def inserts(self) -> list[tuple[str, list[object]]]:
        """The statements that insert what was added, and forgets it."""
        if len(self.rows) == COLUMNS:  # one, which is usual: nothing to be cut
            statements = [(self.tables.insert(1), self.rows)]
        else:
            statements = _cut(self.rows, COLUMNS, self.tables.insert)
        if self.keys:
            statements += _cut(self.keys, 2, self.tables.insert_keys)
            self.keys = []
        self.rows = []
        return statements


def _cut(values: list[object], columns: int, statement: Callable[[int], str]) -> list[tuple[str, list[object]]]:
    """Statements of 256, 128, … 1 rows: so there are few texts for any number, and each is prepared once."""
    statements = []
    rows, start = len(values) // columns, 0
    while rows:
        count = min(MOST_ROWS, 1 << (rows.bit_length() - 1))
        stop = start + count * columns
        statements.append((statement(count), values[start:stop]))
        rows -= count
        start = stop
    return statements

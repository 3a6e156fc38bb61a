"""Connections that fail when they are told to, and programs that publish until they are killed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from eventstream.logs.sqlite.file import connect

CODES = {"full": sqlite3.SQLITE_FULL, "write": sqlite3.SQLITE_IOERR_WRITE, "fsync": sqlite3.SQLITE_IOERR_FSYNC}


class Failing:
    """Stands before a connection; raises in place of what it is told to fail.

    Args:
        connection: The true one.
        fails: Asked for each statement; returns the kind of failure, or None. `late` kinds happen after the statement:
            a COMMIT that is in the file, though SQLite said that it is not.
    """

    def __init__(self, connection: sqlite3.Connection, fails: Callable[[str], str | None]) -> None:
        self._connection = connection
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        kind = self._fails(sql)
        if kind is None:
            return self._connection.execute(sql, values)
        if kind.startswith("late "):
            self._connection.execute(sql, values)
        raise failure(kind.removeprefix("late "))


def failure(kind: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError({"full": "database or disk is full"}.get(kind, "disk I/O error"))
    error.sqlite_errorcode = CODES[kind]
    error.sqlite_errorname = f"SQLITE_{kind.upper()}"
    return error


def failing(fails: Callable[[str], str | None]) -> Callable[[str], Any]:
    return lambda path: Failing(connect(path), fails)

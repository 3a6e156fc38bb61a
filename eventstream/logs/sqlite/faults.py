"""What SQLite says went wrong, as errors of ours. Pure."""

from __future__ import annotations

import sqlite3
from typing import Final

from ...errors import LogError, LogFailed, LogFull, LogRefused

__all__ = ("fault",)

FULL: Final = sqlite3.SQLITE_FULL
DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
NO_SPACE: Final = ("disk is full", "No space left")


def fault(path: str, error: sqlite3.Error | OSError) -> LogError:
    """The error to raise, with the first one as its cause."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    made: LogError
    if primary == FULL or any(text in str(error) for text in NO_SPACE):
        made = LogFull(path)
    elif primary in DAMAGED:
        made = LogRefused(path, "damaged", f"SQLite says: {error}")
    else:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        made = LogFailed(path, f"{name}: {error}")
    made.__cause__ = error
    return made

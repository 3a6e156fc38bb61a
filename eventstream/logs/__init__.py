"""Where a topic's events are committed. `log` is what a bus asks for; `memory` is the default, `sqlite` a file."""

from .log import Entries, Log, NowaitLog, Pending, PipelinedLog, Terms
from .memory import MemoryLog
from .sqlite import Retention, SQLiteLog

__all__ = ("Entries", "Log", "MemoryLog", "NowaitLog", "Pending", "PipelinedLog", "Retention", "SQLiteLog", "Terms")

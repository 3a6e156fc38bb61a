"""Where a topic's events are committed. `log` is what a bus asks for; `memory` is the default."""

from .log import Entries, Log, NowaitLog, Terms
from .memory import MemoryLog

__all__ = ("Entries", "Log", "MemoryLog", "NowaitLog", "Terms")

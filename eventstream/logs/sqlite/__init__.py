"""The log in a file: SQLite, one owner, many publishers that share each fsync.

Reading order: `tables` (what is in the file), `life` (one life of a topic, as the writer knows it), `retention` (what
may go, decided), `store` (writes), `trimming` (removes), `pages` (reads), `file` (opens and refuses), `owner` (the
lock), `inplace` (when the loop may write, decided), `writer` (the thread), `log` (what a bus is given).
"""

from .log import SQLiteLog
from .retention import Retention

__all__ = ("Retention", "SQLiteLog")

"""The outbox: publishes are kept on disk until a bus has accepted them.

Reading order: `entry` and `options` (what its user sees and sets), `bus` (what is asked of a bus), `outcome` (what
becomes of an entry, pure), `lanes` (which entry may go next, pure), `pace` (how fast, pure), `file` (the SQLite file),
`writer` (the thread that alone touches it), `known` (its topics), `flights` and `drain` (send), `keeping` (the way in),
`waiting` (who waits), `outbox` (the face of it all).
"""

from .bus import Bus, Reachable
from .entry import Content, Entry, EntryState, OnChange, OutboxStatistics
from .options import OutboxLimits, Sending
from .outbox import Outbox

__all__ = (
    "Bus",
    "Content",
    "Entry",
    "EntryState",
    "OnChange",
    "Outbox",
    "OutboxLimits",
    "OutboxStatistics",
    "Reachable",
    "Sending",
)

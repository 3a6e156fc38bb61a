"""Snapshots: the state of a topic at an index, spliced to the live events after it.

Reading order: `splice` (where a reader starts, as pure decisions), `chain` (a snapshot), `build` (runs a source),
`compaction` (a topic that is its own source), `rereading` (history that only the log has), `cache`, `opening` (acts on
the decisions), `mirror`, `changes` and `view` (the state as a mapping), `mirrors` (which equal views share).
"""

from .build import Append, Build, Source
from .cache import CacheStatistics, SnapshotCache
from .mirror import Mirror, ViewStatistics
from .mirrors import Mirrors
from .opening import SnapshotOptions, TopicOpening
from .view import View

__all__ = (
    "Append",
    "Build",
    "CacheStatistics",
    "Mirror",
    "Mirrors",
    "SnapshotCache",
    "SnapshotOptions",
    "Source",
    "TopicOpening",
    "View",
    "ViewStatistics",
)

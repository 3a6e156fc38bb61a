"""What `subscription.frames()` yields beside events: where a reader stands, and when it must forget what it knows."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar

import msgspec

from .event import Event
from .position import Position

__all__ = ("Bookmark", "Frame", "ResetReason", "Resumed", "SnapshotEnd", "SnapshotStart")

T = TypeVar("T")

ResetReason: TypeAlias = Literal["new", "expired", "epoch", "lagged", "refreshed"]


class Resumed(msgspec.Struct, frozen=True, gc=False):
    """The first frame of a reader that goes on, or starts live: every event after `position` follows."""

    position: Position


class SnapshotStart(msgspec.Struct, frozen=True, gc=False):
    """Forget what you know: the events up to `SnapshotEnd` are the whole state.

    Attributes:
        position: The reader's position until `SnapshotEnd`; to resume from it starts a snapshot again.
        reason: `new` (no position was given), `expired` (the position's successors are no longer retained), `epoch`
            (the position is not of this history), `lagged` (the reader fell behind its bound), `refreshed` (the
            application's state was replaced).
    """

    position: Position
    reason: ResetReason


class SnapshotEnd(msgspec.Struct, frozen=True, gc=False):
    """The state is complete; live events follow, all with an index above `position`'s."""

    position: Position


class Bookmark(msgspec.Struct, frozen=True, gc=False):
    """Nothing for this reader up to `position`: one that gets only some of the events can resume from here."""

    position: Position


Frame: TypeAlias = Event[T] | Resumed | SnapshotStart | SnapshotEnd | Bookmark

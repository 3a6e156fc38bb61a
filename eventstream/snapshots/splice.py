"""Where a reader starts, and where a snapshot leads to: all of subscribe's cases as pure decisions.

A position can be resumed from if it is of this epoch and nothing after it was trimmed: floor <= index <= head. An
index above the head is never "caught up": this history has not given it out. Everything else starts from a
snapshot, or, where the topic has none, is lost.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TypeAlias

import msgspec

from ..events import EARLIEST, Earliest, Position, ResetReason
from ..topics import Place
from ..topics.buffer import INDEX

__all__ = ("Extent", "FromSnapshot", "Lost", "Reread", "Resume", "Start", "plan", "seek")


class Extent(msgspec.Struct, frozen=True):
    """What of a topic's history can be resumed from: after `floor` up to `head`.

    `horizon` is the greatest index that a snapshot spoke for: at least `head`. What follows `recent` is in memory; what
    lies between `floor` and `recent`, in the log.
    """

    epoch: str
    floor: int
    head: int
    horizon: int
    recent: int = 0


class Resume(msgspec.Struct, frozen=True):
    """Go on after an index."""

    index: int


class Reread(msgspec.Struct, frozen=True):
    """Go on after an index that only the log can go on from."""

    index: int


class FromSnapshot(msgspec.Struct, frozen=True):
    """Start from a snapshot, because of `reason`."""

    reason: ResetReason


class Lost(msgspec.Struct, frozen=True):
    """The position cannot be resumed, and there is nothing to start from."""

    position: Position


Start: TypeAlias = Resume | Reread | FromSnapshot | Lost


def plan(after: Position | Earliest | None, extent: Extent, *, has_snapshot: bool) -> Start:
    """Decides how a subscription starts."""
    if after is None:
        return FromSnapshot("new") if has_snapshot else Resume(extent.head)
    if after is EARLIEST:
        return _go_on(extent.floor, extent)
    if after.epoch != extent.epoch or after.index > extent.horizon:
        return FromSnapshot("epoch") if has_snapshot else Lost(after)
    # Index 0 is where a reader stands that has not had the end of its snapshot: it starts that again, even where the
    # history would reach back to its beginning, for a source's state may be older than the history.
    if after.index < extent.floor or (after.index == 0 and has_snapshot):
        return FromSnapshot("expired") if has_snapshot else Lost(after)
    return _go_on(after.index, extent)


def _go_on(index: int, extent: Extent) -> Start:
    return Resume(index) if index >= extent.recent else Reread(index)


def seek(place: Place, index: int) -> Place:
    """The place at or behind `place` where the first event with a greater index stands, or will stand."""
    segment, offset = place
    while segment.next is not None and (not segment.items or segment.items[-1].index <= index):
        offset = segment.next_offset
        segment = segment.next
    return segment, max(offset, bisect_right(segment.items, index, key=INDEX))

"""What the outbox tells of an entry, and of itself. Immutable; `lanes` has the working copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = ("STATES", "Content", "Entry", "EntryState", "OnChange", "OutboxStatistics")

EntryState: TypeAlias = Literal["pending", "held", "conflict", "unknown", "dead", "accepted", "discarded"]
"""`pending`: its turn, its answer or its next attempt is to come. `held`: the bus does not let us, yet. `conflict`:
`expect` failed. `unknown`: whether it was accepted cannot be found out any more. `dead`: refused for ever, or too old.
`accepted` and `discarded` entries are no longer in the file: only callbacks see them."""

STATES: tuple[EntryState, ...] = (
    "pending",
    "held",
    "conflict",
    "unknown",
    "dead",
)  # that an entry in the file can have


class Entry(msgspec.Struct, frozen=True):
    """One publish that the outbox has.

    Attributes:
        id: Names the publish, here and on the bus.
        topic: The topic's name.
        key: The event's key.
        state: Where it stands.
        reason: Why, if the bus or the file said so; else "".
        attempts: How often the bus refused it, or did not answer.
        queued: When it was published here, in POSIX seconds.
        size: Bytes that it counts for the quota.
        expect: The index that its key's newest event must have; None if it does not matter.
    """

    id: str
    topic: str
    key: str
    state: EntryState
    reason: str
    attempts: int
    queued: float
    size: int
    expect: int | None


class Content(msgspec.Struct, frozen=True):
    """What an entry would publish.

    Attributes:
        payload: Of the topic's type if the topic was declared to this outbox, else plain objects; None for a tombstone.
        headers: As they were given.
    """

    payload: Any
    headers: Mapping[str, str]


class OutboxStatistics(msgspec.Struct, frozen=True):
    """An outbox at one moment.

    Attributes:
        pending, held, conflict, unknown, dead: Entries in each state.
        bytes: Of all entries together, as the quota counts them.
        in_flight: Entries that were given to the bus and have no answer yet; a part of `pending` and `held`.
        accepted: Since this outbox was opened.
        paused: Seconds until the bus is tried again; 0.0 if it is not left alone.
        trouble: Why it is left alone, or why nothing can be written; "" if all is well.
    """

    pending: int
    held: int
    conflict: int
    unknown: int
    dead: int
    bytes: int
    in_flight: int
    accepted: int
    paused: float
    trouble: str

    @property
    def entries(self) -> int:
        """All that are in the file."""
        return self.pending + self.held + self.conflict + self.unknown + self.dead


OnChange: TypeAlias = Callable[[Entry], object]
"""Told of each entry whose state, reason or number of attempts has changed, after the change is on disk."""

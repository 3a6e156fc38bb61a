"""What can be set about an outbox, each number with its reason."""

from __future__ import annotations

from math import inf

import msgspec

from ..pipes import Retry

__all__ = ("OutboxLimits", "Sending")

MIB = 1024 * 1024


class OutboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much an outbox keeps. What would be more is refused (`OutboxFull`); nothing kept is given up for it.

    Args:
        entries: How many, in all states together. Each takes some 700 bytes of memory.
        bytes: Of payloads, keys, ids and headers, and 320 for each entry.
        age: Seconds after which an entry that still waits becomes dead with the reason "expired"; None: never. Looked
            at once a minute, and by the wall clock: a clock that is set forward makes entries old.
    """

    entries: int = 100_000
    bytes: int = 256 * MIB
    age: float | None = None

    def __post_init__(self) -> None:
        if self.entries < 1 or self.bytes < 1:
            raise ValueError(f"entries and bytes must be at least 1, not {self.entries} and {self.bytes}")
        if self.age is not None and not 0 < self.age < inf:
            raise ValueError(f"age is a time in seconds or None, not {self.age}")


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """How an outbox sends.

    Args:
        in_flight: How many entries may be under way at once. More hide a longer way to the bus; all of them are in
            doubt if the way is lost for longer than `dedupe_seconds`.
        per_key: How many of one key. 1 keeps their order whatever happens. More are faster on a long way with few keys;
            they keep the order only with a bus that commits in the order of the calls, and only as long as it does not
            refuse one and accept the next (a full disk, changed rights).
        retry: The waits between attempts.
        dedupe_seconds: For how long the bus's log remembers ids: an attempt that has no answer is repeated only within
            this time after the first. Give the log a longer memory than your outages, and say it here.
        repeat_unknown: Whether an entry whose outcome cannot be found out is sent again, and may be there twice. Else
            it waits for a person, in state `unknown`.
    """

    in_flight: int = 256
    per_key: int = 1
    retry: Retry = Retry(first=0.5, cap=60.0)
    dedupe_seconds: float = 120.0
    repeat_unknown: bool = False

    def __post_init__(self) -> None:
        if self.in_flight < 1 or self.per_key < 1:
            raise ValueError(f"in_flight and per_key must be at least 1, not {self.in_flight} and {self.per_key}")
        if not 0 < self.dedupe_seconds < inf:
            raise ValueError(f"dedupe_seconds must be a time in seconds, not {self.dedupe_seconds}")

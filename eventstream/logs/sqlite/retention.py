"""How much of a topic's history a file keeps. Pure."""

from __future__ import annotations

import msgspec

__all__ = ("DEFAULT", "Retention")


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What may be removed from a topic: the oldest events, as soon as any of the bounds is passed.

    The newest event of each living key of a compacted topic stays for ever, and counts for none of the bounds. Bounds
    are held a little late, since events go in steps of some hundred: fewer than asked for are never kept.

    Args:
        events: How many are kept; None for any number.
        seconds: How old they become; None, the default, for any age.
        bytes: How much they take, encoded; None for any size.

    Raises:
        ValueError: if a bound is no number above 0.
    """

    events: int | None = 1_000_000
    seconds: float | None = None
    bytes: int | None = 1 << 30

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
                raise ValueError(f"{name} must be a number above 0, or None for no bound, not {value!r}")

    def limits(self, seq: int, total: int, now: float) -> tuple[int, int, float]:
        """What the newest batch that may go can have at most of `seq` and `total`, and the time it must be before."""
        return (
            -1 if self.events is None else seq - self.events,
            -1 if self.bytes is None else total - self.bytes,
            float("-inf") if self.seconds is None else now - self.seconds,
        )

    def excess(self, events: int, size: int) -> int:
        """By about how many events a history is too long."""
        over = 0 if self.events is None else events - self.events
        if self.bytes is not None and size > self.bytes:
            over = max(over, (size - self.bytes) * events // size)
        return over


DEFAULT: Retention = Retention()  # a million events, or a gibibyte: what a small disk can hold for some dozen topics

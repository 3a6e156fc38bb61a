"""What all errors have in common, and how they show a value that is wrong."""

from __future__ import annotations

from typing import Protocol

__all__ = ("EventStreamError", "PositionLike", "shown")

SHOWN = 80  # characters of an offending value that an error shows: enough to recognise it, too few to leak it all


class PositionLike(Protocol):
    """What an error tells of a position. (`Position` itself stands on the floor above this one.)"""

    @property
    def epoch(self) -> str:
        """The life of the history that it belongs to."""
        ...

    @property
    def index(self) -> int:
        """Its place there."""
        ...


def shown(value: object) -> str:
    """The start of `repr(value)`, so that an error never carries megabytes."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


class EventStreamError(Exception):
    """The root: catch it to catch everything that eventstream itself raises."""

    temporary: bool = False

"""A place in a topic's history that a reader can save, and come back to.

An index alone is not enough: after a restart the same number may mean another event. So a position names the *epoch*
too, one life of the history, and the two are compared and adopted together or not at all.
"""

from __future__ import annotations

import enum
import re
from typing import Final

import msgspec

from ..errors import InvalidPosition

__all__ = ("EARLIEST", "MAX_INDEX", "Earliest", "Position")

MAX_INDEX: Final = 2**63 - 1  # what SQLite, JetStream's clients and every wire format can hold
_TOKEN = re.compile(r"([A-Za-z0-9_-]{1,64})\.(0|[1-9][0-9]{0,18})", re.ASCII)


class Position(msgspec.Struct, frozen=True, gc=False):
    """(epoch, index): everything up to and including `index` has been seen.

    Attributes:
        epoch: The life of the topic's history that the index belongs to.
        index: 0 (nothing seen yet), or the index of an event, or one between those of two events; the first is 1.

    `str(position)` is one opaque token of letters, digits, `-`, `_` and `.`, at most 84 characters: it fits a
    `Last-Event-ID` header, a file name, a query string. `Position.parse` reads it back.
    """

    epoch: str
    index: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Reads the token that `str(position)` gave.

        Raises:
            InvalidPosition: if `text` is anything else.
        """
        match = _TOKEN.fullmatch(text) if type(text) is str else None
        if match is None or (index := int(match[2])) > MAX_INDEX:
            raise InvalidPosition(text)
        return cls(match[1], index)


class Earliest(enum.Enum):
    """The type of `EARLIEST`."""

    EARLIEST = "earliest"

    def __repr__(self) -> str:
        return "EARLIEST"


EARLIEST: Final = Earliest.EARLIEST
"""`after=EARLIEST`: start with the oldest event that is retained."""

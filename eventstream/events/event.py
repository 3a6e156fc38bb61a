"""What travels: one change of one key, the same object for all its readers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Generic, TypeVar

import msgspec

__all__ = ("NO_HEADERS", "Event")

T = TypeVar("T")

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


# gc=False: the interpreter's collector need not track an object per event, which would cost more than all the rest of
# a publish. An event is a leaf: nothing that it holds leads back to it (see topics/buffer.py for what is linked).
class Event(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One change, as it was committed. Shared by every reader: treat the payload as immutable.

    Attributes:
        topic: The topic's name.
        key: What the change is about; "" in a topic without keys.
        index: Its place in the topic's history, from 1. The events of one batch share an index. In a snapshot, the
            index of the change that made this state, or 0 where the source did not say.
        payload: What was published; None in a compacted topic is a tombstone: the key is gone.
        time: When it was appended, in POSIX seconds.
        headers: Texts that travel along, at most 8 KiB of them; empty by default.
    """

    topic: str
    key: str
    index: int
    payload: T
    time: float
    headers: Mapping[str, str] = NO_HEADERS

    @property
    def tombstone(self) -> bool:
        """Whether the key is gone: the payload is None, whatever the topic's type says."""
        return self.payload is None

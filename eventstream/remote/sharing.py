"""The bytes of a topic's events, made once for all connections that they go to.

A thousand subscribers of one topic get the same event objects, mostly in the same lists. So what is encoded is kept for
a while, by the identity of the objects: a list as a whole if another reader with the same filter took the same one,
each event in any case. What is kept refers to its events, so that an identity cannot come to mean another event.

Bounded in bytes for all topics of a server together. Rejected: a field for the bytes in `Event` (every
event of every bus would pay for it).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from ..codec import TopicCodec, join_events
from ..events import Event

__all__ = ("EVENTS", "LISTS", "Filter", "Kept", "SharedEvents")

Filter: TypeAlias = tuple[str | None, str | None]
EVENTS: Final = 4 * 1024 * 1024  # bytes of single events, for readers that are not at the same place: the newest ones
LISTS: Final = 16 * 1024 * 1024  # bytes of lists: snapshots that many join at once


class Kept:
    """Bytes of events or of lists of them, by the identity of the events; what was not asked for lately goes first.

    Two generations: when the young one is full it becomes the old one, and what was old is dropped as a whole. What is
    found in the old one is young again. (Rejected: letting go of the oldest entries singly. It costs as much as
    encoding does, since a dict finds its first entry by passing over all that were deleted before it.)

    Args:
        budget: Bytes that are kept at most, but for one entry.
    """

    __slots__ = ("_most", "_old", "_size", "_young")

    def __init__(self, budget: int) -> None:
        self._most = budget // 2  # of a generation
        self._young: dict[object, tuple[object, bytes]] = {}
        self._old: dict[object, tuple[object, bytes]] = {}
        self._size = 0  # of the young ones

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def get(self, name: object) -> bytes | None:
        """The bytes, if they are kept."""
        entry = self._young.get(name)
        if entry is None:
            entry = self._old.get(name)
            if entry is None:
                return None
            self.put(name, *entry)
        return entry[1]

    def has_any(self, names: Iterable[object]) -> bool:
        """Whether the bytes of any of them are kept: what is new is best encoded in one go."""
        wanted = frozenset(names)
        return not (self._young.keys().isdisjoint(wanted) and self._old.keys().isdisjoint(wanted))

    def put(self, name: object, keeps: object, data: bytes) -> None:
        """Keeps bytes, and the objects by whose identity they are named."""
        self._young[name] = (keeps, data)
        self._grow(len(data))

    def put_each(self, events: list[Event[Any]], encoded: list[bytes]) -> None:
        """Keeps the bytes of each event, by its identity."""
        self._young.update(zip(map(id, events), zip(events, encoded, strict=True), strict=True))
        self._grow(sum(map(len, encoded)))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            self._old, self._young, self._size = self._young, {}, 0


class SharedEvents:
    """What one topic's events are on the wire. Used by all connections of a server, in its event loop.

    Args:
        codec: Of the topic.
        events: Where the bytes of single events are kept.
        lists: Where those of lists are kept.

    Attributes:
        encoded: Events that were encoded so far: as many as were sent, however many got them.
    """

    def __init__(self, codec: TopicCodec[Any], events: Kept, lists: Kept) -> None:
        self.encoded: int = 0
        self._codec = codec
        self._events = events
        self._lists = lists

    def body(self, events: list[Event[Any]], selected_by: Filter) -> bytes:
        """A list of events. Between its first and its last one there are all that `selected_by` lets through.

        Raises:
            InvalidPayload: if one of them cannot be encoded.
        """
        first, last = events[0], events[-1]
        if first is last:
            return join_events([self._one(first)])
        name = (id(first), id(last), len(events), selected_by)
        body = self._lists.get(name)
        if body is None:
            body = join_events(self._each(events))
            self._lists.put(name, (first, last), body)
        return body

    def _each(self, events: list[Event[Any]]) -> list[bytes]:
        if self._events.has_any(map(id, events)):
            return [self._one(event) for event in events]
        encoded = self._codec.encode_each(events)
        self.encoded += len(events)
        self._events.put_each(events, encoded)
        return encoded

    def _one(self, event: Event[Any]) -> bytes:
        data = self._events.get(id(event))
        if data is None:
            data = self._codec.encode_event(event)
            self.encoded += 1
            self._events.put(id(event), event, data)
        return data

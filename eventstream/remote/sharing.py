"""The bytes of a topic's events, made once for all connections that they go to.

A thousand subscribers of one topic get the same event objects, mostly in the same lists. So what is encoded is kept for
a while, by the identity of the objects: a list as a whole if another reader with the same filter took the same one,
each event in any case. What is kept refers to its events, so that an identity cannot come to mean another event.

Bounded in bytes for all topics of a server together, oldest first. Rejected: a field for the bytes in `Event` (every
event of every bus would pay for it).
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from ..codec import TopicCodec, join_events
from ..events import Event

__all__ = ("Filter", "Kept", "SharedEvents")

Filter: TypeAlias = tuple[str | None, str | None]
BUDGET: Final = 16 * 1024 * 1024  # bytes of each kind: a hundred thousand small events


class Kept:
    """Bytes of events or of lists of them, by the identity of the events; oldest first out.

    Args:
        budget: Bytes that are kept at most; one entry is kept in any case.
    """

    __slots__ = ("_budget", "_entries", "_size")

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._entries: dict[object, tuple[object, bytes]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: object) -> bytes | None:
        """The bytes, if they are kept."""
        entry = self._entries.get(name)
        return None if entry is None else entry[1]

    def put(self, name: object, keeps: object, data: bytes) -> None:
        """Keeps bytes, and the objects by whose identity they are named."""
        self._entries[name] = (keeps, data)
        self._size += len(data)
        while self._size > self._budget and len(self._entries) > 1:
            _, old = self._entries.pop(next(iter(self._entries)))
            self._size -= len(old)


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
            body = join_events([self._one(event) for event in events])
            self._lists.put(name, (first, last), body)
        return body

    def _one(self, event: Event[Any]) -> bytes:
        data = self._events.get(id(event))
        if data is None:
            data = self._codec.encode_event(event)
            self.encoded += 1
            self._events.put(id(event), event, data)
        return data

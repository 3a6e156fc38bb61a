"""The bytes of a topic's events, made once for all connections that they go to.

A thousand subscribers of one topic get the same event objects, mostly in the same lists. So what is encoded is kept for
a while, by the identity of the objects: a list as a whole if another reader with the same filter took the same one,
each event in any case. A list is encoded at once, and taken apart only when a reader comes who stands elsewhere. What
is kept refers to its events, so that an identity cannot come to mean another event.

Bounded in bytes for all topics of a server together. Rejected: a field for the bytes in `Event` (every
event of every bus would pay for it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from ..codec import TopicCodec, join_events, split_events
from ..events import Event

__all__ = ("EVENTS", "LISTS", "Filter", "Kept", "SharedEvents")

Filter: TypeAlias = tuple[str | None, str | None]
EVENTS: Final = 4 * 1024 * 1024  # bytes of single events, for readers that are not at the same place: the newest ones
ONE: Final = b"\x91"  # before the bytes of the only event of a list: what `join_events` puts there
LISTS: Final = 16 * 1024 * 1024  # bytes of lists: snapshots that many join at once


class _Together(NamedTuple):
    """Events that were encoded as a list: nobody has asked for one of them alone yet."""

    names: Sequence[object]
    body: bytes


class Kept:
    """Bytes of events or of lists of them, by the identity of the events; what was not asked for lately goes first.

    Two generations: when the young one is full it becomes the old one, and what was old is dropped as a whole. What is
    found in the old one is young again. (Rejected: letting go of the oldest entries singly. It costs as much as
    encoding does, since a dict finds its first entry by passing over all that were deleted before it.)

    Args:
        budget: Bytes that are kept at most, but for one entry.
    """

    __slots__ = ("_keeps", "_most", "_old", "_old_keeps", "_size", "_young")

    def __init__(self, budget: int) -> None:
        self._most = budget // 2  # of a generation
        self._young: dict[object, bytes | _Together] = {}
        self._old: dict[object, bytes | _Together] = {}
        # Invariant: each holds the objects by whose identity the entries of its generation are named.
        self._keeps: list[object] = []
        self._old_keeps: list[object] = []
        self._size = 0  # of the young ones

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def get(self, name: object, *keeps: object) -> bytes | None:
        """The bytes, if they are kept; `name` stands for the identity of `keeps`."""
        data = self._young.get(name)
        if isinstance(data, _Together):
            data = _take_apart(self._young, name, data)
        elif data is None and (data := self._old.get(name)) is not None:
            if isinstance(data, _Together):
                data = _take_apart(self._old, name, data)
            self.put(name, data, *keeps)
        return data

    def has_any(self, names: Sequence[object]) -> bool:
        """Whether the bytes of any of them are kept: what is new is best encoded in one go."""
        return not (self._young.keys().isdisjoint(names) and self._old.keys().isdisjoint(names))

    def put(self, name: object, data: bytes, *keeps: object) -> None:
        """Keeps bytes, and the objects by whose identity they are named."""
        self._young[name] = data
        self._keeps += keeps
        self._grow(len(data))

    def put_list(self, names: Sequence[object], body: bytes, keeps: list[Any]) -> None:
        """Keeps a list of events, to be asked for one by one."""
        self._young.update(dict.fromkeys(names, _Together(names, body)))
        self._keeps += keeps
        self._grow(len(body))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            self._old, self._young, self._size = self._young, {}, 0
            self._old_keeps, self._keeps = self._keeps, []


def _take_apart(kept: dict[object, bytes | _Together], name: object, together: _Together) -> bytes:
    each = dict(zip(together.names, split_events(together.body), strict=True))
    kept.update(each)
    return each[name]


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
            return ONE + self._one(first)
        name = (id(first), id(last), len(events), selected_by)
        body = self._lists.get(name, first, last)
        if body is None:
            body = self._list(events)
            self._lists.put(name, body, first, last)
        return body

    def _list(self, events: list[Event[Any]]) -> bytes:
        names = list(map(id, events))
        if self._events.has_any(names):
            return join_events([self._one(event) for event in events])
        body = self._codec.encode_events(events)
        self.encoded += len(events)
        self._events.put_list(names, body, events)
        return body

    def _one(self, event: Event[Any]) -> bytes:
        data = self._events.get(id(event), event)
        if data is None:
            data = self._codec.encode_event(event)
            self.encoded += 1
            self._events.put(id(event), data, event)
        return data

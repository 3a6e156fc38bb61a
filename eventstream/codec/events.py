"""Payloads and events as bytes, by msgspec: the border that whatever leaves or enters the process crosses.

An event is a MessagePack array [key, index, time, payload] or, if it has headers, [key, index, time, payload, headers].
The topic is not in it: who reads a stream of events knows of which topic they are. A tombstone's payload is nil.
The bytes of a list are those of its events, joined, so that each one's can be shared by all who get it; a whole list is
encoded and decoded at once.

Pure: no I/O, no clock. Rejected: a schema in each message (both ends have the `Topic`); JSON (twice the bytes, three
times the time, and no `bytes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from ..errors import InvalidPayload
from ..events import NO_HEADERS, Event, Topic

__all__ = (
    "NIL",
    "Keyed",
    "TopicCodec",
    "join_events",
    "keys_of",
    "list_of",
    "pack_event",
    "pack_headers",
    "parts_of",
    "split_events",
)

T = TypeVar("T")

_encoder: Final = msgspec.msgpack.Encoder()
NIL: Final = b"\xc0"  # None in MessagePack


class Keyed(msgspec.Struct, frozen=True, gc=False):
    """The payload of a topic whose type this process does not know: its key, and the bytes as they came.

    A server that only passes events on, and a log, declare their topics with this type and `key="key"`.
    """

    key: str
    body: msgspec.Raw


class _Wire(msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False):
    key: str
    index: int
    time: float
    payload: T | None
    headers: dict[str, str] | None = None


class _RawWire(msgspec.Struct, array_like=True, frozen=True, gc=False):
    key: str
    index: int
    time: float
    payload: msgspec.Raw
    headers: dict[str, str] | None = None


def join_events(encoded: list[bytes]) -> bytes:
    """A list of events, from the bytes of each."""
    return list_of(len(encoded), b"".join(encoded))


def list_of(count: int, joined: bytes) -> bytes:
    """A list of so many events, from the bytes of all of them, one after the other."""
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 65_536:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + joined


def pack_headers(topic: str, headers: Mapping[str, str]) -> bytes | None:
    """Headers as MessagePack; None if there are none.

    Raises:
        InvalidPayload: if a value is not valid Unicode.
    """
    if not headers:
        return None
    try:
        return _encoder.encode(dict(headers))
    except ValueError as error:
        raise InvalidPayload(topic, f"headers: {error}") from error


def pack_event(key: str, index: int, time: float, payload: bytes, headers: bytes | None) -> bytes:
    """One event, of parts that were encoded before: the bytes that `TopicCodec.encode_event` gives."""
    if headers is not None:
        return _encoder.encode((key, index, time, msgspec.Raw(payload), msgspec.Raw(headers)))
    return _encoder.encode((key, index, time, msgspec.Raw(payload)))


def parts_of(count: int, joined: bytes) -> list[tuple[str, float, bytes, dict[str, str]]]:
    """Of so many events: key, time, the payload's bytes, headers.

    Raises:
        InvalidPayload: if the bytes are no such events.
    """
    try:
        wires = _heads.decode(list_of(count, joined))
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidPayload("", str(error)) from error
    return [(wire.key, wire.time, bytes(wire.payload), wire.headers or {}) for wire in wires]


def split_events(data: bytes) -> list[bytes]:
    """The bytes of each event of a list: what `join_events` was given.

    Raises:
        InvalidPayload: if the bytes are no list.
    """
    try:
        return [bytes(raw) for raw in _raws.decode(data)]
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidPayload("", str(error)) from error


def keys_of(data: bytes) -> list[tuple[str, int, bool]]:
    """Of each event of a list: its key, its index, and whether its payload is nil; the payloads are not looked at.

    Raises:
        InvalidPayload: if the bytes are no list of events.
    """
    try:
        return [(head.key, head.index, bytes(head.payload) == NIL) for head in _heads.decode(data)]
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidPayload("", str(error)) from error


_raws: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_heads: Final = msgspec.msgpack.Decoder(list[_RawWire])


class TopicCodec(Generic[T]):
    """Encodes and decodes what one topic carries. Stateless but for its decoders; safe to share in one thread."""

    __slots__ = ("_events", "_is_keyed", "_payload", "topic")

    def __init__(self, topic: Topic[T]) -> None:
        self.topic: Topic[T] = topic
        self._is_keyed = topic.type is Keyed
        self._payload: msgspec.msgpack.Decoder[T]
        if self._is_keyed:
            self._events: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(list[_RawWire])
        else:
            self._payload = msgspec.msgpack.Decoder(topic.type)
            self._events = msgspec.msgpack.Decoder(list[_Wire[topic.type]])  # type: ignore[name-defined]

    def encode_payload(self, payload: T) -> bytes:
        """A payload as MessagePack.

        Raises:
            InvalidPayload: if msgspec cannot encode it.
        """
        if isinstance(payload, Keyed):
            return bytes(payload.body)
        try:
            return _encoder.encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidPayload(self.topic.name, str(error)) from error

    def decode_payload(self, key: str, data: bytes | msgspec.Raw) -> T:
        """The payload of an event of this key.

        Raises:
            InvalidPayload: if the bytes are not of the topic's type.
        """
        if self._is_keyed:
            keyed: Any = Keyed(key, msgspec.Raw(bytes(data)))
            return keyed  # type: ignore[no-any-return]
        try:
            return self._payload.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidPayload(self.topic.name, str(error)) from error

    def encode_event(self, event: Event[T]) -> bytes:
        """One event.

        Raises:
            InvalidPayload: if msgspec cannot encode its payload.
        """
        payload: Any = event.payload
        if isinstance(payload, Keyed):
            payload = payload.body
        headers = event.headers
        try:
            if headers:
                return _encoder.encode((event.key, event.index, event.time, payload, dict(headers)))
            return _encoder.encode((event.key, event.index, event.time, payload))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidPayload(self.topic.name, str(error)) from error

    def encode_events(self, events: Iterable[Event[T]]) -> bytes:
        """A list of events: the bytes that `join_events` makes of each one's, much sooner.

        Raises:
            InvalidPayload: as of `encode_event`.
        """
        try:
            return _encoder.encode(
                [
                    (event.key, event.index, event.time, event.payload)
                    if event.headers is NO_HEADERS and type(event.payload) is not Keyed
                    else msgspec.Raw(self.encode_event(event))
                    for event in events
                ]
            )
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidPayload(self.topic.name, str(error)) from error

    def decode_events(self, data: bytes | memoryview) -> list[Event[T]]:
        """The events of a list.

        Raises:
            InvalidPayload: if the bytes are no list of events of this topic.
        """
        name = self.topic.name
        try:
            wires = self._events.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidPayload(name, str(error)) from error
        if self._is_keyed:
            return [
                Event(name, w.key, w.index, _keyed(w.key, w.payload), w.time, w.headers or NO_HEADERS) for w in wires
            ]
        return [Event(name, w.key, w.index, w.payload, w.time, w.headers or NO_HEADERS) for w in wires]


def _keyed(key: str, body: msgspec.Raw) -> Any:
    own = bytes(body)  # a Raw refers to the whole message: keep its own bytes alone
    return None if own == NIL else Keyed(key, msgspec.Raw(own))

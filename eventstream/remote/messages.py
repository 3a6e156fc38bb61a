"""What a client and a server say to each other over a pipe, as bytes and back.

    length of the rest (4 bytes, big-endian) | kind (1 byte) | body

A body is a MessagePack array of the message's fields, which may grow at its end: who does not know a later field passes
over it. `Events` is the one that counts, so its body is plain: the subscription's number (4 bytes), then the list of
events as `codec` makes it, whose bytes are shared by all who get them.

Numbers of topics, subscriptions and requests are the client's own; they mean something within one pipe. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from struct import Struct as Layout
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from ..errors import BadFrame

__all__ = (
    "LENGTH",
    "MAX_MESSAGE",
    "VERSION",
    "Bookmarked",
    "Credit",
    "Done",
    "Ended",
    "Events",
    "Failed",
    "Fault",
    "Goodbye",
    "Greeting",
    "Head",
    "ListTopics",
    "Mark",
    "Message",
    "MessageDecoder",
    "OpenTopic",
    "Publish",
    "Refresh",
    "Subscribe",
    "TopicList",
    "Unsubscribe",
    "Welcome",
    "encode",
    "events_head",
    "with_age",
)

VERSION: Final = 1
MAX_MESSAGE: Final = 16 * 1024 * 1024  # bytes: the largest message that a client takes, and a server by default

LENGTH: Final = 4  # bytes before a message, which it does not count itself
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]  # of a topic or a subscription
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """An error that crosses the network: its class and what it knows."""

    name: str
    fields: dict[str, Any] = {}


class Greeting(msgspec.Struct, array_like=True, frozen=True):
    """The client's first message."""

    version: int
    token: str | None = None


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """The server's answer to a greeting that it accepts."""

    version: int
    max_message: int


class OpenTopic(msgspec.Struct, array_like=True, frozen=True):
    """From now on `topic` stands for the topic of this name, which the client has declared so.

    `keyed`: whether the topic finds the key in the payload.
    """

    topic: Number
    name: str
    compacted: bool
    retain: Count
    max_lag: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    keyed: bool = False


class Subscribe(msgspec.Struct, array_like=True, frozen=True):
    """Opens a subscription. `after` is a position's text, "earliest", or None."""

    subscription: Number
    topic: Number
    key: str | None
    prefix: str | None
    after: str | None
    credit: Count


class Credit(msgspec.Struct, array_like=True, frozen=True):
    """So many more bytes of events may be sent."""

    subscription: Number
    size: Count


class Bookmarked(msgspec.Struct, array_like=True, frozen=True):
    """Asks for a bookmark as soon as all else was sent."""

    subscription: Number


class Unsubscribe(msgspec.Struct, array_like=True, frozen=True):
    """Ends a subscription."""

    subscription: Number


class Publish(msgspec.Struct, array_like=True, frozen=True):
    """Publishes entries as one batch; a nil payload in `delete` form is a tombstone.

    `age`: if this was said before, over another pipe, the seconds since it was said first, rounded up; else 0.
    """

    request: Count
    topic: Number
    entries: list[tuple[str | None, msgspec.Raw]]
    id: str
    expect: Count | None = None
    index: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None
    headers: dict[str, str] | None = None
    form: Literal["one", "many", "delete"] = "one"
    age: Count = 0


class Refresh(msgspec.Struct, array_like=True, frozen=True):
    """Begins a new epoch of a topic."""

    request: Count
    topic: Number


class Head(msgspec.Struct, array_like=True, frozen=True):
    """Asks for the position of a topic's newest event."""

    request: Count
    topic: Number


class ListTopics(msgspec.Struct, array_like=True, frozen=True):
    """Asks which topics there are."""

    request: Count


class Events(msgspec.Struct, frozen=True):
    """Events of one subscription, in order; `data` is a list as `codec` makes it."""

    subscription: int
    data: bytes | memoryview


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """A frame that is no event: `kind` is resumed, start, end or bookmark; `reason` belongs to start."""

    subscription: Number
    kind: Literal["resumed", "start", "end", "bookmark"]
    epoch: str
    index: int
    reason: Literal["new", "expired", "epoch", "lagged", "refreshed"] = "new"


class Ended(msgspec.Struct, array_like=True, frozen=True):
    """A subscription has ended."""

    subscription: Number
    fault: Fault


class Done(msgspec.Struct, array_like=True, frozen=True):
    """A request has succeeded, at this position."""

    request: Count
    epoch: str
    index: int


class Failed(msgspec.Struct, array_like=True, frozen=True):
    """A request has failed."""

    request: Count
    fault: Fault


class TopicList(msgspec.Struct, array_like=True, frozen=True):
    """Answers `ListTopics`: for each topic its name and numbers, see `TopicStatistics`."""

    request: Count
    topics: dict[str, dict[str, Any]]


class Goodbye(msgspec.Struct, array_like=True, frozen=True):
    """The server ends the connection, and why; without a fault, or if `again` is said, the client is to come again."""

    fault: Fault | None = None
    again: bool = False


Message: TypeAlias = (
    Greeting | Welcome | OpenTopic | Subscribe | Credit | Bookmarked | Unsubscribe | Publish | Refresh | Head
    | ListTopics | Events | Mark | Ended | Done | Failed | TopicList | Goodbye
)  # fmt: skip

_TYPES: Final[tuple[type[Any], ...]] = (
    Greeting, Welcome, OpenTopic, Subscribe, Credit, Bookmarked, Unsubscribe, Publish, Refresh, Head,
    ListTopics, Mark, Ended, Done, Failed, TopicList, Goodbye,
)  # fmt: skip
EVENTS: Final = 100
_HEAD: Final = Layout(">IB")
_EVENTS_HEAD: Final = Layout(">IBI")
_KINDS: Final[dict[type[Any], int]] = {kind: number for number, kind in enumerate(_TYPES, 1)}
_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    number: msgspec.msgpack.Decoder(kind) for kind, number in _KINDS.items()
}
_encoder: Final = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """A message as bytes."""
    if isinstance(message, Events):
        return events_head(message.subscription, len(message.data)) + message.data
    body = _encoder.encode(message)
    return (len(body) + 1).to_bytes(4, "big") + _KINDS[type(message)].to_bytes(1, "big") + body


def with_age(publish: bytes, seconds: float) -> bytes:
    """A publish as bytes, to be said again."""
    message = _decode(publish[LENGTH], publish[LENGTH + 1 :])
    return encode(msgspec.structs.replace(message, age=math.floor(seconds) + 1))


def events_head(subscription: int, size: int) -> bytes:
    """What stands before `size` bytes of events, which are shared and not copied here."""
    return _EVENTS_HEAD.pack(size + 5, EVENTS, subscription)


class MessageDecoder:
    """Splits a pipe's bytes into messages. What it keeps back is shorter than one message.

    Args:
        most: Bytes of the longest message that is accepted. May be changed.
    """

    def __init__(self, most: int = MAX_MESSAGE) -> None:
        self.most: int = most
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = 5

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that `chunk` completes.

        Raises:
            BadFrame: if the bytes are no messages, or a message is too long. The decoder is done for.
        """
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size < self._wanted:
            return  # a long message comes in many chunks: they are joined once
        data = b"".join(self._parts) if len(self._parts) > 1 else chunk
        at, size, wanted = 0, self._size, 5
        while size - at >= 5:
            length, kind = _HEAD.unpack_from(data, at)
            if not 1 <= length <= self.most:
                raise BadFrame(f"a message of {length} bytes, at most {self.most} are accepted")
            wanted = LENGTH + length
            end = at + wanted
            if end > size:
                break
            yield _decode_events(data, at, end) if kind == EVENTS else _decode(kind, data[at + 5 : end])
            at, wanted = end, 5
        self._parts = [data[at:]] if at < size else []
        self._size, self._wanted = size - at, wanted


def _decode_events(data: bytes, at: int, end: int) -> Events:
    events = at + _EVENTS_HEAD.size
    if end <= events:
        raise BadFrame("events without a subscription")
    _, _, number = _EVENTS_HEAD.unpack_from(data, at)
    return Events(number, memoryview(data)[events:end])  # a view: they are decoded once more, and not kept


def _decode(kind: int, body: bytes) -> Message:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise BadFrame(f"no message is of kind {kind}")
    try:
        message: Message = decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFrame(f"message of kind {kind}: {error}") from error
    return message

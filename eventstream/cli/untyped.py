"""Topics whose type the command line does not know: MessagePack comes and goes as plain objects, written as JSON.

A topic is declared with `Keyed`, whose bytes pass through as they are: so what other programs published typed can be
read here, each payload by itself, and one that JSON has no words for spoils no other.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from ..codec import Keyed
from ..errors import NotAuthorized, TopicConflict
from ..events import Event, Topic
from ..remote import RemoteBus
from .running import USAGE, Failure

__all__ = ("check_filter", "find", "key_and_plain", "to_keyed", "untyped")


def untyped(name: str, *, compacted: bool = False) -> Topic[Keyed]:
    """The topic of this name."""
    return Topic(name, Keyed, key="key" if compacted else None, compacted=compacted)


def check_filter(key: str | None, prefix: str | None) -> None:
    """Refuses two filters at once.

    Raises:
        Failure: if there are.
    """
    if key is not None and prefix is not None:
        raise Failure("give --key or --prefix, not both", USAGE)


async def find(bus: RemoteBus, name: str) -> bool | None:
    """Whether the server's topic is compacted; None if it has none of this name.

    It uses the name up: a bus declares a topic in one way. So ask over a connection that is for nothing else.
    """
    topic = untyped(name)
    if name not in await bus.topics():
        return None
    try:
        with suppress(NotAuthorized):  # it fits, or that would have been said first
            await bus.head(topic)
    except TopicConflict:
        return True
    return False


def to_keyed(key: str, payload: object) -> Keyed:
    """A payload to publish.

    Raises:
        ValueError: if MessagePack cannot hold it.
    """
    try:
        return Keyed(key, msgspec.Raw(msgspec.msgpack.encode(payload)))
    except OverflowError as error:
        raise ValueError(str(error)) from None


def key_and_plain(event: Event[Keyed]) -> tuple[str, Any]:
    """An event's key and its payload as plain objects; None is a tombstone."""
    keyed: Keyed | None = event.payload
    if keyed is None:
        return event.key, None
    try:
        return event.key, msgspec.msgpack.decode(keyed.body)
    except (msgspec.DecodeError, ValueError) as error:  # no MessagePack, or text that is no Unicode
        return event.key, {"undecodable": str(error), "bytes": bytes(keyed.body)}

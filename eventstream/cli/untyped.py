"""Topics whose type the command line does not know: MessagePack comes and goes as plain objects, written as JSON.

A topic is declared with `Keyed`, whose bytes pass through as they are: so what other programs published typed can be
read here, each payload by itself, and one that JSON has no words for spoils no other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..codec import Keyed
from ..events import Event, Topic, check_name
from ..remote import RemoteBus
from .running import USAGE, Failure

__all__ = ("check_filter", "find", "key_and_plain", "to_keyed", "untyped")


def untyped(name: str, *, compacted: bool = False, keyed: bool = False) -> Topic[Keyed]:
    """The topic of this name. `keyed`: whether its payloads name their keys, as those of a compacted one always do."""
    return Topic(name, Keyed, key="key" if keyed or compacted else None, compacted=compacted)


def check_filter(key: str | None, prefix: str | None) -> None:
    """Refuses two filters at once, and what can be no key.

    Raises:
        Failure, InvalidName: if that is so.
    """
    if key is not None and prefix is not None:
        raise Failure("give --key or --prefix, not both", USAGE)
    for what, value in (("key", key), ("prefix", prefix)):
        if value is not None:
            check_name(what, value)


async def find(bus: RemoteBus, name: str) -> Topic[Keyed] | None:
    """The topic as the server has it; None if it has none of this name.

    Raises:
        InvalidName: if none can have it.
    """
    check_name("topic name", name)
    found = (await bus.topics()).get(name)
    if found is None:
        return None
    return untyped(name, compacted=bool(found["compacted"]), keyed=bool(found["keyed"]))


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

"""Errors across the network: what the server raised is raised at the client, with the same class and attributes.

Only errors of eventstream travel, and of those only what this table names; the text is built anew at the other end.
Whatever else goes wrong in a server is logged there, and the client is told that, and nothing of the inside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from .. import errors
from ..errors import EventStreamError
from ..events import Position
from .messages import Fault

__all__ = ("from_fault", "to_fault")


def _lost(topic: str, requested: list[Any], epoch: str, oldest: int, newest: int) -> EventStreamError:
    return errors.PositionLost(topic, Position(str(requested[0]), int(requested[1])), epoch, oldest, newest)


_BUILDERS: Final[dict[str, tuple[Callable[..., EventStreamError], tuple[str, ...]]]] = {
    "BusClosed": (errors.BusClosed, ("state",)),
    "Conflict": (errors.Conflict, ("topic", "key", "expected", "actual")),
    "IndexOrder": (errors.IndexOrder, ("topic", "index", "head")),
    "InvalidName": (errors.InvalidName, ("what", "value", "why")),
    "InvalidPayload": (errors.InvalidPayload, ("topic", "why")),
    "InvalidPosition": (errors.InvalidPosition, ("text",)),
    "LimitReached": (errors.LimitReached, ("limit", "bound")),
    "LogFailed": (errors.LogFailed, ("name", "why")),
    "LogFull": (errors.LogFull, ("name",)),
    "LogRefused": (errors.LogRefused, ("name", "why", "detail")),
    "NotAuthorized": (errors.NotAuthorized, ("principal", "action")),
    "NotCompacted": (errors.NotCompacted, ("topic", "action", "needs")),
    "OutcomeUnknown": (errors.OutcomeUnknown, ("topic", "id", "seconds")),
    "PositionLost": (_lost, ("topic", "requested", "epoch", "oldest", "newest")),
    "SlowSubscriber": (errors.SlowSubscriber, ("topic", "lag", "bound")),
    "SnapshotFailed": (errors.SnapshotFailed, ("topic", "key", "why", "detail")),
    "SubscriptionClosed": (errors.SubscriptionClosed, ("topic",)),
    "TopicConflict": (errors.TopicConflict, ("topic", "difference")),
    "UnknownTopic": (errors.UnknownTopic, ("topic",)),
}


def to_fault(error: EventStreamError) -> Fault:
    """An error for the other end."""
    name = type(error).__name__
    if name not in _BUILDERS:
        return Fault("EventStreamError", {"text": _plain(str(error))})
    return Fault(name, {field: _plain(getattr(error, field)) for field in _BUILDERS[name][1]})


def from_fault(fault: Fault) -> EventStreamError:
    """The other end's error. One that this version does not know comes as an `EventStreamError` with its text."""
    builder = _BUILDERS.get(fault.name)
    if builder is not None:
        make, names = builder
        with suppress(KeyError, TypeError, ValueError, IndexError):  # a peer of another version: its words as they are
            return make(*[fault.fields[name] for name in names])
    return EventStreamError(str(fault.fields.get("text", f"{fault.name} {fault.fields}")))


def _plain(value: object) -> object:
    if isinstance(value, Position):
        return [value.epoch, value.index]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a principal, or a file's name, may be what cannot be said
    if value is None or isinstance(value, int | float | bool):
        return value
    return errors.shown(value)

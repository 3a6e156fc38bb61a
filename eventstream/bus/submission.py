"""Publishing for others: many publishes under way at once, from one task, in its order.

A server has one task for each client, and must keep the order of what that client says; waiting for each commit would
give each its own sync of the disk. No method of the bus, since a program of its own has tasks for that: what they
publish at once shares a sync in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..events import Position, Topic
from ..logs import Pending, PipelinedLog
from .arguments import terms
from .bus import EventBus

__all__ = ("submit",)

T = TypeVar("T")


async def submit(
    bus: EventBus,
    topic: Topic[T],
    payload: T,
    *,
    key: str | None = None,
    expect: int | None = None,
    id: str | None = None,
    headers: Mapping[str, str] | None = None,
    index: int | None = None,
) -> Position | Pending:
    """As `EventBus.publish`, for who publishes for others: further calls may follow before the commit, in this order.

    Returns:
        The position, where the log had no need to wait; else what to wait for. It is not a checkpoint.
    """
    if bus.can_nowait:
        return bus.publish_nowait(topic, payload, key=key, expect=expect, id=id, headers=headers, index=index)
    log = bus._log
    if not isinstance(log, PipelinedLog):
        return await bus.publish(topic, payload, key=key, expect=expect, id=id, headers=headers, index=index)
    room = bus._known.get(topic) or bus._declare(topic)
    entries = ((topic.key_for(payload, key), payload),)
    return await log.submit(room.live, entries, terms(expect, id, headers, index))

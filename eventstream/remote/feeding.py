"""One subscription of one client, on the server: reads it and passes it on, as far as the client has credit.

Who has no credit is not read for, and so falls under the topic's lag bound like any slow reader; it holds up nobody
else on its connection. The same holds for all of a connection whose client does not read.
"""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any, Final

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from ..errors import BusClosed, EventStreamError, LimitReached
from ..events import Bookmark, Event, Resumed, SnapshotStart
from ..topics import Subscription
from .faults import to_fault
from .messages import MAX_MESSAGE, Ended, Fault, Mark, encode, events_head
from .outgoing import Outgoing
from .sharing import Filter, SharedEvents

__all__ = ("Feeding",)

SMALL: Final = 2048  # bytes
HEAD: Final = 5  # bytes of a message that stand before its events, and count for its length
logger: Final = logging.getLogger("eventstream.remote")


class Feeding:
    """Feeds one subscription's events into a connection.

    Args:
        number: The client's number for it.
        subscription: To be read here alone.
        shared: The bytes of its topic's events.
        selected_by: Its key and prefix.
        credit: Bytes of events that may be sent before the client grants more.
        outgoing: Where to.
        beside: All that are fed there, this one among them: what one says alone is worth a write of its own.
    """

    def __init__(
        self,
        number: int,
        subscription: Subscription[Any],
        shared: SharedEvents,
        selected_by: Filter,
        credit: int,
        outgoing: Outgoing,
        beside: Sized,
    ) -> None:
        self._number = number
        self._subscription = subscription
        self._shared = shared
        self._selected_by = selected_by
        self._credit = credit
        self._outgoing = outgoing
        self._beside = beside

    def grant(self, size: int) -> None:
        """The client has room for so many more bytes."""
        starved = self._credit <= 0
        self._credit += size
        if starved and self._credit > 0:
            self._subscription.release()

    def bookmark(self) -> None:
        """The client wants to know where it stands."""
        self._subscription.request_bookmark()

    def close(self) -> None:
        """The client wants no more."""
        self._subscription.close()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> bool:
        """Until the subscription ends; tells the client why, unless it was the client's wish, or the bus has closed.

        It has started when its first frame was said: what the client is told later comes after that. Returns whether
        the bus goes on.
        """
        waited_for = goes_on = True
        try:
            async for item in self._subscription.chunks():
                if not isinstance(item, list):
                    self._outgoing.say(encode(_mark(self._number, item)))
                elif not self._outgoing.is_full or await self._has_room():
                    self._say(item)
                if waited_for:
                    waited_for = False
                    task_status.started()
                if isinstance(item, list) and len(item) > 1 and not self._subscription.lag:
                    # It has caught up with a publisher of many: what comes while they are written goes together. What
                    # came alone is followed by nothing, as a rule, and a task more would wake for it.
                    await self._outgoing.gather()
                while self._credit <= 0 and await self._subscription.hold():
                    pass
        except BusClosed:
            goes_on = False
        except EventStreamError as error:
            self._end(to_fault(error))
        except Exception:
            logger.exception("feeding a client failed")
            self._end(Fault("EventStreamError", {"text": "the server failed to read this subscription: see its log"}))
        finally:
            self._subscription.close()
        if waited_for:
            task_status.started()
        return goes_on

    def _end(self, fault: Fault) -> None:
        self._outgoing.say(encode(Ended(self._number, fault)))

    async def _has_room(self) -> bool:
        """Waits until the connection takes more. False if the subscription has ended meanwhile."""
        while self._outgoing.is_full and not self._subscription.has_ended:
            await self._outgoing.wait_for_room()
        return not self._subscription.has_ended

    def _say(self, events: list[Event[Any]]) -> None:
        """Says a list, in as many messages as it needs. A batch is never divided."""
        body = self._shared.body(events, self._selected_by)
        size = len(body)
        if size + HEAD > MAX_MESSAGE:
            middle = _border(events)
            if middle is None:
                raise LimitReached("message_bytes", MAX_MESSAGE)
            self._say(events[:middle])
            self._say(events[middle:])
            return
        self._credit -= size
        head = events_head(self._number, size)
        parts = (head, body) if size > SMALL else (head + body,)  # a small copy costs less than a part does
        self._outgoing.say(*parts, at_once=len(self._beside) == 1)


def _border(events: list[Event[Any]]) -> int | None:
    """Where one batch ends and another begins, near the middle; None if there is only one."""
    borders = [at for at in range(1, len(events)) if events[at].index != events[at - 1].index]
    return min(borders, key=lambda at: abs(at - len(events) // 2), default=None)


def _mark(number: int, mark: Any) -> Mark:
    position = mark.position
    match mark:
        case Resumed():
            return Mark(number, "resumed", position.epoch, position.index)
        case SnapshotStart():
            return Mark(number, "start", position.epoch, position.index, mark.reason)
        case Bookmark():
            return Mark(number, "bookmark", position.epoch, position.index)
        case _:
            return Mark(number, "end", position.epoch, position.index)

"""One subscription of one client, on the server: reads it and passes it on, as far as the client has credit.

Who has no credit is not read for, and so falls under the topic's lag bound like any slow reader; it holds up nobody
else on its connection.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from ..errors import BusClosed, EventStreamError, SubscriptionClosed
from ..events import Bookmark, Resumed, SnapshotStart
from ..pipes.signal import Signal
from ..topics import Subscription
from .faults import to_fault
from .messages import Ended, Fault, Mark, encode, events_head
from .outgoing import Outgoing
from .sharing import Filter, SharedEvents

__all__ = ("Feeding",)

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
    """

    def __init__(
        self,
        number: int,
        subscription: Subscription[Any],
        shared: SharedEvents,
        selected_by: Filter,
        credit: int,
        outgoing: Outgoing,
    ) -> None:
        self._number = number
        self._subscription = subscription
        self._shared = shared
        self._selected_by = selected_by
        self._credit = credit
        self._outgoing = outgoing
        self._more = Signal()
        self._closed = False

    def grant(self, size: int) -> None:
        """The client has room for so many more bytes."""
        self._credit += size
        self._more.set()

    def bookmark(self) -> None:
        """The client wants to know where it stands."""
        self._subscription.request_bookmark()

    def close(self) -> None:
        """The client wants no more."""
        self._closed = True
        self._subscription.close()
        self._more.set()

    async def run(self) -> None:
        """Until the subscription ends; tells the client why, unless it was the client's wish."""
        try:
            async for item in self._subscription.chunks():
                await self._pass_on(item)
        except SubscriptionClosed:
            return
        except BusClosed:
            return  # the connection ends too, with a word of its own
        except EventStreamError as error:
            self._end(to_fault(error))
        except Exception:
            logger.exception("feeding a client failed")
            self._end(Fault("EventStreamError", {"text": "the server failed to read this subscription: see its log"}))
        finally:
            self._subscription.close()

    def _end(self, fault: Fault) -> None:
        self._outgoing.say(encode(Ended(self._number, fault)))

    async def _pass_on(self, item: Any) -> None:
        if isinstance(item, list):
            while self._credit <= 0:
                await self._more.wait()
                if self._closed:
                    return
            body = self._shared.body(item, self._selected_by)
            self._credit -= len(body)
            await self._outgoing.send(events_head(self._number, len(body)), body)
        else:
            await self._outgoing.send(encode(_mark(self._number, item)))


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

"""How a waiting call learns that it should look again.

A condition without a lock: the waiter looks, waits, looks again; whoever changes something notifies. Nothing is made
unless somebody waits. A deadline stands in for the arrival of what is under way, so the kit needs no task of its own
to deliver bytes.
"""

from __future__ import annotations

import math

from anyio import CancelScope, Event

__all__ = ("Signal",)


class Signal:
    """Wakes all who wait at the time of `notify`. Wakes may be for nothing: look again."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: Event | None = None

    def notify(self) -> None:
        """Wakes who waits now. Cheap if nobody does."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self, until: float = math.inf) -> None:
        """Waits for `notify`, or for a time of the loop's clock.

        Args:
            until: When to return at the latest, as `anyio.current_time` counts.
        """
        if self._event is None:
            self._event = Event()
        event = self._event
        if until == math.inf:
            await event.wait()
            return
        with CancelScope(deadline=until):
            await event.wait()

"""Whether a client is connected, for those who want to know: it has a link, and the server has accepted it.

A lost connection is no error: calls wait and subscriptions go on. But a program may want to show it, or to begin
something when the server is back. Written by the conversation and the caller; read by any number of tasks.
"""

from __future__ import annotations

from collections.abc import Callable

from anyio import Event, current_time
from anyio.lowlevel import checkpoint

__all__ = ("Changes", "Standing")


class Standing:
    """Of one client.

    Args:
        check: Raises why there will be no connection any more.

    Attributes:
        accepted: Whether the server has accepted us, on the present pipe.
        linked: Whether that has a link.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.accepted: bool = False
        self._check = check
        self.linked: bool = False
        self._losses = 0
        self._lost: float | None = None  # when the last connection was; None while there is one, or before the first
        self._changed = Event()

    @property
    def connected(self) -> bool:
        """Whether there is a link, to a server that has accepted us."""
        return self.accepted and self.linked

    def away(self) -> float:
        """Seconds since the connection was lost; 0 while there is one, and before the first."""
        return 0.0 if self._lost is None else current_time() - self._lost

    def move(self, *, accepted: bool | None = None, linked: bool | None = None) -> None:
        """Something has changed."""
        before = self.connected
        self.accepted = self.accepted if accepted is None else accepted
        self.linked = self.linked if linked is None else linked
        if self.connected != before:
            self._losses += before
            self._lost = current_time() if before else None
            self.announce()

    def announce(self) -> None:
        """Those who wait are to look again."""
        self._changed.set()
        self._changed = Event()

    async def wait(self) -> None:
        """Until it is connected."""
        await checkpoint()
        while not self.connected:
            self._check()
            await self._changed.wait()

    async def change(self, told: bool | None, losses: int) -> tuple[bool, int]:
        """What to tell next who was told that, when there had been so many losses; and how many there are."""
        await checkpoint()
        while True:
            self._check()
            if told and self._losses > losses:
                return False, self._losses
            if told is not self.connected:
                return self.connected, self._losses
            await self._changed.wait()


class Changes:
    """What is now, then what it changes to. No loss is passed over; several that nobody looked at are one."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._told: bool | None = None
        self._losses = 0

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> bool:
        self._told, self._losses = await self._standing.change(self._told, self._losses)
        return self._told

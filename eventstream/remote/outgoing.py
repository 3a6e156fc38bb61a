"""What waits to go out on one pipe, on which many tasks speak.

What fits into the pipe goes there directly; only what does not waits here, for one task that sends all that has
gathered at a time.

Bounded in bytes, so that a peer that does not read stalls those who talk to it and nobody else. Small answers are
never refused: they are bounded by the requests that are read, and reading stops while this is full.
"""

from __future__ import annotations

from typing import Final

from anyio import ClosedResourceError, Event

from ..errors import PipeBroken
from ..pipes import Pipe
from ..pipes.signal import Signal

__all__ = ("Outgoing",)

BOUND: Final = 256 * 1024  # bytes: enough to fill a pipe's next write


class Outgoing:
    """The queue in front of a pipe.

    Attributes:
        size: Bytes that wait in it.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._parts: list[bytes] = []
        self.size: int = 0
        self._some = Signal()
        self._room: Event | None = None
        self._closing = False

    def say(self, *parts: bytes, at_once: bool = False) -> None:
        """Adds a message; its parts are joined only when they are sent, soon, with what else is said, or at once.

        On a pipe that has ended it is lost, silently: who receives from the pipe is told, and tells why.
        """
        if not self._parts:
            try:
                if at_once:
                    if self._pipe.offer_now(*parts):
                        return
                elif self._pipe.offer(*parts):
                    self._pipe.flush_soon()
                    return
            except (PipeBroken, ClosedResourceError):
                return
        self._parts += parts
        for part in parts:
            self.size += len(part)
        self._some.set()

    async def flush(self) -> None:
        """Sends at once what was said. A checkpoint."""
        await self._pipe.flush()

    async def gather(self) -> None:
        """Waits until the next write is over: what comes meanwhile can go in one piece. See `Pipe.gather`."""
        await self._pipe.gather()

    @property
    def is_full(self) -> bool:
        """Whether those who have more to say should wait."""
        return self.size > BOUND

    async def wait_for_room(self) -> None:
        """Returns as soon as it is not full."""
        while self.size > BOUND:
            if self._room is None:
                self._room = Event()
            await self._room.wait()

    def close(self) -> None:
        """Lets `run` return when everything was sent."""
        self._closing = True
        self._some.set()

    async def run(self) -> None:
        """Sends until it is closed or cancelled.

        Raises:
            PipeBroken, ClosedResourceError: if the pipe has ended.
        """
        while True:
            while self._parts:
                parts, self._parts, self.size = self._parts, [], 0
                if self._room is not None:
                    self._room.set()
                    self._room = None
                await self._pipe.send(b"".join(parts) if len(parts) > 1 else parts[0])
            if self._closing:
                return
            await self._some.wait()

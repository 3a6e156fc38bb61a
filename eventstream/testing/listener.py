"""Where a simulated network's connections are accepted: a queue, and an `anyio.abc.Listener` that empties it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from anyio import ClosedResourceError, ResourceGuard, create_task_group
from anyio.abc import Listener, TaskGroup
from anyio.lowlevel import checkpoint

from .signal import Signal
from .stream import NetworkStream

__all__ = ("NetworkListener",)

BACKLOG: Final = 128  # connections that wait to be accepted, as most systems have it; one more is refused


class NetworkListener(Listener[NetworkStream]):
    """Accepts the connections that are dialled to one address of a `Network`.

    Attributes:
        address: Where it listens.
    """

    def __init__(
        self,
        address: str,
        *,
        accepted: Callable[[NetworkStream], object],
        closed: Callable[[NetworkListener], object],
    ) -> None:
        self.address = address
        self._tell_accepted = accepted
        self._tell_closed = closed
        self._backlog: deque[NetworkStream] = deque()
        self._arrived = Signal()
        self._closed = False
        self._guard = ResourceGuard("accepting connections from")

    def __repr__(self) -> str:
        return f"<NetworkListener {self.address!r}, {len(self._backlog)} waiting{', closed' if self._closed else ''}>"

    async def accept(self) -> NetworkStream:
        """Waits for a connection and returns its listening end, which is yours to close.

        Raises:
            anyio.ClosedResourceError: if the listener was closed, also by another task meanwhile.
            anyio.BusyResourceError: if another task is accepting.

        Cancelling it loses no connection.
        """
        with self._guard:
            await checkpoint()
            while True:
                if self._closed:
                    raise ClosedResourceError
                if self._backlog:
                    stream = self._backlog.popleft()
                    self._tell_accepted(stream)
                    return stream
                await self._arrived.wait()

    async def serve(self, handler: Callable[[NetworkStream], Any], task_group: TaskGroup | None = None) -> None:
        """Accepts for ever and starts a task for each connection.

        Args:
            handler: An async function that is called with the stream, and closes it.
            task_group: Where the tasks run. None: in a group of its own, which is cancelled with this call.

        Raises:
            anyio.ClosedResourceError: if the listener was closed.
        """
        async with AsyncExitStack() as stack:
            if task_group is None:
                task_group = await stack.enter_async_context(create_task_group())
            while True:
                task_group.start_soon(handler, await self.accept())

    async def aclose(self) -> None:
        """Stops listening: later dials are refused, connections that wait to be accepted are reset."""
        if not self._closed:
            self._closed = True
            self._tell_closed(self)
            while self._backlog:
                self._backlog.popleft().link.cut()
            self._arrived.notify()
        await checkpoint()

    @property
    def room(self) -> int:
        """How many connections more can wait to be accepted; with none left, dials are refused."""
        return BACKLOG - len(self._backlog)

    def arrive(self, stream: NetworkStream) -> None:
        """Not for users: lets a connection wait to be accepted."""
        self._backlog.append(stream)
        self._arrived.notify()

"""A TCP proxy on loopback that cuts connections: the simulated network's relative for real sockets.

For what cannot run over streams in memory: a client in another process, a library that opens its own sockets. The seed
decides after how many bytes a connection is cut; when they come is up to the kernel, so runs with the same seed are
alike, not equal.

Who calls: tests. Tasks: one group, entered by `async with`, two tasks a connection; none is left behind.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Final

from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    Event,
    connect_tcp,
    create_task_group,
    create_tcp_listener,
)
from anyio.abc import SocketAttribute, SocketStream

from .faults import Direction, seeded

__all__ = ("CuttingProxy",)

LOOPBACK: Final = "127.0.0.1"
RESET_ON_CLOSE: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # linger, for no time: TCP says RST


class CuttingProxy:
    """Forwards connections to a port, and cuts them after random numbers of bytes.

        async with CuttingProxy(server_port, seed=7, cuts=200, mean_bytes=10_000) as proxy:
            stream = await anyio.connect_tcp("127.0.0.1", proxy.port)

    A cut is a TCP reset of both sides. Bytes that the proxy had forwarded may be lost with it, as with real resets.

    Args:
        target_port: Where to forward to.
        target_host: Its host.
        seed: Decides after how many bytes each connection is cut.
        cuts: How many connections to cut, at most. Default 0: none; see `cut`.
        mean_bytes: The mean number of bytes, of both directions together, before a connection is cut.

    Attributes:
        connections: Connections accepted up to now.
        cuts: Connections cut up to now, by the seed or by `cut`.
        bytes_up: Bytes forwarded to the target.
        bytes_down: Bytes forwarded back.

    Raises:
        ValueError: if `cuts` is negative or `mean_bytes` is not positive.
    """

    def __init__(
        self,
        target_port: int,
        *,
        target_host: str = LOOPBACK,
        seed: int = 0,
        cuts: int = 0,
        mean_bytes: float = 65_536,
    ) -> None:
        if cuts < 0:
            raise ValueError(f"a number of cuts cannot be negative: {cuts}")
        if not mean_bytes > 0:
            raise ValueError(f"mean_bytes must be positive, not {mean_bytes}")
        self.connections: int = 0
        self.cuts: int = 0
        self.bytes_up: int = 0
        self.bytes_down: int = 0
        self._target = (target_host, target_port)
        self._random = seeded(f"{seed} proxy")
        self._cuts_left = cuts
        self._mean_bytes = mean_bytes
        self._port: int | None = None
        self._live: dict[_Connection, None] = {}
        self._flowing = Event()
        self._flowing.set()
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        state = "" if self._flowing.is_set() else ", holding"
        return f"<CuttingProxy {self._port} to {self._target}, {len(self._live)} connections, {self.cuts} cuts{state}>"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 to connect to.

        Raises:
            RuntimeError: if the proxy was not entered.
        """
        if self._port is None:
            raise RuntimeError("the proxy does not listen yet: enter it by `async with`")
        return self._port

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live)

    async def __aenter__(self) -> CuttingProxy:
        """Begins to listen, on a free port.

        Raises:
            OSError: if it cannot listen.
        """
        async with AsyncExitStack() as stack:
            multi = await stack.enter_async_context(await create_tcp_listener(local_host=LOOPBACK))
            (listener,) = multi.listeners
            self._port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # this is not Django
            tasks = await stack.enter_async_context(create_task_group())
            tasks.start_soon(multi.serve, self._forward)
            stack.callback(tasks.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Stops listening and closes all connections."""
        return await self._stack.__aexit__(kind, error, traceback)

    def cut(self) -> None:
        """Cuts all open connections, now."""
        for connection in list(self._live):
            self._cut(connection)

    def hold(self) -> None:
        """Stops forwarding without closing anything, ends included: to both sides the connections are half-open."""
        if self._flowing.is_set():
            self._flowing = Event()

    def release(self) -> None:
        """Forwards again, beginning with what was held."""
        self._flowing.set()

    async def _forward(self, client: SocketStream) -> None:
        """One connection, from its acceptance to its end."""
        self.connections += 1
        bytes_left = int(self._random.expovariate(1 / self._mean_bytes))
        async with client:
            await self._flowing.wait()
            try:
                target = await connect_tcp(*self._target)
            except OSError:
                _reset_on_close(client)  # the client has a connection already: that nobody is there ends it
                return
            async with target:
                await self._run(_Connection(client, target, bytes_left))

    async def _run(self, connection: _Connection) -> None:
        self._live[connection] = None
        try:
            with connection.scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(self._pump, connection, "up")
                    tasks.start_soon(self._pump, connection, "down")
        finally:
            self._live.pop(connection, None)

    async def _pump(self, connection: _Connection, direction: Direction) -> None:
        """One direction, until its end: then the other goes on."""
        source, target = connection.client, connection.target
        if direction == "down":
            source, target = target, source
        try:
            async for data in source:
                await self._flowing.wait()
                passing = min(len(data), connection.bytes_left) if self._cuts_left else len(data)
                connection.bytes_left -= passing
                if direction == "up":
                    self.bytes_up += passing
                else:
                    self.bytes_down += passing
                await target.send(data[:passing])
                if self._cuts_left and connection.bytes_left <= 0 and connection in self._live:
                    self._cuts_left -= 1
                    self._cut(connection)
            await self._flowing.wait()
            await target.send_eof()
        except (BrokenResourceError, ClosedResourceError, OSError):
            connection.reset()  # one side was reset: so is the other

    def _cut(self, connection: _Connection) -> None:
        self.cuts += 1
        del self._live[connection]  # both directions may come to the byte at which it ends: that is one cut
        connection.reset()


class _Connection:
    """Two sockets, how many bytes may pass between them before they are cut, and what stops the passing."""

    def __init__(self, client: SocketStream, target: SocketStream, bytes_left: int) -> None:
        self.client = client
        self.target = target
        self.bytes_left = bytes_left
        self.scope = CancelScope()

    def reset(self) -> None:
        """Lets both sockets be closed with a reset, soon."""
        _reset_on_close(self.client)
        _reset_on_close(self.target)
        self.scope.cancel()


def _reset_on_close(stream: SocketStream) -> None:
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  # this is not Django
    with suppress(OSError):  # closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

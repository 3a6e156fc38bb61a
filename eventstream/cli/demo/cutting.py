"""What stands between the demo's clients and its server: it carries their bytes, and cuts their connections on purpose.

A cut loses whatever was on its way, in both directions, and both ends see a broken connection: as when a phone leaves
its Wi-Fi, or a proxy is restarted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Final

import anyio
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, create_task_group
from anyio.abc import ByteStream, SocketAttribute

from ...pipes import Retry
from ...remote import RemoteBus

__all__ = ("WINDOW", "Cutter", "cutting")

HERE: Final = "127.0.0.1"
WINDOW: Final = 1024 * 1024  # bytes that a subscriber may have unread, as usual
RETRY: Final = Retry(first=0.05, cap=1.0, give_up_after=10.0)


class Cutter:
    """Connects clients, and cuts them off.

    Attributes:
        cuts: Connections that were cut.
    """

    def __init__(self, dial: Callable[[], Awaitable[ByteStream]], port: int) -> None:
        self.cuts: int = 0
        self._dial = dial
        self._port = port
        self._links: dict[int, CancelScope] = {}
        self._random = Random(2013)  # noqa: S311  the same demo each time
        self._accepted = 0

    def connect(self, window: int = WINDOW) -> RemoteBus:
        """A client of the server."""
        return RemoteBus(lambda: anyio.connect_tcp(HERE, self._port), window=window, retry=RETRY)

    def cut(self) -> None:
        """Cuts one half of the connections, chosen at random."""
        for number in self._random.sample(sorted(self._links), (len(self._links) + 1) // 2):
            self._links.pop(number).cancel()
            self.cuts += 1

    async def carry(self, client: ByteStream) -> None:
        """Carries one connection, until it ends or is cut."""
        self._accepted += 1
        number = self._accepted
        with CancelScope() as scope:
            self._links[number] = scope
            try:
                async with client, await self._dial() as server, create_task_group() as both:
                    both.start_soon(_pump, client, server, scope)
                    both.start_soon(_pump, server, client, scope)
            except OSError:
                pass  # the server is gone: its clients will see it
            finally:
                self._links.pop(number, None)


@asynccontextmanager
async def cutting(port: int) -> AsyncIterator[Cutter]:
    """Stands before the server at a port of this computer."""
    async with await anyio.create_tcp_listener(local_host=HERE, local_port=0) as listener:
        own_port = listener.extra(SocketAttribute.local_port)  # noqa: S610  anyio's, not Django's
        cutter = Cutter(lambda: anyio.connect_tcp(HERE, port), own_port)
        async with create_task_group() as tasks:
            tasks.start_soon(listener.serve, cutter.carry)
            yield cutter
            tasks.cancel_scope.cancel()


async def _pump(source: ByteStream, sink: ByteStream, scope: CancelScope) -> None:
    try:
        async for chunk in source:
            await sink.send(chunk)
        await sink.send_eof()
    except (OSError, BrokenResourceError, ClosedResourceError):
        scope.cancel()

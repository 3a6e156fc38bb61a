"""The other end of a connection: a second process on this machine, and what both ends of a measurement have in common.

A measurement starts it with `Peer`, which stops it again by its process id. It serves any number of streams, each of
one kind: a raw TCP stream of anyio, or a backed pipe over one. The first bytes of a stream say what to do with it.

The code that writes and reads is the same for both kinds, so that a ratio between them is the price of the pipe.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from struct import Struct
from threading import Thread
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream, SocketAttribute

from eventstream.pipes import BackedPipe, PipeServer

from .stage import Stage, perform, resident

__all__ = ("PIPE", "RAW", "Order", "Peer", "ask", "held", "opened")

RAW, PIPE = "raw anyio TCP", "BackedPipe"
HOST = "127.0.0.1"
COMMAND = Struct(">BI")
NUMBER = Struct(">Q")


class Order(IntEnum):
    """What the peer shall do on a stream: the first byte of it. A number follows."""

    ECHO = 1  # what comes
    SEND = 2  # writes of that many bytes, until nobody listens any more
    TRACE = 3  # begin to count the interpreter's blocks, and answer a number
    HELD = 4  # answer how many bytes the process holds


class Peer:
    """The second process.

    Args:
        kind: `RAW` or `PIPE`.
        loop: The event loop that it runs on.

    Attributes:
        port: Where it listens; a free one.
    """

    def __init__(self, kind: str, loop: str) -> None:
        self._command = [sys.executable, "-m", __name__, kind, loop]
        self.port = 0

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            self.__exit__(None, None, None)
            raise RuntimeError("the peer's process did not start")
        self.port = int(said)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.communicate()


@asynccontextmanager
async def opened(kind: str, dial: Callable[[], Awaitable[ByteStream]]) -> AsyncIterator[ByteStream]:
    """A stream of that kind to the peer, connected."""
    if kind == PIPE:
        async with BackedPipe(dial) as pipe:
            await pipe.wait_connected()
            yield pipe
    else:
        async with await dial() as stream:
            yield stream


async def ask(stream: ByteStream, order: Order, number: int = 0) -> int:
    """Gives an order; returns the answer of those that have one."""
    await stream.send(COMMAND.pack(order, number))
    answers = order in (Order.TRACE, Order.HELD)
    return int(NUMBER.unpack(await _exactly(stream, NUMBER.size))[0]) if answers else 0


def held() -> int:
    """Bytes that this process holds: in the interpreter's blocks if they are traced, else in memory."""
    if not tracemalloc.is_tracing():
        return resident()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _exactly(stream: ByteStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += await stream.receive(count - len(got))
    return got


async def _obey(stream: ByteStream) -> None:
    """Serves one stream, until the other end has gone."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            order, number = COMMAND.unpack(await _exactly(stream, COMMAND.size))
            match order:
                case Order.ECHO:
                    while True:
                        await stream.send(await stream.receive())
                case Order.SEND:
                    data = b"x" * number
                    while True:
                        await stream.send(data)
                case Order.TRACE:
                    tracemalloc.start()
                    await stream.send(NUMBER.pack(0))
                case Order.HELD:
                    await stream.send(NUMBER.pack(held()))


async def _obey_raw(stream: ByteStream) -> None:
    async with stream:
        await _obey(stream)


async def _serve(kind: str) -> None:
    listener = await anyio.create_tcp_listener(local_host=HOST, backlog=1024)
    print(listener.extra(SocketAttribute.local_port), flush=True)
    if kind == PIPE:
        await PipeServer(_obey).serve(listener)
    else:
        await listener.serve(_obey_raw)


def _leave_with_parent() -> None:
    """Ends the process as soon as nobody holds the other end of its input: a measurement that took too long is killed,
    and could not stop its peer."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """The second process itself."""
    kind, loop = sys.argv[1:]

    async def serve(_: Stage) -> None:
        await _serve(kind)

    Thread(target=_leave_with_parent, daemon=True).start()
    perform(serve, loop)


if __name__ == "__main__":
    main()

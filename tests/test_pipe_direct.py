"""Writing to a socket at once: what the system takes goes there, whatever else is left to the stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.stapled import StapledByteStream

from eventstream.pipes.direct import DirectWriter
from eventstream.testing import Network

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    """Both ends of a connection over loopback."""
    accepted: list[SocketStream] = []
    arrived = anyio.Event()

    async def accept(stream: SocketStream) -> None:
        async with stream:
            accepted.append(stream)
            arrived.set()
            await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, accept)
        port = listener.extra(SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as dialed:
            await arrived.wait()
            yield dialed, accepted[0]
            tasks.cancel_scope.cancel()


async def take(stream: ByteStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += await stream.receive()
    return got


async def test_what_the_system_takes_goes_at_once() -> None:
    """Nothing is left, and it arrives between what the stream itself sends."""
    async with connected() as (ours, theirs):
        writer = DirectWriter(ours)
        await ours.send(b"one ")
        assert writer.write(b"two ") == b""
        await ours.send(b"three")
        assert await take(theirs, 13) == b"one two three"


async def test_the_rest_is_returned_when_the_system_is_full() -> None:
    """Sent by the stream, it follows without a gap, and in order."""
    data = bytes(range(256)) * 100_000
    async with connected() as (ours, theirs), anyio.create_task_group() as tasks:
        writer = DirectWriter(ours)
        rest = writer.write(data)
        assert 0 < len(rest) < len(data)
        while more := len(rest) - len(writer.write(bytes(rest))):  # until it takes nothing at all
            rest = rest[more:]
        tasks.start_soon(ours.send, bytes(rest))
        assert await take(theirs, len(data)) == data


async def test_a_closed_socket_is_left_alone() -> None:
    """Its number may be another connection's by now; the stream tells what is wrong."""
    async with connected() as (ours, _):
        writer = DirectWriter(ours)
        await ours.aclose()
        assert writer.write(b"lost") == b"lost"
        with pytest.raises(anyio.ClosedResourceError):
            await ours.send(b"lost")


async def test_a_peer_that_has_gone_is_found_by_the_stream() -> None:
    """An error of the socket is no error here: all bytes are returned, and sending them fails as it does without us."""
    async with connected() as (ours, theirs):
        writer = DirectWriter(ours)
        await anyio.aclose_forcefully(theirs)
        with pytest.raises(anyio.BrokenResourceError):
            while True:
                if rest := writer.write(b"x"):
                    await ours.send(bytes(rest))
                await anyio.lowlevel.checkpoint()


async def test_other_streams_are_never_bypassed() -> None:
    """What is no socket stream of anyio's own may change the bytes, whatever socket it says it stands on."""
    async with connected() as (ours, _):
        assert DirectWriter(StapledByteStream(ours, ours)).write(b"data") == b"data"
    network = Network()
    async with network.listen() as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, lambda stream: anyio.sleep_forever())
        assert DirectWriter(await network.dial()).write(b"data") == b"data"
        tasks.cancel_scope.cancel()

"""Dialing by address: what is special about our own stream. All that it shares with anyio's is in
`test_testing_streams.py`, and pipes over it are in `test_pipe_conformance.py`."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from sniffio import current_async_library

from eventstream.pipes.tcp import MOST, TcpStream, connect_tcp
from support import settle

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(host: str = "127.0.0.1") -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    """Who dialed, who accepted."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as multi:
        (listener,) = multi.listeners
        async with (
            await connect_tcp(host, listener.extra(SocketAttribute.local_port)) as dialed,
            await listener.accept() as accepted,  # type: ignore[attr-defined]  # a SocketListener
        ):
            yield dialed, accepted


async def test_it_is_ours_where_anyios_is_dearer() -> None:
    async with connected() as (dialed, _):
        assert isinstance(dialed, TcpStream) == (current_async_library() == "asyncio")


async def test_a_name_with_several_addresses_leads_to_the_one_that_answers() -> None:
    """The server listens at one address alone, whatever else the name stands for."""
    async with connected("localhost") as (dialed, accepted):
        await accepted.send(b"here")
        assert await dialed.receive() == b"here"


async def test_nobody_there_is_an_error_of_the_system() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError):
        await connect_tcp("127.0.0.1", port)


async def test_a_cancelled_dial_leaves_nothing() -> None:
    """Neither the task nor, as warnings are errors, the socket."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await connect_tcp("127.0.0.1", 9)
    assert scope.cancelled_caught


async def test_what_is_not_received_is_bounded() -> None:
    """The socket is out of the selector while much is unread, so the peer has to wait; then it goes on, in order."""
    data = bytes(range(256)) * 40_000
    async with connected() as (dialed, accepted), anyio.create_task_group() as tasks:
        tasks.start_soon(accepted.send, data)
        await settle()
        if isinstance(dialed, TcpStream):
            assert MOST < dialed.unread <= MOST + 256 * 1024
        got = b""
        while len(got) < len(data):
            got += await dialed.receive()
        assert got == data


async def test_it_knows_its_socket() -> None:
    """A pipe writes to it directly."""
    async with connected() as (dialed, accepted):
        port = dialed.extra(SocketAttribute.raw_socket).getsockname()[1]
        assert port == accepted.extra(SocketAttribute.remote_port)

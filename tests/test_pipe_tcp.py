"""Dialing by address: what is special about our own stream. All that it shares with anyio's is in
`test_testing_streams.py`, and pipes over it are in `test_pipe_conformance.py`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from unittest.mock import Mock

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from sniffio import current_async_library

from eventstream.pipes import tcp
from eventstream.pipes.tcp import MOST, TcpStream, _Race, connect_tcp
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


async def stop_soon(scope: anyio.CancelScope) -> None:
    await settle()
    scope.cancel()


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
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(OSError, match=r".") as raised:
            await connect_tcp(host, port)
        cause = raised.value.__cause__
        causes = cause.exceptions if isinstance(cause, ExceptionGroup) else [cause]
        assert all(isinstance(each, ConnectionRefusedError) for each in causes)


async def test_a_name_without_an_address_is_told_as_such() -> None:
    with pytest.raises(socket.gaierror):
        await connect_tcp("no such name", 1)


class Addresses:
    """In the place of a loop: what each address says. Whoever is `slow` answers when the gate opens."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.made: dict[str, Mock] = {}

    async def create_connection(self, factory: object, address: str, port: int) -> tuple[None, Mock]:
        if address.startswith("refused"):
            raise ConnectionRefusedError(address)
        if address.startswith("silent"):
            await anyio.sleep_forever()
        if address.startswith("slow"):
            await self.gate.wait()
        self.made[address] = Mock()
        return None, self.made[address]

    def race(self) -> _Race:
        return _Race(cast("asyncio.AbstractEventLoop", self), 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("impatient")
class Test_several_addresses:
    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next address is tried one turn later."""
        monkeypatch.setattr(tcp, "NEXT_ADDRESS", 0.0)

    @pytest.mark.parametrize("first", ["silent", "refused"])
    async def test_one_that_gives_no_connection_is_passed_over(self, first: str) -> None:
        addresses = Addresses()
        assert await addresses.race().run([first, "here"]) is addresses.made["here"]
        addresses.made["here"].abort.assert_not_called()

    async def test_of_two_that_come_in_together_one_is_closed(self) -> None:
        addresses = Addresses()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(addresses.race().run, ["slow 1", "slow 2"])
            await settle()
            addresses.gate.set()
        one, other = addresses.made.values()
        one.abort.assert_not_called()
        other.abort.assert_called_once_with()

    async def test_one_that_comes_in_with_a_cancellation_is_closed(self) -> None:
        addresses = Addresses()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(addresses.race().run, ["slow"])
            await settle()
            addresses.gate.set()
            tasks.cancel_scope.cancel()
        addresses.made["slow"].abort.assert_called_once_with()

    async def test_all_failures_are_told(self) -> None:
        with pytest.raises(OSError, match="no connection to any address of the host") as raised:
            await Addresses().race().run(["refused 1", "refused 2"])
        assert isinstance(raised.value.__cause__, ExceptionGroup)
        assert [str(each) for each in raised.value.__cause__.exceptions] == ["refused 1", "refused 2"]


async def test_a_cancelled_dial_leaves_nothing() -> None:
    """No task; and as warnings are errors, no socket."""
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


async def test_a_send_waits_until_the_system_has_everything() -> None:
    data = bytes(range(256)) * 40_000
    async with connected() as (dialed, accepted), anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:  # anyio's own reads without bound until its first `receive` has waited
            tasks.start_soon(stop_soon, scope)
            await accepted.receive()
        sent = anyio.Event()

        async def send() -> None:
            await dialed.send(data)
            sent.set()

        tasks.start_soon(send)
        await settle()
        assert not sent.is_set()
        got = b""
        while len(got) < len(data):
            got += await accepted.receive()
        assert got == data
        await sent.wait()


async def test_it_knows_its_socket() -> None:
    """A pipe writes to it directly."""
    async with connected() as (dialed, accepted):
        port = dialed.extra(SocketAttribute.raw_socket).getsockname()[1]
        assert port == accepted.extra(SocketAttribute.remote_port)

"""The proxy that cuts real connections."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from eventstream.testing import CuttingProxy
from support import settle

NO_TIME = struct.pack("ii", 1, 0)  # to linger in: closing sends a reset


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """Sends everything back."""

    async def echo(stream: SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    await stream.send(data)
                await stream.send_eof()
            except BrokenResourceError:
                pass

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def dialled(proxy: CuttingProxy) -> AsyncIterator[ByteStream]:
    with anyio.fail_after(20):
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            yield stream


async def read(stream: ByteStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += await stream.receive(count - len(got))
    return got


class Test_forwarding:
    async def test_bytes_pass_and_are_counted(self) -> None:
        async with echo_server() as port, CuttingProxy(port) as proxy, dialled(proxy) as stream:
            await stream.send(b"hello")
            assert await read(stream, 5) == b"hello"
            assert (proxy.connections, proxy.live, proxy.bytes_up, proxy.bytes_down, proxy.cuts) == (1, 1, 5, 5, 0)

    async def test_a_clean_end_passes(self) -> None:
        async with echo_server() as port, CuttingProxy(port) as proxy, dialled(proxy) as stream:
            await stream.send(b"last")
            await stream.send_eof()
            assert await read(stream, 4) == b"last"
            with pytest.raises(EndOfStream):
                await stream.receive()

    async def test_nobody_there(self) -> None:
        async with echo_server() as port:
            pass
        async with CuttingProxy(port) as proxy, dialled(proxy) as stream:
            with pytest.raises(BrokenResourceError):
                await stream.receive()

    async def test_no_port_before_it_is_entered(self) -> None:
        with pytest.raises(RuntimeError, match="async with"):
            CuttingProxy(1).port  # noqa: B018

    async def test_wrong_numbers(self) -> None:
        with pytest.raises(ValueError, match="cuts"):
            CuttingProxy(1, cuts=-1)
        with pytest.raises(ValueError, match="mean_bytes"):
            CuttingProxy(1, mean_bytes=0)

    async def test_its_repr_shows_its_state(self) -> None:
        async with CuttingProxy(4000) as proxy:
            proxy.hold()
            shown = f"<CuttingProxy {proxy.port} to ('127.0.0.1', 4000), 0 connections, 0 cuts, holding>"
            assert repr(proxy) == shown


class Test_cuts:
    async def test_so_many_and_then_no_more(self) -> None:
        """Each connection sends until it is cut; after the third cut everything passes."""
        async with echo_server() as port, CuttingProxy(port, cuts=3, mean_bytes=1000) as proxy:
            for number in range(1, 4):
                async with dialled(proxy) as stream:
                    with pytest.raises(BrokenResourceError):
                        while True:
                            await stream.send(bytes(100))
                            await stream.receive()
                assert proxy.cuts == number
            async with dialled(proxy) as stream:
                await stream.send(bytes(50_000))
                assert len(await read(stream, 50_000)) == 50_000
            assert proxy.cuts == 3
            assert proxy.connections == 4

    async def test_the_seed_decides_after_how_many_bytes(self) -> None:
        """In a dialogue the number of bytes that pass before the cut is exact."""

        async def passed(seed: int) -> int:
            async with echo_server() as port, CuttingProxy(port, seed=seed, cuts=1, mean_bytes=300) as proxy:
                async with dialled(proxy) as stream:
                    with pytest.raises(BrokenResourceError):
                        while True:
                            await stream.send(b"x")
                            await stream.receive()
                return proxy.bytes_up + proxy.bytes_down

        first = await passed(1)
        assert await passed(1) == first
        assert {await passed(seed) for seed in (2, 3, 4)} != {first}

    async def test_by_hand(self) -> None:
        async with echo_server() as port, CuttingProxy(port) as proxy, dialled(proxy) as stream:
            await stream.send(b"x")
            await stream.receive()
            proxy.cut()
            with pytest.raises(BrokenResourceError):
                await stream.receive()
            assert (proxy.cuts, proxy.live) == (1, 0)

    async def test_a_reset_by_one_side_passes_to_the_other(self) -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as multi:
            (listener,) = multi.listeners
            async with CuttingProxy(listener.extra(SocketAttribute.local_port)) as proxy, dialled(proxy) as stream:
                accepted = await listener.accept()  # type: ignore[attr-defined]  # a SocketListener
                accepted.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_TIME)
                await accepted.aclose()
                with pytest.raises(BrokenResourceError):
                    await stream.receive()
                assert proxy.cuts == 0


class Test_holding:
    async def test_nothing_passes_and_nothing_is_closed(self) -> None:
        async with echo_server() as port, CuttingProxy(port) as proxy, dialled(proxy) as stream:
            await stream.send(b"a")
            await stream.receive()
            proxy.hold()
            proxy.hold()
            await stream.send(b"b")
            await settle(100)
            assert (proxy.bytes_up, proxy.bytes_down, proxy.live) == (1, 1, 1)
            proxy.release()
            assert await stream.receive() == b"b"

    async def test_new_connections_are_held_too(self) -> None:
        async with echo_server() as port, CuttingProxy(port) as proxy:
            proxy.hold()
            async with dialled(proxy) as stream:
                await stream.send(b"x")
                await settle(100)
                assert proxy.live == 0
                proxy.release()
                assert await stream.receive() == b"x"

    async def test_what_is_held_can_be_cut(self) -> None:
        async with echo_server() as port, CuttingProxy(port) as proxy, dialled(proxy) as stream:
            await stream.send(b"a")
            await stream.receive()
            proxy.hold()
            await stream.send(b"b")
            proxy.cut()
            with pytest.raises(BrokenResourceError):
                await stream.receive()


async def test_leaving_closes_everything() -> None:
    async with echo_server() as port:
        async with CuttingProxy(port) as proxy:
            stream = await anyio.connect_tcp("127.0.0.1", proxy.port)
            await stream.send(b"x")
            await stream.receive()
        with anyio.fail_after(20), pytest.raises((EndOfStream, BrokenResourceError)):
            await stream.receive()
        await stream.aclose()
        with pytest.raises(OSError):
            await anyio.connect_tcp("127.0.0.1", proxy.port)

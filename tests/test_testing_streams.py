"""One suite over anyio's TCP streams, our own and the simulated ones: what holds for the first holds for the others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, SocketAttribute

from eventstream.pipes.tcp import TcpStream, connect_tcp
from eventstream.testing import Network
from support import counting_turns, settle


@pytest.fixture(params=["tcp", "simulated", "kept", "kept at the other end"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """A connection: who dialled, who accepted."""
    if request.param == "simulated":
        network = Network()
        async with network.listen() as listener:
            first: ByteStream = await network.dial()
            second: ByteStream = await listener.accept()
    else:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as multi:
            (tcp,) = multi.listeners
            connect = anyio.connect_tcp if request.param == "tcp" else connect_tcp
            first = await connect("127.0.0.1", tcp.extra(SocketAttribute.local_port))
            second = await tcp.accept()  # type: ignore[attr-defined]  # a SocketListener
            for end in (first, second):
                await begin_receiving(end)
            if request.param == "kept at the other end":
                first, second = second, first
    try:
        with anyio.fail_after(20):
            yield first, second
    finally:
        await first.aclose()
        await second.aclose()


async def begin_receiving(stream: ByteStream) -> None:
    """On asyncio a TCP stream reads without bound until its first `receive` has waited."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.receive)
        await settle()
        tasks.cancel_scope.cancel()


Ends = tuple[ByteStream, ByteStream]


async def read(stream: ByteStream, count: int) -> bytes:
    """Exactly so many bytes."""
    got = b""
    while len(got) < count:
        got += await stream.receive(count - len(got))
    return got


async def fill(stream: ByteStream, piece: bytes = bytes(65_536)) -> int:
    """Sends until it would wait; returns how many bytes were sent for certain."""
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await stream.send(piece)
            sent += len(piece)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        before = -1
        while before < sent:
            before = sent
            await settle()
        tasks.cancel_scope.cancel()
    return sent


class Test_receive:
    async def test_it_returns_what_was_sent(self, ends: Ends) -> None:
        first, second = ends
        await first.send(b"ping")
        assert await read(second, 4) == b"ping"
        await second.send(b"pong")
        assert await read(first, 4) == b"pong"

    async def test_at_most_so_many_bytes(self, ends: Ends) -> None:
        first, second = ends
        await first.send(b"abcdef")
        assert await second.receive(1) == b"a"
        assert await read(second, 5) == b"bcdef"

    async def test_none_is_too_few(self, ends: Ends) -> None:
        with pytest.raises(ValueError, match="positive"):
            await ends[0].receive(0)

    async def test_a_cancelled_one_loses_nothing(self, ends: Ends) -> None:
        """asyncio's TCP may even return the bytes: a cancellation comes a turn later there."""
        first, second = ends
        await first.send(b"ping")
        got = b""
        with anyio.CancelScope() as scope:
            scope.cancel()
            got = await second.receive()
        assert got + await read(second, 4 - len(got)) == b"ping"

    async def test_a_waiting_one_is_woken(self, ends: Ends) -> None:
        first, second = ends
        got = []

        async def receive() -> None:
            got.append(await second.receive())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settle()
            assert got == []
            await first.send(b"x")
        assert got == [b"x"]

    async def test_two_at_once(self, ends: Ends) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends[0].receive)
            await settle()
            with pytest.raises(BusyResourceError):
                await ends[0].receive()
            tasks.cancel_scope.cancel()

    async def test_it_is_a_checkpoint(self, ends: Ends) -> None:
        """Also when something is there."""
        first, second = ends
        await first.send(b"abcdef")
        assert await second.receive(1) == b"a"
        async with counting_turns() as turns:
            for _ in range(5):
                await second.receive(1)
            assert turns() >= 4


class Test_send:
    async def test_it_waits_while_the_other_does_not_read(self, ends: Ends) -> None:
        first, second = ends
        sent = await fill(first)
        assert 65_536 <= sent < 50_000_000
        got = 0
        while got < sent:
            got += len(await second.receive())
        await first.send(b"")  # it goes on

    async def test_two_at_once(self, ends: Ends) -> None:
        first, _ = ends
        await fill(first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.send, bytes(1_000_000))
            await settle()
            with pytest.raises(BusyResourceError):
                await first.send(b"x")
            tasks.cancel_scope.cancel()

    async def test_the_other_end_is_gone(self, ends: Ends) -> None:
        """It may take a few sends until it is known."""
        first, second = ends
        await second.aclose()
        with pytest.raises(BrokenResourceError):
            while True:
                await first.send(b"x")

    async def test_a_waiting_one_learns_that_the_other_is_gone(self, ends: Ends) -> None:
        first, second = ends
        await fill(first)

        async def close() -> None:
            await settle()
            await second.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with pytest.raises(BrokenResourceError):
                while True:
                    await first.send(bytes(100_000))

    async def test_a_cancelled_one_sends_nothing(self, ends: Ends) -> None:
        first, second = ends
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first.send(b"lost")
        await first.send(b"kept")
        assert await read(second, 4) == b"kept"


class Test_the_end:
    async def test_it_comes_after_the_bytes(self, ends: Ends) -> None:
        first, second = ends
        await first.send(b"last")
        await first.aclose()
        assert await read(second, 4) == b"last"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await second.receive()

    async def test_send_eof_leaves_the_way_back_open(self, ends: Ends) -> None:
        first, second = ends
        await first.send(b"question")
        await first.send_eof()
        assert await read(second, 8) == b"question"
        with pytest.raises(EndOfStream):
            await second.receive()
        await second.send(b"answer")
        assert await read(first, 6) == b"answer"

    async def test_send_eof_twice(self, ends: Ends) -> None:
        first, second = ends
        await first.send_eof()
        await first.send_eof()
        with pytest.raises(EndOfStream):
            await second.receive()

    async def test_who_closes_with_bytes_unread_resets(self, ends: Ends) -> None:
        first, second = ends
        if isinstance(second, TcpStream):
            pytest.skip("it has taken them from the system, which knows of nothing unread then")
        await first.send(b"unread")
        await second.aclose()
        with pytest.raises(BrokenResourceError):
            await first.receive()

    async def test_bytes_before_a_reset_can_be_read(self, ends: Ends) -> None:
        first, second = ends
        if isinstance(second, TcpStream):
            pytest.skip("as above")
        await second.send(b"last words")
        await first.send(b"unread")
        assert await first.receive(1) == b"l"
        await second.aclose()
        assert await read(first, 9) == b"ast words"
        with pytest.raises(BrokenResourceError):
            await first.receive()


class Test_own_close:
    async def test_calls_after_it(self, ends: Ends) -> None:
        first, _ = ends
        await first.aclose()
        await first.aclose()
        with pytest.raises(ClosedResourceError):
            await first.receive()
        with pytest.raises(ClosedResourceError):
            await first.send(b"x")

    async def test_it_wakes_who_receives(self, ends: Ends) -> None:
        first, _ = ends

        async def receive() -> None:
            with pytest.raises(ClosedResourceError):
                await first.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settle()
            await first.aclose()

    async def test_it_wakes_who_sends(self, ends: Ends) -> None:
        first, _ = ends
        await fill(first)

        async def send() -> None:
            with pytest.raises(ClosedResourceError):
                await first.send(bytes(1_000_000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await settle()
            await first.aclose()

    async def test_cancelled_it_closes_nevertheless(self, ends: Ends) -> None:
        first, second = ends
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first.aclose()
        with pytest.raises(EndOfStream):
            await second.receive()


async def test_each_end_knows_the_addresses(ends: Ends) -> None:
    first, second = ends
    assert first.extra(SocketAttribute.local_address) == second.extra(SocketAttribute.remote_address)
    assert first.extra(SocketAttribute.remote_address) == second.extra(SocketAttribute.local_address)

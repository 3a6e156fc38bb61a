"""Every harm that can be done to a link: by hand, at a byte, for a time, and by chance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream

from eventstream.testing import Direction, Faults, Network, NetworkStream, run_simulated
from support import settle

Backend = Literal["asyncio", "trio"]


@pytest.fixture
def backend(anyio_backend: str) -> str:
    """For plain tests: the loop is started by the test itself."""
    return anyio_backend


async def pair(network: Network | None = None) -> tuple[NetworkStream, NetworkStream]:
    """Both ends of a new link: who dialled, who accepted."""
    network = network or Network()
    async with network.listen() as listener:
        return await network.dial(), await listener.accept()


async def rest(stream: NetworkStream) -> tuple[bytes, type[Exception]]:
    """All that comes, and what ends it."""
    got = b""
    try:
        while True:
            got += await stream.receive()
    except (BrokenResourceError, EndOfStream) as error:
        return got, type(error)


async def nothing_comes(stream: NetworkStream) -> bool:
    """Whether a read would wait."""
    came = []
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                came.append(await stream.receive())

            tasks.start_soon(receive)
            await settle()
            scope.cancel()
    return not came


class Test_cut:
    async def test_both_ends_get_an_error(self) -> None:
        client, server = await pair()
        client.link.cut()
        for end in (client, server):
            with pytest.raises(BrokenResourceError):
                await end.receive()
            with pytest.raises(BrokenResourceError):
                await end.send(b"x")

    async def test_what_was_sent_arrives_before_it(self) -> None:
        client, server = await pair()
        await client.send(b"kept")
        client.link.cut()
        assert await rest(server) == (b"kept", BrokenResourceError)

    async def test_or_is_lost_with_it(self) -> None:
        client, server = await pair()
        await client.send(b"lost")
        client.link.cut(lose=True)
        assert await rest(server) == (b"", BrokenResourceError)
        assert (client.link.up.sent, client.link.up.received, client.link.up.lost) == (4, 0, 4)

    async def test_it_wakes_who_waits(self) -> None:
        client, server = await pair(Network(buffer=1))
        await client.send(b"x")
        ended = []

        async def wait(call: Callable[[], Awaitable[Any]]) -> None:
            with pytest.raises(BrokenResourceError):
                await call()
            ended.append(call)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, partial(client.send, b"y"))
            tasks.start_soon(wait, client.receive)
            await settle()
            assert ended == []
            client.link.cut()
        assert len(ended) == 2
        assert await rest(server) == (b"x", BrokenResourceError)

    async def test_a_second_one_changes_nothing(self) -> None:
        network = Network()
        client, server = await pair(network)
        await client.send(b"kept")
        client.link.cut()
        client.link.cut(lose=True)
        client.link.close()
        client.link.half_open()
        client.link.cut_after(0)
        assert await rest(server) == (b"kept", BrokenResourceError)
        assert (network.statistics().cuts, network.statistics().closes) == (1, 0)

    async def test_it_has_the_last_word_after_a_clean_end(self) -> None:
        client, server = await pair()
        await client.send_eof()
        assert await rest(server) == (b"", EndOfStream)
        client.link.cut()
        assert await rest(server) == (b"", BrokenResourceError)


class Test_close:
    async def test_both_ends_get_a_clean_end(self) -> None:
        client, server = await pair()
        await client.send(b"kept")
        client.link.close()
        assert await rest(server) == (b"kept", EndOfStream)
        assert await rest(client) == (b"", EndOfStream)
        with pytest.raises(BrokenResourceError):
            await client.send(b"x")


class Test_at_a_byte:
    @pytest.mark.parametrize("count", range(9))
    async def test_a_cut_splits_the_send_that_it_falls_into(self, count: int) -> None:
        client, server = await pair()
        client.link.cut_after(count)
        sent = 0
        with pytest.raises(BrokenResourceError):
            while True:
                await client.send(b"abcd")
                sent += 4
        assert await rest(server) == (b"abcdabcd"[:count], BrokenResourceError)
        assert sent == count // 4 * 4

    async def test_or_loses_what_was_before_it(self) -> None:
        client, server = await pair()
        client.link.cut_after(3, lose=True)
        with pytest.raises(BrokenResourceError):
            await client.send(b"abcd")
        assert await rest(server) == (b"", BrokenResourceError)

    async def test_the_bytes_of_one_direction_count(self) -> None:
        client, server = await pair()
        client.link.cut_after(3, direction="down")
        await client.send(b"abcdef")
        assert await server.receive() == b"abcdef"
        with pytest.raises(BrokenResourceError):
            await server.send(b"123456")
        assert await rest(client) == (b"123", BrokenResourceError)

    async def test_or_of_both_together(self) -> None:
        client, server = await pair()
        client.link.cut_after(5)
        await client.send(b"abc")
        with pytest.raises(BrokenResourceError):
            await server.send(b"123")
        assert await rest(server) == (b"abc", BrokenResourceError)
        assert await rest(client) == (b"12", BrokenResourceError)

    async def test_anything_may_happen_there_several_times(self) -> None:
        client, server = await pair()
        seen = []
        for count in (2, 2, 5):
            client.link.after(count, lambda: seen.append(client.link.up.sent))
        await client.send(b"abcdef")
        assert seen == [2, 2, 5]
        assert await server.receive() == b"abcdef"

    async def test_it_counts_from_now(self) -> None:
        client, server = await pair()
        await client.send(b"abc")
        client.link.after(2, client.link.close)
        with pytest.raises(BrokenResourceError):
            await client.send(b"def")
        assert await rest(server) == (b"abcde", EndOfStream)

    async def test_fewer_than_none(self) -> None:
        client, _ = await pair()
        with pytest.raises(ValueError, match="negative"):
            client.link.cut_after(-1)

    async def test_healing_forgets_it(self) -> None:
        network = Network()
        client, server = await pair(network)
        client.link.cut_after(2)
        network.heal()
        await client.send(b"abcd")
        assert await server.receive() == b"abcd"


class Test_stall:
    async def test_nothing_arrives_until_it_ends(self) -> None:
        client, server = await pair()
        client.link.stall()
        await client.send(b"late")
        await client.send_eof()
        assert await nothing_comes(server)
        client.link.resume()
        assert await rest(server) == (b"late", EndOfStream)

    async def test_what_had_arrived_can_be_read(self) -> None:
        client, server = await pair()
        await client.send(b"early")
        client.link.stall(direction="up")
        await client.send(b"late")
        assert await server.receive() == b"early"
        assert await nothing_comes(server)

    async def test_the_other_direction_goes_on(self) -> None:
        client, server = await pair()
        client.link.stall(direction="up")
        await server.send(b"x")
        assert await client.receive() == b"x"

    async def test_who_sends_waits_when_the_buffer_is_full(self) -> None:
        client, server = await pair(Network(buffer=4))
        client.link.stall()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, b"abcdef")
            await settle()
            assert client.link.up.sent == 4
            client.link.resume()
            assert await server.receive() == b"abcd"
        assert await server.receive() == b"ef"

    async def test_a_cut_ends_it(self) -> None:
        client, server = await pair()
        client.link.stall()
        await client.send(b"late")
        client.link.cut()
        assert await rest(server) == (b"late", BrokenResourceError)

    async def test_healing_ends_it(self) -> None:
        network = Network()
        client, server = await pair(network)
        client.link.stall()
        await client.send(b"late")
        network.heal()
        assert await server.receive() == b"late"

    async def test_the_end_of_the_other_is_not_heard_of(self) -> None:
        client, server = await pair()
        client.link.stall()
        await server.aclose()
        await client.send(b"into the void")
        client.link.resume()
        with pytest.raises(BrokenResourceError):
            await client.send(b"x")

    def test_for_a_time(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair()
            client.link.stall(7)
            client.link.stall(3)  # the longer one stays
            await client.send(b"late")
            assert await server.receive() == b"late"
            assert anyio.current_time() == pytest.approx(7)
            await client.send(b"on")
            assert await server.receive() == b"on"
            assert anyio.current_time() == pytest.approx(7)

        run_simulated(main, backend=backend)

    def test_by_chance(self, backend: Backend) -> None:
        async def main() -> None:
            network = Network(1, Faults(stall=1.0, stall_seconds=10))
            client, server = await pair(network)
            for _ in range(20):  # each stalls what is sent after it
                await client.send(b"x")
                await server.receive()
            assert 50 < anyio.current_time() < 500
            assert network.statistics().stalls == 20

        run_simulated(main, backend=backend)


class Test_half_open:
    @pytest.mark.parametrize(
        ("direction", "up", "down"), [("up", False, True), ("down", True, False), (None, False, False)]
    )
    async def test_it_swallows_without_an_error(self, direction: Direction | None, up: bool, down: bool) -> None:
        network = Network()
        client, server = await pair(network)
        client.link.half_open(direction)
        await client.send(b"ping")
        await server.send(b"pong")
        assert await nothing_comes(server) is not up
        assert await nothing_comes(client) is not down
        assert network.statistics().half_opens == 1

    async def test_sends_succeed_until_the_buffer_is_full(self) -> None:
        client, _ = await pair(Network(buffer=10))
        await client.send(b"1234")
        client.link.half_open()
        await client.send(b"567890")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.send, b"x")
                await settle()
                scope.cancel()
        assert scope.cancelled_caught
        assert client.link.up.sent == 10

    async def test_what_had_arrived_can_be_read(self) -> None:
        client, server = await pair()
        await client.send(b"early")
        client.link.half_open()
        assert await server.receive() == b"early"
        assert await nothing_comes(server)

    @pytest.mark.parametrize("ending", ["send_eof", "aclose"])
    async def test_ends_are_swallowed_too(self, ending: str) -> None:
        client, server = await pair()
        client.link.half_open("up")
        await getattr(client, ending)()
        assert await nothing_comes(server)
        await server.send(b"x")

    async def test_healing_does_not_bring_it_back(self) -> None:
        network = Network()
        client, server = await pair(network)
        client.link.half_open()
        network.heal()
        await client.send(b"x")
        assert await nothing_comes(server)

    @pytest.mark.parametrize(("end", "error"), [("cut", BrokenResourceError), ("close", EndOfStream)])
    async def test_only_the_network_ends_it(self, end: str, error: type[Exception]) -> None:
        client, server = await pair()
        client.link.half_open()
        await client.send(b"swallowed")
        getattr(client.link, end)()
        assert await rest(server) == (b"", error)


class Test_delay:
    def test_bytes_travel_for_a_time_in_order(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair(Network(faults=Faults(latency=2)))
            await client.send(b"a")
            await anyio.sleep(1)
            await client.send(b"b")
            await client.send_eof()
            got = []
            for _ in range(2):
                got.append((await server.receive(), round(anyio.current_time(), 3)))
            assert got == [(b"a", 2), (b"b", 3)]
            assert await rest(server) == (b"", EndOfStream)
            assert anyio.current_time() == pytest.approx(3)

        run_simulated(main, backend=backend)

    def test_jitter_keeps_the_order(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair(Network(2, Faults(latency=1, jitter=4)))
            for number in range(50):
                await client.send(bytes([number]))
            await client.aclose()
            times = set()
            got = b""
            while len(got) < 50:
                got += await server.receive()
                times.add(anyio.current_time())
            assert got == bytes(range(50))
            assert len(times) > 1
            assert min(times) > 1
            assert max(times) <= 5.001

        run_simulated(main, backend=backend)

    def test_a_cut_lets_what_is_under_way_arrive(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair(Network(faults=Faults(latency=5)))
            await client.send(b"under way")
            client.link.cut()
            with pytest.raises(BrokenResourceError):
                await client.receive()
            assert anyio.current_time() == 0
            assert await rest(server) == (b"under way", BrokenResourceError)
            assert anyio.current_time() == pytest.approx(5)

        run_simulated(main, backend=backend)

    def test_a_close_is_heard_of_later(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair(Network(faults=Faults(latency=5)))
            await server.aclose()
            await client.send(b"into the void")
            assert client.link.up.lost == 13
            await anyio.sleep(5)
            with pytest.raises(BrokenResourceError):
                await client.send(b"x")

        run_simulated(main, backend=backend)

    def test_who_waits_to_send_hears_of_it_too(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair(Network(buffer=2, faults=Faults(latency=5)))
            client.link.half_open("up")
            await client.send(b"ab")
            await server.aclose()
            with pytest.raises(BrokenResourceError):
                await client.send(b"c")
            assert anyio.current_time() == pytest.approx(5)

        run_simulated(main, backend=backend)


class Test_fragments:
    async def test_bytes_come_in_small_pieces(self) -> None:
        client, server = await pair(Network(1, Faults(fragment=1.0)))
        data = bytes(range(256))
        await client.send(data)
        got: list[bytes] = []
        while sum(map(len, got)) < 256:
            got.append(await server.receive())
        assert b"".join(got) == data
        assert len(got) > 4

    def test_the_pieces_travel_singly(self, backend: Backend) -> None:
        async def main() -> None:
            client, server = await pair(Network(1, Faults(fragment=1.0, jitter=10)))
            await client.send(bytes(1000))
            times = set()
            while client.link.up.unread:
                await server.receive()
                times.add(round(anyio.current_time(), 3))
            assert len(times) > 2

        run_simulated(main, backend=backend)

    async def test_without_it_all_that_is_there_comes_at_once(self) -> None:
        client, server = await pair()
        for _ in range(5):
            await client.send(b"ab")
        assert await server.receive(7) == b"abababa"
        assert await server.receive() == b"bab"


class Test_by_chance:
    @staticmethod
    async def ends(faults: Faults, links: int = 60) -> list[tuple[int, int, type[Exception] | None]]:
        """For each link: bytes sent until it ended (at most 4000), bytes that arrived, and with what it ended."""
        network = Network(9, faults, buffer=100_000)
        seen: list[tuple[int, int, type[Exception] | None]] = []
        for _ in range(links):
            client, server = await pair(network)
            try:
                for _ in range(4):
                    await client.send(bytes(1000))
            except BrokenResourceError:
                pass
            if client.link.severed:
                got, error = await rest(server)
                seen.append((client.link.up.sent, len(got), error))
            else:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(rest, server)
                        await settle(50)
                        scope.cancel()
                seen.append((client.link.up.sent, client.link.up.received, None))
        return seen

    async def test_links_are_cut_at_random_bytes(self) -> None:
        seen = await self.ends(Faults(cut=1.0, life_bytes=500))
        cut = [sent for sent, _, error in seen if error is BrokenResourceError]
        assert len(cut) > 30  # of the rest, the bytes of the way back count, and none were sent
        assert len(set(cut)) > 20
        assert all(sent == got for sent, got, _ in seen)
        assert 200 < sum(cut) / len(cut) < 1000

    async def test_some_of_the_cuts_lose_bytes(self) -> None:
        seen = await self.ends(Faults(cut=1.0, lossy=0.5, life_bytes=500))
        lost = sum(sent > got for sent, got, _ in seen)
        assert 10 < lost < 50

    async def test_links_are_closed(self) -> None:
        seen = await self.ends(Faults(close=1.0, life_bytes=500))
        assert {error for _, _, error in seen} == {EndOfStream, None}

    async def test_links_become_half_open(self) -> None:
        seen = await self.ends(Faults(half_open=1.0, life_bytes=500))
        assert {error for _, _, error in seen} == {None}
        swallowed = [sent - got for sent, got, _ in seen if sent > got]
        assert len(swallowed) > 10
        assert all(sent == 4000 for sent, _, _ in seen)

    async def test_a_share_of_the_links(self) -> None:
        seen = await self.ends(Faults(cut=0.2, close=0.2, half_open=0.2, life_bytes=0))
        kinds = {error for _, _, error in seen}
        assert kinds == {BrokenResourceError, EndOfStream, None}
        assert 10 < sum(sent == got == 4000 for sent, got, _ in seen) < 45  # nothing happened to these

    async def test_healing_lets_links_live(self) -> None:
        network = Network(1, Faults(cut=1.0, life_bytes=100_000))
        client, server = await pair(network)
        network.heal()
        for _ in range(100):
            await client.send(bytes(60_000))
            while client.link.up.unread:
                await server.receive()
        assert client.link.live


async def test_what_is_sent_may_be_changed_afterwards() -> None:
    client, server = await pair()
    buffer = bytearray(b"first")
    await client.send(buffer)
    await client.send(memoryview(b" second"))
    buffer[:] = b"XXXXX"
    assert await server.receive() == b"first second"


async def test_after_send_eof_nothing_can_be_sent() -> None:
    client, server = await pair()
    await client.send_eof()
    with pytest.raises(BrokenResourceError):
        await client.send(b"x")
    await client.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await client.send_eof()
    assert await rest(server) == (b"", EndOfStream)

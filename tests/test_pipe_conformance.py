"""What a backed pipe does, over every transport and on both loops; after each test nothing may be left over.

Memory and faulty are the simulated network, in simulated time: faulty cuts, loses, delays and tears as a seed says.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest
from anyio import BusyResourceError, ClosedResourceError, EndOfStream, WouldBlock
from anyio.abc import SocketAttribute
from pipe_support import (
    Meeting,
    Place,
    Unix,
    background,
    cuttings,
    echo,
    everywhere,
    hear,
    hear_all,
    noise,
    say,
    serving,
    settle,
    until,
)

from eventstream.errors import PipeBroken, PipeClosed
from eventstream.pipes import Pipe, PipeServer, Retry

# Bytes.


@everywhere()
async def test_an_echo_comes_back(place: Place) -> None:
    """What is sent arrives, and the answer too, in order and each byte once."""
    data = noise("echo", 20_000)
    async with place.serving(echo), place.pipe() as pipe, anyio.create_task_group() as tasks:
        tasks.start_soon(say, pipe, data, "echo", 3000)
        assert await hear_all(pipe) == data


@everywhere()
async def test_large_transfers_in_both_directions_at_once(place: Place) -> None:
    """Writes larger than the capacity are cut; neither direction waits for the other."""
    up, down = noise("up", 300_000), noise("down", 300_000)
    heard: dict[str, bytes] = {}

    async def listen(name: str, end: Pipe) -> None:
        heard[name] = await hear_all(end)

    async with place.pair(capacity=16_384) as (client, served):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, client, up, "up", 60_000)
            tasks.start_soon(say, served, down, "down", 60_000)
            tasks.start_soon(listen, "down", client)
            tasks.start_soon(listen, "up", served)
        assert heard == {"up": up, "down": down}


@everywhere()
async def test_what_is_offered_keeps_its_place(place: Place) -> None:
    """At once or later, alone or not, between what is sent: the bytes arrive in the order of the calls."""
    data = noise("offered", 20_000)

    async def offer(pipe: Pipe) -> None:
        for number, portion in enumerate(cuttings(data, "offered", 300)):
            half = len(portion) // 2
            if number % 4 == 0 and pipe.offer(portion):
                pipe.flush_soon()
            elif number % 4 == 1 and pipe.offer_now(portion[:half], portion[half:]):
                pass
            elif number % 4 == 0 or not pipe.offer_now(portion):
                await pipe.send(portion)
            if number % 7 == 0:
                await anyio.lowlevel.checkpoint()
        await pipe.send_eof()

    async with place.pair(capacity=4096) as (client, served), anyio.create_task_group() as tasks:
        tasks.start_soon(offer, client)
        assert await hear_all(served) == data


@everywhere()
async def test_an_offer_that_comes_alone_is_under_way_at_once(place: Place) -> None:
    """Nobody need have a turn for it; after the end it is refused, as all else."""
    async with place.pair() as (client, served):
        await client.drain()
        assert client.offer_now(b"alone")
        await client.drain()
        assert await hear(served, 5) == b"alone"
        await client.send_eof()
        with pytest.raises(ClosedResourceError):
            client.offer_now(b"late")


@everywhere()
async def test_sizes_around_the_capacity(place: Place) -> None:
    """A write of any size goes through, also where it just fits or just does not."""
    async with place.serving(echo, capacity=64), place.pipe(capacity=64) as pipe:
        for size in (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000):
            data = noise(size, size)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pipe.send, data)
                assert await hear(pipe, size) == data


@everywhere()
async def test_receive_gives_at_most_what_was_asked(place: Place) -> None:
    """`max_bytes` is kept, and what is left comes with the next call."""
    async with place.pair() as (client, served):
        await client.send(b"0123456789")
        await client.drain()
        assert [await served.receive(3), await served.receive(1), await served.receive(100)] == [
            b"012",
            b"3",
            b"456789",
        ]
        with pytest.raises(ValueError, match="max_bytes"):
            await served.receive(0)


@everywhere()
async def test_what_has_come_is_received_without_waiting(place: Place) -> None:
    """`unread` tells how much that is; with nothing there `receive_nowait` does not wait, and at the end says so."""
    async with place.pair() as (client, served):
        assert served.unread == 0
        with pytest.raises(WouldBlock):
            served.receive_nowait()
        await client.send(b"0123456789")
        await client.drain()
        assert served.unread == 10
        assert served.receive_nowait(4) == b"0123"
        assert served.unread == 6
        assert served.receive_nowait() == b"456789"
        with pytest.raises(ValueError, match="max_bytes"):
            served.receive_nowait(0)
        await client.send_eof()
        with pytest.raises(EndOfStream):
            await served.receive()
        with pytest.raises(EndOfStream):
            served.receive_nowait()
        assert served.unread == 0


@everywhere()
async def test_what_is_sent_may_be_changed_afterwards(place: Place) -> None:
    """A `bytearray` is copied; an empty send sends nothing."""
    async with place.pair() as (client, served):
        data = bytearray(b"before")
        await client.send(data)  # type: ignore[arg-type]  # anyio takes any bytes-like object
        data[:] = b"after!"
        await client.send(b"")
        assert await hear(served, 6) == b"before"


# Ends.


@everywhere()
async def test_half_close(place: Place) -> None:
    """After `send_eof` the peer gets `EndOfStream` behind the last byte; the other direction goes on."""
    async with place.pair() as (client, served):
        await client.send(b"question")
        await client.send_eof()
        await client.send_eof()
        assert await hear_all(served) == b"question"
        with pytest.raises(EndOfStream):
            await served.receive()
        with pytest.raises(ClosedResourceError):
            await client.send(b"more")
        await served.send(b"answer")
        assert await hear(client, 6) == b"answer"


@everywhere()
async def test_a_clean_end_from_both_sides(place: Place) -> None:
    """When both ends have said all, both hear all, drain returns, and no error is seen anywhere."""

    async def serve(pipe: Pipe) -> None:
        await say(pipe, b"server's", "s", 3)
        assert await hear_all(pipe) == b"client's"

    async with place.serving(serve), place.pipe() as client:
        await say(client, b"client's", "c", 3)
        assert await hear_all(client) == b"server's"
        await client.drain()


@everywhere(faulty=False)
async def test_the_server_forgets_a_pipe_that_has_ended(place: Place) -> None:
    """After a clean end the server holds nothing for the pipe."""
    async with place.serving(echo) as server:
        async with place.pipe() as client:
            await say(client, b"abc", 1, 3)
            assert await hear_all(client) == b"abc"
        await anyio.sleep(0.05)
        assert server.statistics().pipes == 0


@everywhere(faulty=False)
async def test_the_client_closes(place: Place) -> None:
    """What it sent arrives; then the peer's `receive` ends and its `send` says that the pipe was closed."""
    async with place.serving(meeting := Meeting()):
        async with place.pipe(linger=5.0) as client:
            await client.wait_connected()
            await client.send(b"last words")
            served = await meeting.pipe()
        await _check_closed_by_peer(served, b"last words")


@everywhere(faulty=False)
async def test_the_server_closes(place: Place) -> None:
    """The same from the other end: here by the handler's return."""

    async def serve(pipe: Pipe) -> None:
        await pipe.send(b"last words")

    async with place.serving(serve), place.pipe() as client:
        await _check_closed_by_peer(client, b"last words")


async def _check_closed_by_peer(end: Pipe, words: bytes) -> None:
    assert await hear(end, len(words)) == words
    with pytest.raises(EndOfStream):
        await end.receive()
    with pytest.raises(PipeClosed, match="closed") as caught:
        while True:
            await end.send(b"?")
            await anyio.sleep(0.01)
    assert caught.value.reason == "closed"


@everywhere()
async def test_closing_is_idempotent_and_ends_every_call(place: Place) -> None:
    """After `aclose` every call raises `ClosedResourceError`, and closing again changes nothing."""
    async with place.pair() as (client, _):
        await client.wait_connected()
        await client.aclose()
        await client.aclose()
        calls = (client.receive, partial(client.send, b"x"), client.send_eof, client.drain)
        for call in (*calls, client.wait_connected, client.force_reconnect):
            with pytest.raises(ClosedResourceError):
                await call()
        assert client.statistics().state == "closed"


@everywhere()
async def test_closing_wakes_whoever_waits(place: Place) -> None:
    """Calls that wait while the pipe is closed here end with `ClosedResourceError` (a drain may still succeed)."""
    ended: list[object] = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
            assert call == client.drain
        except ClosedResourceError:
            pass
        ended.append(call)

    async with place.pair(capacity=10) as (client, _), anyio.create_task_group() as tasks:
        for call in (client.receive, partial(client.send, bytes(100)), client.drain):
            tasks.start_soon(wait, call)
        await settle()
        await client.aclose()
        await settle()
        assert len(ended) == 3


@everywhere()
async def test_closing_inside_the_block_leaves_the_block_alone(place: Place) -> None:
    """The code after `aclose` runs on, and may wait."""
    async with place.pair() as (client, _):
        await client.aclose()
        await anyio.sleep(0.001)
        reached = True
    assert reached


@everywhere()
async def test_closed_without_being_entered(place: Place) -> None:
    """A pipe that was never entered can be closed, and then not be entered; no pipe is entered twice."""
    pipe = place.pipe()
    await pipe.aclose()
    with pytest.raises(RuntimeError, match="once"):
        await pipe.__aenter__()
    async with place.pipe() as entered:
        with pytest.raises(RuntimeError, match="once"):
            await entered.__aenter__()
    assert place.dials == 0 or entered.statistics().state == "closed"


@everywhere()
async def test_the_bodys_exception_comes_out_bare(place: Place) -> None:
    """Not in a group, and the pipe is closed."""
    async with place.serving(Meeting()):
        with pytest.raises(KeyError, match="mine"):
            async with place.pipe() as pipe:
                await pipe.wait_connected()
                raise KeyError("mine")
        assert pipe.statistics().state == "closed"


@everywhere()
async def test_a_cancelled_body_is_a_cancellation(place: Place) -> None:
    """The scope that was cancelled catches it; the pipe is closed at once."""
    async with place.serving(Meeting()):
        with anyio.CancelScope() as scope:
            async with place.pipe(linger=1000.0) as pipe:
                await pipe.wait_connected()
                scope.cancel()
                await pipe.receive()
        assert scope.cancelled_caught
        assert pipe.statistics().state == "closed"
        await settle()


# Cancellation.


@everywhere()
async def test_a_cancelled_receive_loses_nothing(place: Place) -> None:
    """Whenever it is cancelled, the bytes stay for the next call."""
    data, heard = noise("cancelled", 5000), b""
    async with place.pair() as (client, served), anyio.create_task_group() as tasks:
        tasks.start_soon(say, client, data, "cancelled", 50)
        for number in itertools.count():
            with anyio.move_on_after(0.001 * (number % 3)):
                heard += await served.receive(7)
            if len(heard) == len(data):
                break
        assert heard == data


@everywhere()
async def test_a_cancelled_send_that_waits_has_accepted_nothing(place: Place) -> None:
    """2.9, 12: of an item not larger than the capacity, all or nothing is accepted."""
    async with place.pair(capacity=100) as (client, served):
        await _fill(client, served)
        before = client.statistics().sequence
        for _ in range(3):
            with anyio.move_on_after(0.01) as scope:
                await client.send(b"never")
            assert scope.cancelled_caught
        assert client.statistics().sequence == before
        await client.send_eof()
        assert set(await hear_all(served)) == {0}


async def _fill(client: Pipe, served: Pipe) -> None:
    """Sends zeros until both ends are full."""
    for _ in range(2):
        await client.send(bytes(100))
    await until(lambda: served.statistics().unread == 100)


@everywhere()
async def test_a_cancelled_large_send_has_sent_a_prefix(place: Place) -> None:
    """Of an item larger than the capacity, what was accepted arrives: a prefix, as long as `sequence` says."""
    data = noise("prefix", 10_000)
    async with place.pair(capacity=64) as (client, served):
        with anyio.move_on_after(0.01):
            await client.send(data)
        accepted = client.statistics().sequence
        assert 64 <= accepted < len(data)
        await client.send_eof()
        assert await hear_all(served) == data[:accepted]


@everywhere()
async def test_cancelled_sends_at_every_moment(place: Place) -> None:
    """2.9, 12: what arrives is exactly what the sends that returned had, in order."""
    accepted = b""
    heard: list[bytes] = []

    async def listen(end: Pipe) -> None:
        heard.append(await hear_all(end))

    async with place.pair(capacity=32) as (client, served), anyio.create_task_group() as tasks:
        tasks.start_soon(listen, served)
        for number, item in enumerate(cuttings(noise("moments", 3000), "moments", 32)):
            before = client.statistics().sequence
            with anyio.move_on_after(0.0001 * (number % 4)) as scope:
                await client.send(item)
            took = client.statistics().sequence - before
            assert took == (0 if scope.cancelled_caught else len(item))
            accepted += item[:took]
        await client.send_eof()
        await client.drain()
        await until(lambda: heard)
        assert heard == [accepted]


# Callers.


@everywhere()
async def test_two_that_send_or_receive_are_told(place: Place) -> None:
    """One task sends while another receives; a second of either kind gets `BusyResourceError`."""
    async with (
        place.pair(capacity=10) as (client, _),
        background(client.receive),
        background(client.send, bytes(100)),
    ):
        for call in (client.receive, partial(client.send, b"x"), client.send_eof):
            with pytest.raises(BusyResourceError):
                await call()


@everywhere()
async def test_drain_waits_for_the_peer(place: Place) -> None:
    """It returns when the peer's end has every byte and, if it was said, the end of them; any number may wait."""
    async with place.pair() as (client, served):
        await client.drain()
        await client.send(bytes(5000))
        await client.send_eof()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(client.drain)
        statistics = client.statistics()
        assert (statistics.in_ring, statistics.acknowledged) == (0, 5000)
        assert served.statistics().received == 5000


@everywhere()
async def test_wait_connected(place: Place) -> None:
    """Any number of tasks wait for the first link; with one it returns at once."""
    async with place.serving(Meeting()), place.pipe() as pipe:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(pipe.wait_connected)
        assert pipe.statistics().links >= 1


@everywhere()
async def test_bytes_sent_before_the_first_link_wait_for_it(place: Place) -> None:
    """Entering a pipe does not wait for a link, and sending does not need one."""
    async with place.serving(meeting := Meeting()), place.pipe() as pipe:
        await pipe.send(b"early")
        assert await hear(await meeting.pipe(), 5) == b"early"


async def _force(place: Place, which: int) -> None:
    async with place.pair() as ends:
        await ends[0].wait_connected()
        dials = place.dials
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ends[which].force_reconnect)
        await until(lambda: all(end.statistics().links == 2 for end in ends))
        assert place.dials == dials + 1
        await ends[0].send(b"still here")
        assert await hear(ends[1], 10) == b"still here"


@everywhere(faulty=False)
async def test_three_who_force_a_reconnect_share_one_dial(place: Place) -> None:
    """A healthy link is replaced, once, and the pipe goes on."""
    await _force(place, 0)


@everywhere(faulty=False)
async def test_the_server_forces_a_reconnect(place: Place) -> None:
    """The end that is dialed hangs up and waits for the dialer."""
    await _force(place, 1)


@everywhere()
async def test_statistics_answer_at_once(place: Place) -> None:
    """2.9, 2: whatever is blocked (a receive on an idle link, a send without room), nobody waits for the numbers."""
    async with place.pair(capacity=10) as (client, served), background(client.receive), background(served.receive):
        await client.wait_connected()
        async with background(client.send, bytes(100)):
            for end in (client, served):
                statistics = end.statistics()
                assert statistics.in_ring <= 10
                assert statistics.links >= 1
                assert repr(end).startswith(f"<{type(end).__name__} {statistics.state}")


@everywhere()
async def test_one_handler_over_many_links(place: Place) -> None:
    """However many links a pipe takes, its handler is called once, and what it says is whole."""
    data = noise("many", 30_000)
    async with place.serving(meeting := Meeting()), place.pipe() as client:
        served = await meeting.pipe()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, served, data, "many", 2000)
            heard = await hear(client, 1000)
            while len(heard) < len(data):
                heard += await client.receive(3000)
                if len(heard) % 7 == 0:
                    place.cut()
            place.cut()
        assert heard == data
        assert len(meeting.pipes) == 1


@everywhere()
async def test_resumed_over_another_listener(place: Place) -> None:
    """One server serves on two listeners; a pipe that began on one goes on over the other."""
    meeting = Meeting()
    server = PipeServer(meeting, heartbeat=1.0, linger=1.0)
    first = await place.listen()
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.serve, first)
        async with place.pipe() as client:
            served = await meeting.pipe()
            await tasks.start(server.serve, await place.listen())
            await client.wait_connected()
            await client.force_reconnect()
            await client.send(b"over there")
            assert await hear(served, 10) == b"over there"
            assert len(meeting.pipes) == 1
        tasks.cancel_scope.cancel()


@everywhere(faulty=False)
async def test_a_lost_link_is_no_error(place: Place) -> None:
    """A link that is cut while both ends wait only takes time; `last_error` tells, `receive` does not."""
    async with place.pair() as (client, served):
        await client.wait_connected()
        for number in range(1, 4):
            place.cut()
            await until(lambda: client.statistics().links > number)  # noqa: B023
            await client.wait_connected()
            await served.send(b"again")
            assert await hear(client, 5) == b"again"
        assert client.statistics().last_error is not None


@everywhere(faulty=False)
async def test_attributes_of_the_latest_connection(place: Place) -> None:
    """Before the first link there are none; then those of the link, at both ends."""
    assert place.pipe().extra_attributes == {}
    async with place.pair() as (client, served):
        for end in (client, served):
            assert end.extra(SocketAttribute.remote_address, None) is not None
        first = client.extra(SocketAttribute.local_address)
        await client.force_reconnect()
        assert place.__class__ is Unix or client.extra(SocketAttribute.local_address) != first


@everywhere()
async def test_the_server_stops(place: Place) -> None:
    """Its handlers are cancelled; the client learns that it cannot resume, or retries until it gives up."""
    retry = Retry(first=0.01, cap=0.02, give_up_after=0.1)
    listener = await place.listen()
    async with place.pipe(retry=retry, dial_timeout=0.2) as client:
        async with serving(PipeServer(meeting := Meeting()), listener):
            served = await meeting.pipe()
            await client.wait_connected()
        with pytest.raises(PipeBroken):
            await client.receive()
        with pytest.raises((PipeBroken, ClosedResourceError)):
            await served.send(b"x")

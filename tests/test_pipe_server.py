"""The end that is dialed: one handler for each pipe, what ends a pipe, and what its peer is told when it comes back.

Time is simulated (`@simulated`): a sleep here waits for nothing, it moves the clock.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError, EndOfStream, current_time
from pipe_support import (
    Meeting,
    Memory,
    Rude,
    echo,
    everywhere,
    hear,
    hear_all,
    logged,
    noise,
    run_at,
    serving,
    settle,
    simulated,
    until,
)

from eventstream.errors import LinkRefused, PipeAbandoned, PipeClosed, ResumeRefused
from eventstream.pipes import Pipe, PipeLimits, PipeServer
from eventstream.pipes.frames import Ack, Close, Fin, Reject, Welcome, encode_data


async def lost(place: Memory, server: PipeServer) -> None:
    """Cuts every link and refuses dials until the network is healed."""
    place.network.refuse_dials()
    place.cut()
    await until(lambda: server.statistics().suspended == server.statistics().pipes)


# Handlers.


@simulated
async def test_one_handler_for_each_pipe(place: Memory) -> None:
    """Pipes do not share anything but the server."""
    async with place.serving(echo) as server, anyio.create_task_group() as tasks:

        async def talk(number: int) -> None:
            async with place.pipe() as client:
                data = noise(number, 3000)
                await client.send(data)
                await client.send_eof()
                assert await hear_all(client) == data

        for number in range(20):
            tasks.start_soon(talk, number)
        await settle()
        assert server.statistics().pipes > 1


@simulated
async def test_a_handler_that_fails_is_logged_once(place: Memory) -> None:
    """Its exception ends this pipe alone, with `failed`: what it had sent does not look like a whole answer."""

    async def fail(pipe: Pipe) -> None:
        if await pipe.receive() == b"fail":
            await pipe.send(b"half an ans")
            raise KeyError("boom")
        await pipe.send(b"fine")
        await pipe.drain()

    async with place.serving(fail), place.pipe() as bad, place.pipe() as good:
        with logged() as records:
            await bad.send(b"fail")
            assert await hear(bad, 11) == b"half an ans"
            with pytest.raises(PipeClosed) as caught:
                await bad.receive()
            assert caught.value.reason == "failed"
            await good.send(b"work")
            assert await hear(good, 4) == b"fine"
        assert [record.levelname for record in records] == ["ERROR"]
        assert records[0].exc_info


@simulated
async def test_the_sender_hears_of_a_failed_handler(place: Memory) -> None:
    """Who only sends gets `PipeClosed("failed")` too."""

    async def fail(pipe: Pipe) -> None:
        raise KeyError("boom")

    with logged():
        async with place.serving(fail), place.pipe() as client:
            with pytest.raises(PipeClosed) as caught:
                while True:
                    await client.send(b"x")
                    await anyio.sleep(0.1)
            assert caught.value.reason == "failed"


@simulated
async def test_a_failed_handler_leaves_nothing(place: Memory) -> None:
    """Once its peer has been told, nothing of the pipe is kept."""

    async def fail(pipe: Pipe) -> None:
        await pipe.send(b"x")
        raise KeyError("boom")

    with logged():
        async with place.serving(fail, grace=120.0) as server, place.pipe() as client:
            with pytest.raises((PipeClosed, EndOfStream)):
                while True:
                    await client.receive()
            await anyio.sleep(10)
            assert server.statistics().pipes == 0


@simulated
async def test_a_handler_that_ends_with_its_pipe_is_no_news(place: Memory) -> None:
    """The pipe's own errors, let out of a handler, are not logged as failures."""

    async def wait(pipe: Pipe) -> None:
        while True:
            await pipe.receive()

    async def insist(pipe: Pipe) -> None:
        while True:
            await pipe.send(bytes(1000))

    for handler in (wait, insist):
        with logged() as records:
            async with place.serving(handler) as server:
                async with place.pipe() as client:
                    await client.wait_connected()
                await until(lambda: server.statistics().pipes == 0)
        assert records == []


@simulated
async def test_the_rest_is_fetched_after_the_handler_returned(place: Memory) -> None:
    """A handler that returned while there was no link: its peer still gets everything, then the end."""
    data, done = noise("rest", 50_000), anyio.Event()

    async def serve(pipe: Pipe) -> None:
        await pipe.receive()
        await done.wait()
        await pipe.send(data)

    async with place.serving(serve) as server, place.pipe() as client:
        await client.send(b"go")
        await client.drain()
        await lost(place, server)
        done.set()
        await anyio.sleep(30)
        assert server.statistics().suspended_bytes == len(data)
        place.network.heal()
        assert await hear(client, len(data)) == data
        with pytest.raises((EndOfStream, PipeClosed)):
            await client.receive()
        await until(lambda: server.statistics().pipes == 0)


@everywhere(real=False)
async def test_stopping_the_server(place: Memory) -> None:
    """`serve` cancelled: handlers are cancelled, pipes end with `going-away`, everything is freed."""
    ended: list[type[BaseException]] = []

    async def serve(pipe: Pipe) -> None:
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            ended.append(type(error))
            raise

    server = PipeServer(serve)
    async with place.pipe(linger=0.0) as one, place.pipe(linger=0.0) as two:
        async with serving(server, await place.listen(), await place.listen()):
            await one.wait_connected()
            await two.wait_connected()
            await until(lambda: server.statistics().pipes == 2)
        assert len(ended) == 2
        statistics = server.statistics()
        assert (statistics.pipes, statistics.suspended, statistics.handshakes) == (0, 0, 0)


@simulated
async def test_a_pipe_used_outside_its_handler(place: Memory) -> None:
    """Who still holds a pipe of a server that has stopped gets `PipeAbandoned("going-away")`."""
    kept: list[Pipe] = []
    released = anyio.Event()

    async def keep(pipe: Pipe) -> None:
        kept.append(pipe)
        with anyio.CancelScope(shield=True):
            await released.wait()

    async with anyio.create_task_group() as outer, place.pipe(linger=0.0) as client:
        listener = await place.listen()
        tasks = await _start(outer, PipeServer(keep), listener)
        await client.wait_connected()
        await until(lambda: kept)
        tasks.cancel()
        released.set()
        await settle()
        with pytest.raises((PipeAbandoned, ClosedResourceError)):
            await kept[0].receive()


async def _start(group: Any, server: PipeServer, listener: Any) -> anyio.CancelScope:
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await server.serve(listener)

    group.start_soon(run)
    await settle()
    return scope


@simulated
async def test_a_server_that_says_goodbye(place: Memory) -> None:
    """`aclose` tells the peers `going-away`, ends `serve` and every pipe, and takes no more connections."""
    server = PipeServer(meeting := Meeting(), linger=5.0)
    async with anyio.create_task_group() as tasks, place.pipe(linger=0.0) as client:
        tasks.start_soon(server.serve, await place.listen())
        await client.wait_connected()
        served = await meeting.pipe()
        await anyio.sleep(1)
        await server.aclose()
        assert current_time() < 2
        with pytest.raises(PipeClosed) as caught:
            await client.receive()
        assert caught.value.reason == "going-away"
        with pytest.raises((PipeAbandoned, PipeClosed, ClosedResourceError)):
            await served.receive()
        assert server.statistics().pipes == 0
        with pytest.raises(ClosedResourceError):
            await server.serve(await place.listen())
        for listener in list(place.network._listeners.values()):
            await listener.aclose()


@simulated
async def test_a_goodbye_that_nobody_hears(place: Memory) -> None:
    """`aclose` takes at most `linger`, with peers that are half-open, suspended, or say nothing at all."""
    server = PipeServer(Meeting(), linger=3.0, heartbeat=100.0)
    async with anyio.create_task_group() as tasks, place.pipe(linger=0.0, heartbeat=100.0) as client:
        tasks.start_soon(server.serve, await place.listen())
        await client.wait_connected()
        await anyio.sleep(1)
        silent = await place.connect()
        place.network.links[0].half_open()
        before = current_time()
        await server.aclose()
        assert current_time() - before == pytest.approx(3)
        assert server.statistics().pipes == 0
        await silent.aclose()


# What a peer is told that comes back too late.


async def _refused(client: Pipe) -> str:
    """Why the pipe cannot be resumed: the same from every call."""
    reasons = set()
    for call in (client.receive, client.drain, client.wait_connected, partial(client.send, b"x")):
        with pytest.raises(ResumeRefused) as caught:
            await call()
        reasons.add(caught.value.reason)
    (reason,) = reasons
    return str(reason)


@simulated
async def test_expired(place: Memory) -> None:
    """After `grace` without a link the pipe ends at both ends: `expired`; not a moment before."""
    async with place.serving(meeting := Meeting(), grace=100.0) as server, place.pipe() as client:
        served = await meeting.pipe()
        await anyio.sleep(50)
        await lost(place, server)
        began = current_time()
        with pytest.raises(PipeAbandoned) as caught:
            await served.receive()
        assert caught.value.reason == "expired"
        assert current_time() - began == pytest.approx(100, abs=0.1)
        assert server.statistics().pipes == 0
        await client.send(b"?")
        place.network.heal()
        assert await _refused(client) == "expired"


@simulated
async def test_within_the_grace_time(place: Memory) -> None:
    """However often a link is lost, each time the whole grace time counts."""
    async with place.serving(meeting := Meeting(), grace=100.0) as server, place.pipe() as client:
        served = await meeting.pipe()
        for _ in range(5):
            await lost(place, server)
            await anyio.sleep(99)
            place.network.heal()
            await client.wait_connected()
        await served.send(b"still")
        assert await hear(client, 5) == b"still"


@simulated
async def test_evicted_for_its_bytes(place: Memory) -> None:
    """Beyond `suspended_bytes` the pipe that is without a link for the longest time goes; others stay."""
    limits = PipeLimits(suspended_bytes=1000)
    async with (
        place.serving(meeting := Meeting(), limits=limits) as server,
        place.pipe() as first,
        place.pipe() as second,
    ):
        await until(lambda: len(meeting.pipes) == 2)
        place.network.refuse_dials()
        for link in place.network.links:
            link.cut()
            await anyio.sleep(1)
        ends = meeting.pipes
        for _ in range(6):
            await ends[0].send(bytes(100))
            await ends[1].send(bytes(100))
            assert server.statistics().suspended_bytes <= 1000
        assert [end.statistics().state for end in ends] == ["closed", "suspended"]
        place.network.heal()
        reasons = []
        for client in (first, second):
            try:
                await hear(client, 600)
            except ResumeRefused as error:
                reasons.append(error.reason)
        assert reasons == ["evicted"]


@simulated
async def test_evicted_for_its_place(place: Memory) -> None:
    """With `pipes` pipes held, a new one takes the place of the one that is without a link for the longest time."""
    async with (
        place.serving(meeting := Meeting(), limits=PipeLimits(pipes=2)) as server,
        place.pipe() as first,
        place.pipe() as second,
    ):
        await until(lambda: len(meeting.pipes) == 2)
        place.network.hang_dials(1)
        place.network.links[0].cut()
        await anyio.sleep(1)
        async with place.pipe() as third:
            await third.wait_connected()
            assert server.statistics().pipes == 2
            place.network.release_dials()
            gone, stays = sorted((first, second), key=lambda pipe: pipe.statistics().state == "connected")
            assert await _refused(gone) == "evicted"
            assert stays.statistics().state == "connected"


@simulated
async def test_busy(place: Memory) -> None:
    """If all pipes have a link, a new one is told `busy`, and gets in when one has ended."""
    async with place.serving(Meeting(), limits=PipeLimits(pipes=1)), place.pipe() as first:
        await first.wait_connected()
        async with place.pipe() as second:
            await anyio.sleep(1)
            error = second.statistics().last_error
            assert isinstance(error, LinkRefused)
            assert error.reason == "busy"
            await first.aclose()
            await second.wait_connected()


@simulated
async def test_closed(place: Memory) -> None:
    """A peer that missed the end of a pipe that was closed before all was said is told `closed`."""
    async with place.serving(meeting := Meeting()) as server, place.pipe() as client:
        await meeting.pipe()
        await client.wait_connected()
        await anyio.sleep(1)
        place.network.hang_dials()
        place.network.links[0].half_open("down")
        meeting.released.set()
        await anyio.sleep(200)
        place.network.heal()
        assert await _refused(client) in ("closed", "expired")
        assert server.statistics().pipes == 0


@simulated
async def test_finished(place: Memory) -> None:
    """If only the last acknowledgement was lost, `finished` is no error: drain returns, receive says the end."""
    async with place.serving(echo) as server, place.pipe() as client:
        await client.send(b"all")
        assert await hear(client, 3) == b"all"
        await client.drain()
        await anyio.sleep(1)
        link = place.network.links[0]
        place.network.refuse_dials()
        await client.send_eof()
        await until(lambda: client._session.reader.ended)
        link.cut()
        place.network.heal()
        await client.drain()
        with pytest.raises(EndOfStream):
            await client.receive()
        await until(lambda: server.statistics().pipes == 0)


def _told(frame: object) -> str:
    assert isinstance(frame, Reject)
    return frame.code


@simulated
async def test_refusals_of_a_hello(place: Memory) -> None:
    """Each way in which a HELLO can be wrong has its word; what the server holds does not change."""
    async with place.serving(meeting := Meeting()) as server:
        good = Rude(await place.connect())
        await good.say(good.hello())
        await good.hear_until(Welcome)
        epoch = good.epoch
        other, stranger = b"another pipe's i", b"s" * 32
        cases = {
            "proof": Rude(good.stream, token=stranger).hello(generation=5, epoch=epoch),
            "replayed": good.hello(generation=1),
            "position": good.hello(generation=5, have=Ack(9, 100)),
            "unknown": Rude(good.stream, other).hello(epoch=epoch),
            "epoch": Rude(good.stream, other).hello(epoch=b"?" * 16),
        }
        for code, hello in cases.items():
            rude = Rude(await place.connect())
            await rude.say(hello)
            assert _told(await rude.hear()) == code
            await rude.aclose()
        assert server.statistics().refused == len(cases)
        await good.stream.send(encode_data(0, 5) + b"alive")
        assert await hear(await meeting.pipe(), 5) == b"alive"
        await good.aclose()


@simulated
async def test_a_new_pipe_begins_at_zero(place: Memory) -> None:
    """A HELLO for a new pipe that claims to have received bytes is refused, and the server lives."""
    async with place.serving(Meeting()) as server:
        for position in (1, 5, 1 << 40):
            rude = Rude(await place.connect(), pipe=position.to_bytes(16, "big"))
            await rude.say(rude.hello(have=Ack(position, position + 100)))
            assert _told(await rude.hear()) == "position"
            await rude.aclose()
        assert server.statistics().pipes == 0


# Ends that are said.


@simulated
async def test_a_close_code_reaches_the_handler(place: Memory) -> None:
    """CLOSE with a code is `PipeClosed` with that reason, after the bytes that came before it."""
    async with place.serving(meeting := Meeting()):
        rude = Rude(await place.connect())
        await rude.say(rude.hello())
        await rude.hear_until(Welcome)
        await rude.stream.send(encode_data(0, 4) + b"last")
        await rude.say(Close("failed", "a detail"))
        served = await meeting.pipe()
        assert await hear(served, 4) == b"last"
        for call in (served.receive, served.drain, partial(served.send, b"x")):
            with pytest.raises(PipeClosed, match="a detail") as caught:
                await call()
            assert caught.value.reason == "failed"
        await rude.aclose()


@simulated
async def test_close_is_said_when_all_is_acknowledged(place: Memory) -> None:
    """The end that closes says FIN, waits for its acknowledgement, then says CLOSE, and hangs up after the peer."""

    async def serve(pipe: Pipe) -> None:
        await pipe.send(b"bye")

    async with place.serving(serve, linger=50.0) as server:
        rude = Rude(await place.connect())
        await rude.say(rude.hello())
        assert await rude.hear_until(Fin) == Fin(3)
        assert server.statistics().pipes == 1
        await rude.say(Ack(4, 100))
        assert await rude.hear_until(Close) == Close("closed")
        await rude.aclose()
        await until(lambda: server.statistics().pipes == 0)


# The server itself.


@simulated
async def test_statistics(place: Memory) -> None:
    """They count pipes, those without a link and their bytes, handshakes and refusals."""
    async with place.serving(meeting := Meeting()) as server, place.pipe() as client:
        served = await meeting.pipe()
        await client.wait_connected()
        silent = await place.connect()
        await settle()
        assert server.statistics().handshakes == 1
        await silent.aclose()
        await settle()
        assert (server.statistics().handshakes, server.statistics().refused) == (0, 1)
        await lost(place, server)
        await served.send(bytes(123))
        statistics = server.statistics()
        assert (statistics.pipes, statistics.suspended, statistics.suspended_bytes) == (1, 1, 123)


@pytest.mark.parametrize("name", ["pipes", "handshakes", "suspended_bytes", "handshake_timeout"])
def test_limits_are_positive(name: str) -> None:
    """A limit of nothing would let nobody in."""
    with pytest.raises(ValueError, match=name):
        PipeLimits(**{name: 0})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_server_can_serve_again(backend: Any, tmp_path: Any) -> None:
    """After `serve` has ended it may be called anew; the old pipes are gone, and their peers are told so."""

    async def main(place: Memory) -> None:
        server = PipeServer(echo)
        async with place.pipe(linger=0.0) as client:
            async with serving(server, await place.listen()):
                await client.wait_connected()
                await client.send(b"x")
                assert await hear(client, 1) == b"x"
            async with serving(server, await place.listen()), place.pipe() as other:
                await other.wait_connected()
                with pytest.raises((ResumeRefused, PipeClosed)):
                    await client.receive()

    run_at(Memory(tmp_path), main, backend)


@simulated
async def test_handlers_with_their_own_tasks(place: Memory) -> None:
    """A handler whose task group ends with the pipe's error is no failure to be logged."""

    async def serve(pipe: Pipe) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_consume, pipe)
            tasks.start_soon(anyio.sleep_forever)

    with logged() as records:
        async with place.serving(serve) as server:
            async with place.pipe() as client:
                await client.wait_connected()
                await client.send(b"x")
            await until(lambda: server.statistics().pipes == 0)
    assert records == []


async def _consume(pipe: Pipe) -> None:
    while True:
        await pipe.receive()

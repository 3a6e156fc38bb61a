"""What strangers and ill-behaved peers send to a live server: refused within limits; an honest pipe does not notice.

In memory, in simulated time, and over TCP.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream, current_time
from anyio.abc import ByteStream
from pipe_support import Meeting, Memory, Place, Rude, echo, everywhere, hear, hung_up, noise, settle, simulated, until

from eventstream.errors import BadFrame
from eventstream.pipes import PipeLimits, PipeServer
from eventstream.pipes.frames import (
    HEADER,
    MAX_PAYLOAD,
    Ack,
    Close,
    Fin,
    Hello,
    Ping,
    Pong,
    Reject,
    Welcome,
    encode,
    encode_data,
)

BOTH = ("memory", "tcp")


@asynccontextmanager
async def honest(place: Place, server: PipeServer) -> AsyncIterator[list[int]]:
    """Echoes bytes over a pipe of its own for as long as the block runs: all of them right, over one link."""
    rounds = [0]

    async def transfer() -> None:
        while True:
            data = noise(rounds[0], 5000)
            await pipe.send(data)
            assert await hear(pipe, 5000) == data
            rounds[0] += 1
            await anyio.sleep(0.02)

    async with place.pipe(heartbeat=10.0) as pipe:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transfer)
            await until(lambda: rounds[0])
            yield rounds
            before = rounds[0]
            await until(lambda: rounds[0] > before)
            tasks.cancel_scope.cancel()
        assert pipe.statistics().links == 1


STRANGERS = {
    "garbage": b"\xff\x00\x13garbage" * 20,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a huge HELLO": HEADER.pack(1, 0xFFFF_FFFF) + bytes(5000),
    "a HELLO just too large": HEADER.pack(1, 1025),
    "a huge DATA": HEADER.pack(5, 0xFFFF_FFFF) + bytes(5000),
    "an empty HELLO": HEADER.pack(1, 0),
    "nested arrays": HEADER.pack(1, 1000) + b"\x91" * 1000,
    "no frame of this kind": HEADER.pack(77, 0),
    "a HELLO that is no map": HEADER.pack(1, 3) + b"\xc0\xc0\xc0",
    "DATA first": encode_data(0, 5) + b"hello",
    "ACK first": encode(Ack(0, 0)),
    "WELCOME first": encode(Welcome(1, bytes(16), 0, 0, bytes(32))),
    "an old version": encode(Hello(99, bytes(16), 1, 0, 0, bytes(32), bytes(32))),
    "no token": encode(Hello(1, bytes(16), 1, 0, 0, bytes(32))),
    "no proof": encode(Hello(1, bytes(16), 1, 0, 0, bytes(32), bytes(32))),
}


@everywhere(names=BOTH)
async def test_strangers_get_nothing(place: Place) -> None:
    """Whatever comes instead of a good HELLO: at most a REJECT, then the connection ends; no pipe is made."""
    async with place.serving(echo) as server, honest(place, server):
        for count, (what, data) in enumerate(STRANGERS.items(), 1):
            stream = await place.connect()
            await stream.send(data)
            answer = b""
            try:
                while True:
                    answer += await stream.receive()
            except (EndOfStream, BrokenResourceError):
                pass
            assert not answer or answer[0] == HEADER.pack(3, 0)[0], what
            await stream.aclose()
            assert server.statistics().refused == count, what
        assert (server.statistics().pipes, server.statistics().handshakes) == (1, 0)


@everywhere(names=BOTH)
async def test_what_was_overheard_is_of_no_use(place: Place) -> None:
    """A HELLO that is replayed byte for byte, a guessed id and a wrong token get `replayed` and `proof`, no more."""
    async with place.serving(meeting := Meeting()), place.pipe() as client:
        served = await meeting.pipe()
        await client.wait_connected()
        pipe_id = client._id
        owner = Rude(await place.connect(), b"o" * 16)
        await owner.say(hello := owner.hello())
        await owner.hear_until(Welcome)
        for attempt, code in (
            (hello, "replayed"),
            (Rude(owner.stream, b"o" * 16, b"w" * 32).hello(9, epoch=owner.epoch), "proof"),
            (Rude(owner.stream, pipe_id, b"w" * 32).hello(9, epoch=owner.epoch), "proof"),
            (Rude(owner.stream, pipe_id, b"w" * 32).hello(9, epoch=b""), "proof"),
        ):
            thief = Rude(await place.connect())
            await thief.say(attempt)
            answer = await thief.hear()
            assert isinstance(answer, Reject)
            assert answer.code == code
            assert await hung_up(thief.stream)
            await thief.aclose()
        await client.send(b"mine")
        assert await hear(served, 4) == b"mine"
        assert (client.statistics().links, served.statistics().links) == (1, 1)
        await owner.aclose()


@simulated
async def test_a_slow_hello(place: Memory) -> None:
    """One byte at a time, or half and then silence: after `handshake_timeout` seconds in all the connection ends."""
    limits = PipeLimits(handshake_timeout=10.0)
    async with place.serving(echo, limits=limits) as server, honest(place, server):
        for pause in (0.2, 100.0):
            rude, began = Rude(await place.connect()), current_time()
            hello = encode(rude.hello())
            with pytest.raises((BrokenResourceError, EndOfStream)):
                for byte in hello:
                    await rude.stream.send(bytes([byte]))
                    with anyio.move_on_after(pause):
                        await rude.stream.receive()
            assert current_time() - began == pytest.approx(10, abs=0.3)
            await rude.aclose()
        assert (server.statistics().pipes, server.statistics().refused) == (1, 2)


@everywhere(names=BOTH)
async def test_a_hello_in_pieces(place: Place) -> None:
    """A HELLO may come in any pieces, also with frames behind it."""
    async with place.serving(echo):
        rude = Rude(await place.connect())
        for byte in encode(rude.hello()) + encode_data(0, 4) + b"same":
            await rude.stream.send(bytes([byte]))
        await rude.hear_until(Welcome)
        heard = b""
        while len(heard) < 4:
            heard += getattr(await rude.hear(), "payload", b"")
        assert heard == b"same"
        await rude.aclose()


async def _crowd(place: Place, server: PipeServer, count: int, most: int) -> None:
    streams: list[ByteStream] = []
    worst = 0
    for number in range(count):
        streams.append(await place.connect())
        if place.simulated and number % 10 == 0:
            await anyio.sleep(0.01)
        worst = max(worst, server.statistics().handshakes)
        if len(streams) > 500:
            await streams.pop(0).aclose()
    for stream in streams:
        await stream.aclose()
    await until(lambda: server.statistics().refused == count)
    assert worst <= most
    assert server.statistics().handshakes == 0


@simulated
async def test_ten_thousand_that_say_nothing(place: Memory) -> None:
    """Connections without a HELLO are bounded, the longest waiting go first; an honest pipe goes on meanwhile."""
    limits = PipeLimits(handshakes=50)
    async with place.serving(echo, limits=limits) as server, honest(place, server) as rounds:
        await _crowd(place, server, 10_000, 50 + 5)
        assert rounds[0] > 10


@everywhere(names=("tcp",))
async def test_a_thousand_sockets_that_say_nothing(place: Place) -> None:
    """The same over TCP."""
    limits = PipeLimits(handshakes=20)
    async with place.serving(echo, limits=limits) as server, honest(place, server):
        await _crowd(place, server, 1000, 20 + 5)


@simulated
async def test_an_honest_pipe_gets_in_among_the_silent(place: Memory) -> None:
    """With all places for handshakes taken by the silent, who says HELLO at once gets a link."""
    async with place.serving(echo, limits=PipeLimits(handshakes=10)) as server:
        streams = [await place.connect() for _ in range(10)]
        async with place.pipe() as client:
            await client.wait_connected()
        await settle()
        assert server.statistics().handshakes <= 10
        for stream in streams:
            await stream.aclose()


# Peers that passed the handshake.

ILL_MANNERED = {
    "a gap": encode_data(1, 4) + b"skip",
    "beyond the window": encode_data(0, 2000) + bytes(2000),
    "ACK of the future": encode(Ack(1000, 2000)),
    "FIN of the future": encode(Fin(99)),
    "DATA after FIN": encode(Fin(0)) + encode_data(0, 4) + b"more",
    "two FINs": encode_data(0, 4) + b"four" + encode(Fin(4)) + encode(Fin(5)),
    "a second HELLO": encode(Rude(None).hello(2)),  # type: ignore[arg-type]
    "WELCOME": encode(Welcome(1, bytes(16), 0, 0, bytes(32))),
    "REJECT": encode(Reject("busy")),
    "an empty DATA": HEADER.pack(5, 8) + bytes(8),
    "a huge DATA": HEADER.pack(5, 9 + MAX_PAYLOAD) + bytes(8),
    "a short PING": HEADER.pack(8, 7) + bytes(7),
    "a position beyond all": encode_data(2**63 - 2, 4) + b"over",
    "garbage": b"\xff" * 64,
}


@everywhere(names=BOTH)
async def test_bad_frames_end_the_link(place: Place) -> None:
    """A frame that cannot come suspends that pipe with `BadFrame`; what it holds stays within the capacity."""
    meeting = Meeting()
    async with place.serving(meeting, capacity=1000) as server:
        for number, (what, data) in enumerate(ILL_MANNERED.items()):
            rude = Rude(await place.connect(), pipe=number.to_bytes(16, "big"))
            await rude.say(rude.hello(have=Ack(0, 1000)))
            await rude.hear_until(Welcome)
            served = await meeting.pipe()
            await rude.stream.send(data)
            assert await hung_up(rude.stream), what
            await rude.aclose()
            await until(lambda: served.statistics().state == "suspended")  # noqa: B023
            assert isinstance(served.statistics().last_error, BadFrame), what
            assert served.statistics().unread <= 1000
        assert server.statistics().pipes == len(ILL_MANNERED)


@everywhere(names=BOTH)
async def test_a_flood_of_pings(place: Place) -> None:
    """Only the latest PING is answered: thirty thousand that nobody reads the answers of cost no memory."""
    async with place.serving(echo) as server, honest(place, server):
        rude = Rude(await place.connect())
        await rude.say(rude.hello())
        await rude.hear_until(Welcome)
        flood = b"".join(encode(Ping(number)) for number in range(1000))
        await rude.stream.send(flood)
        tracemalloc.start()
        with anyio.move_on_after(5):
            for _ in range(30):
                await rude.stream.send(flood)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4_000_000
        with anyio.move_on_after(5):
            assert isinstance(await rude.hear_until(Pong), Pong)
        await rude.aclose()


@everywhere(names=BOTH)
async def test_a_peer_that_never_reads(place: Place) -> None:
    """It holds back its own handler alone: what is kept for it is at most `capacity`."""
    meeting = Meeting()
    async with place.serving(meeting, capacity=5000), anyio.create_task_group() as tasks:
        rude = Rude(await place.connect())
        await rude.say(rude.hello(have=Ack(0, 1 << 40)))
        served = await meeting.pipe()
        tasks.start_soon(served.send, bytes(1_000_000))
        await anyio.sleep(0.2)
        assert served.statistics().in_ring == 5000
        tasks.cancel_scope.cancel()
        await rude.aclose()


@simulated
async def test_a_server_full_of_forgotten_pipes(place: Memory) -> None:
    """Strangers who begin pipes and leave hold no more than `pipes` places and `suspended_bytes` bytes."""

    async def greet(pipe: Any) -> None:
        await pipe.send(bytes(1000))
        await anyio.sleep_forever()

    limits = PipeLimits(pipes=100, suspended_bytes=20_000)
    async with place.serving(greet, limits=limits) as server, honest_reader(place):
        for number in range(500):
            rude = Rude(await place.connect(), pipe=number.to_bytes(16, "big"))
            await rude.say(rude.hello())
            await rude.hear_until(Welcome)
            await rude.aclose()
            statistics = server.statistics()
            assert statistics.pipes <= 100
            assert statistics.suspended_bytes <= 20_000
        await settle()
        assert 0 < server.statistics().suspended <= 21


@asynccontextmanager
async def honest_reader(place: Place) -> AsyncIterator[None]:
    """A pipe that keeps its one link."""
    async with place.pipe() as pipe:
        assert await hear(pipe, 1000) == bytes(1000)
        yield
        assert pipe.statistics().links == 1
        assert pipe.statistics().state == "connected"


@simulated
async def test_the_memory_of_ended_pipes_is_bounded(place: Memory) -> None:
    """Why a pipe ended is remembered for the last `REMEMBERED` of them only; an older one is `unknown`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eventstream.pipes.registry.REMEMBERED", 10)
        async with place.serving(echo) as server:
            for number in range(12):
                rude = Rude(await place.connect(), pipe=number.to_bytes(16, "big"))
                await rude.say(rude.hello())
                await rude.hear_until(Welcome)
                await rude.say(Close("closed"))
                assert await hung_up(rude.stream)
                await rude.aclose()
            for number, code in ((0, "unknown"), (11, "closed")):
                late = Rude(await place.connect(), pipe=number.to_bytes(16, "big"))
                await late.say(late.hello(2, epoch=rude.epoch))
                assert getattr(await late.hear(), "code", "") == code
                await late.aclose()
            assert server.statistics().pipes == 0

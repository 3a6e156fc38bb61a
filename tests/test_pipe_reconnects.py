"""Links that are lost, late, silent or doubled, and dials that fail: in simulated time, on both loops.

`2.9, n` in a docstring is the n-th of the tests that the reference lacks, most of which it would fail.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import accumulate, pairwise
from random import Random
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, current_time
from anyio.abc import ByteStream, Listener, TaskGroup
from pipe_support import (
    Meeting,
    Memory,
    Rude,
    background,
    echo,
    hear,
    hear_all,
    logged,
    noise,
    run_at,
    say,
    serving,
    settle,
    simulated,
    until,
)

from eventstream.errors import BadFrame, LinkRefused, LinkSilent, PipeClosed, ReconnectFailed, ResumeRefused
from eventstream.pipes import BackedPipe, Pipe, PipeServer, Retry
from eventstream.pipes.frames import Ack, Hello, Reject, Welcome, encode, encode_data
from eventstream.pipes.handshake import make_welcome
from eventstream.testing import Faults, Link, Network

# Streams that misbehave in ways that a network does not.


class Wrapped(ByteStream):
    """A stream that can be told to do something else."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner
        self.before_return: Callable[[], Awaitable[object]] | None = None  # of the next receive
        self._receiving: CancelScope | None = None
        self.whole = False  # `max_bytes` is ignored
        self.close_error: Exception | None = None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        with CancelScope() as self._receiving:
            data = await self.inner.receive(1 << 30 if self.whole else max_bytes)
        hook, self.before_return = self.before_return, None
        if hook is not None:
            await hook()
        return data

    def be_stubborn(self) -> None:
        """The receive under way does not let itself be cancelled: it gives bytes first."""
        assert self._receiving is not None
        self._receiving.shield = True

    async def send(self, item: bytes) -> None:
        await self.inner.send(item)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()
        if self.close_error is not None:
            raise self.close_error


class WrappingListener(Listener[ByteStream]):
    """A listener whose streams are `Wrapped`; they can be found in `streams`."""

    def __init__(self, inner: Listener[Any], prepare: Callable[[Wrapped], object] = id) -> None:
        self.inner = inner
        self.prepare = prepare
        self.streams: list[Wrapped] = []

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None) -> None:
        def wrap(stream: ByteStream) -> Any:
            self.streams.append(Wrapped(stream))
            self.prepare(self.streams[-1])
            return handler(self.streams[-1])

        await self.inner.serve(wrap, task_group)

    async def aclose(self) -> None:
        await self.inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


@asynccontextmanager
async def wrapped_pair(
    place: Memory, prepare: Callable[[Wrapped], object] = id, **options: Any
) -> AsyncIterator[tuple[BackedPipe, Pipe, WrappingListener]]:
    """Both ends of a pipe, and the listener whose streams can be told what to do."""
    listener = WrappingListener(await place.listen(), prepare)
    async with serving(PipeServer(meeting := Meeting(), **options), listener), place.pipe(**options) as client:
        served = await meeting.pipe()
        await client.wait_connected()
        yield client, served, listener


def once(network: Network, act: Callable[[Link], object]) -> None:
    """Does something to the next link, before any byte passes."""

    def act_once(link: Link) -> None:
        network.on_link = None
        act(link)

    network.on_link = act_once


async def loses_link(place: Memory, *ends: Pipe) -> None:
    """Cuts the link, refuses dials, and waits until both ends know."""
    place.network.refuse_dials()
    place.cut()
    await until(lambda: all(end.statistics().state == "suspended" for end in ends))


# The numbered ones.


@simulated
async def test_a_large_write_is_cut_in_its_middle(place: Memory) -> None:
    """2.9, 1: a write above the capacity, and a link that dies in its middle: all arrives, once."""
    data = noise("large", 100_000)
    for cut_at in (500, 1500, 3000, 20_000):
        place.network.on_link = lambda link, at=cut_at: link.cut_after(at, lose=at % 1000 == 0)
        async with place.pair(capacity=1000) as (client, served), background(say, client, data, 1, 100_000):
            heard = await hear(served, 3000)
            place.network.on_link = None
            assert heard + await hear_all(served) == data
            assert client.statistics().links > 1


@simulated
async def test_an_end_that_was_lost_is_said_again(place: Memory) -> None:
    """A FIN that was sent into a dead link is sent over the next one; so is one that was said while there was none."""
    for suspended in (False, True):
        async with place.pair() as (client, served):
            await anyio.sleep(1)
            if suspended:
                await loses_link(place, client, served)
            else:
                place.network.links[-1].half_open()
            await client.send(b"all")
            await client.send_eof()
            await settle()
            place.cut()
            place.network.heal()
            assert await hear_all(served) == b"all"
            await client.drain()


@simulated
async def test_numbers_while_everything_is_blocked(place: Memory) -> None:
    """2.9, 2: `statistics` and `repr` answer while a receive waits on a half-open link, and while a dial hangs."""
    async with place.pair() as (client, served), background(client.receive), background(served.receive):
        place.network.links[0].half_open()
        assert client.statistics().state == "connected"
        place.network.hang_dials()
        await anyio.sleep(10)
        assert [end.statistics().state for end in (client, served)] == ["suspended", "suspended"]
        assert "suspended" in repr(client)
        place.network.release_dials()
        await client.wait_connected()


@simulated
async def test_close_during_a_dial_that_never_returns(place: Memory) -> None:
    """2.9, 3: no time passes."""
    place.network.hang_dials()
    await place.listen()
    async with place.pipe(linger=100.0) as client:
        await client.send(b"never")
        await anyio.sleep(1)
        before = current_time()
    assert current_time() == before


@simulated
async def test_close_during_a_handshake_that_never_ends(place: Memory) -> None:
    """2.9, 3: also if the connection is there, and only its peer says nothing."""
    listener = await place.listen()
    async with place.pipe(linger=100.0) as client:
        await client.send(b"never")
        await anyio.sleep(1)
        before = current_time()
    assert current_time() == before
    await listener.aclose()


@simulated
async def test_a_position_that_was_never_sent(place: Memory) -> None:
    """2.9, 4: a server that claims too much: the connection is closed, every call gets the same final error."""
    async with fake_server(place, [Ack(0, 100), Ack(77, 100)]), place.pipe() as client:
        await client.wait_connected()
        place.cut()
        for call in (client.receive, client.drain, client.wait_connected, client.force_reconnect, client.send_eof):
            with pytest.raises(ResumeRefused, match="position"):
                await call()
        with pytest.raises(ResumeRefused) as caught:
            await client.send(b"x")
        assert caught.value.reason == "position"


@asynccontextmanager
async def fake_server(
    place: Memory, answers: Sequence[Ack | Reject | bytes], token: bytes = b""
) -> AsyncIterator[list[Hello]]:
    """Answers each HELLO with the next of these; yields the HELLOs. It has no manners beyond that."""
    hellos: list[Hello] = []

    async def serve(stream: ByteStream) -> None:
        async with stream:
            peer = Rude(stream)
            hello = await peer.hear()
            assert isinstance(hello, Hello)
            hellos.append(hello)
            answer = answers[min(len(hellos), len(answers)) - 1]
            if isinstance(answer, Ack):
                await stream.send(encode(make_welcome(token or hellos[0].token, hello, b"e" * 16, answer)))
            else:
                await stream.send(answer if isinstance(answer, bytes) else encode(answer))
            await anyio.sleep_forever()

    listener = await place.listen()
    async with anyio.create_task_group() as tasks, listener:
        tasks.start_soon(listener.serve, quiet(serve))
        yield hellos
        tasks.cancel_scope.cancel()


def quiet(serve: Callable[[ByteStream], Awaitable[None]]) -> Callable[[ByteStream], Awaitable[None]]:
    """A connection that ends is no error."""

    async def wrapper(stream: ByteStream) -> None:
        with suppress(BrokenResourceError, EndOfStream, ClosedResourceError):
            await serve(stream)

    return wrapper


@simulated
async def test_the_schedule_of_dials(place: Memory) -> None:
    """2.9, 5: dials that fail are repeated at exactly the times that the schedule and the random source say."""
    retry, times = Retry(first=0.5, cap=4.0), []

    async def dial() -> ByteStream:
        times.append(current_time())
        if len(times) <= 8:
            raise ConnectionRefusedError
        return await place.dial()

    async with place.serving(echo), BackedPipe(dial, retry=retry, random=Random(7), linger=0) as client:
        await client.wait_connected()
    random = Random(7)
    random.randbytes(16), random.randbytes(32)
    waits = [random.random() * min(4.0, 0.5 * 2**failures) for failures in range(8)]
    assert times == pytest.approx([0, *accumulate(waits)])


@simulated
async def test_who_finds_nobody_is_told_why_once(place: Memory) -> None:
    """Else whoever waits at a wrong address would not know for what. A short loss is not worth a word."""
    with logged() as told:
        async with place.pair(retry=Retry(first=0.1, cap=1)) as (client, _):
            place.network.refuse_dials(2)
            place.cut()
            await anyio.sleep(60)
            assert client.statistics().state == "connected"
            assert told == []
            place.network.refuse_dials()
            place.cut()
            await anyio.sleep(60)
            [why] = told
            assert "dialing on: ConnectionRefusedError" in why.getMessage()


@simulated
async def test_a_working_link_resets_the_schedule(place: Memory) -> None:
    """The first dial after a link that worked is made at once, and the waits begin anew."""
    async with place.pair(random=_Highest(), retry=Retry(first=1.0, cap=64.0)) as (client, _):
        for _ in range(3):
            await anyio.sleep(10)
            place.network.refuse_dials(2)
            before = current_time()
            place.cut()
            await until(lambda: client.statistics().state == "suspended")
            await client.wait_connected()
            assert current_time() - before == pytest.approx(3, abs=0.1)


class _Highest(Random):
    """Rolls the highest number each time."""

    def random(self) -> float:
        return 0.999999


@simulated
async def test_a_new_link_that_dies_at_any_byte(place: Memory) -> None:
    """2.9, 6: whatever byte of the handshake or after it is the last, the next link is made."""
    async with place.pair() as (client, served):
        for at in range(0, 500, 7):
            once(place.network, lambda link: link.cut_after(at))  # noqa: B023
            place.cut()
            await served.send(b"x")
            assert await hear(client, 1) == b"x"


@simulated
async def test_both_ends_replay_more_than_the_buffers_hold(place: Memory) -> None:
    """2.9, 7: nobody receives, both ends have far more to send again than fits on the way: no deadlock."""
    place.network = Network(buffer=1000)
    up, down = noise("up", 100_000), noise("down", 100_000)
    async with place.pair(capacity=100_000) as (client, served):
        await loses_link(place, client, served)
        await client.send(up)
        await served.send(down)
        place.network.heal()
        await client.drain()
        await served.drain()
        assert (await hear(served, 100_000), await hear(client, 100_000)) == (up, down)


@simulated
async def test_what_the_old_link_still_brings(place: Memory) -> None:
    """2.9, 8: bytes that the old link gives out after the new handshake are neither lost nor doubled."""
    async with wrapped_pair(place, linger=0.0) as (client, served, listener):
        await anyio.sleep(1)
        listener.streams[0].be_stubborn()
        link = place.network.links[0]
        link.stall()
        await client.send(b"in flight, ")
        await settle()
        forced = served.statistics().links
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.force_reconnect)
            await until(lambda: served.statistics().links > forced)
            link.resume()
        await client.send(b"then more")
        assert await hear(served, 20) == b"in flight, then more"
        assert served.statistics().received == 20


@simulated
async def test_a_fenced_link_applies_nothing(place: Memory) -> None:
    """2.9, 8: after WELCOME told a position, what the old link brings does not change it."""
    server = PipeServer(meeting := Meeting(), linger=0.0)
    listener = WrappingListener(await place.listen())
    async with serving(server, listener):
        old, new = Rude(await place.connect()), Rude(await place.connect())
        await old.say(old.hello())
        await old.hear()
        await anyio.sleep(1)
        listener.streams[0].be_stubborn()
        new.epoch = old.epoch
        await new.say(new.hello(generation=2))
        await new.hear()
        await old.stream.send(encode_payload(0, b"late"))
        await anyio.sleep(1)
        assert (await meeting.pipe()).statistics().received == 0
        await new.stream.send(encode_payload(0, b"true"))
        assert await hear(meeting.pipes[0], 4) == b"true"
        await old.aclose()
        await new.aclose()


def encode_payload(sequence: int, payload: bytes) -> bytes:
    """A DATA frame."""
    return encode_data(sequence, len(payload)) + payload


@simulated
async def test_the_position_is_told_after_the_fence(place: Memory) -> None:
    """2.9, 8: whatever the old link brings while the new HELLO is read, WELCOME tells exactly what was received."""
    async with serving(PipeServer(meeting := Meeting(), linger=0.0), await place.listen()):
        links = [Rude(await place.connect())]
        await links[0].say(links[0].hello())
        await links[0].hear()
        served, sent = await meeting.pipe(), 0
        for generation in range(2, 12):
            old, new = links[-1], Rude(await place.connect())
            await new.say(new.hello(generation, epoch=links[0].epoch))
            for _ in range(5):
                await settle(generation % 3)
                with suppress(BrokenResourceError):
                    await old.stream.send(encode_payload(sent, b"more"))
                    sent += 4
            welcome = await new.hear_until(Welcome)
            assert isinstance(welcome, Welcome)
            assert welcome.position == served.statistics().received
            sent = welcome.position
            links.append(new)
        for link in links:
            await link.aclose()


@simulated
async def test_what_a_peer_repeats_is_heard_once(place: Memory) -> None:
    """2.9, 8: DATA that was received before, in whole or in part, is dropped."""
    async with serving(PipeServer(meeting := Meeting(), linger=0.0), await place.listen()):
        rude = Rude(await place.connect())
        await rude.say(rude.hello())
        for sequence, data in ((0, b"abcd"), (0, b"abcd"), (1, b"bc"), (2, b"cdef"), (0, b"abcdefgh"), (8, b"i")):
            await rude.stream.send(encode_payload(sequence, data))
        assert await hear(await meeting.pipe(), 9) == b"abcdefghi"
        await rude.aclose()


@simulated
async def test_a_fenced_link_takes_nothing(place: Memory) -> None:
    """2.9, 8: what is sent in the very turn in which a new link comes goes over the new one, not the fenced one."""
    async with wrapped_pair(place, lambda stream: None) as (client, served, listener):

        async def late() -> None:
            await served.send(b"late")

        def prepare(stream: Wrapped) -> None:
            stream.before_return = late

        listener.prepare = prepare
        place.network.links[0].half_open()
        await client.force_reconnect()
        with anyio.fail_after(5):
            assert await hear(client, 4) == b"late"


@simulated
async def test_messages_larger_than_what_was_asked(place: Memory) -> None:
    """2.9, 9: a transport that gives whole messages, however large, loses nothing."""
    data = noise("messages", 600_000)

    def whole(stream: Wrapped) -> None:
        stream.whole = True

    place.network = Network(buffer=1 << 20)
    async with (
        wrapped_pair(place, whole, capacity=1 << 20) as (client, served, _),
        background(say, client, data, "messages", 300_000),
    ):
        assert await hear_all(served) == data


@pytest.mark.parametrize("direction", ["up", "down", None])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_half_open_link_is_noticed(backend: Any, direction: Any, tmp_path: Any) -> None:
    """2.9, 10: without any error from below, both ends leave it within three heartbeats; `last_error` tells."""

    async def main(place: Memory) -> None:
        async with place.pair(heartbeat=10.0, linger=0.0) as (client, served):
            await anyio.sleep(1234.5)
            place.network.hang_dials()
            place.network.links[0].half_open(direction)
            began = current_time()
            for end in (client, served):
                await until(lambda: end.statistics().state == "suspended")  # noqa: B023
                assert 10 < current_time() - began <= 30.1
            errors = [end.statistics().last_error for end in (client, served)]
            assert any(isinstance(error, LinkSilent) for error in errors)

    run_at(Memory(tmp_path), main, backend)


@simulated
async def test_a_live_link_is_left_alone(place: Memory) -> None:
    """A link whose answers come late, but come, lives on; the round trip is measured."""
    place.network.faults = Faults(latency=4.5)
    async with place.pair(heartbeat=10.0, dial_timeout=100.0) as (client, served):
        await anyio.sleep(10_000)
        assert (client.statistics().links, served.statistics().links) == (1, 1)
        assert client.statistics().round_trip == pytest.approx(9, abs=0.1)


@simulated
async def test_a_link_slower_than_its_heartbeat_counts_as_working(place: Memory) -> None:
    """A round trip longer than a heartbeat is no failure: the dial after the link's loss is made at once."""
    place.network.faults = Faults(latency=9.0)
    options = {"heartbeat": 10.0, "dial_timeout": 100.0, "linger": 0.0}
    async with place.pair(retry=Retry(give_up_after=60.0), random=_Highest(), **options) as (client, _):
        await anyio.sleep(1000)
        place.cut()
        await anyio.sleep(1)
        await client.wait_connected()


@simulated
async def test_a_loss_can_be_waited_for(place: Memory) -> None:
    """However short; without a link there is nothing to wait for."""
    async with place.pair() as (client, server):
        await client.wait_connected()
        for end in (client, server):
            with anyio.move_on_after(60) as patience:
                await end.wait_disconnected()
            assert patience.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.wait_disconnected)
            tasks.start_soon(server.wait_disconnected)
            await settle()
            place.cut()
        place.network.refuse_dials()
        await client.wait_connected()
        place.cut()
        await settle()
        await client.wait_disconnected()


@simulated
async def test_a_link_in_place_of_another_is_a_loss_too(place: Memory) -> None:
    """To who waits since before it, though there is a link at every moment when he looks."""
    async with place.pair() as (client, server):
        await client.wait_connected()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.wait_disconnected)
            await settle()
            place.network.links[0].half_open()  # the server does not learn of its end
            await client.force_reconnect()


@simulated
async def test_who_waits_for_a_loss_learns_of_the_end(place: Memory) -> None:
    """Of the pipe; a pipe that has ended has lost nothing."""
    async with place.pair() as (client, _):
        await client.wait_connected()

        async def wait(pipe: Pipe, error: type[Exception]) -> None:
            with pytest.raises(error):
                await pipe.wait_disconnected()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, client, ClosedResourceError)
            await settle()
            await client.aclose()
        await wait(client, ClosedResourceError)


@simulated
async def test_a_restarted_server_says_so(place: Memory) -> None:
    """2.9, 11: a server that has lost its memory is no server of this pipe, even if both positions are 0."""
    async with place.pipe() as client:
        async with place.serving(Meeting()):
            await client.wait_connected()
        async with place.serving(Meeting()) as server:
            with pytest.raises(ResumeRefused) as caught:
                await client.receive()
            assert caught.value.reason == "epoch"
            assert server.statistics().pipes == 0


@simulated
async def test_another_server_cannot_welcome(place: Memory) -> None:
    """2.9, 11: a WELCOME without the proof ends that link; the pipe goes on when the true server is back."""
    async with place.pipe() as client:
        async with fake_server(place, [Ack(0, 100)], token=b"?" * 32):
            await anyio.sleep(1)
            assert isinstance(client.statistics().last_error, BadFrame)
            assert client.statistics().links == 0
        async with place.serving(Meeting()):
            await client.wait_connected()


@simulated
async def test_a_send_is_accepted_or_not(place: Memory) -> None:
    """2.9, 12: while the link takes nothing, a cancelled send that had room returned, one that waited left nothing."""
    async with place.pair(capacity=100, linger=0.0) as (client, served):
        place.network.links[0].stall()
        with CancelScope() as scope:
            scope.cancel()
            await client.send(b"not this")
        assert client.statistics().sequence == 0
        await client.send(bytes(60))
        with anyio.move_on_after(1):
            await client.send(b"n" * 60)
        await client.send(b"y" * 40)
        place.network.links[0].resume()
        assert await hear(served, 100) == bytes(60) + b"y" * 40
        assert (client.statistics().sequence, served.statistics().unread) == (100, 0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_checks_for_leftovers_work(backend: Any, tmp_path: Any) -> None:
    """2.9, 14: a stream that stays open fails a test of these."""

    async def leave(place: Memory) -> None:
        async with await place.listen():
            await place.dial()

    with pytest.raises(AssertionError, match="left open"):
        run_at(Memory(tmp_path), leave, backend)


# Dials.


@simulated
async def test_giving_up(place: Memory) -> None:
    """After `give_up_after` without a link the pipe fails for good, with the last dial's error as the cause."""
    async with place.pipe(retry=Retry(first=1.0, cap=10.0, give_up_after=60.0)) as client:
        await client.send(b"x")
        for call in (client.receive, client.drain, client.wait_connected, client.force_reconnect):
            with pytest.raises(ReconnectFailed) as caught:
                await call()
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            assert 60 <= current_time() <= 70
        assert caught.value.seconds >= 60
        assert caught.value.attempts == place.dials


@simulated
async def test_giving_up_counts_from_the_last_working_link(place: Memory) -> None:
    """An hour with a link does not count."""
    async with place.pair(retry=Retry(give_up_after=60.0, cap=1.0), heartbeat=10.0) as (client, _):
        await anyio.sleep(3600)
        place.network.refuse_dials()
        place.cut()
        with pytest.raises(ReconnectFailed):
            await client.receive()
        assert 3660 <= current_time() <= 3662


@pytest.mark.parametrize(
    "error",
    [ssl.SSLCertVerificationError("certificate has expired"), ValueError("a mistake"), PermissionError("own"), None],
    ids=["certificate", "mistake", "judged", "version"],
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_final_errors(backend: Any, error: Exception | None, tmp_path: Any) -> None:
    """What dialing again cannot help ends the pipe at once: every call raises it, with its cause."""

    async def main(place: Memory) -> None:
        async def dial() -> ByteStream:
            if error is not None:
                raise error
            return await place.dial()

        def judge(error: Exception) -> bool:
            return not isinstance(error, ssl.SSLCertVerificationError | ValueError | PermissionError | LinkRefused)

        async with fake_server(place, [Reject("version", "too old")]), BackedPipe(dial, temporary=judge) as client:
            await client.send(b"x")
            for call in (client.receive, client.drain, client.wait_connected, client.force_reconnect):
                with pytest.raises(ReconnectFailed) as caught:
                    await call()
                cause = caught.value.__cause__
                assert cause is error or (error is None and isinstance(cause, LinkRefused))
            with pytest.raises(ReconnectFailed):
                await client.send(b"x")
            assert caught.value.attempts == 1

    run_at(Memory(tmp_path), main, backend)


@simulated
async def test_a_busy_server_is_asked_again(place: Memory) -> None:
    """`busy` is temporary."""
    answers: list[Ack | Reject] = [Reject("busy"), Reject("busy"), Reject("busy"), Ack(0, 100)]
    async with fake_server(place, answers) as hellos, place.pipe() as client:
        await client.wait_connected()
        assert [hello.generation for hello in hellos] == [1, 2, 3, 4]
        assert isinstance(client.statistics().last_error, LinkRefused)


@simulated
async def test_a_dial_that_hangs_is_given_up(place: Memory) -> None:
    """After `dial_timeout` the next dial is made; the first leaves nothing."""
    place.network.hang_dials(1)
    async with place.serving(echo), place.pipe(dial_timeout=3.0) as client:
        await client.wait_connected()
        assert current_time() == pytest.approx(3, abs=0.2)
        assert isinstance(client.statistics().last_error, TimeoutError)
        assert len(place.network.open_streams) == 2


@simulated
async def test_a_handshake_that_hangs_is_given_up(place: Memory) -> None:
    """`dial_timeout` bounds the handshake too, and its connection is closed."""
    once(place.network, lambda link: link.stall())
    async with place.serving(echo), place.pipe(dial_timeout=3.0) as client:
        await client.wait_connected()
        assert current_time() == pytest.approx(3, abs=0.2)
        assert [stream.link.number for stream in place.network.open_streams if stream._dialled] == [2]


@simulated
async def test_failed_handshakes_close_their_connections(place: Memory) -> None:
    """Whatever a server answers instead of a WELCOME, the dialer keeps no connection."""
    answers: list[Reject | bytes] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        Reject("busy"),
        encode(Ack(0, 0)),
        b"\x05\xff",
        b"",
    ]
    async with fake_server(place, answers) as hellos:
        async with place.pipe(dial_timeout=1.0) as client:
            await until(lambda: len(hellos) == 6)
            await until(lambda: client.statistics().last_error is not None)
            assert len([stream for stream in place.network.open_streams if stream._dialled]) <= 1
        assert client.statistics().links == 0
        assert [stream for stream in place.network.open_streams if stream._dialled] == []


@simulated
async def test_flapping_links_back_off(place: Memory) -> None:
    """A link that dies before it has shown to work counts as a failed dial: the waits grow up to the cap."""
    times: list[float] = []

    def flap(link: Any) -> None:
        times.append(current_time())
        link.cut_after(120, direction="down")

    place.network.on_link = flap
    async with (
        place.serving(echo),
        place.pipe(random=_Highest(), retry=Retry(first=1.0, cap=20.0), dial_timeout=0.5) as client,
    ):
        await until(lambda: len(times) == 8)
        assert client.statistics().links >= 1
        waits = [later - earlier for earlier, later in pairwise(times)]
        assert waits == pytest.approx([1, 2, 4, 8, 16, 20, 20], rel=0.1)


@simulated
async def test_no_two_dials_at_once(place: Memory) -> None:
    """Whoever asks for a reconnect, however often: one dial at a time, each with the next generation."""
    dialing = 0

    async def dial() -> ByteStream:
        nonlocal dialing
        dialing += 1
        assert dialing == 1
        try:
            await anyio.sleep(0.5)
            return await place.dial()
        finally:
            dialing -= 1

    async with place.serving(echo), BackedPipe(dial, linger=0.0) as client:
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(client.force_reconnect)
                    await anyio.sleep(0.1)
            place.cut()
        assert client.statistics().generation == place.dials


@simulated
async def test_a_forced_reconnect_does_not_wait_its_turn(place: Memory) -> None:
    """A dial that waits for its time is made at once."""
    async with place.pipe(random=_Highest(), retry=Retry(first=1000.0, cap=1000.0)) as client:
        await anyio.sleep(10)
        async with place.serving(echo):
            await client.force_reconnect()
            assert current_time() == pytest.approx(10, abs=0.1)


@simulated
async def test_a_cancelled_forced_reconnect_goes_on(place: Memory) -> None:
    """A caller that gives up does not stop what others wait for."""
    async with place.pair() as (client, _):
        place.network.hang_dials(1)
        with anyio.move_on_after(1):
            await client.force_reconnect()
        place.network.release_dials()
        await client.wait_connected()
        assert client.statistics().links == 2


# Doubled and reordered connections.


@simulated
async def test_a_late_dial_does_not_take_over(place: Memory) -> None:
    """A HELLO that was overtaken by a later one gets `replayed`; the link of the later one lives."""
    async with place.serving(meeting := Meeting()):
        early, late = Rude(await place.connect()), Rude(await place.connect())
        await late.say(late.hello(generation=2))
        await late.hear()
        await early.say(early.hello(generation=1))
        assert await early.hear() == Reject("replayed", "generation 1 was seen before")
        await late.stream.send(encode_payload(0, b"alive"))
        assert await hear(await meeting.pipe(), 5) == b"alive"
        await early.aclose()
        await late.aclose()


@simulated
async def test_a_copy_of_a_connection_harms_nobody(place: Memory) -> None:
    """A second connection with the same bytes gets no link: neither while the first lives nor later."""
    async with place.pair() as (client, served):
        await client.send(b"once")
        place.network.duplicate(place.network.links[0])
        assert await hear(served, 4) == b"once"
        await anyio.sleep(5)
        assert (client.statistics().links, served.statistics().links) == (1, 1)
        assert served.statistics().received == 4


@simulated
async def test_reordered_dials(place: Memory) -> None:
    """Dials that were given up and arrive later than their successors change nothing."""
    place.network.delay_dials(5.0, 0.1)
    async with place.serving(meeting := Meeting()), place.pipe(dial_timeout=1.0) as client:
        await client.send(b"hello")
        assert await hear(await meeting.pipe(), 5) == b"hello"
        await anyio.sleep(10)
        assert client.statistics().links == 1
        assert len(meeting.pipes) == 1


# Waiting without a link.


@simulated
async def test_a_suspended_end_sends_up_to_its_capacity(place: Memory) -> None:
    """Without a link a handler goes on sending until `capacity` bytes are kept, then waits; a link lets it go on."""
    async with place.pair(capacity=1000) as (client, served):
        await loses_link(place, client, served)
        for _ in range(10):
            await served.send(bytes(100))
        with anyio.move_on_after(60) as scope:
            await served.send(b"x")
        assert scope.cancelled_caught
        assert served.statistics().in_ring == 1000
        place.network.heal()
        await served.send(b"x")
        assert await hear(client, 1001) == bytes(1000) + b"x"


@simulated
async def test_a_slow_reader_holds_the_sender_back(place: Memory) -> None:
    """What the peer does not take stays within the two capacities, connected or not."""
    async with place.pair(capacity=1000) as (client, served), background(client.send, bytes(50_000)):
        for _ in range(5):
            place.cut()
            await anyio.sleep(1)
            assert client.statistics().in_ring <= 1000
            assert served.statistics().unread <= 1000
        assert client.statistics().sequence == 2000
        assert await hear(served, 50_000) == bytes(50_000)


@simulated
async def test_an_acknowledgement_does_not_wait_for_a_heartbeat(place: Memory) -> None:
    """`drain` returns within the round trip and the delay of acknowledgements, also for a link's very first bytes."""
    async with place.serving(echo), place.pipe(heartbeat=100.0) as client:
        await client.send(b"first")
        await client.drain()
        assert current_time() < 1
        await client.send(b"and an answer")
        await client.drain()
        assert current_time() < 1


@simulated
async def test_closing_an_idle_link_is_quick(place: Memory) -> None:
    """FIN and CLOSE do not wait for a heartbeat: no more than round trips pass, and the peer hears the end."""
    async with place.serving(meeting := Meeting(), heartbeat=100.0):
        async with place.pipe(heartbeat=100.0, linger=50.0) as client:
            served = await meeting.pipe()
            await client.wait_connected()
            await anyio.sleep(10)
        assert current_time() < 11
        with pytest.raises((EndOfStream, PipeClosed)):
            await served.receive()


@simulated
async def test_closing_is_bounded_by_linger(place: Memory) -> None:
    """On a link that takes nothing, closing takes `linger` seconds and no more; cancelled, it takes none."""
    async with place.serving(Meeting()):
        for limit, expected in ((1000.0, 7.0), (3.0, 3.0)):
            async with place.pipe(linger=7.0, heartbeat=1000.0) as client:
                await client.wait_connected()
                await anyio.sleep(1)
                place.network.links[-1].half_open()
                await client.send(b"x")
                before = current_time()
                with anyio.move_on_after(limit):
                    await client.aclose()
                assert current_time() - before == pytest.approx(expected)
                assert client.statistics().state == "closed"


@simulated
async def test_a_link_that_fails_to_close_harms_nobody(place: Memory) -> None:
    """A stream whose `aclose` raises ends its link like any other, at both ends."""

    def fail(stream: Wrapped) -> None:
        stream.close_error = OSError("close failed")

    async def dial() -> ByteStream:
        stream = Wrapped(await place.dial())
        fail(stream)
        return stream

    listener = WrappingListener(await place.listen(), fail)
    async with serving(PipeServer(echo), listener), BackedPipe(dial) as client:
        for _ in range(3):
            await client.send(b"ping")
            assert await hear(client, 4) == b"ping"
            await client.force_reconnect()


async def lend(client: Pipe, served: Pipe) -> None:
    """Lets `client` wait for what `served` says: from then on its program reads the connection itself."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hear, client, 4)
        await settle()
        await served.send(b"word")


class Deaf(Wrapped):
    """A stream whose `aclose` wakes nobody, as of anyio's memory object streams."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await super().receive(max_bytes)
        except ClosedResourceError:
            await anyio.sleep_forever()
            raise

    async def send(self, item: bytes) -> None:
        try:
            await super().send(item)
        except ClosedResourceError:
            await anyio.sleep_forever()


@simulated
async def test_a_stream_whose_close_wakes_nobody(place: Memory) -> None:
    """Calls of the program do not stay behind on a link that is over, whatever its stream does."""

    async def dial() -> ByteStream:
        return Deaf(await place.dial())

    async with place.serving(meeting := Meeting()), BackedPipe(dial, heartbeat=1.0, linger=1.0) as client:
        served = await meeting.pipe()
        await client.wait_connected()
        await anyio.sleep(0.5)
        await lend(client, served)
        heard: list[bytes] = []

        async def listen() -> None:
            heard.append(await client.receive())

        async with background(listen):
            place.network.links[0].half_open()
            await anyio.sleep(10)
            assert client.statistics().links == 2
            await served.send(b"again")
            await anyio.sleep(1)
            assert heard == [b"again"]


@simulated
async def test_a_forced_reconnect_takes_receivers_along(place: Memory) -> None:
    """A receive that reads the connection itself goes on over the next one: cut, forced or fenced, again and again."""
    async with place.pair() as (client, served):
        for number in range(12):
            await lend(client, served)
            await lend(served, client)
            heard: list[bytes] = []

            async def listen(heard: list[bytes] = heard) -> None:
                heard.append(await client.receive())

            async with background(listen):
                await [client.force_reconnect, served.force_reconnect, _cut(place)][number % 3]()
                await served.send(b"next")
                await anyio.sleep(0.5)
                assert heard == [b"next"]


def _cut(place: Memory) -> Callable[[], Awaitable[None]]:
    async def cut() -> None:
        place.cut()
        await settle()

    return cut


@simulated
async def test_a_cancelled_receive_gives_the_connection_back(place: Memory) -> None:
    """Who read the connection itself and is cancelled gives it back: both ends are heard as before."""
    async with place.pair(heartbeat=100.0) as (client, served):
        for _ in range(5):
            await lend(client, served)
            with anyio.move_on_after(0.5) as scope:
                await client.receive()
            assert scope.cancelled_caught
            before = current_time()
            await served.send(b"word")
            await served.drain()
            await client.send(bytes(1000))
            await client.drain()
            assert current_time() - before < 1
            assert await hear(served, 1000) == bytes(1000)
            assert await hear(client, 4) == b"word"


@simulated
async def test_the_end_of_a_silent_reader(place: Memory) -> None:
    """A program that received, and then does something else for long: its pipe hears PINGs and the end meanwhile."""
    async with place.pair(heartbeat=10.0) as (client, served):
        await lend(client, served)
        await anyio.sleep(1000)
        assert client.statistics().links == 1
        await served.send_eof()
        await anyio.sleep(20)
        before = current_time()
        with pytest.raises(EndOfStream):
            await client.receive()
        assert current_time() - before < 1
        await served.drain()


@simulated
async def test_bad_frames_end_the_link_not_the_pipe(place: Memory) -> None:
    """Garbage suspends the pipe, which goes on over the next link; `last_error` tells."""
    async with place.serving(meeting := Meeting()):
        rude = Rude(await place.connect())
        await rude.say(rude.hello())
        await rude.hear()
        await rude.stream.send(encode_payload(0, b"good"))
        served = await meeting.pipe()
        assert await hear(served, 4) == b"good"
        await rude.stream.send(b"\xff" * 10)
        await until(lambda: served.statistics().state == "suspended")
        assert isinstance(served.statistics().last_error, BadFrame)
        again = Rude(await place.connect())
        await again.say(again.hello(generation=2, epoch=rude.epoch))
        assert isinstance(await again.hear(), Welcome)
        await rude.aclose()
        await again.aclose()


@simulated
async def test_a_woken_reader_sees_frames_before_a_bad_one(place: Memory) -> None:
    """A receive that waits is woken by what came in one chunk with a bad frame: here DATA that leaves a gap."""
    async with place.serving(meeting := Meeting()):
        rude = Rude(await place.connect())
        await rude.say(rude.hello())
        await rude.hear()
        served = await meeting.pipe()
        heard: list[bytes] = []

        async def listen() -> None:
            heard.append(await served.receive())

        async with background(listen):
            await rude.stream.send(encode_payload(0, b"good") + encode_payload(99, b"gap"))
            await anyio.sleep(1)
            assert heard == [b"good"]
        await rude.aclose()

"""Encode once, batches in frames, and credit: a slow reader stalls itself alone, and all memory is bounded."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from remote_support import Town, drain, receive_now, settle, simulated, stranger, take

from eventstream import EARLIEST, Event, NotAuthorized, SlowSubscriber, SnapshotStart, Topic
from eventstream.codec import TopicCodec
from eventstream.errors import InvalidPayload, LimitReached, PipeAbandoned
from eventstream.remote.messages import EVENTS, Credit, Ended, Events, Mark, OpenTopic, Subscribe
from eventstream.remote.outgoing import BOUND
from eventstream.remote.sharing import Kept, SharedEvents
from support import Price


@dataclass
class Noted:
    name: str


notes = Topic("notes", Noted, key="name", compacted=True)
NONE: MappingProxyType[str, str] = MappingProxyType({})
prices = Topic("prices", Price, key="symbol", compacted=True, retain=100_000)
words = Topic("words", str, retain=100_000)
small = Topic("small", str, retain=10, max_lag=50)
states = Topic("states", Price, key="symbol", compacted=True, retain=10, max_lag=50)


class Test_encoding:
    @simulated
    async def test_one_publish_to_a_thousand_subscriptions_encodes_one_event(self) -> None:
        """Over four connections, with and without filters."""
        async with (
            Town(words, prices).open() as town,
            town.client() as one,
            town.client() as two,
            town.client() as three,
            town.client() as four,
        ):
            clients = (one, two, three, four)
            subscriptions = [client.subscribe(words) for client in clients for _ in range(200)]
            keyed = [client.subscribe(prices, key="X") for client in clients for _ in range(50)]
            for client in clients:
                await client.head(words)
            await one.publish(words, "a")
            await one.publish(prices, Price("X", 1.0))
            await anyio.sleep(1)
            assert {tuple(await take(subscription, 1)) for subscription in subscriptions} == {("a",)}
            assert {tuple(await take(subscription, 1)) for subscription in keyed} == {(Price("X", 1.0),)}
            assert town.server.statistics().encoded == 2

    @simulated
    async def test_a_history_that_many_read_is_encoded_once(self) -> None:
        """Lists are shared as a whole, by those with the same filter."""
        async with Town(prices).open() as town, town.client() as one, town.client() as two:
            for number in range(1000):
                town.bus.publish_nowait(prices, Price(f"s{number % 10}", number))
            for client in (one, two):
                for filters in ({}, {"key": "s3"}, {"prefix": "s"}):
                    subscription = client.subscribe(prices, after=EARLIEST, **filters)  # type: ignore[arg-type]
                    got = await take(subscription, 100)
                    assert [price.bid for price in got] == [*range(3, 1000, 10)] if "key" in filters else [*range(100)]
            assert town.server.statistics().encoded == 1000

    @simulated
    async def test_a_batch_arrives_whole(self) -> None:
        """Also one that is longer than a segment."""
        async with Town(words).open() as town, town.client() as bus, bus.subscribe(words) as subscription:
            for size in (1, 3, 500):
                position = await bus.publish_many(words, [str(number) for number in range(size)])
                async for batch in subscription.batches():
                    assert [event.payload for event in batch] == [str(number) for number in range(size)]
                    assert subscription.position == position
                    break

    @simulated
    async def test_what_cannot_be_encoded_ends_its_readers_alone(self) -> None:
        """The bus in its process may carry anything; the network may not."""
        loose: Topic[Any] = Topic("loose", Any)
        async with Town(loose, words).open() as town, town.client() as bus:
            broken, sound = bus.subscribe(loose), bus.subscribe(words)
            await bus.head(words)
            town.bus.publish_nowait(loose, object())
            with pytest.raises(InvalidPayload):
                await broken.receive()
            await bus.publish(words, "a")
            assert await take(sound, 1) == ["a"]

    def test_what_is_kept_is_bounded_and_no_identity_comes_to_mean_another_event(self) -> None:
        codec = TopicCodec(words)
        events = [Event("words", "", index, "x" * 1000, 0.0, NONE) for index in range(30)]
        kept = Kept(10_000)
        shared = SharedEvents(codec, kept, Kept(10_000))
        for event in events:
            body = shared.body([event], (None, None))
            assert codec.decode_events(body) == [event]
        assert len(kept) < 11
        for _ in range(1000):
            fresh = Event("words", "", 1, "y", 0.0, NONE)
            assert codec.decode_events(shared.body([fresh], (None, None))) == [fresh]
            del fresh

    def test_what_is_asked_for_is_kept_and_the_rest_goes(self) -> None:
        """The young generation becomes old as a whole; what is found in the old one is young again."""
        kept = Kept(1000)
        names = [object() for _ in range(8)]
        for name in names:
            kept.put(name, bytes(200), name)
            assert kept.get(names[0], names[0]) == bytes(200)
        assert kept.get(names[1], names[1]) is None
        assert kept.has_any([names[1], names[-1]])
        assert not kept.has_any(names[1:3])
        assert len(kept) <= 5

    @simulated
    async def test_lists_that_overlap_are_encoded_once(self) -> None:
        """A reader that stands elsewhere gets other lists of the same events."""
        async with Town(words).open() as town, town.client() as one, town.client() as two:
            positions = [town.bus.publish_nowait(words, str(number)) for number in range(100)]
            for client, first in ((one, 0), (two, 37), (one, 36)):
                subscription = client.subscribe(words, after=positions[first])
                assert await take(subscription, 99 - first) == [str(number) for number in range(first + 1, 100)]
            assert town.server.statistics().encoded == 99


class Test_gathering:
    @simulated
    async def test_what_comes_while_a_write_is_slow_goes_together(self) -> None:
        """Bursts that follow a burst make few lists, not one each; nothing is lost, and all is in order."""
        async with Town(words).open() as town, town.client() as bus, bus.subscribe(words) as subscription:
            await bus.head(words)
            [connection] = town.server._connections
            said = 0
            say = connection._outgoing.say

            def count(*parts: bytes, **options: bool) -> None:
                nonlocal said
                said += parts[0][4] == EVENTS  # the byte that tells the kind
                say(*parts, **options)

            connection._outgoing.say = count  # type: ignore[method-assign]
            for burst in range(20):
                for number in range(4):
                    town.bus.publish_nowait(words, str(4 * burst + number))
                await checkpoint()
            assert await drain(subscription) == [str(number) for number in range(80)]
            assert 1 < said <= 12

    @simulated
    async def test_a_single_event_waits_for_nothing(self) -> None:
        """Each that comes alone is a message of its own."""
        async with Town(words).open() as town, town.client() as bus, bus.subscribe(words) as subscription:
            for number in range(20):
                await bus.publish(words, str(number))
                assert (await receive_now(subscription)).payload == str(number)

    @simulated
    async def test_a_connection_that_is_lost_while_it_gathers_goes_on(self) -> None:
        """Whoever waits for a write is woken when there is no connection to write to any more."""
        async with Town(words).open() as town, town.client() as bus, bus.subscribe(words) as subscription:
            await bus.head(words)
            for burst in range(30):
                for number in range(3):
                    town.bus.publish_nowait(words, str(3 * burst + number))
                if burst % 5 == 2:
                    town.cut()
                await checkpoint()
            assert await take(subscription, 90) == [str(number) for number in range(90)]


class Test_credit:
    @simulated
    async def test_a_reader_that_stops_stalls_itself_alone(self) -> None:
        """Others on the same connection go on; it has at most its window and one list, and goes on later."""
        async with Town(words).open() as town, town.client(window=10_000) as bus:
            stopped, goes_on = bus.subscribe(words), bus.subscribe(words)
            await bus.head(words)
            sent = [f"{number:0100}" for number in range(5000)]
            got: list[str] = []
            for start in range(0, 5000, 100):
                for word in sent[start : start + 100]:
                    town.bus.publish_nowait(words, word)
                got += await drain(goes_on)
            assert got == sent
            assert stopped.lag <= 10_000 / 100 + 128
            assert await take(stopped, 5000) == sent

    @simulated
    async def test_who_grants_much_and_takes_nothing_makes_the_server_hold_little(self) -> None:
        """Credit is the client's word; what waits for its pipe is bounded by the server, who reads no further."""
        async with Town(words).open() as town, stranger(town) as other:
            opening = OpenTopic(1, "words", False, 1024, 65_536), Subscribe(1, 1, None, None, None, 2**62)
            await other.say(*opening)
            await settle()
            [connection] = town.server._connections
            waiting = 0
            for _ in range(100):
                town.bus.publish_nowait(words, "x" * 50_000)
                await settle(2)
                waiting = max(waiting, connection._outgoing.size)
            assert BOUND < waiting <= BOUND + 2 * 50_100

    @simulated
    async def test_a_stopped_reader_falls_under_the_bound_of_its_topic(self) -> None:
        """Without a snapshot: SlowSubscriber."""
        async with Town(small).open() as town, town.client(window=1000) as bus:
            subscription = bus.subscribe(small)
            await bus.head(small)
            for number in range(500):
                town.bus.publish_nowait(small, f"{number:0100}")
                if number % 10 == 0:
                    await settle()
            assert town.bus.statistics().topics["small"].lag <= 51
            assert subscription.lag < 50
            with pytest.raises(SlowSubscriber) as caught:
                await take(subscription, 500)
            assert caught.value.bound == 50

    @simulated
    async def test_with_a_snapshot_it_starts_again(self) -> None:
        """Reason lagged; and a view does so by itself."""
        async with Town(states).open() as town, town.client(window=1000) as bus:
            subscription = bus.subscribe(states)
            await bus.head(states)
            for number in range(500):
                town.bus.publish_nowait(states, Price(f"s{number % 9}", number))
                if number % 10 == 0:
                    await settle()
            frames: list[Any] = []
            async for frame in subscription.frames():
                frames.append(frame)
                if isinstance(frame, Event) and frame.payload == Price("s4", 499.0):
                    break
            starts = [at for at, frame in enumerate(frames) if isinstance(frame, SnapshotStart)]
            assert [frames[at].reason for at in starts] == ["new", "lagged"]
            state: dict[str, float] = {}
            for frame in frames[starts[1] :]:
                if isinstance(frame, Event):
                    state[frame.key] = frame.payload.bid
            assert state == {f"s{number % 9}": float(number) for number in range(491, 500)}

    @simulated
    async def test_what_was_read_of_a_snapshot_is_not_kept(self) -> None:
        """Nor are the live events behind it."""
        async with Town(notes).open() as town, town.client(window=2000) as bus:
            for number in range(1000):
                town.bus.publish_nowait(notes, Noted(f"s{number}"))
            async with bus.subscribe(notes) as subscription:
                read = [weakref.ref((await subscription.receive()).payload) for _ in range(600)]
                gc.collect()
                assert sum(payload() is not None for payload in read) <= 128
                await take(subscription, 400)
                for number in range(300):
                    await bus.publish(notes, Noted(f"s{number}"))
                read = [weakref.ref((await subscription.receive()).payload) for _ in range(300)]
                gc.collect()
                assert sum(payload() is not None for payload in read) <= 128

    @simulated
    async def test_credit_is_right_over_new_connections(self) -> None:
        """However often the session is lost, all comes, and never more than the window is unread here."""
        async with Town(words).open() as town, town.client(window=3000) as bus:
            subscription = bus.subscribe(words)
            await bus.head(words)
            sent = [f"{number:0100}" for number in range(600)]
            got: list[str] = []
            for number, word in enumerate(sent):
                town.bus.publish_nowait(words, word)
                if number % 50 == 49:
                    await town.serve()
                    await anyio.sleep(1)
                    assert subscription.lag <= 30 + 2 * 128  # the window, a list more, and the one in hand
                    got += await take(subscription, 13)
            got += await take(subscription, 600 - len(got))
            assert got == sent

    @simulated
    async def test_many_resets_leave_no_credit_behind(self) -> None:
        """What is dropped unread at a reset counts as read."""
        async with Town(states).open() as town, town.client(window=1000) as bus:
            subscription = bus.subscribe(states)
            await bus.head(states)
            for turn in range(30):
                await town.bus.refresh(states)
                for number in range(9):
                    await town.bus.publish(states, Price(f"s{number}", turn))
                await settle()
            last: dict[str, float] = {}
            with anyio.move_on_after(5):
                async for frame in subscription.frames():
                    if isinstance(frame, SnapshotStart):
                        last = {}
                    elif isinstance(frame, Event):
                        last[frame.key] = frame.payload.bid
            assert last == {f"s{number}": 29.0 for number in range(9)}

    @simulated
    async def test_revocation_ends_a_subscription_that_waits_for_credit(self) -> None:
        """At once, and without the events that it was not sent."""
        async with Town(words).open() as town, stranger(town) as other:
            await other.say(OpenTopic(1, "words", False, 100_000, 65_536), Subscribe(1, 1, None, None, None, 10))
            await other.hear(Mark)
            for number in range(300):
                town.bus.publish_nowait(words, f"{number:0100}")
                await settle(1)
            await settle()
            [cursor] = town.bus._rooms["words"].live.cursors
            town.bus._rooms["words"].live.end(cursor, NotAuthorized("x"))
            await other.say(Credit(1, 10_000))
            assert (await other.hear(Ended)).fault.name == "NotAuthorized"
            assert sum(isinstance(message, Events) for message in other.heard) == 1

    @simulated
    async def test_a_client_that_does_not_read_its_connection_stalls_nobody_else(self) -> None:
        """What waits for it is bounded; the server's other clients do not notice."""
        async with Town(words).open() as town, town.client() as bus, stranger(town) as other:
            sound = bus.subscribe(words)
            await bus.head(words)
            await other.say(OpenTopic(1, "words", False, 100_000, 65_536))
            for number in range(20):
                await other.say(Subscribe(number, 1, None, None, None, 2**40))
            await other.hear(Mark)
            sent = 0
            for _ in range(50):
                for _ in range(20):
                    town.bus.publish_nowait(words, "x" * 1000)
                    sent += 1
                await settle()
                assert len(await drain(sound)) == 20
            waiting = max(connection._outgoing.size for connection in town.server._connections)
            assert waiting < 256 * 1024 + 128 * 1100


class Test_large_messages:
    @simulated
    async def test_a_list_that_is_too_long_for_one_message_is_divided_between_batches(self) -> None:
        """A reader does not notice."""
        async with Town(words).open() as town, town.client() as bus:
            for number in range(40):
                town.bus.publish_nowait(words, f"{number:02}" * 500_000)
            subscription = bus.subscribe(words, after=EARLIEST)
            assert [word[:2] for word in await take(subscription, 40)] == [f"{number:02}" for number in range(40)]

    @simulated
    async def test_a_batch_that_is_too_large_ends_the_subscription_alone(self) -> None:
        """With the limit's name."""
        async with Town(words).open() as town, town.client() as bus:
            subscription, other = bus.subscribe(words), bus.subscribe(words, prefix="none")
            await bus.head(words)
            town.bus.publish_nowait(words, "x" * (17 * 1024 * 1024))
            with pytest.raises(LimitReached) as caught:
                await subscription.receive()
            assert (caught.value.limit, caught.value.bound) == ("message_bytes", 16 * 1024 * 1024)
            other.close()
            assert (await bus.publish(words, "a")).index == 2


class Test_a_pipe_that_has_just_ended:
    @simulated
    async def test_fails_nobody_who_says_something(self) -> None:
        """Subscribing and reading go on; the connection's own task finds out and makes another."""
        async with Town(words).open() as town, town.client(window=200) as bus:
            subscription = bus.subscribe(words)
            await bus.head(words)
            for number in range(20):
                town.bus.publish_nowait(words, f"{number:0100}")
                await settle()
            assert bus._caller._outgoing is not None
            bus._caller._outgoing._pipe._finish(PipeAbandoned("expired"))
            another = bus.subscribe(words, after=EARLIEST)
            got = [subscription.receive_nowait().payload for _ in range(2)]
            assert got + await take(subscription, 18) == [f"{number:0100}" for number in range(20)]
            assert len(await take(another, 20)) == 20

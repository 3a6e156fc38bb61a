"""All three recoveries: bytes are replayed, subscriptions resumed by index, or started again from a snapshot."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from remote_support import Town, drain, settle, simulated, take

from eventstream import (
    EARLIEST,
    Event,
    EventBus,
    Position,
    PositionLost,
    Resumed,
    SnapshotEnd,
    SnapshotStart,
    Subscription,
    SubscriptionReset,
    Topic,
)
from eventstream.codec import TopicCodec
from eventstream.remote import RemoteBus, RemoteSubscription
from eventstream.remote.feed import Feed
from eventstream.remote.messages import Mark
from eventstream.topics import current_waker
from support import Price, collecting

prices = Topic("prices", Price, key="symbol", compacted=True, retain=20)
words = Topic("words", str)
few = Topic("few", int, retain=5)


def marks(frames: list[Any]) -> list[Any]:
    return [frame for frame in frames if isinstance(frame, Resumed | SnapshotStart | SnapshotEnd)]


async def history(town: Town, topic: Topic[Any]) -> list[Any]:
    """All that the served bus retains."""
    found = []
    subscription = town.bus.subscribe(topic, after=EARLIEST)
    while True:
        try:
            found.append(subscription.receive_nowait().payload)
        except anyio.WouldBlock:
            return found


class Test_a_lost_link:
    @simulated
    async def test_nobody_notices(self) -> None:
        """Cut again and again: every event once, in order, and one Resumed."""
        async with Town(words).open() as town, town.client() as bus, collecting(bus.subscribe(words)) as seen:
            for number in range(50):
                await bus.publish(words, str(number))
                town.cut()
                await anyio.sleep(0.3)
            await anyio.sleep(5)
            assert [frame for frame in seen if isinstance(frame, str)] == [str(number) for number in range(50)]
            assert len(marks(seen)) == 1

    @simulated
    async def test_publishes_in_flight_come_once_and_in_order(self) -> None:
        """Whatever byte the link breaks at, the topic has every publish once."""
        for byte in range(0, 900, 37):
            async with Town(words).open() as town:
                town.network.on_link = lambda link, byte=byte: link.cut_after(byte + 200)
                async with town.client() as bus, anyio.create_task_group() as tasks:
                    for number in range(10):
                        tasks.start_soon(bus.publish, words, str(number))
                    await anyio.sleep(1)
                    town.network.on_link = None
                assert sorted(await history(town, words)) == [str(number) for number in range(10)]


class Test_a_lost_session:
    @simulated
    async def test_subscriptions_go_on_by_index(self) -> None:
        """Another pipe server before the same bus: no reset, every event once."""
        async with (
            Town(words, prices).open() as town,
            town.client() as bus,
            collecting(bus.subscribe(words)) as seen,
            bus.view(prices) as view,
        ):
            for number in range(10):
                await town.bus.publish(words, str(number))
                await town.bus.publish(prices, Price(f"s{number}", 1.0))
                if number % 3 == 0:
                    await town.serve()
                await anyio.sleep(0.5 * (number % 2))
            await anyio.sleep(5)
            assert [frame for frame in seen if isinstance(frame, str)] == [str(number) for number in range(10)]
            assert len(marks(seen)) == 1
            assert len(view) == 10
            assert view.statistics().resets == 0

    @simulated
    async def test_after_the_grace_time_too(self) -> None:
        """A client that was away for long is forgotten, and goes on by index."""
        async with (
            Town(words, grace=10.0).open() as town,
            town.client() as bus,
            collecting(bus.subscribe(words)) as seen,
        ):
            await bus.publish(words, "a")
            town.network.refuse_dials()
            town.cut()
            await town.bus.publish(words, "b")
            await anyio.sleep(60)
            assert town.server.statistics().connections == 0
            town.network.heal()
            await anyio.sleep(60)
            await bus.publish(words, "c")
            await settle()
            assert seen[1:] == ["a", "b", "c"]

    @simulated
    async def test_publishes_in_flight_are_neither_lost_nor_doubled(self) -> None:
        """Servers come and go while publishes are under way: the topic has each once."""
        async with Town(words).open() as town, town.client() as bus:
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(bus.publish, words, str(number))
                    if number % 20 == 0:
                        await settle(number % 7)
                        await town.serve()
            assert sorted(await history(town, words), key=int) == [str(number) for number in range(200)]

    @simulated
    async def test_an_answer_that_was_lost_is_given_again(self) -> None:
        """The server did it, and its answer never came: asked again, it does nothing more."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            [link] = town.network.links
            link.half_open("down")
            positions: list[Position] = []

            async def publish() -> None:
                positions.append(await bus.publish(words, "once"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish)
                await anyio.sleep(1)
                assert await history(town, words) == ["once"]
                await town.serve()
            assert positions == [await town.bus.head(words)]
            assert await history(town, words) == ["once"]

    @simulated
    async def test_a_snapshot_that_was_cut_in_its_middle_starts_again(self) -> None:
        """Half a state is not one: the reader is told to forget it."""
        big = Topic("big", Price, key="symbol", compacted=True)
        async with Town(big).open() as town:
            for number in range(2000):
                town.bus.publish_nowait(big, Price(f"s{number}", 1.0))
            async with town.client(window=2000) as bus, bus.subscribe(big) as subscription:
                frames = subscription.frames()
                start = await anext(frames)
                got = [await anext(frames) for _ in range(100)]
                assert all(isinstance(frame, Event) for frame in got)
                assert subscription.position == start.position  # type: ignore[union-attr]
                await town.serve()
                await anyio.sleep(5)
                again: list[Any] = []
                async for frame in frames:
                    again.append(frame)
                    if isinstance(frame, SnapshotEnd):
                        break
                [at] = [at for at, frame in enumerate(again) if isinstance(frame, SnapshotStart)]
                assert again[at].reason == "expired"
                assert {frame.key for frame in again[at + 1 : -1]} == {f"s{number}" for number in range(2000)}
                assert len(again) - at == 2002

    @simulated
    async def test_plain_reading_of_such_a_snapshot_is_told(self) -> None:
        """Events alone cannot say it, so it is an exception."""
        from eventstream import SubscriptionReset

        async with Town(prices).open() as town:
            for number in range(500):
                town.bus.publish_nowait(prices, Price(f"s{number}", 1.0))
            async with town.client(window=1000) as bus, bus.subscribe(prices) as subscription:
                await take(subscription, 3)
                await town.serve()
                await anyio.sleep(5)
                with pytest.raises(SubscriptionReset):
                    await take(subscription, 600)
                assert len({price.symbol for price in await take(subscription, 500)}) == 500


class Test_another_history:
    @simulated
    async def test_of_a_compacted_topic_starts_with_a_snapshot(self) -> None:
        """The server's process was replaced: reason epoch, and the new state."""
        async with (
            Town(prices).open() as town,
            town.client() as bus,
            collecting(bus.subscribe(prices)) as seen,
            bus.view(prices) as view,
        ):
            await bus.publish(prices, Price("X", 1.0))
            await town.restart()
            position = await town.bus.publish(prices, Price("Y", 2.0))
            await anyio.sleep(5)
            start = marks(seen)[2]
            assert (start.reason, start.position) == ("epoch", Position(position.epoch, 0))
            assert seen[seen.index(start) + 1 :].count(Price("Y", 2.0)) == 1
            assert dict(view) == {"Y": Price("Y", 2.0)}
            await view.reached(position)

    @simulated
    async def test_who_reads_events_alone_is_told_the_server_s_reason(self) -> None:
        async with Town(prices).open() as town, town.client() as bus:
            subscription = bus.subscribe(prices)
            await bus.publish(prices, Price("X", 1.0))
            assert await take(subscription, 1) == [Price("X", 1.0)]
            await town.restart()
            with pytest.raises(SubscriptionReset) as caught:
                await subscription.receive()
            assert caught.value.reason == "epoch"

    @simulated
    async def test_of_a_plain_topic_is_a_lost_position(self) -> None:
        """Nothing could bring the events between the two histories."""
        async with Town(words).open() as town, town.client() as bus:
            subscription = bus.subscribe(words)
            position = await bus.publish(words, "a")
            assert await take(subscription, 1) == ["a"]
            await town.restart()
            with pytest.raises(PositionLost) as caught:
                await subscription.receive()
            assert caught.value.requested == position
            assert subscription.position == position
            await bus.publish(words, "b")
            assert await drain(bus.subscribe(words, after=EARLIEST)) == ["b"]

    @simulated
    async def test_a_reader_of_a_plain_topic_that_has_had_nothing_is_told_too(self) -> None:
        """It has a position from its first frame on, and that is lost."""
        async with Town(words).open() as town, town.client() as bus:
            subscription = bus.subscribe(words)
            await bus.head(words)
            await town.restart()
            await town.bus.publish(words, "a")
            with pytest.raises(PositionLost):
                await subscription.receive()

    @simulated
    async def test_refresh_while_away(self) -> None:
        """The same bus, another epoch."""
        async with Town(prices, words).open() as town, town.client() as bus:
            plain = bus.subscribe(words)
            async with collecting(bus.subscribe(prices)) as seen:
                await bus.publish(prices, Price("X", 1.0))
                await town.stop()
                await town.bus.refresh(prices)
                await town.bus.refresh(words)
                await town.bus.publish(prices, Price("Y", 1.0))
                await town.serve()
                await anyio.sleep(5)
                assert [frame.reason for frame in marks(seen) if isinstance(frame, SnapshotStart)] == ["new", "epoch"]
                with pytest.raises(PositionLost):
                    await plain.receive()


class Test_a_trimmed_position:
    @simulated
    async def test_starts_with_a_snapshot_where_there_is_one(self) -> None:
        """What came meanwhile is not retained: reason expired."""
        async with Town(prices, few).open() as town, town.client() as bus:
            plain = bus.subscribe(few)
            async with collecting(bus.subscribe(prices)) as seen:
                await bus.publish(prices, Price("X", 1.0))
                await bus.publish(few, 0)
                assert await take(plain, 1) == [0]
                await town.stop()
                for number in range(300):
                    town.bus.publish_nowait(prices, Price(f"s{number % 7}", float(number)))
                    town.bus.publish_nowait(few, number)
                await town.serve()
                await anyio.sleep(5)
                assert [frame.reason for frame in marks(seen) if isinstance(frame, SnapshotStart)] == ["new", "expired"]
                with pytest.raises(PositionLost, match="not within"):
                    await plain.receive()

    @simulated
    async def test_a_view_goes_on_through_everything(self) -> None:
        """Link, session, trimmed, epoch, lag, one after the other and twice: in the end it is the state."""
        async with Town(prices).open() as town, town.client(window=500) as bus, bus.view(prices) as view:
            for turn in range(2):
                await bus.publish(prices, Price("a", turn))
                town.cut()
                await bus.publish(prices, Price("b", turn))
                await town.serve()
                await bus.publish(prices, Price("c", turn))
                await town.stop()
                for number in range(100):
                    town.bus.publish_nowait(prices, Price(f"s{number % 9}", turn + number))
                await town.serve()
                await anyio.sleep(2)
                await town.restart()
                await bus.publish(prices, Price("d", turn))
                position = await bus.delete(prices, "d")
                await view.reached(position)
                assert dict(view) == {}
            last = await bus.publish(prices, Price("z", 1.0))
            await view.reached(last)
            assert dict(view) == {"z": Price("z", 1.0)}


class Test_before_the_first_frame:
    @simulated
    async def test_the_position_is_what_was_given(self) -> None:
        """Or one that nothing can be resumed from, so that who saves it starts anew, explicitly."""
        async with Town(words, prices).open() as town, town.client() as bus:
            head = await bus.publish(words, "a")
            assert bus.subscribe(words, after=head).position == head
            topics: list[Topic[Any]] = [words, prices]
            for topic in topics:
                unknown = bus.subscribe(topic).position
                assert Position.parse(str(unknown)) == unknown
                subscription: Subscription[Any] = bus.subscribe(topic, after=unknown)
                if topic is words:
                    with pytest.raises(PositionLost):
                        await subscription.receive()
                else:
                    assert (await anext(subscription.frames())).reason == "epoch"  # type: ignore[union-attr]

    @simulated
    async def test_two_resets_before_the_reader_looks_are_one(self) -> None:
        """It is told once, and gets the later state."""
        async with Town(prices).open() as town, town.client() as bus:
            subscription = bus.subscribe(prices)
            await bus.publish(prices, Price("X", 1.0))
            assert await drain(subscription) == [Price("X", 1.0)]
            await town.restart()
            await anyio.sleep(2)
            await town.bus.publish(prices, Price("Y", 1.0))
            await town.bus.refresh(prices)
            await town.bus.publish(prices, Price("Z", 1.0))
            await anyio.sleep(2)
            frames = subscription.frames()
            start = await anext(frames)
            assert start == SnapshotStart(Position((await town.bus.head(prices)).epoch, 0), "epoch")
            rest = [await anext(frames), await anext(frames)]
            assert [frame.payload for frame in rest if isinstance(frame, Event)] == [Price("Z", 1.0)]

    @simulated
    async def test_resets_before_the_first_look_are_a_first_frame(self) -> None:
        """Who has seen nothing need not forget anything."""
        async with Town(prices).open() as town, town.client() as bus:
            subscription = bus.subscribe(prices)
            await bus.publish(prices, Price("X", 1.0))
            await town.restart()
            await bus.publish(prices, Price("Y", 1.0))
            assert await drain(subscription) == [Price("Y", 1.0)]

    @simulated
    async def test_ones_own_publish_is_not_missed_though_the_session_is_lost_at_once(self) -> None:
        """The answer of a publish never overtakes the first frame of a subscription that was asked for before."""
        for size in range(60, 700, 20):
            async with Town(words).open() as town, town.client() as bus:
                await bus.wait_connected()
                [link] = town.network.links
                link.half_open("down")
                link.heal()
                link.cut_after(size, direction="down")
                subscription = bus.subscribe(words)
                await bus.publish(words, "mine")
                await town.serve()
                await anyio.sleep(1)
                assert await drain(subscription) == ["mine"]


@simulated
async def test_a_bus_that_closes_under_its_server_lets_clients_come_again() -> None:
    """Calls and readers wait for the next bus, and are not told that the last one is closed."""
    async with Town(prices).open() as town, town.client() as bus, bus.view(prices) as view:
        next_bus = town.bus
        async with EventBus() as town.bus:
            await town.serve()
            await bus.publish(prices, Price("X", 1.0))
            await view.ready()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.publish, prices, Price("Y", 1.0))
            await anyio.sleep(3)
            assert dict(view) == {"X": Price("X", 1.0)}
            town.bus = next_bus
            await town.serve()
        await view.reached(await town.bus.head(prices))
        assert dict(view) == {"Y": Price("Y", 1.0)}


def test_the_client_is_what_open_bus_gives() -> None:
    from eventstream.remote import open_bus

    assert isinstance(open_bus("tcp://127.0.0.1:1"), RemoteBus)


class Hearing:
    """A server that only listens."""

    def __init__(self) -> None:
        self.left = False

    def grant(self, feed: Feed, size: int) -> None:
        """Nothing is owed."""

    def ask_bookmark(self, feed: Feed) -> None:
        """Nobody answers."""

    def leave(self, feed: Feed) -> None:
        self.left = True


@simulated
async def test_half_a_snapshot_is_never_taken_for_the_whole() -> None:
    """Restarted without its source, on the same history, a server resumes where the snapshot was to begin again: what
    came of it before, and the history after that, are no state."""
    server, waker = Hearing(), current_waker()
    feed = Feed(1, TopicCodec(words), (None, None), None, 1000, server, waker)
    subscription: RemoteSubscription[str] = RemoteSubscription(feed, waker)
    frames = subscription.frames()
    feed.mark(Mark(1, "start", "life", 0, "new"))
    assert isinstance(await anext(frames), SnapshotStart)
    feed.mark(Mark(1, "resumed", "life", 0))
    with pytest.raises(PositionLost):
        await anext(frames)
    assert server.left

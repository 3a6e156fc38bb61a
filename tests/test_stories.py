"""Faults that were found once, each with its story. What they have in common: something happens in between."""

from __future__ import annotations

import asyncio
import enum
import gc
import weakref
from itertools import product
from typing import Any

import anyio
import pytest
from anyio import BusyResourceError, create_task_group, fail_after
from anyio.lowlevel import checkpoint

from eventstream import (
    EARLIEST,
    Append,
    BusClosed,
    Event,
    EventBus,
    IndexOrder,
    InvalidPosition,
    MemoryLog,
    NotAuthorized,
    Position,
    Reentered,
    SnapshotFailed,
    SnapshotOptions,
    SubscriptionClosed,
    Topic,
)
from eventstream.topics import LiveTopic
from eventstream.topics.buffer import SEGMENT_SIZE
from eventstream.topics.parking import FEW
from support import Price, collecting, counting_turns, drain, settle

words = Topic("words", str)
prices = Topic("prices", Price, key="symbol", compacted=True)


class _Verdict(BaseException):
    """As those by which pytest fails or skips a test."""


class Test_waiting:
    async def test_a_closed_reader_leaves_no_place_in_the_waiting_list(self, bus: EventBus) -> None:
        """It forgot where it had parked as soon as it let its place go: each closed connection stayed for ever."""
        keep = bus.subscribe(words)
        async with create_task_group() as tasks:
            for _ in range(20):
                subscription = bus.subscribe(words)
                tasks.start_soon(_read_to_the_end, subscription)
                await settle(3)
                subscription.close()
                await settle(3)
        lot = keep._cursor.spot.lot
        assert lot is not None
        assert not lot.parked
        bus.publish_nowait(words, "a")
        assert drain(keep) == ["a"]

    async def test_a_reader_that_waits_is_not_joined_by_another_way_of_reading(self, bus: EventBus) -> None:
        subscription = bus.subscribe(words)
        frames = subscription.frames()
        await frames.__anext__()
        async with create_task_group() as tasks:
            tasks.start_soon(subscription.receive)
            await settle()
            with pytest.raises(BusyResourceError):
                await frames.__anext__()
            bus.publish_nowait(words, "a")

    async def test_reading_in_another_way_inside_a_loop_does_not_end_the_loop(self, bus: EventBus) -> None:
        """It ended in silence, as if closed, with events still to come."""
        subscription = bus.subscribe(words)
        seen = []
        for word in "abcdef":
            bus.publish_nowait(words, word)
        async for event in subscription:
            seen.append(event.payload)
            if event.payload in "ac":
                seen.append((await subscription.receive()).payload)
            if event.payload == "e":
                async for frame in subscription.frames():
                    assert isinstance(frame, Event)
                    seen.append(frame.payload)
                    break
                break
        assert seen == list("abcdef")

    @pytest.mark.parametrize("stopping", [0, FEW])
    def test_a_reader_that_stops_the_loop_takes_no_wake_up_from_those_of_other_topics(self, stopping: int) -> None:
        """They were noted to be woken already, so that nobody asked for it again: not even the next publish."""
        topics = [Topic(f"topic {number}", int) for number in range(3)]
        seen: list[list[int]] = [[], [], []]

        async def read(bus: EventBus, topic: int, reader: int) -> None:
            async for event in bus.subscribe(topics[topic]):
                if (topic, reader) == (0, stopping):
                    raise SystemExit
                seen[topic].append(event.payload)

        async def main() -> None:
            async with EventBus() as bus:
                reading = [asyncio.create_task(read(bus, *both)) for both in product(range(3), range(FEW + 1))]
                await settle()
                for topic in topics:
                    bus.publish_nowait(topic, 1)
                await settle()
                for task in reading:
                    task.cancel()
                await asyncio.wait(reading)

        with asyncio.Runner() as runner:
            task = runner.get_loop().create_task(main())
            with pytest.raises(SystemExit):
                runner.get_loop().run_until_complete(task)
            runner.get_loop().run_until_complete(task)
        assert seen == [[1] * FEW, [1] * (FEW + 1), [1] * (FEW + 1)]


async def _read_to_the_end(subscription: Any) -> None:
    async for _ in subscription:
        pass


class Test_the_index:
    async def test_after_the_last_index_there_is_nothing_is_published(self, bus: EventBus) -> None:
        """The next event got an index that no position can hold: whoever saved it could not come back."""
        last = 2**63 - 1
        subscription = bus.subscribe(words)
        position = await bus.publish(words, "a", index=last)
        assert Position.parse(str(position)) == position
        terms: list[dict[str, Any]] = [{}, {"expect": last}, {"id": "one"}]
        for one in terms:
            with pytest.raises(IndexOrder, match=r"refresh\(topic\) begins a new epoch") as caught:
                await bus.publish(words, "b", **one)
            assert (caught.value.index, caught.value.head) == (last + 1, last)
        with pytest.raises(IndexOrder):
            await bus.publish_many(words, ["b", "c"])
        assert drain(subscription) == ["a"]
        assert str(subscription.position) == str(position)
        await bus.refresh(words)
        assert (await bus.publish(words, "b", id="one")).index == 1

    @pytest.mark.parametrize("index", [2**63, 2**64, 10**30])
    async def test_an_index_that_no_position_can_hold_is_refused(self, bus: EventBus, index: int) -> None:
        with pytest.raises(ValueError, match="from 1 to 2"):
            await bus.publish(words, "a", index=index)
        assert (await bus.publish(words, "a")).index == 1


class Test_entering_and_leaving:
    async def test_a_running_bus_is_not_entered_again(self, bus: EventBus) -> None:
        """It was told so in the words of a library that it did not know it used."""
        with pytest.raises(BusClosed) as caught:
            async with bus:
                pass
        assert caught.value.state == "running"
        assert (await bus.publish(words, "a")).index == 1

    async def test_nor_is_one_that_was_closed_or_could_not_open(self) -> None:
        class Broken(MemoryLog):
            async def open(self) -> None:
                raise OSError("no such disk")

        async with EventBus() as closed:
            pass
        broken = EventBus(Broken())
        with pytest.raises(OSError, match="no such disk"):
            await broken.__aenter__()
        for bus in (closed, broken):
            with pytest.raises(BusClosed) as caught:
                await bus.__aenter__()
            assert caught.value.state == "closed"

    async def test_one_that_was_not_entered_is_not_left(self) -> None:
        with pytest.raises(BusClosed) as caught:
            await EventBus().__aexit__(None, None, None)
        assert caught.value.state == "new"

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, LookupError, _Verdict, ExceptionGroup])
    @pytest.mark.parametrize("cancelled", [False, True])
    async def test_what_leaves_the_body_comes_out_as_it_is(self, kind: type[BaseException], cancelled: bool) -> None:
        """Wrapped in a group, nobody knew an interrupt again; cancelled at the same time, it was not told at all."""
        error = kind("several", [LookupError()]) if kind is ExceptionGroup else kind("one")
        with anyio.CancelScope() as scope:
            try:
                async with EventBus() as bus:
                    if cancelled:
                        scope.cancel()
                    raise error
            except BaseException as caught:
                assert caught is error
            else:
                pytest.fail("the error was swallowed")
        with pytest.raises(BusClosed):
            bus.subscribe(words)

    async def test_it_comes_out_before_what_fails_later(self) -> None:
        class Stuck(MemoryLog):
            async def aclose(self) -> None:
                raise OSError("disk is full")

        with pytest.raises(LookupError) as caught:
            async with EventBus(Stuck()):
                raise LookupError
        assert isinstance(caught.value.__context__, OSError)

    async def test_a_cancelled_body_leaves_no_error(self) -> None:
        with anyio.CancelScope() as scope:
            async with EventBus(), create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    async def test_a_bus_that_is_cancelled_is_freed_all_the_same(self) -> None:
        class Object:
            pass

        topic: Topic[Any] = Topic("objects", object, retain=100_000)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()
        with anyio.CancelScope() as scope:
            async with EventBus() as bus:
                for _ in range(100_000):
                    payload = Object()
                    alive.add(payload)
                    bus.publish_nowait(topic, payload)
                del payload
                scope.cancel()
        assert not alive
        assert "closed" in repr(bus)  # who keeps the bus keeps no event


class Test_what_users_give:
    async def test_authorize_that_revokes_its_own_reader_lets_nothing_more_through(self, bus: EventBus) -> None:
        def authorize(event: Event[str]) -> bool:
            if event.payload == "b":
                bus.revoke("bob")
            return True

        subscription = bus.subscribe(words, principal="bob", authorize=authorize)
        await bus.publish_many(words, ["a", "b", "c"])
        with pytest.raises(NotAuthorized):
            subscription.receive_nowait()

    async def test_authorize_that_raises_after_a_snapshot_ahead_of_the_bus_repeats_nothing(self, bus: EventBus) -> None:
        """The mark up to which the snapshot had told was forgotten with the failed read."""
        broken = True

        def authorize(event: Event[str]) -> bool:
            if event.payload == "4" and broken:
                raise LookupError
            return True

        @bus.snapshot(words)
        async def source(key: str | None, append: Append) -> int:
            return 3

        subscription = bus.subscribe(words, authorize=authorize)
        await settle()
        assert drain(subscription) == []
        for number in range(1, 6):
            bus.publish_nowait(words, str(number))
        with pytest.raises(LookupError):
            subscription.receive_nowait()
        broken = False
        assert drain(subscription) == ["4", "5"]

    async def test_a_text_that_is_an_enum_is_the_text(self, bus: EventBus) -> None:
        class Symbol(str, enum.Enum):  # noqa: UP042  # what users have
            A = "aapl"

        topic = Topic("symbols", Price, key="symbol")
        subscription = bus.subscribe(topic, key=Symbol.A)
        bus.publish_nowait(topic, Price(Symbol.A, 1.0))
        bus.publish_nowait(topic, Price("aapl", 2.0))
        event = subscription.receive_nowait()
        assert (event.key, type(event.key)) == ("aapl", str)
        assert len(drain(subscription)) == 1

    @pytest.mark.parametrize("index", [None, 1.5, True, -3, 2**63])
    async def test_an_impossible_position_is_refused_and_leaves_nothing_behind(self, bus: EventBus, index: Any) -> None:
        epoch = (await bus.publish(words, "a")).epoch
        with pytest.raises(InvalidPosition):
            bus.subscribe(words, after=Position(epoch, index))
        assert bus.statistics().subscribers == 0

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_source_that_lets_a_cancellation_out_fails_alone(self) -> None:
        """asyncio: awaiting something that was cancelled raises CancelledError, which a task group takes for its own.

        The whole bus and the application around it were cancelled, without a word.
        """
        async with EventBus() as bus:

            @bus.snapshot(words)
            async def source(key: str | None, append: Append) -> int:
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
                return 0

            for _ in range(2):
                with pytest.raises(SnapshotFailed) as caught:
                    await bus.subscribe(words).receive()
                assert caught.value.why == "raised"

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_handler_that_lets_a_cancellation_out_goes_on(self) -> None:
        seen: list[str] = []
        told: list[Exception] = []
        async with EventBus(on_error=lambda error, event: told.append(error)) as bus:

            @bus.on(words)
            async def handler(event: Event[str]) -> None:
                seen.append(event.payload)
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

            await bus.publish(words, "a")
            await bus.publish(words, "b")
            await settle()
        assert seen == ["a", "b"]
        assert len(told) == 2


class Test_the_lock:
    async def test_a_payload_may_publish_when_it_dies(self, bus: EventBus) -> None:
        """Trimming the history freed payloads under the topic's lock, where their finalizers waited for it for ever."""
        topic: Topic[Any] = Topic("mortal", object, retain=0, key=lambda _: "k", compacted=True)

        class Mortal:
            def __del__(self) -> None:
                bus.publish_nowait(words, "died")
                bus.publish_nowait(topic, 1)

        last = bus.subscribe(words)
        with fail_after(5):
            for _ in range(300):
                bus.publish_nowait(topic, Mortal())
            await bus.refresh(topic)
            await settle()
        gc.collect()
        assert "died" in drain(last)

    async def test_a_publish_inside_a_publish_is_refused_not_hung(self, bus: EventBus) -> None:
        """As from a signal handler, or a finalizer that the collector calls. Here from inside the lock itself."""
        await bus.publish(words, "a")
        live = bus._rooms["words"].live
        with live.lock:
            with pytest.raises(Reentered) as caught:
                bus.publish_nowait(words, "b")
            with pytest.raises(Reentered):
                bus.subscribe(words)
        assert caught.value.topic == "words"
        assert (await bus.publish(words, "c")).index == 2


class Test_lives:
    async def test_a_log_that_takes_its_time_to_refresh_shows_nobody_the_old_state(self) -> None:
        """Between the new epoch and the eviction of old snapshots a reader was spliced to a buffer without a writer."""

        class Slow(MemoryLog):
            async def refresh(self, live: LiveTopic) -> Position:
                position = await super().refresh(live)
                await settle()
                return position

        async with EventBus(Slow()) as bus:
            await bus.publish(prices, Price("a", 1.0))
            async with collecting(bus.subscribe(prices)) as seen:
                await bus.refresh(prices)
                await bus.publish(prices, Price("a", 2.0))
                await settle()
                assert seen[-1] == Price("a", 2.0)

    async def test_an_id_of_one_life_means_nothing_in_the_next(self, bus: EventBus) -> None:
        for _ in range(3):
            await bus.publish(prices, Price("a", 1.0), id="one", expect=0)
            await bus.refresh(prices)
            assert bus.statistics().topics["prices"].published == 0

    async def test_a_publisher_that_was_on_its_way_when_the_bus_closed_is_told(self) -> None:
        """It got a position from a bus that nobody could read any more."""
        async with EventBus() as bus:
            await bus.publish(words, "a")
            room = bus._rooms["words"]
        with pytest.raises(BusClosed):
            MemoryLog().append_nowait(room.live, (("", "b"),))

    async def test_registering_with_a_closed_bus_is_refused(self) -> None:
        async with EventBus() as bus:
            pass
        with pytest.raises(BusClosed):
            bus.on(words)
        with pytest.raises(BusClosed):
            bus.snapshot(words)

    async def test_a_log_that_cannot_close_says_so_plainly(self) -> None:
        class Stuck(MemoryLog):
            async def aclose(self) -> None:
                raise OSError("disk is full")

        with pytest.raises(OSError, match="disk is full"):
            async with EventBus(Stuck()):
                pass

    async def test_a_large_snapshot_is_freed_when_it_is_let_go(self) -> None:
        """The housekeeping asked itself to free it, and went to sleep."""

        class Object:
            pass

        topic: Topic[Any] = Topic("objects", object, key=lambda _: "k")
        async with EventBus(snapshots=SnapshotOptions(ttl=0.001)) as bus:
            alive: weakref.WeakSet[Object] = weakref.WeakSet()

            @bus.snapshot(topic)
            async def source(key: str | None, append: Append) -> int:
                for _ in range(20_000):
                    payload = Object()
                    alive.add(payload)
                    append(payload)
                return 0

            subscription = bus.subscribe(topic)
            async for _ in subscription.batches():
                break
            subscription.close()
            with fail_after(5):
                while len(alive) > 256:
                    await checkpoint()

    async def test_a_publish_that_begins_a_segment_does_not_free_another(self, bus: EventBus) -> None:
        """Each 128th took ten times as long as the others, and so did the way of its event to the readers."""

        class Object:
            pass

        topic: Topic[Any] = Topic("objects", object, retain=0)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()

        def publish(times: int) -> None:
            for _ in range(times):
                payload = Object()
                alive.add(payload)
                bus.publish_nowait(topic, payload)

        publish(SEGMENT_SIZE + 1)
        assert len(alive) == SEGMENT_SIZE + 1
        await settle(3)
        assert len(alive) == 1
        for _ in range(100):  # and without a turn of the loop it does not pile up
            publish(SEGMENT_SIZE)
            assert len(alive) <= 3 * SEGMENT_SIZE

    async def test_a_burst_in_which_the_loop_never_runs_keeps_nothing_of_a_laggard(self, bus: EventBus) -> None:
        """What a laggard lets go is freed by the housekeeping, which could not run; so the publisher has to."""

        class Object:
            pass

        topic: Topic[Any] = Topic("objects", object, retain=0, max_lag=1000)
        stuck = bus.subscribe(topic)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()
        for _ in range(20_000):
            payload = Object()
            alive.add(payload)
            bus.publish_nowait(topic, payload)
            del payload
        assert len(alive) < 1000
        assert stuck.lag > 1000

    async def test_what_was_not_handed_out_is_not_counted(self, bus: EventBus) -> None:
        subscription = bus.subscribe(words)
        await bus.publish_many(words, ["a"] * 100)
        subscription.receive_nowait()
        subscription.close()
        assert subscription.statistics().delivered == 1
        with pytest.raises(SubscriptionClosed):
            subscription.receive_nowait()


class Test_fairness:
    async def test_a_reader_that_gets_hardly_anything_lets_others_run(self, bus: EventBus) -> None:
        """It read through two million events of other keys in one go."""
        topic = Topic("long", int, key=lambda number: str(number % 7), retain=100_000, max_lag=1_000_000)
        for number in range(30_000):
            bus.publish_nowait(topic, number)
        for filters in ({"key": "none"}, {"prefix": "none"}):
            async with counting_turns() as turns, create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(_cancel_when_idle, scope, bus)
                    async for _ in bus.subscribe(topic, after=EARLIEST, **filters):  # type: ignore[arg-type]
                        pass
                assert turns() > 10


async def _cancel_when_idle(scope: anyio.CancelScope, bus: EventBus) -> None:
    while bus.statistics().topics["long"].lag:
        await checkpoint()
    scope.cancel()

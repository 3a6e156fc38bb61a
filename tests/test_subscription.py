"""Subscribing to a topic without snapshots: order, resume, filters, lag, closing, one reader at a time."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from typing import Any

import pytest
from anyio import BusyResourceError, WouldBlock, create_task_group, fail_after, move_on_after
from anyio.lowlevel import checkpoint

from eventstream import (
    EARLIEST,
    Bookmark,
    BusClosed,
    Event,
    EventBus,
    InvalidName,
    InvalidPosition,
    NotAuthorized,
    Position,
    PositionLost,
    Resumed,
    SlowSubscriber,
    Subscription,
    SubscriptionClosed,
    Topic,
)
from support import collecting, counting_turns, drain, settle, take

numbers = Topic("numbers", int, key=lambda number: f"k{number % 3}")


class Object:
    """A payload whose life can be watched."""


class Test_reading:
    async def test_events_come_in_order_with_all_their_fields(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        positions = [await bus.publish(numbers, number, headers={"n": str(number)}) for number in range(3)]
        events = [await subscription.receive() for _ in range(3)]
        assert [event.payload for event in events] == [0, 1, 2]
        assert [event.index for event in events] == [1, 2, 3]
        assert [event.key for event in events] == ["k0", "k1", "k2"]
        assert [event.headers for event in events] == [{"n": "0"}, {"n": "1"}, {"n": "2"}]
        assert all(event.topic == "numbers" and event.time > 0 for event in events)
        assert subscription.position == positions[-1]

    async def test_from_the_call_of_subscribe_on_nothing_is_missed(self, bus: EventBus) -> None:
        bus.publish_nowait(numbers, 0)
        subscription = bus.subscribe(numbers)
        bus.publish_nowait(numbers, 1)
        async with subscription:
            assert await take(subscription, 1) == [1]

    async def test_a_waiting_reader_gets_an_event_when_it_is_published(self, bus: EventBus) -> None:
        async with collecting(bus.subscribe(numbers)) as seen:
            bus.publish_nowait(numbers, 1)
            await settle()
            assert seen[1:] == [1]
            bus.publish_nowait(numbers, 2)
            bus.publish_nowait(numbers, 3)
            await settle()
            assert seen[1:] == [1, 2, 3]

    @pytest.mark.parametrize("readers", [1, 8, 9, 500])
    async def test_all_waiting_readers_get_every_event(self, bus: EventBus, readers: int) -> None:
        got: list[list[int]] = [[] for _ in range(readers)]

        async def read(mine: list[int]) -> None:
            async with bus.subscribe(numbers) as subscription:
                async for event in subscription:
                    mine.append(event.payload)
                    if len(mine) == 300:
                        return

        async with create_task_group() as tasks:
            for mine in got:
                tasks.start_soon(read, mine)
            await settle()
            for number in range(300):
                bus.publish_nowait(numbers, number)
                if number % 7 == 0:
                    await checkpoint()
        assert all(mine == list(range(300)) for mine in got)

    async def test_a_loop_goes_on_where_the_last_one_was_left(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        for number in range(300):
            bus.publish_nowait(numbers, number)
        seen: list[int] = []
        while len(seen) < 300:
            async for event in subscription:
                seen.append(event.payload)
                if len(seen) % 7 == 0 or len(seen) == 300:
                    break
        assert seen == list(range(300))

    async def test_a_burst_that_went_over_a_link_is_one_list(self, bus: EventBus) -> None:
        """As long as it is no longer than a segment; and the position and the lag know nothing of links."""
        subscription = bus.subscribe(numbers)
        lengths: list[int] = []
        seen: list[int] = []
        for size in (100, 64, 60, 32, 64, 128, 100, 100, 150):
            first = len(seen)
            for number in range(first, first + size):
                bus.publish_nowait(numbers, number)
            async for batch in subscription.batches():
                lengths.append(len(batch))
                seen += [event.payload for event in batch]
                assert subscription.position.index == len(seen)
                assert subscription.lag == first + size - len(seen)
                if len(seen) == first + size:
                    break
        assert seen == list(range(798))
        assert lengths == [100, 64, 60, 32, 64, 128, 100, 100, 120, 30]

    async def test_all_ways_of_reading_can_be_mixed(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        for number in range(400):
            bus.publish_nowait(numbers, number)
        seen = [subscription.receive_nowait().payload]
        async for event in subscription:
            seen.append(event.payload)
            break
        async for batch in subscription.batches():
            seen += [event.payload for event in batch]
            break
        seen.append((await subscription.receive()).payload)
        async for frame in subscription.frames():
            assert isinstance(frame, Event)
            seen.append(frame.payload)
            if frame.payload == 290:
                break
        seen += drain(subscription)
        assert seen == list(range(400))

    async def test_the_position_follows_from_one_way_to_the_next(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        end = 0
        for one_by_one in (3, 2, 0):  # of three: all, some, none
            for number in range(3):
                bus.publish_nowait(numbers, number)
            for index in range(end + 1, end + one_by_one + 1):
                subscription.receive_nowait()
                assert subscription.position.index == index
            end += 3
            if one_by_one == 3:
                bus.publish_nowait(numbers, 3)
                end += 1
            async for batch in subscription.batches():
                assert (batch[-1].index, subscription.position.index, subscription.lag) == (end, end, 0)
                break

    async def test_receive_nowait_says_when_there_is_nothing(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        with pytest.raises(WouldBlock):
            subscription.receive_nowait()
        bus.publish_nowait(numbers, 1)
        assert subscription.receive_nowait().payload == 1

    async def test_a_reader_with_a_backlog_lets_others_run(self, bus: EventBus) -> None:
        """A loop over what is there already must not keep the event loop to itself."""
        subscription = bus.subscribe(numbers)
        for number in range(10_000):
            bus.publish_nowait(numbers, number)
        async with counting_turns() as turns:
            async for event in subscription:
                if event.payload == 9_999:
                    break
            assert turns() >= 5

    async def test_cancelling_a_read_loses_nothing(self, bus: EventBus) -> None:
        """Cancelled at every possible moment: waiting, just woken, with events there."""
        async with bus.subscribe(numbers) as subscription:
            seen: list[int] = []
            for number in range(50):
                async with create_task_group() as tasks:

                    async def read() -> None:
                        async for event in subscription:
                            seen.append(event.payload)

                    tasks.start_soon(read)
                    for _ in range(number % 4):
                        await checkpoint()
                    bus.publish_nowait(numbers, number)
                    for _ in range(number % 3):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
            assert seen + drain(subscription) == list(range(50))

    async def test_a_timeout_while_waiting_leaves_nothing_behind(self, bus: EventBus) -> None:
        async with bus.subscribe(numbers) as subscription:
            for _ in range(10):
                with move_on_after(0):
                    await subscription.receive()
            bus.publish_nowait(numbers, 1)
            with fail_after(5):
                assert await take(subscription, 1) == [1]

    async def test_two_tasks_cannot_read_one_subscription(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        async with create_task_group() as tasks:
            tasks.start_soon(subscription.receive)
            await settle()
            with pytest.raises(BusyResourceError):
                subscription.receive_nowait()
            with pytest.raises(BusyResourceError):
                await subscription.receive()
            with pytest.raises(BusyResourceError):
                subscription.batches()
            with pytest.raises(BusyResourceError):
                async for _ in subscription:
                    pass
            bus.publish_nowait(numbers, 1)

    async def test_a_batch_is_one_index_and_one_list(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        for size in (1, 127, 3, 200, 5):
            await bus.publish_many(numbers, range(size))
        sizes: dict[int, int] = {}
        async for batch in subscription.batches():
            for index in {event.index for event in batch}:
                assert index not in sizes, "a batch was split between two lists"
                sizes[index] = sum(event.index == index for event in batch)
            if 5 in sizes:
                break
        assert sizes == {1: 1, 2: 127, 3: 3, 4: 200, 5: 5}

    async def test_no_list_is_empty_after_events_were_read_one_by_one(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        bus.publish_nowait(numbers, 1)
        await take(subscription, 1)
        bus.publish_nowait(numbers, 2)
        async for batch in subscription.batches():
            assert [event.payload for event in batch] == [2]
            break

    async def test_the_list_of_a_batch_is_the_readers_own(self, bus: EventBus) -> None:
        one, two = bus.subscribe(numbers), bus.subscribe(numbers)
        for number in range(5):
            bus.publish_nowait(numbers, number)
        async for batch in one.batches():
            batch.clear()
            break
        assert drain(one) == []
        assert drain(two) == [0, 1, 2, 3, 4]

    async def test_every_reader_gets_the_same_objects(self, bus: EventBus) -> None:
        topic: Topic[dict[str, int]] = Topic("dicts", dict)
        one, two = bus.subscribe(topic), bus.subscribe(topic)
        payload = {"a": 1}
        await bus.publish(topic, payload)
        assert (await one.receive()) is (await two.receive())
        assert one.statistics().delivered == 1


class Test_position:
    async def test_a_reader_has_one_before_the_first_event(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        assert subscription.position.index == 0
        assert subscription.position.epoch

    async def test_it_is_that_of_the_event_in_hand(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        for number in range(300):
            bus.publish_nowait(numbers, number)
        async for event in subscription:
            assert subscription.position.index == event.index
            if event.index == 300:
                break

    async def test_it_never_points_into_a_batch(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        await bus.publish(numbers, 0)
        await bus.publish_many(numbers, [1, 2, 3])
        await bus.publish(numbers, 4)
        standing = []
        for _ in range(5):
            await subscription.receive()
            standing.append(subscription.position.index)
        assert standing == [1, 1, 1, 2, 3]

    async def test_a_position_inside_a_batch_gives_the_whole_batch_again(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        await bus.publish_many(numbers, [1, 2, 3])
        await subscription.receive()
        again = bus.subscribe(numbers, after=subscription.position)
        assert drain(again) == [1, 2, 3]

    async def test_that_of_an_idle_reader_of_one_key_follows_the_topic(self, bus: EventBus) -> None:
        """Otherwise the position of who follows a quiet key would one day be too old to resume from."""
        choices: list[dict[str, Any]] = [{"key": "k0"}, {"prefix": "k0"}]
        for filters in choices:
            async with collecting(subscription := bus.subscribe(numbers, **filters)):
                head = bus.publish_nowait(numbers, 1)
                await settle()
                assert subscription.position == head

    async def test_while_an_event_of_a_key_is_in_hand_it_is_not_ahead(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, key="k0")
        first = bus.publish_nowait(numbers, 0)
        bus.publish_nowait(numbers, 1)
        await subscription.receive()
        assert subscription.position == first


class Test_resume:
    @pytest.mark.parametrize("index", [0, 1, 127, 128, 129, 255, 256, 257, 299, 300])
    async def test_from_any_retained_index(self, bus: EventBus, index: int) -> None:
        for number in range(1, 301):
            bus.publish_nowait(numbers, number)
        epoch = bus.statistics().topics["numbers"].head.epoch
        subscription = bus.subscribe(numbers, after=Position(epoch, index))
        bus.publish_nowait(numbers, 301)
        assert drain(subscription) == list(range(index + 1, 302))

    @pytest.mark.parametrize("index", [0, 1, 128, 200, 298, 299, 300])
    async def test_of_one_key_reads_the_history_and_then_its_channel(self, bus: EventBus, index: int) -> None:
        for number in range(1, 301):
            bus.publish_nowait(numbers, number)
        epoch = bus.statistics().topics["numbers"].head.epoch
        subscription = bus.subscribe(numbers, key="k1", after=Position(epoch, index))
        for number in range(301, 310):
            bus.publish_nowait(numbers, number)
        assert drain(subscription) == [number for number in range(index + 1, 310) if number % 3 == 1]

    async def test_by_the_text_of_a_position(self, bus: EventBus) -> None:
        first = await bus.publish(numbers, 1)
        await bus.publish(numbers, 2)
        assert drain(bus.subscribe(numbers, after=str(first))) == [2]

    async def test_is_told_by_the_first_frame(self, bus: EventBus) -> None:
        first = await bus.publish(numbers, 1)
        await bus.publish(numbers, 2)
        async with collecting(bus.subscribe(numbers, after=first)) as seen:
            assert seen == [Resumed(first), 2]

    async def test_EARLIEST_is_all_that_is_retained(self, bus: EventBus) -> None:
        topic = Topic("short", int, retain=10)
        for number in range(300):
            bus.publish_nowait(topic, number)
        async with collecting(bus.subscribe(topic, after=EARLIEST)) as seen:
            assert isinstance(seen[0], Resumed)
            assert seen[0].position.index == 290
            assert seen[1:] == list(range(290, 300))

    @pytest.mark.parametrize("published", [10, 11, 127, 128, 129, 140, 300])
    async def test_the_floor_is_exact(self, bus: EventBus, published: int) -> None:
        """Whether or not older events happen to be in memory still."""
        topic = Topic("short", int, retain=10)
        for number in range(published):
            bus.publish_nowait(topic, number)
        statistics = bus.statistics().topics["short"]
        assert statistics.floor == published - 10
        assert statistics.retained == 10
        epoch = statistics.head.epoch
        assert len(drain(bus.subscribe(topic, after=Position(epoch, published - 10)))) == 10
        if published > 10:
            lost = bus.subscribe(topic, after=Position(epoch, published - 11))
            with pytest.raises(PositionLost) as caught:
                await lost.receive()
            assert (caught.value.oldest, caught.value.newest) == (published - 10, published)

    async def test_nothing_retained_means_only_the_head(self, bus: EventBus) -> None:
        topic = Topic("none", int, retain=0)
        first = await bus.publish(topic, 1)
        head = await bus.publish(topic, 2)
        again = bus.subscribe(topic, after=head)
        await bus.publish(topic, 3)
        assert drain(again) == [3]
        with pytest.raises(PositionLost):
            bus.subscribe(topic, after=first).receive_nowait()

    async def test_a_batch_half_trimmed_cannot_be_resumed_into(self, bus: EventBus) -> None:
        topic = Topic("short", int, retain=5)
        before = await bus.publish(topic, 0)
        batch = await bus.publish_many(topic, range(1, 5))
        await bus.publish_many(topic, range(5, 8))
        assert drain(bus.subscribe(topic, after=batch)) == [5, 6, 7]
        assert drain(bus.subscribe(topic, after=EARLIEST)) == [5, 6, 7]
        with pytest.raises(PositionLost):
            bus.subscribe(topic, after=before).receive_nowait()

    async def test_an_index_above_the_head_is_never_caught_up(self, bus: EventBus) -> None:
        head = await bus.publish(numbers, 1)
        requested = Position(head.epoch, 2)
        subscription = bus.subscribe(numbers, after=requested)
        with pytest.raises(PositionLost) as caught:
            await subscription.receive()
        error = caught.value
        assert (error.topic, error.requested, error.epoch) == ("numbers", requested, head.epoch)
        assert (error.oldest, error.newest) == (0, 1)

    async def test_another_epoch_is_never_caught_up(self, bus: EventBus) -> None:
        await bus.publish(numbers, 1)
        with pytest.raises(PositionLost, match="another epoch"):
            bus.subscribe(numbers, after=Position("other", 1)).receive_nowait()

    async def test_a_lost_reader_keeps_saying_so_and_holds_nothing(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, after=Position("other", 1))
        for _ in range(2):
            with pytest.raises(PositionLost):
                await subscription.receive()
        assert bus.statistics().subscribers == 0

    async def test_what_is_no_position_is_refused_at_once(self, bus: EventBus) -> None:
        with pytest.raises(InvalidPosition):
            bus.subscribe(numbers, after="rubbish")
        with pytest.raises(TypeError, match="after must be"):
            bus.subscribe(numbers, after=7)  # type: ignore[arg-type]  # that is the point
        assert bus.statistics().subscribers == 0


class Test_filters:
    async def test_a_key_gets_its_events_alone(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, key="k1")
        for number in range(10):
            bus.publish_nowait(numbers, number)
        await bus.publish_many(numbers, range(10, 20))
        assert drain(subscription) == [1, 4, 7, 10, 13, 16, 19]

    async def test_a_prefix_gets_all_keys_that_start_so(self, bus: EventBus) -> None:
        topic = Topic("rooms", str, key=lambda text: text)
        subscription = bus.subscribe(topic, prefix="a/")
        for name in ("a/1", "b/1", "a/2", "a"):
            bus.publish_nowait(topic, name)
        assert drain(subscription) == ["a/1", "a/2"]

    async def test_authorize_is_asked_for_each_event(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, authorize=lambda event: event.payload % 2 == 0)
        await bus.publish_many(numbers, range(10))
        assert drain(subscription) == [0, 2, 4, 6, 8]

    async def test_where_authorize_raises_the_read_does_and_nothing_is_lost(self, bus: EventBus) -> None:
        broken = True

        def authorize(event: Event[int]) -> bool:
            if broken:
                raise LookupError("policy is away")
            return event.payload != 1

        subscription = bus.subscribe(numbers, authorize=authorize)
        await bus.publish_many(numbers, range(3))
        for _ in range(2):
            with pytest.raises(LookupError):
                await subscription.receive()
        broken = False
        assert drain(subscription) == [0, 2]

    async def test_other_keys_do_not_wake_a_reader(self, bus: EventBus) -> None:
        async with collecting(subscription := bus.subscribe(numbers, key="k0")) as seen:
            await settle()
            lot = subscription._cursor.spot.lot
            assert lot is not None
            parked = list(lot.parked)
            for number in (1, 2, 4, 5):
                bus.publish_nowait(numbers, number)
            assert not lot.scheduled
            await settle()
            assert list(lot.parked) == parked
            assert len(seen) == 1

    async def test_a_reader_of_frames_past_whom_events_go_gets_bookmarks(self, bus: EventBus) -> None:
        for filters in ({"key": "k0"}, {"prefix": "k0"}, {"authorize": lambda event: event.key == "k0"}):
            async with collecting(bus.subscribe(numbers, **filters)) as seen:
                for number in range(400):
                    bus.publish_nowait(numbers, 3 * number + 1)
                with fail_after(5):
                    while not any(isinstance(frame, Bookmark) for frame in seen):
                        await checkpoint()
                marks = [frame.position for frame in seen if isinstance(frame, Bookmark)]
                assert marks[-1].index >= 128
                assert drain(bus.subscribe(numbers, key="k0", after=marks[-1])) == []
            await checkpoint()

    async def test_a_key_and_a_prefix_together_make_no_sense(self, bus: EventBus) -> None:
        with pytest.raises(ValueError, match="not both"):
            bus.subscribe(numbers, key="a", prefix="b")
        with pytest.raises(InvalidName):
            bus.subscribe(numbers, key="")
        with pytest.raises(InvalidName):
            bus.subscribe(numbers, prefix="\n")

    async def test_a_channel_lives_as_long_as_a_reader_of_its_key(self, bus: EventBus) -> None:
        one, two = bus.subscribe(numbers, key="k0"), bus.subscribe(numbers, key="k0")
        assert bus.statistics().topics["numbers"].keys == 1
        one.close()
        one.close()
        assert bus.statistics().topics["numbers"].keys == 1
        two.close()
        assert bus.statistics().topics["numbers"].keys == 0
        again = bus.subscribe(numbers, key="k0")
        bus.publish_nowait(numbers, 3)
        assert drain(again) == [3]


class Test_lag:
    @pytest.mark.parametrize("bound", [1, 5, 127, 128, 129, 500])
    async def test_the_bound_is_exact(self, bus: EventBus, bound: int) -> None:
        topic = Topic(f"bounded{bound}", int, max_lag=bound)
        subscription = bus.subscribe(topic)
        for number in range(bound):
            bus.publish_nowait(topic, number)
        assert subscription.lag == bound
        assert drain(subscription) == list(range(bound))
        for number in range(bound + 1):
            bus.publish_nowait(topic, number)
        with pytest.raises(SlowSubscriber) as caught:
            await subscription.receive()
        assert (caught.value.topic, caught.value.lag, caught.value.bound) == (f"bounded{bound}", bound + 1, bound)
        assert bus.statistics().subscribers == 0

    async def test_a_reader_that_keeps_up_is_not_touched_by_one_that_does_not(self, bus: EventBus) -> None:
        topic = Topic("bounded", int, max_lag=10)
        stuck, quick = bus.subscribe(topic), bus.subscribe(topic)
        seen = []
        for number in range(1000):
            bus.publish_nowait(topic, number)
            seen += drain(quick)
        assert seen == list(range(1000))
        with pytest.raises(SlowSubscriber):
            await stuck.receive()
        assert bus.statistics().topics["bounded"].lagged == 1

    async def test_the_chunk_in_hand_is_still_handed_out_in_order(self, bus: EventBus) -> None:
        topic = Topic("bounded", int, max_lag=10)
        subscription = bus.subscribe(topic)
        for number in range(10):
            bus.publish_nowait(topic, number)
        seen = [(await subscription.receive()).payload]
        for number in range(10, 50):
            bus.publish_nowait(topic, number)
        with pytest.raises(SlowSubscriber):
            while True:
                seen.append((await subscription.receive()).payload)
        assert seen == list(range(10))
        assert subscription.position.index == 10

    async def test_a_stuck_reader_that_never_comes_back_holds_nothing(self, bus: EventBus) -> None:
        topic: Topic[Object] = Topic("objects", Object, retain=0, max_lag=300)
        stuck = bus.subscribe(topic)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()
        for _ in range(2000):
            payload = Object()
            alive.add(payload)
            bus.publish_nowait(topic, payload)
            del payload
        await settle()
        gc.collect()
        assert len(alive) <= 2 * 128, "only the buffer's own tail may be left"
        assert stuck.lag > 300

    async def test_an_idle_reader_keeps_no_event_alive(self, bus: EventBus) -> None:
        topic: Topic[Object] = Topic("objects", Object, retain=0)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()
        async with collecting(bus.subscribe(topic)) as seen:
            for _ in range(1000):
                payload = Object()
                alive.add(payload)
                bus.publish_nowait(topic, payload)
                del payload
            await settle()
            assert len(seen) == 1001
            seen.clear()
            gc.collect()
            assert len(alive) <= 128

    async def test_who_resumes_from_far_behind_may_catch_up(self, bus: EventBus) -> None:
        """The retained history may be longer than the bound; a reader in it holds no memory of its own."""
        topic = Topic("long", int, retain=1000, max_lag=10)
        first = await bus.publish(topic, 0)
        for number in range(1, 1000):
            bus.publish_nowait(topic, number)
        subscription = bus.subscribe(topic, after=first)
        for number in range(1000, 1005):
            bus.publish_nowait(topic, number)
        assert drain(subscription) == list(range(1, 1005))
        for number in range(11):
            bus.publish_nowait(topic, number)
        with pytest.raises(SlowSubscriber):
            subscription.receive_nowait()

    async def test_other_keys_do_not_count(self, bus: EventBus) -> None:
        topic = Topic("bounded", int, key=lambda number: f"k{number % 3}", max_lag=5)
        subscription = bus.subscribe(topic, key="k0")
        for number in range(1000):
            bus.publish_nowait(topic, 3 * number + 1)
        assert subscription.lag == 0
        for number in range(6):
            bus.publish_nowait(topic, 3 * number)
        assert subscription.lag > 5
        with pytest.raises(SlowSubscriber):
            subscription.receive_nowait()

    async def test_a_publisher_may_read_and_publish_from_its_own_subscription(self, bus: EventBus) -> None:
        """A subscriber that publishes while it reads must not deadlock or be overtaken by itself."""
        subscription = bus.subscribe(numbers)
        await bus.publish(numbers, 0)
        async for event in subscription:
            if event.payload == 500:
                break
            await bus.publish(numbers, event.payload + 1)


class Test_closing:
    async def test_a_waiting_loop_ends(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)

        async def close() -> None:
            await settle()
            subscription.close()

        async with create_task_group() as tasks:
            tasks.start_soon(close)
            with fail_after(5):
                async for _ in subscription:
                    pass

    async def test_a_waiting_receive_raises(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)

        async def close() -> None:
            await settle()
            subscription.close()

        async with create_task_group() as tasks:
            tasks.start_soon(close)
            with fail_after(5), pytest.raises(SubscriptionClosed):
                await subscription.receive()

    @pytest.mark.parametrize("way", ["events", "batches", "frames"])
    async def test_closing_in_the_loop_ends_it_before_the_next_event(self, bus: EventBus, way: str) -> None:
        subscription = bus.subscribe(numbers)
        for number in range(10):
            bus.publish_nowait(numbers, number)
        reading: Any = subscription if way == "events" else getattr(subscription, way)()
        count = 0
        async for _ in reading:
            count += 1
            subscription.close()
        assert count == 1
        assert repr(subscription).startswith("<Subscription 'numbers' key=None SubscriptionClosed at ")

    async def test_it_wins_over_what_is_available(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        await bus.publish_many(numbers, range(10))
        assert (await subscription.receive()).payload == 0
        before = subscription.position
        subscription.close()
        subscription.close()
        for _ in range(2):
            with pytest.raises(SubscriptionClosed) as caught:
                await subscription.receive()
            assert caught.value.topic == "numbers"
        with pytest.raises(SubscriptionClosed):
            subscription.receive_nowait()
        assert [event async for event in subscription] == []
        assert subscription.position == before

    async def test_the_first_reason_stays(self) -> None:
        async with EventBus() as bus:
            mine, world = bus.subscribe(numbers, principal="me"), bus.subscribe(numbers, principal="me")
            mine.close()
            bus.revoke("me")
            world.close()
        with pytest.raises(SubscriptionClosed):
            await mine.receive()
        with pytest.raises(NotAuthorized):
            await world.receive()

    async def test_leaving_the_bus_ends_its_readers(self) -> None:
        caught: list[BaseException] = []

        async def read(bus: EventBus) -> None:
            try:
                async for _ in bus.subscribe(numbers):
                    pass
            except BusClosed as error:
                caught.append(error)

        async with create_task_group() as tasks, EventBus() as bus:
            tasks.start_soon(read, bus)
            await settle()
        assert [str(error) for error in caught] == ["the bus is closed"]

    async def test_a_subscription_left_behind_in_a_loop_is_no_warning(self, bus: EventBus) -> None:
        """Warnings are errors here: no generator may be left to the collector by who closes what he opened."""
        for _ in range(3):
            async with bus.subscribe(numbers) as subscription:
                bus.publish_nowait(numbers, 1)
                async for _ in subscription:
                    break
            bare = bus.subscribe(numbers, after=EARLIEST)
            async for _ in bare:
                break
            bare.close()
            del subscription, bare
            gc.collect()
        await settle()


class Test_revoke:
    async def test_it_closes_all_of_a_principal_and_no_others(self, bus: EventBus) -> None:
        mine = [bus.subscribe(numbers, principal="me"), bus.subscribe(numbers, key="k1", principal="me")]
        others = [bus.subscribe(numbers, principal="you"), bus.subscribe(numbers)]
        bus.publish_nowait(numbers, 1)
        assert bus.revoke("me") == 2
        bus.publish_nowait(numbers, 4)
        for subscription in mine:
            with pytest.raises(NotAuthorized) as caught:
                await subscription.receive()
            assert caught.value.principal == "me"
        for subscription in others:
            assert drain(subscription) == [1, 4]
        assert bus.revoke("me") == 0
        with pytest.raises(ValueError, match="nobody"):
            bus.revoke(None)
        assert bus.statistics().subscribers == 2

    async def test_a_waiting_reader_learns_of_it(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, principal=("user", 7))

        async def revoke() -> None:
            await settle()
            bus.revoke(("user", 7))

        async with create_task_group() as tasks:
            tasks.start_soon(revoke)
            with fail_after(5), pytest.raises(NotAuthorized):
                async for _ in subscription:
                    pass


class Test_what_it_weighs:
    @pytest.mark.unmeasured
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio's own task takes more than the bound
    @pytest.mark.parametrize("by_batches", [False, True])
    async def test_while_it_waits_less_than_2_KiB_with_its_task(self, bus: EventBus, by_batches: bool) -> None:
        tasks: list[asyncio.Task[None]] = []

        async def read(subscription: Subscription[int]) -> None:
            async for _ in subscription.batches() if by_batches else subscription:
                pass

        async def start(number: int) -> None:
            tasks.extend(asyncio.create_task(read(bus.subscribe(numbers))) for _ in range(number))
            await settle()
            bus.publish_nowait(numbers, 1)
            await settle()
            gc.collect()

        await start(1)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await start(1000)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (after - before) / 1000 < 2048


class Test_statistics:
    async def test_a_subscription_counts_what_it_handed_out(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, prefix="k")
        await bus.publish_many(numbers, range(5))
        await take(subscription, 2)
        statistics = subscription.statistics()
        assert (statistics.topic, statistics.key, statistics.prefix) == ("numbers", None, "k")
        assert (statistics.delivered, statistics.lag, statistics.resets) == (2, 3, 0)
        assert statistics.position == subscription.position

    async def test_the_bus_counts_its_topics(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers, key="k0")
        await bus.publish_many(numbers, range(5))
        statistics = bus.statistics()
        topic = statistics.topics["numbers"]
        assert (topic.published, topic.retained, topic.floor, topic.head.index) == (5, 5, 0, 1)
        assert (topic.subscribers, topic.keys, topic.lag, topic.lagged) == (1, 1, subscription.lag, 0)
        assert (statistics.subscribers, statistics.views) == (1, 0)

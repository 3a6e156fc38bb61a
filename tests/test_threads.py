"""Publishing from other threads than the loop's: order, wake-ups, laggards, snapshots, closing.

Where a thread has to be met at one certain moment it is not left to luck: see `Test_at_every_line`.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType, ModuleType
from typing import Any

import anyio
import pytest
from anyio import TASK_STATUS_IGNORED, WouldBlock, create_task_group, fail_after
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync

from eventstream import (
    EARLIEST,
    Append,
    Bookmark,
    BusClosed,
    Conflict,
    Event,
    EventBus,
    Position,
    Reentered,
    SlowSubscriber,
    SnapshotStart,
    Subscription,
    SubscriptionReset,
    Topic,
)
from eventstream.topics import channel as channel_module
from eventstream.topics import cursor as cursor_module
from eventstream.topics import live as live_module
from eventstream.topics import parking as parking_module
from eventstream.topics import subscription as subscription_module
from eventstream.topics.parking import FEW
from support import drain, settle

pytestmark = pytest.mark.may_block  # a loop may wait for a topic's lock, for as long as a publish takes

Numbered = tuple[int, int]  # thread, number

numbers = Topic("numbers", int)
numbered: Topic[Numbered] = Topic("numbered", tuple, key=lambda pair: f"k{pair[0]}")


@pytest.fixture(autouse=True)
def _many_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


async def run_threads(count: int, work: Callable[[int], object]) -> None:
    """Runs `work(0)`, `work(1)` ... at once, each in a thread of its own."""
    barrier = threading.Barrier(count)

    def start(number: int) -> None:
        barrier.wait(10)
        work(number)

    async with create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(run_sync, start, number)


class Test_publishing_from_threads:
    @pytest.mark.parametrize("readers", [1, FEW + 2])
    @pytest.mark.parametrize("way", ["events", "batches", "prefix"])
    async def test_nothing_is_lost_and_each_threads_order_is_kept(self, bus: EventBus, readers: int, way: str) -> None:
        threads, each = 3, 200
        seen: list[list[Event[Numbered]]] = [[] for _ in range(readers)]

        async def read(mine: list[Event[Numbered]]) -> None:
            subscription = bus.subscribe(numbered, prefix="k" if way == "prefix" else None)
            if way == "batches":
                async for batch in subscription.batches():
                    mine += batch
                    if len(mine) == threads * each:
                        return
            else:
                async for event in subscription:
                    mine.append(event)
                    if len(mine) == threads * each:
                        return

        positions: list[list[int]] = [[] for _ in range(threads)]

        def publish(thread: int) -> None:
            for number in range(each):
                positions[thread].append(bus.publish_nowait(numbered, (thread, number)).index)

        with fail_after(20):
            async with create_task_group() as tasks:
                for mine in seen:
                    tasks.start_soon(read, mine)
                await settle()
                await run_threads(threads, publish)
        for mine in seen:
            assert [event.index for event in mine] == list(range(1, threads * each + 1))
            for thread in range(threads):
                own = [event for event in mine if event.payload[0] == thread]
                assert [event.payload[1] for event in own] == list(range(each))
                assert [event.index for event in own] == positions[thread]

    async def test_readers_of_a_key_get_their_threads_events(self, bus: EventBus) -> None:
        seen: list[list[Numbered]] = [[] for _ in range(3)]

        async def read(number: int, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
            async with bus.subscribe(numbered, key=f"k{number}") as subscription:
                task_status.started()
                async for event in subscription:
                    seen[number].append(event.payload)
                    if len(seen[number]) == 300:
                        return

        def publish(thread: int) -> None:
            for number in range(300):
                bus.publish_nowait(numbered, (thread, number))

        with fail_after(20):
            async with create_task_group() as tasks:
                for number in range(3):
                    await tasks.start(read, number)
                await run_threads(3, publish)
        assert seen == [[(thread, number) for number in range(300)] for thread in range(3)]

    async def test_the_loop_may_publish_too(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbered)

        def publish(thread: int) -> None:
            for number in range(200):
                bus.publish_nowait(numbered, (thread, number))

        with fail_after(20):
            async with create_task_group() as tasks:
                tasks.start_soon(run_threads, 2, publish)
                for number in range(200):
                    await bus.publish(numbered, (2, number))
        seen = drain(subscription)
        assert len(seen) == 600
        for thread in range(3):
            assert [number for one, number in seen if one == thread] == list(range(200))

    async def test_a_topic_may_be_used_first_by_many_at_once(self, bus: EventBus) -> None:
        declarations = [Topic("new", int, max_lag=9999) for _ in range(8)]
        await run_threads(8, lambda number: bus.publish_nowait(declarations[number], number))
        assert sorted(drain(bus.subscribe(declarations[0], after=EARLIEST))) == list(range(8))
        assert list(bus.statistics().topics) == ["new"]

    async def test_readers_may_come_while_threads_publish(self, bus: EventBus) -> None:
        """Whoever comes at whatever moment misses nothing after the position that it was given."""
        done = threading.Event()

        def publish() -> None:
            while not done.is_set():
                bus.publish_nowait(numbers, 1)

        async with create_task_group() as tasks:
            tasks.start_soon(run_sync, publish)
            for _ in range(50):
                async with bus.subscribe(numbers) as subscription:
                    first = subscription.position.index
                    event = await subscription.receive()
                    assert event.index == first + 1
            done.set()

    async def test_each_thread_may_have_a_loop_and_a_bus_of_its_own(self) -> None:
        seen: list[list[int]] = [[], []]

        async def serve(number: int) -> None:
            async with EventBus() as own, own.subscribe(numbers) as subscription, create_task_group() as tasks:

                async def publish() -> None:
                    for payload in range(100):
                        await own.publish(numbers, payload)

                tasks.start_soon(publish)
                seen[number] = [(await subscription.receive()).payload for _ in range(100)]

        await run_threads(2, lambda number: anyio.run(serve, number, backend=["asyncio", "trio"][number]))
        assert seen == [list(range(100))] * 2


class Test_waking_from_threads:
    @pytest.mark.parametrize("readers", [1, FEW + 1])
    async def test_no_wake_up_is_missed(self, bus: EventBus, readers: int) -> None:
        """A thread publishes one event and waits until all have it; nobody else would ever wake them."""
        confirmed = threading.Semaphore(0)
        rounds = 300

        async def read(subscription: Subscription[int]) -> None:
            async for event in subscription:
                confirmed.release()
                if event.payload == rounds - 1:
                    return

        def publish() -> None:
            for number in range(rounds):
                bus.publish_nowait(numbers, number)
                for _ in range(readers):
                    assert confirmed.acquire(timeout=10), f"a reader was not woken for {number}"

        async with create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read, bus.subscribe(numbers))
            await run_sync(publish)

    async def test_nor_that_of_a_key_behind_its_history(self, bus: EventBus) -> None:
        """Readers that go through another chain first."""
        confirmed = threading.Semaphore(0)
        start = bus.publish_nowait(numbered, (0, -1))

        async def read(subscription: Subscription[Numbered]) -> None:
            async for event in subscription:
                confirmed.release()
                if event.payload[1] == 99:
                    return

        def publish() -> None:
            for number in range(100):
                bus.publish_nowait(numbered, (0, number))
                bus.publish_nowait(numbered, (1, number))
                assert confirmed.acquire(timeout=10)

        async with create_task_group() as tasks:
            tasks.start_soon(read, bus.subscribe(numbered, key="k0", after=start))
            await run_sync(publish)

    async def test_a_thread_may_answer_a_thread_through_the_loop(self, bus: EventBus) -> None:
        replies = Topic("replies", int)
        answers: list[int] = []
        answered = threading.Semaphore(0)

        async def echo(subscription: Subscription[int]) -> None:
            async for event in subscription:
                bus.publish_nowait(replies, event.payload)

        async def listen(subscription: Subscription[int]) -> None:
            async for event in subscription:
                answers.append(event.payload)
                answered.release()

        def ask() -> None:
            for number in range(100):
                bus.publish_nowait(numbers, number)
                assert answered.acquire(timeout=10)

        async with create_task_group() as tasks:
            tasks.start_soon(echo, bus.subscribe(numbers))
            tasks.start_soon(listen, bus.subscribe(replies))
            await run_sync(ask)
            tasks.cancel_scope.cancel()
        assert answers == list(range(100))

    async def test_an_idle_reader_of_frames_gets_bookmarks(self, bus: EventBus) -> None:
        marks: list[Position] = []

        async def read(subscription: Subscription[Numbered]) -> None:
            async for frame in subscription.frames():
                if isinstance(frame, Bookmark):
                    marks.append(frame.position)
                    return

        with fail_after(10):
            async with create_task_group() as tasks:
                tasks.start_soon(read, bus.subscribe(numbered, key="k1"))
                await settle()
                await run_threads(1, lambda _: [bus.publish_nowait(numbered, (0, number)) for number in range(400)])
        assert marks[0].index > 0


class Object:
    """A payload whose life can be watched."""


class Test_laggards_of_threads:
    async def test_a_reader_stuck_in_its_body_is_overtaken(self, bus: EventBus) -> None:
        topic = Topic("bounded", int, max_lag=10)
        async with bus.subscribe(topic) as subscription:
            bus.publish_nowait(topic, 0)
            seen = []
            with pytest.raises(SlowSubscriber) as caught:
                async for event in subscription:
                    seen.append(event.payload)
                    await run_threads(4, lambda _: [bus.publish_nowait(topic, 1) for _ in range(100)])
            assert (seen, caught.value.lag, caught.value.bound) == ([0], 11, 10)

    async def test_one_that_keeps_up_is_not(self, bus: EventBus) -> None:
        topic = Topic("bounded", int, max_lag=10)
        seen: list[int] = []
        read_it = threading.Semaphore(0)

        async def read(subscription: Subscription[int]) -> None:
            async for event in subscription:
                seen.append(event.payload)
                read_it.release()

        def publish() -> None:
            for number in range(300):
                bus.publish_nowait(topic, number)
                if number >= 9:
                    assert read_it.acquire(timeout=10)

        async with create_task_group() as tasks:
            tasks.start_soon(read, bus.subscribe(topic))
            await run_sync(publish)
            with fail_after(10):
                while len(seen) < 300:
                    await checkpoint()
            tasks.cancel_scope.cancel()
        assert seen == list(range(300))

    async def test_it_holds_no_memory(self, bus: EventBus) -> None:
        topic: Topic[Object] = Topic("objects", Object, retain=0, max_lag=100)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()
        subscription = bus.subscribe(topic)

        def publish(_: int) -> None:
            for _ in range(1000):
                payload = Object()
                alive.add(payload)
                bus.publish_nowait(topic, payload)

        await run_threads(1, publish)
        with fail_after(10):
            while len(alive) > 256:
                await checkpoint()
        assert subscription.lag == 101

    async def test_with_a_snapshot_it_starts_again(self, bus: EventBus) -> None:
        topic: Topic[Numbered] = Topic("state", tuple, key=lambda pair: f"k{pair[0]}", compacted=True, max_lag=20)
        subscription = bus.subscribe(topic)
        await run_threads(3, lambda thread: [bus.publish_nowait(topic, (thread, n)) for n in range(100)])
        with pytest.raises(SubscriptionReset) as caught:
            subscription.receive_nowait()
        assert caught.value.reason == "lagged"
        assert sorted(drain(subscription)) == [(0, 99), (1, 99), (2, 99)]

    async def test_readers_that_lag_again_and_again_end_with_the_truth(self, bus: EventBus) -> None:
        topic: Topic[Numbered] = Topic("state", tuple, key=lambda pair: f"k{pair[0]}", compacted=True, max_lag=5)
        states: list[dict[str, int]] = [{} for _ in range(5)]

        async def follow(state: dict[str, int]) -> None:
            async for frame in bus.subscribe(topic).frames():
                if isinstance(frame, SnapshotStart):
                    state.clear()
                elif isinstance(frame, Event):
                    state[frame.key] = frame.payload[1]

        async with create_task_group() as tasks:
            for state in states:
                tasks.start_soon(follow, state)
            await settle()
            await run_threads(2, lambda thread: [bus.publish_nowait(topic, (thread, n)) for n in range(200)])
            with fail_after(10):
                while states != [{"k0": 199, "k1": 199}] * 5:
                    await checkpoint()
            tasks.cancel_scope.cancel()
        assert states == [{"k0": 199, "k1": 199}] * 5


class Test_snapshots_and_threads:
    async def test_a_build_that_is_overtaken_is_cancelled_and_tried_again(self) -> None:
        topic = Topic("state", int, key=str, max_lag=20)
        cancelled, calls = anyio.Event(), 0
        async with EventBus() as bus:

            @bus.snapshot(topic)
            async def source(key: str | None, append: Append) -> int:
                nonlocal calls
                calls += 1
                append(7)
                if calls == 1:
                    try:
                        await anyio.sleep_forever()
                    finally:
                        cancelled.set()
                return 100

            subscription = bus.subscribe(topic)
            assert (await subscription.receive()).payload == 7
            with fail_after(10):
                await run_threads(2, lambda _: [bus.publish_nowait(topic, n) for n in range(50)])
                await cancelled.wait()
                with pytest.raises(SubscriptionReset):  # the reader that read along was as far behind
                    await subscription.receive()
                assert (await subscription.receive()).payload == 7
            assert calls == 2

    async def test_what_threads_publish_while_it_is_built_follows_it(self) -> None:
        topic = Topic("state", int, key=str)
        published = anyio.Event()
        async with EventBus() as bus:

            @bus.snapshot(topic)
            async def source(key: str | None, append: Append) -> int:
                await published.wait()
                return 100

            subscription = bus.subscribe(topic)
            await settle()
            await run_threads(2, lambda _: [bus.publish_nowait(topic, 1) for _ in range(100)])
            published.set()
            with fail_after(10):
                indexes = [(await subscription.receive()).index for _ in range(100)]
            assert indexes == list(range(101, 201))

    async def test_a_cached_snapshot_is_let_go_while_others_start_from_it(self, bus: EventBus) -> None:
        """Its tail outgrows it again and again, in one thread, while readers start from it in another."""
        topic = Topic("state", int, key=lambda number: f"k{number % 3}", compacted=True)
        done = threading.Event()

        def publish() -> None:
            number = 0
            while not done.is_set():
                bus.publish_nowait(topic, number := number + 1)

        async with create_task_group() as tasks:
            tasks.start_soon(run_sync, publish)
            for _ in range(100):
                subscription = bus.subscribe(topic)
                indexes = [(await subscription.receive()).index for _ in range(6)]
                assert indexes == sorted(set(indexes))
                assert indexes[-1] - indexes[2] == 3
                subscription.close()
            done.set()

    async def test_a_view_reaches_what_a_thread_has_published(self, bus: EventBus) -> None:
        topic: Topic[Numbered] = Topic("state", tuple, key=lambda pair: f"k{pair[0]}", compacted=True)
        async with bus.view(topic) as view:
            await view.ready()
            for number in range(20):
                position = await run_sync(bus.publish_nowait, topic, (1, number))
                with fail_after(10):
                    await view.reached(position)
                assert view["k1"] == (1, number)


class Test_closing_while_threads_publish:
    @pytest.mark.parametrize("terms", [{}, {"id": "one"}, {"headers": {"a": "b"}}])
    async def test_they_are_told_and_nothing_hangs(self, terms: dict[str, Any]) -> None:
        started = threading.Semaphore(0)
        errors: list[BaseException] = []

        def publish(bus: EventBus) -> None:
            try:
                bus.publish_nowait(numbers, 1)
                started.release()
                while True:
                    bus.publish_nowait(numbers, 1, **terms)
            except BusClosed as error:
                errors.append(error)

        async def read(subscription: Subscription[int]) -> None:
            with pytest.raises(BusClosed):
                while True:
                    try:
                        async for _ in subscription:
                            pass
                    except SlowSubscriber:  # pragma: no cover  # where the threads are much faster
                        return

        with fail_after(20):
            for _ in range(4):
                async with create_task_group() as tasks, EventBus() as bus:
                    tasks.start_soon(read, bus.subscribe(numbers))
                    for _ in range(3):
                        tasks.start_soon(run_sync, publish, bus)
                    for _ in range(3):
                        await run_sync(started.acquire)
        assert len(errors) == 12

    async def test_one_that_was_on_its_way_is_told(self) -> None:
        """The bus closes while the thread is in the topic's key function."""
        inside, go_on = threading.Event(), threading.Event()

        def key(number: int) -> str:
            inside.set()
            go_on.wait(10)
            return "k"

        topic = Topic("slow", int, key=key)
        errors: list[BaseException] = []

        def publish(bus: EventBus) -> None:
            try:
                bus.publish_nowait(topic, 1, id="one")
            except BusClosed as error:
                errors.append(error)

        async with create_task_group() as tasks:
            async with EventBus() as bus:
                bus.subscribe(topic)
                tasks.start_soon(run_sync, publish, bus)
                await run_sync(inside.wait)
            go_on.set()
        assert len(errors) == 1


class Test_terms_of_many_threads:
    async def test_exactly_one_wins_each_index(self, bus: EventBus) -> None:
        threads = 4
        wins: list[list[int]] = [[] for _ in range(threads)]

        def compete(thread: int) -> None:
            at = 0
            while at < 200:
                try:
                    bus.publish_nowait(numbers, thread, expect=at)
                except Conflict as error:
                    assert error.actual > at
                    at = error.actual
                else:
                    at += 1
                    wins[thread].append(at)

        await run_threads(threads, compete)
        assert sorted(index for mine in wins for index in mine) == list(range(1, 201))
        payloads = drain(bus.subscribe(numbers, after=EARLIEST))
        assert all(payloads[index - 1] == thread for thread, mine in enumerate(wins) for index in mine)

    async def test_of_many_with_one_id_one_is_published(self, bus: EventBus) -> None:
        positions: list[list[Position]] = [[] for _ in range(4)]

        def publish(thread: int) -> None:
            for number in range(100):
                positions[thread].append(bus.publish_nowait(numbers, number, id=f"id {number}"))

        await run_threads(4, publish)
        assert positions == [positions[0]] * 4
        assert drain(bus.subscribe(numbers, after=EARLIEST)) == list(range(100))


class Interruption:
    """Calls a function at the n-th line that runs in some modules, as a thread might, and only there."""

    def __init__(self, at: int, action: Callable[[], object], *modules: ModuleType) -> None:
        self.at, self.action = at, action
        self.lines = 0
        self.done = False
        self._files = {module.__file__ for module in modules or (cursor_module,)}

    def trace(self, frame: FrameType, what: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if what == "line":
            self.lines += 1
            if self.lines == self.at:
                self.done = True
                self.action()
        return self.trace

    def __enter__(self) -> Interruption:
        self._before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def publish_times(bus: EventBus, topic: Topic[int], times: int, first: int = 1000) -> None:
    for number in range(first, first + times):
        bus.publish_nowait(topic, number)


def publish_in_a_thread(bus: EventBus, topic: Topic[int], payload: int) -> None:
    thread = threading.Thread(target=bus.publish_nowait, args=(topic, payload))
    thread.start()
    thread.join(10)


one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # for what has nothing to do with it
every_way = pytest.mark.parametrize("filters", [{}, {"prefix": "k"}, {"key": "k0"}, {"after": EARLIEST}])


class Test_at_every_line:
    """A reader takes no lock, so a publisher may come between any two lines of it."""

    @one_loop
    @every_way
    @pytest.mark.parametrize("held", [3, 127])
    async def test_what_is_published_there_is_not_stepped_over(
        self, bus: EventBus, filters: dict[str, Any], held: int
    ) -> None:
        at, done = 0, True
        while done:
            at += 1
            topic = Topic(f"topic {at}", int, key=lambda _: "k0")
            publish_times(bus, topic, held // 2, 0)
            subscription = bus.subscribe(topic, **filters)
            publish_times(bus, topic, held - held // 2, held // 2)
            with Interruption(at, partial(publish_times, bus, topic, 200, held)) as interruption:
                seen = drain(subscription)
            done = interruption.done
            seen += drain(subscription)
            assert seen == list(range(seen[0], held + 200 * done))
        assert at > 10

    @one_loop
    @every_way
    @pytest.mark.parametrize("held", [3, 127, 128])
    async def test_a_reader_that_is_overtaken_there_is_told(
        self, bus: EventBus, filters: dict[str, Any], held: int
    ) -> None:
        at, done = 0, True
        while done:
            at += 1
            topic = Topic(f"bounded {at}", int, key=lambda _: "k0", max_lag=200)
            subscription = bus.subscribe(topic, **filters)
            publish_times(bus, topic, held, 0)
            first = drain(subscription) if at % 2 else []
            publish_times(bus, topic, 2, held)
            seen: list[int] = []
            interruption = Interruption(at, partial(publish_times, bus, topic, 201))
            with interruption, suppress(SlowSubscriber, WouldBlock):
                for _ in range(held + 2 - len(first)):
                    seen.append(subscription.receive_nowait().payload)
            done = interruption.done
            if done:
                assert first + seen == list(range(len(first + seen)))
                with pytest.raises(SlowSubscriber):
                    drain(subscription)
                assert bus.statistics().topics[topic.name].subscribers == 0
        assert at > 10

    @one_loop
    async def test_a_reader_that_moves_while_it_is_overtaken_is_told(self, bus: EventBus) -> None:
        """The other way round: the reader takes its first step between any two lines of who lets its place go."""

        def move(subscription: Subscription[int]) -> None:
            with suppress(Reentered):  # a thread would have to wait for the topic's lock here
                subscription._cursor.advance()

        at, done = 0, True
        while done:
            at += 1
            topic = Topic(f"bounded {at}", int, max_lag=5)
            subscription = bus.subscribe(topic)
            publish_times(bus, topic, 5)
            with Interruption(at, partial(move, subscription)) as interruption:
                publish_times(bus, topic, 1)
            done = interruption.done
            with pytest.raises(SlowSubscriber):
                drain(subscription)
        assert at > 10

    @one_loop
    @pytest.mark.parametrize("filters", [{}, {"prefix": "k"}, {"key": "k0"}])
    async def test_one_that_reads_a_snapshot_starts_again(self, bus: EventBus, filters: dict[str, Any]) -> None:
        at, done = 0, True
        while done:
            at += 1
            topic = Topic(f"state {at}", int, key=lambda number: f"k{number % 2}", compacted=True, max_lag=20)
            publish_times(bus, topic, 10, 0)
            state: dict[str, int] = {}
            subscription = bus.subscribe(topic, **filters)
            with Interruption(at, partial(publish_times, bus, topic, 50, 10)) as interruption:
                self.follow(subscription, state)
            done = interruption.done
            self.follow(subscription, state)
            last = 59 if done else 9
            wanted = {"k0": last - 1, "k1": last}
            assert state == ({"k0": wanted["k0"]} if "key" in filters else wanted)
        assert at > 30

    @one_loop
    @pytest.mark.parametrize("filters", [{}, {"key": "k0"}])
    async def test_one_that_leaves_a_snapshot_is_never_counted_in_two_buffers(
        self, bus: EventBus, filters: dict[str, Any]
    ) -> None:
        """A publisher that asks where it stands would else take it for a laggard."""
        at, done = 0, True
        while done:
            at += 1
            topic = Topic(f"state {at}", int, key=lambda number: f"k{number % 2}", compacted=True)
            other = bus.subscribe(topic, **filters)  # so that the key has a buffer, which counts on
            publish_times(bus, topic, 20, 0)
            subscription = bus.subscribe(topic, **filters)
            published = 10 if filters else 20
            deadlines: list[int] = []

            def look(
                cursor: cursor_module.Cursor = subscription._cursor,
                deadlines: list[int] = deadlines,
                published: int = published,
            ) -> None:
                deadlines.append(cursor.deadline(published))

            with Interruption(at, look) as interruption:
                drain(subscription)
            done = interruption.done
            assert deadlines == [published + topic.max_lag] * done
            other.close()
        assert at > 30

    @staticmethod
    def follow(subscription: Subscription[int], state: dict[str, int]) -> None:
        while True:
            try:
                event = subscription.receive_nowait()
            except SubscriptionReset:
                state.clear()
            except WouldBlock:
                return
            else:
                state[event.key] = event.payload

    @one_loop
    @pytest.mark.parametrize("filters", [{}, {"prefix": "k"}, {"key": "k0"}])
    async def test_what_was_let_go_there_is_not_held_again(self, bus: EventBus, filters: dict[str, Any]) -> None:
        """A reader that never comes back after this step would pin it for ever."""
        at, done = 0, True
        while done:
            at += 1
            topic = Topic(f"state {at}", int, key=lambda number: f"k{number % 2}", compacted=True, max_lag=200)
            publish_times(bus, topic, 10, 0)
            cursor = bus.subscribe(topic, **filters)._cursor
            publish_times(bus, topic, 150, 10)
            step: object = cursor.pending
            with Interruption(at, partial(publish_times, bus, topic, 201)) as interruption:
                while step is not None and not interruption.done:
                    step = cursor.advance()
            done = interruption.done
            assert cursor.interrupted is None or cursor._segment is cursor_module.NOWHERE
        assert at > 30

    @pytest.mark.parametrize("way", ["frames", "batches"])
    @pytest.mark.parametrize("filters", [{}, {"prefix": "k"}, {"key": "k0"}])
    async def test_a_reader_that_is_about_to_wait_is_woken(
        self, bus: EventBus, filters: dict[str, Any], way: str
    ) -> None:
        """By a real thread, the first that ever publishes or not, and nobody else."""
        topic = Topic("numbers", int, key=lambda _: "k0")
        seen: list[object] = []

        async def read(subscription: Subscription[int]) -> None:
            if way == "batches":
                async for batch in subscription.batches():
                    seen.append(batch[0].payload)
                    return
            else:
                async for frame in subscription.frames():
                    if isinstance(frame, Event):
                        seen.append(frame.payload)
                        return

        at, done = 0, True
        while done:
            at += 1
            bus._waker.foreign = False
            async with create_task_group() as tasks, bus.subscribe(topic, **filters) as subscription:
                tasks.start_soon(read, subscription)
                modules = (cursor_module, parking_module, subscription_module)
                with Interruption(at, partial(publish_in_a_thread, bus, topic, at), *modules) as interruption:
                    await settle(5)
                done = interruption.done
                if not done:
                    bus.publish_nowait(topic, at)
                with fail_after(5):
                    while len(seen) < at:
                        await checkpoint()
        assert seen == list(range(1, at + 1))
        assert at > 10

    @one_loop
    @every_way
    async def test_a_readers_position_is_not_ahead_of_a_publish(self, bus: EventBus, filters: dict[str, Any]) -> None:
        """The other way round: asked at every line of the publisher, before the event was read."""
        topic = Topic("numbers", int, key=lambda _: "k0")
        subscription = bus.subscribe(topic, **filters)
        at, done = 0, True
        while done:
            at += 1
            drain(subscription)
            before = subscription.position.index
            found: list[int] = []
            ask = partial(lambda found: found.append(subscription.position.index), found)
            with Interruption(at, ask, live_module, channel_module) as interruption:
                bus.publish_nowait(topic, at)
            done = interruption.done
            assert found == [before] * done
        assert at > 10

"""How readers wait and wake: cost, order, cancellation at every moment, and what else a loop does to its tasks."""

from __future__ import annotations

import asyncio
import io
import sys
from asyncio import AbstractEventLoop, CancelledError, Task
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after
from anyio.lowlevel import checkpoint

from eventstream import EventBus, Subscription, SubscriptionClosed, Topic
from eventstream.topics import Lot, Spot, Waker, current_waker
from eventstream.topics.parking import CROWD, FEW
from support import drain, settle, take

numbers = Topic("numbers", int)
letters = Topic("letters", str)
caller = ContextVar("caller", default="nobody")

few_and_many = pytest.mark.parametrize("readers", [1, FEW, FEW + 1, 50])
only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Waiter:
    """Who waits at a spot, and counts how often it was woken."""

    def __init__(self, waker: Waker, lot: Lot | None) -> None:
        self.spot: Spot = waker.spot(self)
        self.spot.lot = lot
        self.turns = 0
        self.has_something = False

    def ready(self) -> bool:
        return self.has_something

    async def wait(self, times: int = 1) -> None:
        for _ in range(times):
            await self.spot
            self.turns += 1


async def read_into(subscription: Subscription[int], seen: list[int]) -> None:
    async for event in subscription:
        seen.append(event.payload)


def lot_of(subscription: Subscription[Any]) -> Lot:
    lot = subscription._cursor.spot.lot
    assert lot is not None
    return lot


class Test_a_spot:
    @few_and_many
    async def test_several_wakes_in_one_tick_are_one(self, readers: int) -> None:
        lot = Lot(waker := current_waker())
        waiters = [Waiter(waker, lot) for _ in range(readers)]
        async with create_task_group() as tasks:
            for waiter in waiters:
                tasks.start_soon(waiter.wait, 100)
            await settle()
            for turn in range(1, 4):
                for _ in range(5):
                    lot.wake()
                await settle()
                assert [waiter.turns for waiter in waiters] == [turn] * readers
            tasks.cancel_scope.cancel()
        assert [waiter.turns for waiter in waiters] == [3] * readers

    async def test_a_wake_does_not_count_for_who_waits_later(self) -> None:
        lot = Lot(waker := current_waker())
        waiter = Waiter(waker, lot)
        lot.wake()
        async with create_task_group() as tasks:
            tasks.start_soon(waiter.wait)
            await settle()
            assert waiter.turns == 0
            lot.wake()
        assert waiter.turns == 1

    async def test_where_there_is_no_lot_nobody_waits(self) -> None:
        waiter = Waiter(current_waker(), None)
        with fail_after(5):
            await waiter.wait(3)
        assert waiter.turns == 3

    async def test_one_can_be_woken_alone(self) -> None:
        lot = Lot(waker := current_waker())
        waiters = [Waiter(waker, lot) for _ in range(3)]
        async with create_task_group() as tasks:
            for waiter in waiters:
                tasks.start_soon(waiter.wait)
            await settle()
            waiters[1].spot.wake()
            waiters[1].spot.wake()
            await settle()
            assert [waiter.turns for waiter in waiters] == [0, 1, 0]
            assert len(lot.parked) == 2
            lot.wake()
        assert [waiter.turns for waiter in waiters] == [1, 1, 1]

    async def test_waking_where_nobody_waits_is_nothing(self) -> None:
        lot = Lot(waker := current_waker())
        waiter = Waiter(waker, lot)
        waiter.spot.wake()
        lot.wake()
        await settle()
        assert not lot.scheduled

    async def test_who_parks_looks_again_once_a_thread_has_published(self) -> None:
        """What the thread added between the reader's last look and its parking would else be missed."""
        lot = Lot(waker := current_waker())
        waiter = Waiter(waker, lot)
        waiter.has_something = True
        waker.foreign = True
        with fail_after(5):
            await waiter.wait(3)
        assert not lot.parked

    async def test_who_is_cancelled_leaves_its_lot(self) -> None:
        lot = Lot(waker := current_waker())
        async with create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(Waiter(waker, lot).wait)
            await settle()
            assert len(lot.parked) == 20
            tasks.cancel_scope.cancel()
        assert not lot.parked

    @few_and_many
    async def test_one_that_moves_to_another_lot_is_woken_there(self, readers: int) -> None:
        waker = current_waker()
        here, there = Lot(waker), Lot(waker)
        waiters = [Waiter(waker, here) for _ in range(readers)]

        async def move(waiter: Waiter) -> None:
            await waiter.wait()
            waiter.spot.lot = there
            await waiter.wait()

        async with create_task_group() as tasks:
            for waiter in waiters:
                tasks.start_soon(move, waiter)
            await settle()
            here.wake()
            await settle()
            here.wake()
            await settle()
            assert [waiter.turns for waiter in waiters] == [1] * readers
            there.wake()
        assert [waiter.turns for waiter in waiters] == [2] * readers


class Test_the_cost_of_waking:
    @only_asyncio
    async def test_ten_thousand_readers_cost_one_callback(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        got = 0

        async def read(subscription: Subscription[int]) -> None:
            nonlocal got
            payloads = await take(subscription, 3)
            got += len(payloads)

        calls: list[Callable[..., object]] = []
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def counting(callback: Callable[..., object], *args: Any, **kwargs: Any) -> object:
            calls.append(callback)
            return call_soon(callback, *args, **kwargs)

        async with create_task_group() as tasks:
            for _ in range(10_000):
                tasks.start_soon(read, bus.subscribe(numbers))
            await settle(5)
            with monkeypatch.context() as patch:
                patch.setattr(loop, "call_soon", counting)
                for number in range(3):
                    bus.publish_nowait(numbers, number)
            asked = len(calls)
        assert asked == 1
        assert got == 30_000

    @only_asyncio
    @pytest.mark.parametrize(("readers", "lists"), [(CROWD, [[1], [2]]), (CROWD + 1, [[1, 2]])])
    async def test_a_crowd_finds_what_was_published_one_turn_later(
        self, bus: EventBus, readers: int, lists: list[list[int]]
    ) -> None:
        """Waking it takes so long that the publisher gets a turn first; fewer readers are woken at the next turn."""
        got: list[list[int]] = []

        async def read(subscription: Subscription[int]) -> None:
            async for batch in subscription.batches():
                got.append([event.payload for event in batch])
                if batch[-1].payload == 2:
                    return

        async with create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read, bus.subscribe(numbers))
            await settle(5)
            bus.publish_nowait(numbers, 1)
            await checkpoint()
            bus.publish_nowait(numbers, 2)
        assert sorted(got) == sorted(lists * readers)

    @pytest.mark.parametrize("readers", [FEW + 1, 1000])
    async def test_the_waker_is_asked_for_one_callback_for_all_topics(
        self, bus: EventBus, readers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = 0
        call_soon = bus._waker.call_soon

        def counting(function: Callable[[], object]) -> None:
            nonlocal calls
            calls += 1
            call_soon(function)

        monkeypatch.setattr(bus._waker, "call_soon", counting)
        async with create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(bus.subscribe(numbers).receive)
                tasks.start_soon(bus.subscribe(letters).receive)
            await settle(5)
            calls = 0
            for _ in range(10):
                bus.publish_nowait(numbers, 1)
                bus.publish_nowait(letters, "a")
            asked = calls
        assert asked == 1

    @only_asyncio
    @pytest.mark.parametrize("readers", [FEW, FEW + 1])
    async def test_readers_wake_in_the_order_in_which_they_waited(self, bus: EventBus, readers: int) -> None:
        order: list[int] = []

        async def read(number: int, subscription: Subscription[int]) -> None:
            async for _ in subscription:
                order.append(number)

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, number, bus.subscribe(numbers))
            await settle()
            for _ in range(3):
                bus.publish_nowait(numbers, 1)
                await settle()
            tasks.cancel_scope.cancel()
        assert order == [*range(readers)] * 3


class Test_cancelling_in_the_tick_of_the_wake_up:
    @few_and_many
    @pytest.mark.parametrize("first", ["publish", "cancel"])
    async def test_nothing_is_lost_and_nothing_comes_twice(self, bus: EventBus, readers: int, first: str) -> None:
        subscriptions = [bus.subscribe(numbers) for _ in range(readers)]
        seen: list[list[int]] = [[] for _ in range(readers)]
        for number in range(20):
            async with create_task_group() as tasks:
                for subscription, mine in zip(subscriptions, seen, strict=True):
                    tasks.start_soon(read_into, subscription, mine)
                await settle(5)
                if first == "publish":
                    bus.publish_nowait(numbers, number)
                    tasks.cancel_scope.cancel()
                else:
                    tasks.cancel_scope.cancel()
                    bus.publish_nowait(numbers, number)
        for subscription, mine in zip(subscriptions, seen, strict=True):
            assert mine + drain(subscription) == list(range(20))

    @pytest.mark.parametrize("readers", [FEW, 3 * FEW])
    async def test_the_others_are_woken_all_the_same(self, bus: EventBus, readers: int) -> None:
        seen: list[list[int]] = [[] for _ in range(readers)]
        scopes = [CancelScope() for _ in range(readers)]

        async def read(number: int) -> None:
            with scopes[number]:
                await read_into(bus.subscribe(numbers), seen[number])

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, number)
            await settle()
            scopes[0].cancel()
            bus.publish_nowait(numbers, 1)
            scopes[1].cancel()
            await settle()
            tasks.cancel_scope.cancel()
        assert seen[2:] == [[1]] * (readers - 2)

    @few_and_many
    async def test_a_reader_that_goes_on_after_it_was_cancelled_is_woken_again(
        self, bus: EventBus, readers: int
    ) -> None:
        subscriptions = [bus.subscribe(numbers) for _ in range(readers)]
        seen: list[list[int]] = [[] for _ in range(readers)]
        scopes = [CancelScope() for _ in range(readers)]

        async def read(number: int) -> None:
            with scopes[number]:
                await read_into(subscriptions[number], seen[number])
            await read_into(subscriptions[number], seen[number])

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, number)
            await settle()
            bus.publish_nowait(numbers, 1)
            for scope in scopes:
                scope.cancel()
            await settle()
            bus.publish_nowait(numbers, 2)
            await settle()
            tasks.cancel_scope.cancel()
        assert seen == [[1, 2]] * readers


class Test_a_reader_that_acts_on_others_while_all_are_woken:
    @pytest.mark.parametrize("readers", [FEW, 4 * FEW])
    async def test_it_cancels_some(self, bus: EventBus, readers: int) -> None:
        subscriptions = [bus.subscribe(numbers) for _ in range(readers)]
        seen: list[list[int]] = [[] for _ in range(readers)]
        scopes = [CancelScope() for _ in range(readers)]

        async def read(number: int) -> None:
            with scopes[number]:
                async for event in subscriptions[number]:
                    seen[number].append(event.payload)
                    if number == 0:
                        for scope in scopes[1::2]:
                            scope.cancel()

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, number)
            await settle()
            for number in (1, 2):
                bus.publish_nowait(numbers, number)
                await settle()
            tasks.cancel_scope.cancel()
        assert seen[0::2] == [[1, 2]] * len(seen[0::2])
        for subscription, mine in zip(subscriptions[1::2], seen[1::2], strict=True):
            assert mine + drain(subscription) == [1, 2]

    @pytest.mark.parametrize("readers", [FEW, 4 * FEW])
    async def test_it_closes_some(self, bus: EventBus, readers: int) -> None:
        subscriptions = [bus.subscribe(numbers) for _ in range(readers)]
        seen: list[list[int]] = [[] for _ in range(readers)]
        ended: list[int] = []

        async def read(number: int) -> None:
            async for event in subscriptions[number]:
                seen[number].append(event.payload)
                if number == 0:
                    for subscription in subscriptions[1::2]:
                        subscription.close()
            ended.append(number)

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, number)
            await settle()
            for number in (1, 2):
                bus.publish_nowait(numbers, number)
                await settle()
            tasks.cancel_scope.cancel()
        assert seen[0::2] == [[1, 2]] * len(seen[0::2])
        assert all(mine in ([], [1]) for mine in seen[1::2])
        assert sorted(ended) == list(range(readers))[1::2]

    @pytest.mark.parametrize("readers", [1, 4 * FEW])
    async def test_it_publishes(self, bus: EventBus, readers: int) -> None:
        seen: list[list[int]] = [[] for _ in range(readers)]

        async def read(number: int) -> None:
            async for event in bus.subscribe(numbers):
                seen[number].append(event.payload)
                if number == 0 and event.payload < 100:
                    bus.publish_nowait(numbers, event.payload + 1)

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, number)
            await settle()
            bus.publish_nowait(numbers, 0)
            with fail_after(5):
                while seen[-1][-1:] != [100]:
                    await checkpoint()
            await settle()
            tasks.cancel_scope.cancel()
        assert seen == [list(range(101))] * readers

    @pytest.mark.parametrize("readers", [1, 4 * FEW])
    async def test_it_subscribes_and_waits_anew(self, bus: EventBus, readers: int) -> None:
        """A new reader of the same lot, while the old ones are being stepped."""
        seen: list[list[int]] = [[] for _ in range(readers)]

        async def read(mine: list[int]) -> None:
            for _ in range(5):
                async with bus.subscribe(numbers) as subscription:
                    mine += await take(subscription, 1)

        async with create_task_group() as tasks:
            for mine in seen:
                tasks.start_soon(read, mine)
            for number in range(5):
                await settle()
                bus.publish_nowait(numbers, number)
        assert seen == [[0, 1, 2, 3, 4]] * readers


class Test_what_a_loop_does_to_its_tasks:
    @pytest.mark.parametrize("readers", [1, FEW, FEW + 1])
    async def test_parked_readers_count_as_blocked_until_they_are_woken(self, bus: EventBus, readers: int) -> None:
        seen: list[int] = []
        async with create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read_into, bus.subscribe(numbers), seen)
            with fail_after(5):
                for number in range(3):
                    await anyio.wait_all_tasks_blocked()
                    assert len(seen) == number * readers
                    bus.publish_nowait(numbers, number)
                await settle()
            tasks.cancel_scope.cancel()
        assert len(seen) == 3 * readers

    @pytest.mark.parametrize("readers", [1, FEW, FEW + 1, 20])
    async def test_readers_about_to_run_do_not_count_as_blocked(self, bus: EventBus, readers: int) -> None:
        """Woken by one that was itself woken in the turn that the question takes."""
        seen: list[str] = []

        async def relay(subscription: Subscription[int]) -> None:
            async for event in subscription:
                bus.publish_nowait(letters, str(event.payload))

        async def read(subscription: Subscription[str]) -> None:
            async for event in subscription:
                seen.append(event.payload)

        async with create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read, bus.subscribe(letters))
            tasks.start_soon(relay, bus.subscribe(numbers))
            await anyio.wait_all_tasks_blocked()
            for number in range(3):
                bus.publish_nowait(numbers, number)
                await anyio.wait_all_tasks_blocked()
                assert seen[number * readers :] == [str(number)] * readers
            tasks.cancel_scope.cancel()
        assert len(seen) == 3 * readers

    async def test_an_outer_scope_does_not_reach_into_a_shielded_read(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        seen: list[int] = []

        async def read() -> None:
            with CancelScope(shield=True):
                seen.extend(await take(subscription, 2))

        async with create_task_group() as tasks:
            tasks.start_soon(read)
            await settle()
            tasks.cancel_scope.cancel()
            with CancelScope(shield=True):
                for number in (1, 2):
                    await settle()
                    bus.publish_nowait(numbers, number)
        assert seen == [1, 2]

    @few_and_many
    async def test_a_reader_keeps_its_own_context(self, bus: EventBus, readers: int) -> None:
        """Not that of the publisher who woke it, nor that of the reader which was woken before it."""
        seen: list[tuple[str, str]] = []

        async def read(name: str) -> None:
            caller.set(name)
            async for _ in bus.subscribe(numbers):
                seen.append((name, caller.get()))
                caller.set(name)

        async with create_task_group() as tasks:
            for number in range(readers):
                tasks.start_soon(read, f"reader {number}")
            await settle()
            caller.set("publisher")
            for _ in range(3):
                bus.publish_nowait(numbers, 1)
                await settle()
            tasks.cancel_scope.cancel()
        assert len(seen) == 3 * readers
        assert all(name == found for name, found in seen)


@only_asyncio
class Test_plain_asyncio:
    @few_and_many
    async def test_a_timeout_cancels_a_waiting_reader(self, bus: EventBus, readers: int) -> None:
        async def read(subscription: Subscription[int]) -> int:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await subscription.receive()
            return (await subscription.receive()).payload

        reading = [asyncio.create_task(read(bus.subscribe(numbers))) for _ in range(readers)]
        await settle(50)
        bus.publish_nowait(numbers, 7)
        assert await asyncio.gather(*reading) == [7] * readers

    async def test_a_cancelled_reader_is_told_the_message(self, bus: EventBus) -> None:
        async with bus.subscribe(numbers) as subscription:
            task = asyncio.create_task(subscription.receive())
            await settle()
            task.cancel("go home")
            with pytest.raises(CancelledError, match="go home"):
                await task
            assert not lot_of(subscription).parked

    @few_and_many
    async def test_a_reader_that_uncancels_reads_on(self, bus: EventBus, readers: int) -> None:
        async def read(subscription: Subscription[int]) -> list[int]:
            task = asyncio.current_task()
            assert task is not None
            seen: list[int] = []
            while len(seen) < 2:
                try:
                    seen += await take(subscription, 1)
                except CancelledError:
                    task.uncancel()
            return seen

        reading = [asyncio.create_task(read(bus.subscribe(numbers))) for _ in range(readers)]
        await settle()
        for number in (1, 2):
            for task in reading:
                task.cancel()
                task.cancel()
            bus.publish_nowait(numbers, number)
            await settle()
        assert await asyncio.gather(*reading) == [[1, 2]] * readers
        assert [task.cancelling() for task in reading] == [2] * readers

    @pytest.mark.parametrize("readers", [1, 4 * FEW])
    async def test_cancelled_after_the_wake_up_it_is_cancelled_still(self, bus: EventBus, readers: int) -> None:
        subscriptions = [bus.subscribe(numbers) for _ in range(readers)]
        reading = [asyncio.create_task(subscription.receive()) for subscription in subscriptions]
        await settle()
        bus.publish_nowait(numbers, 1)
        assert all(task.cancel("too late?") for task in reading)
        results = await asyncio.gather(*reading, return_exceptions=True)
        assert [type(result) for result in results] == [CancelledError] * readers
        assert [drain(subscription) for subscription in subscriptions] == [[1]] * readers

    async def test_a_failing_sibling_ends_waiting_readers(self, bus: EventBus) -> None:
        async def fail() -> None:
            await settle()
            raise LookupError

        async def run() -> list[Task[Any]]:
            readers = []
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as tasks:
                    readers = [tasks.create_task(bus.subscribe(numbers).receive()) for _ in range(3 * FEW)]
                    tasks.create_task(fail())
            assert [type(error) for error in caught.value.exceptions] == [LookupError]
            return readers

        # In a task of its own: before Python 3.13 such a group leaves its task marked as being cancelled.
        readers = await asyncio.create_task(run())
        assert all(task.cancelled() for task in readers)

    async def test_a_waiting_reader_can_be_looked_at(self, bus: EventBus) -> None:
        subscription = bus.subscribe(numbers)
        task = asyncio.create_task(subscription.receive(), name="the reader")
        await settle()
        assert task in asyncio.all_tasks()
        assert "wait_for=<" in repr(task)
        assert "receive" in task.get_stack()[0].f_code.co_qualname
        task.print_stack(file=(text := io.StringIO()))
        assert "the reader" in text.getvalue()
        bus.publish_nowait(numbers, 1)
        assert (await task).payload == 1

    @few_and_many
    async def test_debug_mode_finds_nothing(self, bus: EventBus, readers: int) -> None:
        asyncio.get_running_loop().set_debug(True)
        reading = [asyncio.create_task(take(bus.subscribe(numbers), 2)) for _ in range(readers)]
        for number in (1, 2):
            await settle()
            bus.publish_nowait(numbers, number)
        assert await asyncio.gather(*reading) == [[1, 2]] * readers

    async def test_a_read_within_wait(self, bus: EventBus) -> None:
        one = asyncio.create_task(take(bus.subscribe(numbers), 1))
        other = asyncio.create_task(take(bus.subscribe(numbers), 2))
        await settle()
        bus.publish_nowait(numbers, 1)
        done, pending = await asyncio.wait({one, other}, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [[1]]
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)

    async def test_a_subscription_can_be_read_by_one_task_after_another(self, bus: EventBus) -> None:
        """Its spot was used by a task that is gone."""
        subscription = bus.subscribe(numbers)
        for number in range(3):
            task = asyncio.create_task(subscription.receive())
            await settle()
            bus.publish_nowait(numbers, number)
            assert (await task).payload == number


@contextmanager
def a_loop() -> Iterator[AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def run_through(loop: AbstractEventLoop, main: Coroutine[Any, Any, None]) -> int:
    """Runs the loop to the end of `main`, again after each exception that leaves it. Returns how many did."""
    task, escaped = loop.create_task(main), 0
    while True:
        try:
            loop.run_until_complete(task)
        except (KeyboardInterrupt, SystemExit):
            escaped += 1
            if task.done():
                raise
        else:
            return escaped


class Test_a_reader_that_stops_the_loop:
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("readers", [FEW, 5 * FEW])
    @pytest.mark.parametrize("bad", [0, 1, 2])
    def test_takes_no_wake_up_from_the_others(self, kind: type[BaseException], readers: int, bad: int) -> None:
        """`asyncio.Runner` goes on with the loop to clean up, and so may a program."""
        seen: list[list[int]] = [[] for _ in range(readers)]

        async def read(bus: EventBus, number: int) -> None:
            async for event in bus.subscribe(numbers):
                if number == bad:
                    raise kind
                seen[number].append(event.payload)

        async def main() -> None:
            async with EventBus() as bus:
                reading = [asyncio.create_task(read(bus, number)) for number in range(readers)]
                await settle()
                for number in (1, 2):
                    bus.publish_nowait(numbers, number)
                    await settle()
                assert reading[bad].done()
                for task in reading:
                    task.cancel()
                results = await asyncio.gather(*reading, return_exceptions=True)
                assert isinstance(results[bad], kind)

        with a_loop() as loop:
            assert run_through(loop, main()) == 1
        assert seen == [[] if number == bad else [1, 2] for number in range(readers)]


if sys.version_info >= (3, 12):

    @only_asyncio
    class Test_eager_tasks:
        """They run until they first wait while somebody else's task is in the middle of a step."""

        @pytest.fixture(autouse=True)
        async def _eager(self) -> None:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        @few_and_many
        async def test_a_reader_that_has_to_wait_is_woken(self, readers: int) -> None:
            async with EventBus() as bus:
                reading = [asyncio.create_task(take(bus.subscribe(numbers), 2)) for _ in range(readers)]
                for number in (1, 2):
                    await settle()
                    bus.publish_nowait(numbers, number)
                assert await asyncio.gather(*reading) == [[1, 2]] * readers

        @few_and_many
        async def test_readers_that_start_readers(self, readers: int) -> None:
            started: list[Task[list[int]]] = []

            async def read(bus: EventBus) -> int:
                (number,) = await take(bus.subscribe(numbers), 1)
                started.append(asyncio.create_task(take(bus.subscribe(numbers), 1)))
                return number

            async with EventBus() as bus:
                reading = [asyncio.create_task(read(bus)) for _ in range(readers)]
                for number in (1, 2):
                    await settle()
                    bus.publish_nowait(numbers, number)
                assert await asyncio.gather(*reading) == [1] * readers
                assert await asyncio.gather(*started) == [[2]] * readers

        async def test_one_that_need_not_wait_is_done_at_once(self) -> None:
            async def read(subscription: Subscription[int]) -> int:
                async for event in subscription:
                    return event.payload
                raise SubscriptionClosed("numbers")

            async with EventBus() as bus:
                subscription = bus.subscribe(numbers)
                bus.publish_nowait(numbers, 1)
                task = asyncio.create_task(read(subscription))
                assert task.done()
                assert task.result() == 1

        async def test_cancelled_while_it_waits(self) -> None:
            async with EventBus() as bus, bus.subscribe(numbers) as subscription:
                task = asyncio.create_task(take(subscription, 1))
                await settle()
                task.cancel()
                bus.publish_nowait(numbers, 1)
                with pytest.raises(CancelledError):
                    await task
                assert drain(subscription) == [1]

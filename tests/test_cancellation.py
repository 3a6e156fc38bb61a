"""Cancelled publishes, always a checkpoint, what comes out of a bus, and every method before and after its life."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after

from eventstream import (
    EARLIEST,
    Append,
    BusClosed,
    EventBus,
    Position,
    Subscription,
    Topic,
)
from support import Price, counting_turns, drain, settle

words = Topic("words", str)
prices = Topic("prices", Price, key="symbol", compacted=True)

WAYS: dict[str, Callable[[EventBus], Awaitable[Position]]] = {
    "publish": lambda bus: bus.publish(prices, Price("X", 1.0)),
    "publish with terms": lambda bus: bus.publish(prices, Price("X", 1.0), id="one"),
    "publish_many": lambda bus: bus.publish_many(prices, [Price("X", 1.0), Price("Y", 1.0)]),
    "publish_many of none": lambda bus: bus.publish_many(prices, []),
    "delete": lambda bus: bus.delete(prices, "X"),
    "refresh": lambda bus: bus.refresh(prices),
}
every_way = pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])


class Test_publishing:
    @every_way
    async def test_cancelled_before_it_nothing_happens(self, bus: EventBus, way: Callable[[EventBus], Any]) -> None:
        before = await bus.publish(prices, Price("Z", 1.0))
        with CancelScope() as scope:
            scope.cancel()
            await way(bus)
        assert scope.cancelled_caught
        assert bus.statistics().topics["prices"].head == before

    @every_way
    async def test_it_is_a_checkpoint(self, bus: EventBus, way: Callable[[EventBus], Any]) -> None:
        """A loop that only publishes lets others run."""
        async with counting_turns() as turns:
            await settle(3)
            before = turns()
            for _ in range(10):
                await way(bus)
            assert turns() - before >= 9

    @every_way
    @pytest.mark.parametrize("cancel_first", [True, False])
    async def test_who_is_told_of_a_cancellation_knows_that_nothing_happened(
        self, bus: EventBus, way: Callable[[EventBus], Any], cancel_first: bool
    ) -> None:
        """And who is cancelled too late is told the position."""
        before = await bus.publish(prices, Price("Z", 1.0))
        results: list[Position] = []
        scope = CancelScope()

        async def publish() -> None:
            with scope:
                results.append(await way(bus))

        async def cancel() -> None:
            scope.cancel()

        async with create_task_group() as tasks:
            for what in (cancel, publish) if cancel_first else (publish, cancel):
                tasks.start_soon(what)
        head = bus.statistics().topics["prices"].head
        assert head == (results[0] if results else before)
        assert scope.cancelled_caught == (not results)

    async def test_a_reader_in_the_same_task_sees_its_own_publish_at_once(self, bus: EventBus) -> None:
        subscription = bus.subscribe(words)
        await bus.publish(words, "a")
        assert drain(subscription) == ["a"]

    async def test_publish_nowait_is_no_checkpoint(self, bus: EventBus) -> None:
        with CancelScope() as scope:  # noqa: ASYNC100  # that is the point
            scope.cancel()
            bus.publish_nowait(words, "a")
        assert not scope.cancelled_caught
        assert drain(bus.subscribe(words, after=EARLIEST)) == ["a"]


class Boom(Exception):
    """What the body raises."""


class Test_what_comes_out_of_a_bus:
    async def test_an_exception_comes_out_as_it_is(self) -> None:
        boom = Boom()
        with pytest.raises(Boom) as caught:
            async with EventBus() as bus:
                await bus.publish(words, "a")
                raise boom
        assert caught.value is boom
        assert boom.__cause__ is None
        assert boom.__context__ is None

    async def test_so_does_a_group_and_what_ends_generators(self) -> None:
        for error in (ExceptionGroup("two", [Boom(), Boom()]), StopAsyncIteration(), StopIteration(), RuntimeError()):
            with pytest.raises(type(error)) as caught:
                async with EventBus():
                    raise error
            assert caught.value is error

    async def test_also_while_readers_views_and_builds_run(self) -> None:
        with pytest.raises(Boom):
            async with EventBus() as bus, bus.view(prices) as view:

                @bus.snapshot(words)
                async def source(key: str | None, append: Append) -> int:
                    await anyio.sleep_forever()
                    return 0

                bus.subscribe(words)
                await view.ready()
                await settle()
                raise Boom

    async def test_what_the_bus_held_is_freed(self) -> None:
        class Object:
            pass

        topic: Topic[Object] = Topic("objects", Object)
        alive: weakref.WeakSet[Object] = weakref.WeakSet()
        bus = EventBus()
        with pytest.raises(Boom):
            async with bus:
                subscription = bus.subscribe(topic)
                for _ in range(1000):
                    payload = Object()
                    alive.add(payload)
                    bus.publish_nowait(topic, payload)
                del payload
                raise Boom
        gc.collect()
        assert not alive
        assert subscription.lag == 0

    async def test_a_cancelled_bus_closes(self) -> None:
        told: list[str] = []

        async def read(subscription: Subscription[str]) -> None:
            with CancelScope(shield=True), pytest.raises(BusClosed):
                await subscription.receive()
            told.append("closed")

        with fail_after(5):
            async with create_task_group() as outer:
                with CancelScope() as scope:
                    async with EventBus() as bus:
                        outer.start_soon(read, bus.subscribe(words))
                        await settle()
                        scope.cancel()
                        await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert told == ["closed"]
        assert "closed" in repr(bus)

    async def test_a_bus_that_is_cancelled_as_it_is_entered_is_not_entered(self) -> None:
        with CancelScope() as scope:
            scope.cancel()
            async with EventBus() as bus:
                await bus.publish(words, "a")
        assert scope.cancelled_caught

    async def test_readers_may_be_closed_after_it(self) -> None:
        async with EventBus() as bus:
            subscription = bus.subscribe(words)
            inside = bus.subscribe(words)
            async with inside:
                pass
        subscription.close()
        subscription.close()
        with pytest.raises(BusClosed):
            subscription.receive_nowait()

    async def test_a_subscription_may_outlive_its_bus(self) -> None:
        """Closed inside out or not: leaving its `async with` is no error."""
        async with EventBus() as bus:
            subscription = bus.subscribe(words)
            await subscription.__aenter__()
        await subscription.__aexit__(None, None, None)

    async def test_so_may_a_view(self) -> None:
        async with EventBus() as bus:
            await bus.publish(prices, Price("X", 1.0))
            view = await bus.view(prices).__aenter__()
            await view.ready()
        assert view["X"] == Price("X", 1.0)
        await view.__aexit__(None, None, None)
        assert dict(view) == {"X": Price("X", 1.0)}

    async def test_nobody_is_left_behind(self) -> None:
        """All tasks of a bus end with it: the group around it would else never end."""
        with fail_after(5):
            async with create_task_group(), EventBus() as bus:

                @bus.on(words)
                async def handler(event: Any) -> None:
                    await anyio.sleep_forever()

                @bus.snapshot(words)
                async def source(key: str | None, append: Append) -> int:
                    return 0

                await bus.publish(words, "a")
                async with bus.view(words):
                    await settle()


METHODS: dict[str, Callable[[EventBus], Any]] = {
    **WAYS,
    "publish_nowait": lambda bus: bus.publish_nowait(words, "a"),
    "publish_nowait with terms": lambda bus: bus.publish_nowait(words, "a", id="one", expect=0, index=9),
    "subscribe": lambda bus: bus.subscribe(words),
    "subscribe after": lambda bus: bus.subscribe(words, key="a", after=EARLIEST),
    "view": lambda bus: bus.view(prices),
    "revoke": lambda bus: bus.revoke("me"),
    "statistics": lambda bus: bus.statistics(),
}


class Test_before_and_after:
    @pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])
    async def test_every_method_says_that_the_bus_does_not_run(self, method: Callable[[EventBus], Any]) -> None:
        bus = EventBus()
        for state in ("new", "closed"):
            with pytest.raises(BusClosed) as caught:
                result = method(bus)
                if isinstance(result, Awaitable):
                    await result
            assert caught.value.state == state
            if state == "new":
                async with bus:
                    await bus.publish(words, "a")
                    await bus.publish(prices, Price("X", 1.0))

    async def test_a_bus_is_entered_once(self) -> None:
        bus = EventBus()
        async with bus:
            pass
        with pytest.raises(BusClosed) as caught:
            await bus.__aenter__()
        assert caught.value.state == "closed"

    async def test_reading_after_the_bus_is_told(self) -> None:
        async with EventBus() as bus:
            subscriptions: list[Subscription[Any]] = [bus.subscribe(words)]
            subscriptions += [bus.subscribe(words, key="a"), bus.subscribe(prices)]
            await bus.publish(words, "a")
        for subscription in subscriptions:
            for _ in range(2):
                with pytest.raises(BusClosed):
                    await subscription.receive()
                with pytest.raises(BusClosed):
                    subscription.receive_nowait()
                with pytest.raises(BusClosed):
                    async for _event in subscription:
                        pass
                with pytest.raises(BusClosed):
                    async for _batch in subscription.batches():
                        pass
                with pytest.raises(BusClosed):
                    async for _frame in subscription.frames():
                        pass

    async def test_a_position_can_still_be_saved_after_it(self) -> None:
        async with EventBus() as bus:
            subscription = bus.subscribe(words)
            head = await bus.publish(words, "a")
            await subscription.receive()
            await bus.publish(words, "b")
        assert subscription.position == head
        assert "BusClosed" in repr(subscription)
        assert subscription.statistics().delivered == 1

    async def test_a_view_that_was_made_before_and_is_entered_after_it_is_refused(self) -> None:
        async with EventBus() as bus:
            view = bus.view(prices)
        with pytest.raises(BusClosed):
            await view.__aenter__()

    async def test_handlers_and_sources_may_be_registered_before(self) -> None:
        bus = EventBus()
        seen: list[str] = []

        @bus.on(words)
        async def handler(event: Any) -> None:
            seen.append(event.payload)

        @bus.snapshot(prices)
        async def source(key: str | None, append: Append) -> int:
            append(Price("X", 1.0))
            return 0

        async with bus:
            await bus.publish(words, "a")
            assert drain(subscription := bus.subscribe(prices)) == []
            assert (await subscription.receive()).payload == Price("X", 1.0)
            await settle()
        assert seen == ["a"]

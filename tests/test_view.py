"""Views: the state as a mapping, whole at every moment, current, and honest about its age."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio
import pytest
from anyio import BusyResourceError, create_task_group, fail_after
from trio.testing import MockClock

from eventstream import (
    Append,
    BusClosed,
    EventBus,
    NotCompacted,
    Position,
    PositionLost,
    SnapshotFailed,
    SubscriptionClosed,
    Topic,
    View,
)
from support import Price, settle

prices = Topic("prices", Price, key="symbol", compacted=True)


def run_on_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


class Source:
    """A source over a dict that can be broken."""

    def __init__(self) -> None:
        self.rows: dict[str, float] = {}
        self.index = 0
        self.error: Exception | None = None
        self.runs = 0

    async def __call__(self, key: str | None, append: Append) -> int:
        self.runs += 1
        if self.error is not None:
            raise self.error
        for symbol, bid in self.rows.items():
            append(Price(symbol, bid))
        return self.index


class Test_View:
    async def test_it_is_a_mapping_that_follows_the_topic(self, bus: EventBus) -> None:
        await bus.publish(prices, Price("X", 1.0))
        async with bus.view(prices) as view:
            await view.ready()
            assert dict(view) == {"X": Price("X", 1.0)}
            assert len(view) == 1
            assert "X" in view
            assert "Y" not in view
            assert view["X"].bid == 1.0
            with pytest.raises(KeyError):
                view["Y"]
            await view.reached(await bus.publish(prices, Price("Y", 2.0)))
            await view.reached(await bus.delete(prices, "X"))
            assert dict(view) == {"Y": Price("Y", 2.0)}
            assert repr(view) == "<View of 1 keys>"

    async def test_of_one_key_or_a_prefix(self, bus: EventBus) -> None:
        for symbol in ("AA", "AB", "B"):
            await bus.publish(prices, Price(symbol, 1.0))
        async with bus.view(prices, key="AA") as one, bus.view(prices, prefix="A") as several:
            await one.ready()
            await several.ready()
            assert list(one) == ["AA"]
            assert list(several) == ["AA", "AB"]

    async def test_ready_means_with_all_that_was_published_before(self, bus: EventBus) -> None:
        """Also when the snapshot is a shared one, and a little old."""
        for number in range(3000):
            bus.publish_nowait(prices, Price(f"s{number}", 0.0))
        async with bus.view(prices) as first:
            await first.ready()
            for number in range(2500):
                bus.publish_nowait(prices, Price(f"s{number}", 1.0))
            async with bus.view(prices, prefix="s") as view:
                await view.ready()
                assert sum(price.bid for price in view.values()) == 2500
            await first.ready()
            assert sum(price.bid for price in first.values()) == 2500

    async def test_one_can_read_ones_writes(self, bus: EventBus) -> None:
        async with bus.view(prices) as view, bus.view(prices, key="X") as narrow:
            await view.ready()
            for number in range(300):
                position = await bus.publish(prices, Price("XY"[number % 2], number))
                await view.reached(position)
                assert view["XY"[number % 2]].bid == number
                with fail_after(5):
                    await narrow.reached(position)  # though every second event is not for it
                assert narrow["X"].bid == number - number % 2
                assert narrow.position == position

    async def test_a_batch_is_seen_whole_or_not_at_all(self, bus: EventBus) -> None:
        async with bus.view(prices) as view:
            await view.ready()

            async def watch() -> None:
                async for _ in view.changes():
                    assert len({price.bid for price in view.values()}) == 1

            async with create_task_group() as tasks:
                tasks.start_soon(watch)
                for number in range(20):
                    await bus.publish_many(prices, [Price(symbol, number) for symbol in "ABC"])
                    await settle(2)
                tasks.cancel_scope.cancel()

    async def test_equal_views_share_one_mirror(self, bus: EventBus) -> None:
        async with bus.view(prices) as one:
            async with bus.view(prices) as two, bus.view(prices, prefix="A"):
                assert bus.statistics().views == 2
                assert bus.statistics().topics["prices"].subscribers in (0, 2)
                await two.ready()
            assert bus.statistics().views == 1
            await one.ready()
        await settle()
        assert bus.statistics().views == 0
        assert bus.statistics().subscribers == 0

    async def test_a_reset_replaces_the_whole_mapping_at_once(self) -> None:
        async with EventBus() as bus:
            rows = Topic("rows", Price, key="symbol")
            source = Source()
            source.rows = {"old1": 1.0, "old2": 1.0}
            bus.snapshot(rows)(source)
            async with bus.view(rows) as view:
                await view.ready()
                seen = []

                async def watch() -> None:
                    async for keys in view.changes():
                        seen.append((set(keys), set(view)))

                async with create_task_group() as tasks:
                    tasks.start_soon(watch)
                    await settle()
                    source.rows = {"new": 1.0, "old2": 2.0}
                    await bus.refresh(rows)
                    await settle()
                    tasks.cancel_scope.cancel()
                assert seen == [({"old1", "old2", "new"}, {"new", "old2"})]
                assert view.statistics().resets == 1

    async def test_a_laggard_view_is_whole_again(self, bus: EventBus) -> None:
        small = Topic("small", Price, key="symbol", compacted=True, max_lag=5)
        async with bus.view(small) as view:
            await view.ready()
            for number in range(100):
                bus.publish_nowait(small, Price(f"s{number}", 1.0))
            assert len(view) == 0
            await view.ready()
            assert len(view) == 100

    async def test_the_last_value_is_served_while_the_source_is_away(self) -> None:
        async with EventBus(random=Random(1)) as bus:
            rows = Topic("rows", Price, key="symbol")
            source = Source()
            source.rows = {"X": 1.0}
            bus.snapshot(rows)(source)
            async with bus.view(rows) as view:
                await view.ready()
                assert view.age == 0
                source.error = LookupError("away")
                await bus.refresh(rows)
                await settle()
                assert dict(view) == {"X": Price("X", 1.0)}
                assert view.age >= 0
                assert view.statistics().failures >= 1
                await view.ready()

    def test_it_tells_its_age_and_tries_again_ever_more_rarely(self) -> None:
        async def main() -> None:
            async with EventBus(random=Random(1)) as bus:
                rows = Topic("rows", Price, key="symbol")
                source = Source()
                source.rows = {"X": 1.0}
                bus.snapshot(rows)(source)
                async with bus.view(rows) as view:
                    await view.ready()
                    assert view.age == 0
                    source.error = LookupError("away")
                    await bus.refresh(rows)
                    await anyio.sleep(1000)
                    assert view.age == pytest.approx(1000, abs=1)
                    assert 30 < source.runs < 200, "full jitter over at most 30 s"
                    assert dict(view) == {"X": Price("X", 1.0)}
                    source.error, source.rows = None, {"Y": 2.0}
                    await anyio.sleep(31)
                    assert view.age == 0
                    assert dict(view) == {"Y": Price("Y", 2.0)}
                    assert view.statistics().failures == 0

        run_on_virtual_time(main)

    async def test_who_waits_for_the_first_state_learns_of_its_failure(self, bus: EventBus) -> None:
        rows = Topic("rows", Price, key="symbol")
        source = Source()
        source.error = LookupError("away")
        bus.snapshot(rows)(source)
        async with bus.view(rows) as view:
            with pytest.raises(SnapshotFailed) as caught:
                await view.ready()
            assert caught.value.__cause__ is source.error
            assert view.position is None

    async def test_a_position_of_another_epoch_is_never_reached(self, bus: EventBus) -> None:
        position = await bus.publish(prices, Price("X", 1.0))
        async with bus.view(prices) as view:
            await view.reached(position)
            for never in (Position("other", 1), Position(position.epoch, 2)):
                with pytest.raises(PositionLost):
                    await view.reached(never)
            new = await bus.refresh(prices)
            await view.reached(new)
            assert len(view) == 0
            with pytest.raises(PositionLost):
                await view.reached(position)

    async def test_a_topic_without_state_has_none(self, bus: EventBus) -> None:
        with pytest.raises(NotCompacted, match="cannot view topic 'plain'") as caught:
            bus.view(Topic("plain", int))
        assert (caught.value.topic, caught.value.action) == ("plain", "view")
        with pytest.raises(ValueError, match="not both"):
            bus.view(prices, key="a", prefix="b")

    async def test_outside_of_async_with_it_follows_nothing(self, bus: EventBus) -> None:
        await bus.publish(prices, Price("X", 1.0))
        view = bus.view(prices)
        assert dict(view) == {}
        calls: list[Callable[[], Any]] = [view.changes, view.statistics, lambda: view.age, lambda: view.position]
        for call in calls:
            with pytest.raises(SubscriptionClosed):
                call()
        with pytest.raises(SubscriptionClosed):
            await view.ready()
        async with view:
            await view.ready()
            with pytest.raises(BusyResourceError):
                await view.__aenter__()
        assert dict(view) == {"X": Price("X", 1.0)}, "the last mapping stays"
        with pytest.raises(SubscriptionClosed):
            await view.reached(Position("e", 1))

    async def test_closing_the_bus_ends_those_who_wait(self) -> None:
        errors: list[BaseException] = []

        rows = Topic("rows", Price, key="symbol")

        async def hang(key: str | None, append: Append) -> int:
            await anyio.Event().wait()
            return 0

        async def wait_for(view: View[Price]) -> None:
            with pytest.raises(BusClosed):
                await view.ready()
            errors.append(BusClosed("closed"))

        async def watch(view: View[Price]) -> None:
            with pytest.raises(BusClosed):
                async for _ in view.changes():
                    pass
            errors.append(BusClosed("closed"))

        async with create_task_group() as tasks, EventBus() as bus:
            bus.snapshot(rows)(hang)
            view = bus.view(rows)
            await view.__aenter__()
            tasks.start_soon(wait_for, view)
            tasks.start_soon(watch, view)
            await settle()
        assert len(errors) == 2

    async def test_leaving_it_ends_those_who_wait_though_others_share_its_mirror(self, bus: EventBus) -> None:
        rows = Topic("rows", Price, key="symbol")

        @bus.snapshot(rows)
        async def hang(key: str | None, append: Append) -> int:
            await anyio.Event().wait()
            return 0

        async def wait_for(view: View[Price]) -> None:
            with fail_after(5), pytest.raises(SubscriptionClosed):
                await view.ready()

        async with bus.view(rows), create_task_group() as tasks:
            async with bus.view(rows) as view:
                tasks.start_soon(wait_for, view)
                await settle()
            with pytest.raises(SubscriptionClosed):
                await view.__aenter__()


class Test_changes:
    async def test_an_iterator_that_nobody_holds_is_forgotten(self, bus: EventBus) -> None:
        async with bus.view(prices) as view:
            await view.ready()
            for _ in range(100):
                view.changes()
            gc.collect()
            assert view._mirror is not None
            assert len(view._mirror.changes) == 0

    async def test_they_tell_the_keys_that_changed_since_the_last_look(self, bus: EventBus) -> None:
        await bus.publish(prices, Price("old", 1.0))
        async with bus.view(prices) as view:
            await view.ready()
            changes = view.changes()
            await bus.publish_many(prices, [Price("a", 1.0), Price("b", 1.0)])
            await view.reached(await bus.publish(prices, Price("a", 2.0)))
            assert await changes.__anext__() == {"a", "b"}
            await view.reached(await bus.delete(prices, "old"))
            assert await changes.__anext__() == {"old"}
            assert "old" not in view

    async def test_what_came_and_went_between_two_looks_is_not_told(self, bus: EventBus) -> None:
        """That bounds what an iterator that is never looked at can hold."""
        async with bus.view(prices) as view:
            await view.ready()
            changes = view.changes()
            for number in range(1000):
                await bus.publish(prices, Price(f"s{number}", 1.0))
                await bus.delete(prices, f"s{number}")
            await view.reached(await bus.publish(prices, Price("stays", 1.0)))
            assert len(changes._existed) == 1  # type: ignore[attr-defined]  # its memory is what is tested
            assert await changes.__anext__() == {"stays"}

    async def test_they_end_with_the_view(self, bus: EventBus) -> None:
        seen = []
        async with bus.view(prices) as view:
            await view.ready()
            changes = view.changes()
            await view.reached(await bus.publish(prices, Price("a", 1.0)))
        async for keys in changes:
            seen.append(keys)
        assert seen == [{"a"}]

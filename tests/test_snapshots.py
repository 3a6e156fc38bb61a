"""Snapshots: sources, single flight, the splice in every interleaving, the cache, refresh."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after
from anyio.lowlevel import checkpoint
from trio.testing import MockClock

from eventstream import (
    EARLIEST,
    Append,
    EventBus,
    Position,
    Resumed,
    SnapshotEnd,
    SnapshotFailed,
    SnapshotOptions,
    SnapshotStart,
    Subscription,
    SubscriptionReset,
    Topic,
)
from eventstream.snapshots.splice import Extent, FromSnapshot, Lost, Resume, plan
from support import Price, collecting, drain, settle

prices = Topic("prices", Price, key="symbol", compacted=True)
rows = Topic("rows", str, key=lambda text: text[0])


class Table:
    """An application's state with an order of its own, and a source over it that a test can hold or break."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.version = 0
        self.answer: object = None
        self.runs: list[str | None] = []
        self.gate = anyio.Event()
        self.gate.set()
        self.error: Exception | None = None

    def commit(self, *rows: str) -> int:
        self.rows += rows
        self.version += 1
        return self.version

    async def source(self, key: str | None, append: Append) -> int:
        self.runs.append(key)
        version = self.version
        for row in list(self.rows):
            if key is None or row.startswith(key):
                append(row)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return version if self.answer is None else self.answer  # type: ignore[return-value]  # wrong on purpose


@asynccontextmanager
async def table_bus(**options: Any) -> AsyncIterator[tuple[EventBus, Table]]:
    table = Table()
    async with EventBus(snapshots=SnapshotOptions(**options)) as bus:
        bus.snapshot(rows)(table.source)
        yield bus, table


def state(*frames: Any) -> list[Any]:
    """Frames without the epoch, short enough to compare."""
    short: list[Any] = []
    for frame in frames:
        match frame:
            case SnapshotStart(position, reason):
                short.append(("start", reason))
            case SnapshotEnd(position):
                short.append(("end", position.index))
            case Resumed(position):
                short.append(("resumed", position.index))
            case _:
                short.append(frame)
    return short


class Test_plan:
    """All of subscribe's cases as one table."""

    extent = Extent("e", floor=10, head=20, horizon=22)

    @pytest.mark.parametrize(
        ("after", "with_snapshot", "without"),
        [
            (None, FromSnapshot("new"), Resume(20)),
            (EARLIEST, Resume(10), Resume(10)),
            (Position("e", 20), Resume(20), Resume(20)),
            (Position("e", 15), Resume(15), Resume(15)),
            (Position("e", 10), Resume(10), Resume(10)),
            (Position("e", 22), Resume(22), Resume(22)),
            (Position("e", 9), FromSnapshot("expired"), Lost(Position("e", 9))),
            (Position("e", 0), FromSnapshot("expired"), Lost(Position("e", 0))),
            (Position("e", 23), FromSnapshot("epoch"), Lost(Position("e", 23))),
            (Position("f", 15), FromSnapshot("epoch"), Lost(Position("f", 15))),
        ],
    )
    def test_decides(self, after: Any, with_snapshot: Any, without: Any) -> None:
        assert plan(after, self.extent, has_snapshot=True) == with_snapshot
        assert plan(after, self.extent, has_snapshot=False) == without

    def test_before_the_first_event_there_is_nothing_to_miss(self) -> None:
        young = Extent("e", floor=0, head=5, horizon=5)
        assert plan(Position("e", 0), young, has_snapshot=False) == Resume(0)
        assert plan(Position("e", 0), young, has_snapshot=True) == FromSnapshot("expired")


class Test_compacted_topic:
    async def test_its_snapshot_is_the_newest_event_of_each_key(self, bus: EventBus) -> None:
        await bus.publish(prices, Price("X", 1.0))
        await bus.publish(prices, Price("Y", 2.0))
        await bus.publish(prices, Price("X", 3.0))
        async with collecting(bus.subscribe(prices)) as seen:
            await bus.publish(prices, Price("Z", 4.0))
            await settle()
            assert state(*seen) == [("start", "new"), Price("Y", 2.0), Price("X", 3.0), ("end", 3), Price("Z", 4.0)]

    async def test_of_one_key_it_is_that_keys_event(self, bus: EventBus) -> None:
        await bus.publish(prices, Price("X", 1.0))
        await bus.publish(prices, Price("Y", 2.0))
        async with collecting(bus.subscribe(prices, key="X")) as seen:
            assert state(*seen) == [("start", "new"), Price("X", 1.0), ("end", 2)]
        async with collecting(bus.subscribe(prices, key="Q")) as seen:
            assert state(*seen) == [("start", "new"), ("end", 2)]

    async def test_of_a_prefix_it_is_those_keys(self, bus: EventBus) -> None:
        for symbol in ("AA", "AB", "B"):
            await bus.publish(prices, Price(symbol, 1.0))
        async with collecting(bus.subscribe(prices, prefix="A")) as seen:
            assert state(*seen) == [("start", "new"), Price("AA", 1.0), Price("AB", 1.0), ("end", 3)]

    async def test_a_tombstone_is_an_event_and_then_the_key_is_gone(self, bus: EventBus) -> None:
        await bus.publish(prices, Price("X", 1.0))
        async with collecting(bus.subscribe(prices)) as seen:
            await bus.delete(prices, "X")
            await settle()
            assert state(*seen) == [("start", "new"), Price("X", 1.0), ("end", 1), None]
        async with collecting(bus.subscribe(prices)) as seen:
            # From the cache: the snapshot is older than the tombstone, which follows it.
            assert state(*seen) == [("start", "new"), Price("X", 1.0), ("end", 1), None]

    async def test_it_goes_further_back_than_the_history(self, bus: EventBus) -> None:
        topic = Topic("small", Price, key="symbol", compacted=True, retain=1)
        await bus.publish(topic, Price("old", 1.0))
        for number in range(500):
            await bus.publish(topic, Price("new", number))
        async with collecting(bus.subscribe(topic)) as seen:
            assert state(*seen) == [("start", "new"), Price("old", 1.0), Price("new", 499), ("end", 501)]


class Test_source:
    async def test_events_follow_its_state_without_gap_or_repetition(self) -> None:
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            async with collecting(bus.subscribe(rows)) as seen:
                bus.publish_nowait(rows, "b2", index=table.commit("b2"))
                await settle()
                assert state(*seen) == [("start", "new"), "a1", ("end", 1), "b2"]

    async def test_what_is_published_while_it_runs_is_neither_lost_nor_doubled(self) -> None:
        async with table_bus() as (bus, table):
            for number in range(1, 4):
                bus.publish_nowait(rows, f"a{number}", index=table.commit(f"a{number}"))
            table.gate = anyio.Event()
            async with collecting(bus.subscribe(rows)) as seen:
                for number in range(4, 300):
                    bus.publish_nowait(rows, f"a{number}", index=table.commit(f"a{number}"))
                await settle()
                assert state(*seen) == [("start", "new"), "a1", "a2", "a3"], "the snapshot is read while it is built"
                table.gate.set()
                await settle(60)
                assert state(*seen[4:]) == [("end", 3), *[f"a{number}" for number in range(4, 300)]]

    async def test_a_commit_that_it_saw_before_it_was_published_comes_once(self) -> None:
        """Commit N is visible to the source, batch N is published only afterwards: also with more of them waiting."""
        async with table_bus() as (bus, table):
            for number in range(1, 6):
                table.commit(f"a{number}")
            bus.publish_nowait(rows, "a1", index=1)
            async with collecting(bus.subscribe(rows)) as seen:
                for number in range(2, 8):
                    bus.publish_nowait(rows, f"a{number}", index=number)
                    await settle(2)
                assert state(*seen) == [("start", "new"), "a1", "a2", "a3", "a4", "a5", ("end", 5), "a6", "a7"]

    async def test_who_resumes_from_a_snapshot_ahead_of_the_bus_gets_nothing_twice(self) -> None:
        async with table_bus() as (bus, table):
            for number in range(1, 6):
                table.commit(f"a{number}")
            bus.publish_nowait(rows, "a1", index=1)
            async with collecting(subscription := bus.subscribe(rows)):
                position = subscription.position
            assert position.index == 5
            async with collecting(bus.subscribe(rows, after=position)) as seen:
                for number in range(2, 8):
                    bus.publish_nowait(rows, f"a{number}", index=number)
                await settle()
                assert state(*seen) == [("resumed", 5), "a6", "a7"]

    async def test_the_first_live_event_may_stand_in_the_captured_segment(self) -> None:
        """The live place was the end of the buffer; what the source did not know of starts right there."""
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            table.gate = anyio.Event()
            async with collecting(bus.subscribe(rows, key="a")) as seen:
                bus.publish_nowait(rows, "a2", index=table.commit("a2"))
                table.answer = 2  # it read a2 as well, as far as it says
                table.gate.set()
                await settle()
                assert state(*seen) == [("start", "new"), "a1", ("end", 2)]

    @pytest.mark.parametrize("key", [None, "a"])
    async def test_an_answer_behind_the_bus_is_completed_from_the_history(self, key: str | None) -> None:
        async with table_bus() as (bus, table):
            table.rows, table.answer = ["a1"], 1
            for number in range(1, 5):
                bus.publish_nowait(rows, f"{'ab'[number % 2 == 0]}{number}", index=number)
            async with collecting(bus.subscribe(rows, key=key)) as seen:
                bus.publish_nowait(rows, "a5")
                await settle()
                between = ["b2", "a3", "b4"] if key is None else ["a3"]
                assert state(*seen) == [("start", "new"), "a1", *between, ("end", 4), "a5"]

    async def test_an_answer_older_than_the_history_is_refused(self) -> None:
        short = Topic("short", str, retain=2)
        async with EventBus() as bus:

            @bus.snapshot(short)
            async def source(key: str | None, append: Append) -> int:
                return 1

            for number in range(10):
                bus.publish_nowait(short, str(number))
            with pytest.raises(SnapshotFailed, match="answered for index 1, events are retained after 8") as caught:
                await bus.subscribe(short).receive()
            assert caught.value.why == "index"

    async def test_an_index_of_0_with_a_state_is_allowed(self) -> None:
        """Before the first event of an epoch the application may have a state already."""
        async with table_bus() as (bus, table):
            table.rows = ["a"]
            async with collecting(bus.subscribe(rows)) as seen:
                bus.publish_nowait(rows, "b")
                await settle()
                assert state(*seen) == [("start", "new"), "a", ("end", 0), "b"]

    async def test_one_run_serves_all_who_wait_for_the_same_key(self) -> None:
        async with table_bus(ttl=0) as (bus, table):
            table.commit("a1", "b1")
            table.gate = anyio.Event()
            same = [bus.subscribe(rows, key="a") for _ in range(10)]
            other = bus.subscribe(rows, key="b")
            whole = bus.subscribe(rows, prefix="a")
            await settle()
            assert sorted(table.runs, key=str) == [None, "a", "b"]
            table.gate.set()
            await settle()
            for subscription in same:
                assert drain(subscription) == ["a1"]
            assert drain(other) == ["b1"]
            assert drain(whole) == ["a1"]

    async def test_a_slow_source_holds_up_nobody_else(self) -> None:
        async with table_bus() as (bus, table):
            table.gate = anyio.Event()
            bus.subscribe(rows, key="a")
            async with collecting(bus.subscribe(prices)) as seen:
                await bus.publish(prices, Price("X", 1.0))
                await settle()
                assert seen[-1] == Price("X", 1.0)

    async def test_who_leaves_does_not_stop_it_for_the_others(self) -> None:
        async with table_bus() as (bus, table):
            table.commit("a1")
            table.gate = anyio.Event()
            impatient, patient = bus.subscribe(rows, key="a"), bus.subscribe(rows, key="a")
            with anyio.move_on_after(0):
                await impatient.receive()
            impatient.close()
            table.gate.set()
            await settle()
            assert drain(patient) == ["a1"]

    async def test_it_is_cancelled_when_all_readers_of_its_key_have_left(self) -> None:
        cancelled = False
        async with EventBus() as bus:

            @bus.snapshot(rows)
            async def source(key: str | None, append: Append) -> int:
                nonlocal cancelled
                try:
                    await anyio.Event().wait()
                finally:
                    cancelled = True
                return 0

            subscription = bus.subscribe(rows, key="a")
            await settle()
            subscription.close()
            await settle()
            assert cancelled

    async def test_the_decorator_gives_the_function_back_and_takes_one_source(self, bus: EventBus) -> None:
        table = Table()
        source = table.source
        assert bus.snapshot(rows)(source) is source
        with pytest.raises(ValueError, match="has a snapshot source already"):
            bus.snapshot(rows)(source)

    async def test_it_may_be_registered_before_the_bus_runs(self) -> None:
        bus = EventBus()
        table = Table()
        table.commit("a1")
        bus.snapshot(rows)(table.source)
        async with bus:
            with fail_after(5):
                assert (await bus.subscribe(rows).receive()).payload == "a1"

    async def test_it_says_what_it_knows_of_each_event(self, bus: EventBus) -> None:
        plain = Topic("plain", str)

        @bus.snapshot(plain)
        async def source(key: str | None, append: Append) -> int:
            append("x", key="k", index=3, time=12.5, headers={"h": "1"})
            append("y")
            return 4

        subscription = bus.subscribe(plain)
        event = await subscription.receive()
        assert (event.key, event.index, event.time, event.headers) == ("k", 3, 12.5, {"h": "1"})
        assert (await subscription.receive()).key == ""
        assert subscription.position.index == 0, "until its end a resume starts the snapshot again"


class Test_a_source_that_breaks_its_promise:
    @pytest.mark.parametrize("answer", [None, -1, "3", 1.0, True, 2**63])
    async def test_an_answer_that_is_no_index(self, bus: EventBus, answer: Any) -> None:
        @bus.snapshot(rows)
        async def source(key: str | None, append: Append) -> int:
            return answer  # type: ignore[no-any-return]  # wrong on purpose

        with pytest.raises(SnapshotFailed) as caught:
            await bus.subscribe(rows).receive()
        assert (caught.value.topic, caught.value.key, caught.value.why) == ("rows", None, "index")

    async def test_an_index_below_what_it_appended(self, bus: EventBus) -> None:
        @bus.snapshot(rows)
        async def source(key: str | None, append: Append) -> int:
            append("a", index=7)
            return 6

        subscription = bus.subscribe(rows)
        assert (await subscription.receive()).payload == "a"
        with pytest.raises(SnapshotFailed, match="returned 6 after it had appended index 7"):
            await subscription.receive()

    @pytest.mark.parametrize(
        ("arguments", "options", "why"),
        [
            ((7,), {}, "payload"),
            (("",), {}, "raised"),
            (("b",), {}, "payload"),
            (("a",), {"key": "a"}, "raised"),
            (("a",), {"index": -1}, "index"),
            (("a",), {"headers": {"": ""}}, "payload"),
        ],
    )
    async def test_an_append_that_is_not_the_topics(
        self, bus: EventBus, arguments: Any, options: dict[str, Any], why: str
    ) -> None:
        @bus.snapshot(rows)
        async def source(key: str | None, append: Append) -> int:
            append(*arguments, **options)
            return 1

        with pytest.raises(SnapshotFailed) as caught:
            await bus.subscribe(rows, key="a").receive()
        assert caught.value.why == why
        assert caught.value.key == "a"

    async def test_raising_ends_its_readers_after_what_they_have(self) -> None:
        async with table_bus() as (bus, table):
            table.commit("a1", "a2")
            table.error = LookupError("disk is away")
            one, two = bus.subscribe(rows), bus.subscribe(rows)
            for subscription in (one, two):
                assert (await subscription.receive()).payload == "a1"
                assert (await subscription.receive()).payload == "a2"
                for _ in range(2):
                    with pytest.raises(SnapshotFailed) as caught:
                        await subscription.receive()
                    assert caught.value.why == "raised"
                    assert caught.value.__cause__ is table.error
                    assert caught.value.temporary
            assert bus.statistics().subscribers == 0

    async def test_a_failure_is_not_kept_but_tried_again_for_the_next(self) -> None:
        async with table_bus() as (bus, table):
            table.commit("a1")
            table.error = LookupError()
            broken = bus.subscribe(rows)
            assert (await broken.receive()).payload == "a1"
            with pytest.raises(SnapshotFailed):
                await broken.receive()
            table.error = None
            async with collecting(bus.subscribe(rows)) as seen:
                assert state(*seen) == [("start", "new"), "a1", ("end", 1)]

    async def test_one_that_is_not_async_is_told_how_to_be(self, bus: EventBus) -> None:
        bus.snapshot(rows)(lambda key, append: 0)  # type: ignore[type-var]  # wrong on purpose
        with pytest.raises(SnapshotFailed, match="the source is not async: write 'async def'") as caught:
            await bus.subscribe(rows).receive()
        assert caught.value.why == "raised"

    async def test_what_it_raised_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """Who waits may be a view, or in another process, and cannot tell what it was."""
        async with table_bus() as (bus, table):
            table.error = LookupError("no such table")
            async with bus.view(rows) as view:
                with caplog.at_level("WARNING", "eventstream.snapshots"), pytest.raises(SnapshotFailed):
                    await view.ready()
        assert "the snapshot source of topic 'rows' failed" in caplog.text
        assert "LookupError: no such table" in caplog.text

    async def test_its_own_TimeoutError_is_not_taken_for_ours(self) -> None:
        async with table_bus() as (bus, table):
            table.error = TimeoutError()
            with pytest.raises(SnapshotFailed) as caught:
                await bus.subscribe(rows).receive()
            assert caught.value.why == "raised"

    def test_hanging_is_ended_by_the_timeout(self) -> None:
        async def main() -> None:
            async with table_bus(timeout=30) as (bus, table):
                table.gate = anyio.Event()
                started = anyio.current_time()
                with pytest.raises(SnapshotFailed, match="took more than 30 s") as caught:
                    await bus.subscribe(rows).receive()
                assert caught.value.why == "timeout"
                assert anyio.current_time() - started == 30

        anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})

    async def test_appending_more_than_the_bound(self) -> None:
        async with table_bus(max_events=10) as (bus, table):
            table.commit(*[f"a{number}" for number in range(11)])
            subscription = bus.subscribe(rows)
            with pytest.raises(SnapshotFailed, match="more than 10 events"):
                while True:
                    await subscription.receive()

    async def test_appending_after_it_returned(self, bus: EventBus) -> None:
        kept: list[Append] = []

        @bus.snapshot(rows)
        async def source(key: str | None, append: Append) -> int:
            kept.append(append)
            return 0

        async with collecting(bus.subscribe(rows)):
            with pytest.raises(RuntimeError, match="after the source had returned"):
                kept[0]("a")

    async def test_more_events_than_the_bound_while_it_runs(self) -> None:
        """What is published while a source hangs is pinned for its readers: it must not grow without end."""
        lagging = Topic("lagging", str, max_lag=50)
        runs, gate = 0, anyio.Event()
        async with EventBus() as bus:

            @bus.snapshot(lagging)
            async def source(key: str | None, append: Append) -> int:
                nonlocal runs
                runs += 1
                if runs == 1:
                    await gate.wait()
                return 0

            subscription = bus.subscribe(lagging)
            await settle()
            for number in range(60):
                bus.publish_nowait(lagging, str(number))
            with pytest.raises(SubscriptionReset) as caught:
                subscription.receive_nowait()
            assert caught.value.reason == "lagged"
            await settle()
            assert runs == 2, "the build that pinned too much was given up, another one serves"
            assert drain(subscription) == [str(number) for number in range(60)]


class Test_single_flight_and_cache:
    async def test_a_second_reader_starts_from_the_kept_snapshot(self) -> None:
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            async with collecting(bus.subscribe(rows)):
                pass
            table.error = LookupError("the source is broken by now")
            bus.publish_nowait(rows, "a2", index=table.commit("a2"))
            async with collecting(bus.subscribe(rows)) as seen:
                bus.publish_nowait(rows, "a3", index=table.commit("a3"))
                await settle()
                assert state(*seen) == [("start", "new"), "a1", ("end", 1), "a2", "a3"]
            assert table.runs == [None]
            statistics = bus.statistics().snapshots
            assert (statistics.entries, statistics.events, statistics.hits, statistics.misses) == (1, 1, 1, 1)

    async def test_framing_is_each_readers_own(self) -> None:
        """A snapshot that was built for a reader with a stale position serves one who is new."""
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            stale = Position(bus.statistics().topics["rows"].head.epoch, 0)
            async with collecting(bus.subscribe(rows, after=stale)) as seen:
                assert state(*seen) == [("start", "expired"), "a1", ("end", 1)]
            async with collecting(bus.subscribe(rows)) as seen:
                assert state(*seen) == [("start", "new"), "a1", ("end", 1)]
            async with collecting(bus.subscribe(rows, after=Position("other", 5))) as seen:
                assert state(*seen) == [("start", "epoch"), "a1", ("end", 1)]
            assert table.runs == [None]

    async def test_a_plain_loop_is_told_that_its_position_is_no_good(self) -> None:
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            subscription = bus.subscribe(rows, after=Position("other", 5))
            with pytest.raises(SubscriptionReset) as caught:
                await subscription.receive()
            assert (caught.value.topic, caught.value.reason, caught.value.position.index) == ("rows", "epoch", 0)
            assert (await subscription.receive()).payload == "a1"

    async def test_ten_thousand_readers_hold_one_copy(self, bus: EventBus) -> None:
        for number in range(100):
            bus.publish_nowait(prices, Price(f"s{number}", 1.0))
        subscriptions = [bus.subscribe(prices) for _ in range(1000)]
        firsts = {id(subscription.receive_nowait()) for subscription in subscriptions}
        assert len(firsts) == 1
        assert bus.statistics().snapshots.hits == 999

    async def test_ttl_0_keeps_nothing(self) -> None:
        async with table_bus(ttl=0) as (bus, table):
            for _ in range(2):
                async with collecting(bus.subscribe(rows)):
                    pass
            assert table.runs == [None, None]
            assert bus.statistics().snapshots.entries == 0

    def test_it_is_let_go_when_its_time_is_over(self) -> None:
        async def main() -> None:
            async with table_bus(ttl=10) as (bus, _), collecting(bus.subscribe(rows)):
                assert bus.statistics().snapshots.entries == 1
                await anyio.sleep(9.9)
                assert bus.statistics().snapshots.entries == 1
                await anyio.sleep(0.2)
                assert bus.statistics().snapshots.entries == 0

        anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})

    def test_an_entry_is_not_let_go_at_its_predecessors_time(self) -> None:
        async def main() -> None:
            async with table_bus(ttl=10) as (bus, table):
                async with collecting(bus.subscribe(rows)):
                    await anyio.sleep(6)
                    await bus.refresh(rows)
                    await settle()
                    assert bus.statistics().snapshots.entries == 1
                    await anyio.sleep(6)
                    assert bus.statistics().snapshots.entries == 1
                    await anyio.sleep(5)
                    assert bus.statistics().snapshots.entries == 0
                assert table.runs == [None, None]

        anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})

    async def test_it_is_replaced_when_its_live_tail_has_outgrown_it(self) -> None:
        async with table_bus() as (bus, table):
            async with collecting(bus.subscribe(rows)):
                for number in range(1, 130):
                    bus.publish_nowait(rows, f"a{number}", index=table.commit(f"a{number}"))
                assert bus.statistics().snapshots.entries == 1, "emptied entries are cleared when they are looked up"
            async with collecting(bus.subscribe(rows)) as seen:
                assert state(*seen)[-1] == ("end", 129)
            assert table.runs == [None, None]

    async def test_a_kept_snapshot_pins_no_more_than_its_tail(self, bus: EventBus) -> None:
        """Nobody subscribes any more, the publisher alone goes on: the cache must not keep the stream alive."""
        topic: Topic[Any] = Topic("objects", object, key=lambda _: "k", compacted=True, retain=0)
        alive: weakref.WeakSet[Any] = weakref.WeakSet()

        class Object:
            pass

        async with collecting(bus.subscribe(topic)):
            pass
        for _ in range(3000):
            payload = Object()
            alive.add(payload)
            bus.publish_nowait(topic, payload)
            del payload
        await settle()
        gc.collect()
        assert len(alive) <= 3 * 128

    async def test_entries_and_events_are_bounded_least_recently_used_first(self) -> None:
        async with table_bus(cache_entries=2) as (bus, table):
            table.commit("a", "b", "c")
            keep = []
            for key in "abc":
                keep.append(bus.subscribe(rows, key=key))
                await settle()
            assert table.runs == ["a", "b", "c"]
            bus.subscribe(rows, key="b")
            bus.subscribe(rows, key="a")
            await settle()
            assert table.runs == ["a", "b", "c", "a"], "a was let go for c, then c for a: b was used later"
            bus.subscribe(rows, key="b")
            await settle()
            assert len(table.runs) == 4
            assert bus.statistics().snapshots.entries == 2
            assert bus.statistics().snapshots.evicted == 2
            assert [drain(subscription) for subscription in keep] == [["a"], ["b"], ["c"]]
        async with table_bus(cache_events=3) as (bus, table):
            table.commit("a1", "a2", "b1", "b2", "b3", "b4")
            bus.subscribe(rows, key="a")
            await settle()
            assert bus.statistics().snapshots.events == 2
            bus.subscribe(rows, key="b")
            await settle()
            assert bus.statistics().snapshots.events == 2, "a snapshot above the bound is not kept at all"

    async def test_with_the_last_reader_of_a_key_its_snapshot_goes_too(self) -> None:
        """Else the next reader would be spliced to a channel that nobody writes to any more."""
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            async with collecting(subscription := bus.subscribe(rows, key="a")):
                assert bus.statistics().snapshots.entries == 1
            subscription.close()
            assert bus.statistics().snapshots.entries == 0
            async with collecting(bus.subscribe(rows, key="a")) as seen:
                bus.publish_nowait(rows, "a2", index=table.commit("a2"))
                await settle()
                assert state(*seen) == [("start", "new"), "a1", ("end", 1), "a2"]

    @pytest.mark.parametrize("bad", [{"ttl": -1}, {"timeout": "x"}, {"cache_entries": float("nan")}])
    def test_options_out_of_bounds_are_refused(self, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            SnapshotOptions(**bad)


class Test_lag_with_a_snapshot:
    async def test_a_laggard_starts_again_from_a_snapshot(self, bus: EventBus) -> None:
        topic = Topic("small", Price, key="symbol", compacted=True, max_lag=10)
        subscription = bus.subscribe(topic)
        frames = subscription.frames()
        assert state(await frames.__anext__(), await frames.__anext__()) == [("start", "new"), ("end", 0)]
        for number in range(50):
            bus.publish_nowait(topic, Price("X", number))
        assert state(await frames.__anext__()) == [("start", "lagged")]
        async with collecting(subscription) as seen:
            bus.publish_nowait(topic, Price("Y", 1.0))
            await settle()
            assert state(*seen) == [Price("X", 49), ("end", 50), Price("Y", 1.0)]
        assert subscription.statistics().resets == 1

    async def test_a_plain_loop_gets_the_reset_as_an_exception_and_goes_on(self, bus: EventBus) -> None:
        topic = Topic("small", Price, key="symbol", compacted=True, max_lag=10)
        subscription = bus.subscribe(topic)
        assert drain(subscription) == []
        for number in range(50):
            bus.publish_nowait(topic, Price("X", number))
        with pytest.raises(SubscriptionReset) as caught:
            async for _ in subscription:
                pass
        assert caught.value.reason == "lagged"
        assert drain(subscription) == [Price("X", 49)]

    async def test_a_storm_of_laggards_converges(self, bus: EventBus) -> None:
        topic = Topic("small", Price, key="symbol", compacted=True, max_lag=10)
        subscriptions = [bus.subscribe(topic) for _ in range(200)]
        for subscription in subscriptions:
            drain(subscription)
        for number in range(100):
            bus.publish_nowait(topic, Price(f"s{number}", number))
        misses = bus.statistics().snapshots.misses
        for subscription in subscriptions:
            with pytest.raises(SubscriptionReset):
                subscription.receive_nowait()
            assert len(drain(subscription)) == 100
            assert subscription.lag == 0
        assert bus.statistics().snapshots.misses == misses + 1

    async def test_what_the_snapshot_covers_is_not_behind(self) -> None:
        """Published while the source ran, and seen by it: that is in the snapshot, and counted there alone."""
        gate = anyio.Event()
        async with EventBus() as bus:

            @bus.snapshot(rows)
            async def source(key: str | None, append: Append) -> int:
                append("a")
                await gate.wait()
                return 30

            subscription = bus.subscribe(rows)
            await settle()
            for number in range(40):
                bus.publish_nowait(rows, f"b{number}")
            assert subscription.lag == 41
            gate.set()
            await settle()
            assert subscription.lag == 11
            assert len(drain(subscription)) == 11
            assert subscription.lag == 0


class Test_refresh:
    async def test_every_reader_starts_again(self) -> None:
        async with table_bus() as (bus, table):
            bus.publish_nowait(rows, "a1", index=table.commit("a1"))
            async with collecting(bus.subscribe(rows)) as whole, collecting(bus.subscribe(rows, key="a")) as one:
                table.rows, table.version = ["a9"], 0
                position = await bus.refresh(rows)
                assert position.index == 0
                bus.publish_nowait(rows, "a2", index=table.commit("a2"))
                await settle()
                for seen in (whole, one):
                    again = seen[seen.index(SnapshotStart(position, "refreshed")) :]
                    assert state(*again) == [("start", "refreshed"), "a9", "a2", ("end", 1)]

    async def test_nothing_of_the_old_history_reaches_anybody(self, bus: EventBus) -> None:
        for number in range(100):
            bus.publish_nowait(prices, Price("old", number))
        old = bus.statistics().topics["prices"].head
        unread = bus.subscribe(prices)
        unread.receive_nowait()
        await bus.refresh(prices)
        bus.publish_nowait(prices, Price("new", 1.0))
        with pytest.raises(SubscriptionReset) as caught:
            unread.receive_nowait()
        assert caught.value.reason == "refreshed"
        assert drain(unread) == [Price("new", 1.0)]
        assert drain(bus.subscribe(prices)) == [Price("new", 1.0)]
        with pytest.raises(SubscriptionReset) as caught:
            bus.subscribe(prices, after=old).receive_nowait()
        assert caught.value.reason == "epoch"

    async def test_in_the_middle_of_a_chunk_the_rest_is_not_handed_out(self, bus: EventBus) -> None:
        subscription = bus.subscribe(prices)
        assert drain(subscription) == []
        await bus.publish_many(prices, [Price(f"s{number}", 1.0) for number in range(10)])
        seen = []
        with pytest.raises(SubscriptionReset):
            async for event in subscription:
                seen.append(event.key)
                if len(seen) == 3:
                    await bus.refresh(prices)
        assert seen == ["s0", "s1", "s2"]

    async def test_a_running_build_of_the_old_state_is_forgotten(self) -> None:
        async with table_bus() as (bus, table):
            table.commit("a1")
            table.gate = anyio.Event()
            async with collecting(bus.subscribe(rows)) as seen:
                table.rows = ["a9"]
                await bus.refresh(rows)
                table.gate.set()
                await settle()
                assert state(*seen) == [("start", "new"), "a1", ("start", "refreshed"), "a9", ("end", 1)]
            assert table.runs == [None, None]

    async def test_where_there_is_no_snapshot_the_position_is_lost(self, bus: EventBus) -> None:
        from eventstream import PositionLost

        plain = Topic("plain", int)
        subscription = bus.subscribe(plain)
        await bus.publish(plain, 1)
        await bus.refresh(plain)
        with pytest.raises(PositionLost):
            await subscription.receive()

    async def test_dedupe_and_expectations_start_anew(self, bus: EventBus) -> None:
        first = await bus.publish(prices, Price("X", 1.0), id="one")
        await bus.refresh(prices)
        second = await bus.publish(prices, Price("X", 1.0), id="one", expect=0)
        assert second.epoch != first.epoch
        assert second.index == 1


class Test_canary:
    async def test_a_busy_writer_and_a_slow_snapshot_lose_and_double_nothing(self) -> None:
        """The classic: state is read at 10, 11 comes while it is sent, who then follows 'from now' misses 11."""
        table: dict[str, int] = {f"row{number}": 0 for number in range(1000)}
        canary = Topic("canary", tuple, key=lambda row: row[0])
        version = 0

        async with EventBus(snapshots=SnapshotOptions(ttl=0)) as bus:

            @bus.snapshot(canary)
            async def source(key: str | None, append: Append) -> int:
                at, state = version, dict(table)
                for number, row in enumerate(state.items()):
                    if key in (None, row[0]):
                        append(row)
                    if number % 50 == 0:
                        await checkpoint()
                return at

            async def read(subscription: Subscription[Any]) -> None:
                last: int | None = None
                async for event in subscription:
                    name, value = event.payload
                    if name == "canary":
                        assert last is None or value == last + 1, f"{last} was followed by {value}"
                        last = value
                        if value == 100:
                            return

            async with create_task_group() as tasks:
                for number in range(101):
                    table["canary"] = number
                    version += 1
                    bus.publish_nowait(canary, ("canary", number), index=version)
                    if number % 15 == 0:
                        tasks.start_soon(read, bus.subscribe(canary))
                        tasks.start_soon(read, bus.subscribe(canary, key="canary"))
                    for _ in range(number % 4):
                        await checkpoint()

"""The log in a file: what survives a restart, and reading further back than memory."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from eventstream import (
    EARLIEST,
    Bookmark,
    Conflict,
    Event,
    EventBus,
    EventStreamError,
    IndexOrder,
    NowaitUnsupported,
    Position,
    PositionLost,
    Resumed,
    Retention,
    SnapshotEnd,
    SnapshotFailed,
    SnapshotStart,
    SQLiteLog,
    Subscription,
    Topic,
)
from eventstream.errors import InvalidPayload
from eventstream.logs.sqlite import life, pages, store
from eventstream.logs.sqlite import log as log_module
from eventstream.logs.sqlite.pages import read_page
from eventstream.logs.sqlite.trimming import Trimming
from support import Price, settle, take

words = Topic("words", str, retain=10)
prices = Topic("prices", Price, key="symbol", compacted=True, retain=10)
short = Topic("short", str, retain=1)
keyed = Topic("keyed", dict, key="k", retain=10)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "events.db")


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 16)


def bus_on(path: str, **options: Any) -> EventBus:
    return EventBus(SQLiteLog(path, durability="process", **options))  # a test waits for no disk


async def fill(path: str, count: int, topic: Topic[Any] = words) -> Position:
    """Publishes "0", "1", … in a life of the bus that ends."""
    async with bus_on(path) as bus:
        for number in range(0, count, 3):  # in batches of three, the last maybe shorter
            position = await bus.publish_many(topic, [str(n) for n in range(number, min(number + 3, count))])
        return position


async def read_to(subscription: Subscription[Any], index: int) -> list[Event[Any]]:
    """All events up to one of an index."""
    events: list[Event[Any]] = []
    async for batch in subscription.batches():
        events += batch
        if batch[-1].index >= index:
            return events
    raise AssertionError("closed")


class Gate:
    """Holds up the reading of pages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.open = threading.Event()
        self.open.set()
        read_page = pages.read_page

        def read(*args: Any) -> Any:
            self.reads += 1
            page = read_page(*args)
            self.open.wait()
            return page

        monkeypatch.setattr("eventstream.logs.sqlite.log.read_page", read)


class Test_restart:
    async def test_epoch_and_indexes_go_on(self, path: str) -> None:
        async with bus_on(path) as bus:
            first = await bus.publish(words, "a")
        async with bus_on(path) as bus:
            assert await bus.head(words) == first
            assert await bus.publish(words, "b") == Position(first.epoch, 2)

    async def test_a_saved_position_is_resumed_without_a_reset(self, path: str) -> None:
        head = await fill(path, 300)
        async with bus_on(path) as bus, bus.subscribe(words, after=Position(head.epoch, 97)) as subscription:
            frames = subscription.frames()
            assert await anext(frames) == Resumed(Position(head.epoch, 97))
            assert [getattr(await anext(frames), "payload", None) for _ in range(9)] == [
                str(n) for n in range(291, 300)
            ]
            assert subscription.position == head

    async def test_events_come_back_as_they_were(self, path: str) -> None:
        clock = Clock()
        async with bus_on(path, clock=clock) as bus:
            await bus.publish(prices, Price("X", 1.5), headers={"trace": "7"})
        async with bus_on(path) as bus, bus.subscribe(prices, after=EARLIEST) as subscription:
            assert await subscription.receive() == Event("prices", "X", 1, Price("X", 1.5), 1000.0, {"trace": "7"})

    async def test_a_topic_that_nobody_published_to_keeps_its_epoch(self, path: str) -> None:
        async with bus_on(path) as bus:
            position = await bus.head(words)
        async with bus_on(path) as bus:
            assert await bus.head(words) == position
            async with bus.subscribe(words, after=position) as subscription:
                await bus.publish(words, "a")
                assert await take(subscription, 1) == ["a"]

    async def test_a_refresh_is_final(self, path: str) -> None:
        async with bus_on(path) as bus:
            old = await bus.publish(words, "a")
            new = await bus.refresh(words)
            assert new.epoch != old.epoch
            await bus.publish(words, "b")
        async with bus_on(path) as bus:
            assert await bus.head(words) == Position(new.epoch, 1)
            async with bus.subscribe(words, after=old) as lost:
                with pytest.raises(PositionLost):
                    await lost.receive()
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                assert await take(subscription, 1) == ["b"]

    async def test_ids_are_remembered(self, path: str) -> None:
        clock = Clock()
        async with bus_on(path, clock=clock) as bus:
            first = await bus.publish(words, "a", id="one")
            await bus.publish(words, "b")
        async with bus_on(path, clock=clock) as bus:
            assert await bus.publish(words, "c", id="one") == first
            clock.now += 121
            assert (await bus.publish(words, "c", id="one")).index == 3

    async def test_ids_outlive_the_events_that_had_them(self, path: str) -> None:
        clock = Clock()
        async with bus_on(path, clock=clock, retention=Retention(events=1)) as bus:
            first = await bus.publish(short, "a", id="one")
            await bus.publish(short, "b")
            log: Any = bus._log
            await log.trim()
            assert bus.statistics().topics["short"].floor == 1
        async with bus_on(path, clock=clock) as bus:
            assert await bus.publish(short, "c", id="one") == first

    async def test_an_index_may_be_given(self, path: str) -> None:
        async with bus_on(path) as bus:
            assert (await bus.publish(words, "a", index=500)).index == 500
        async with bus_on(path) as bus:
            with pytest.raises(IndexOrder):
                await bus.publish(words, "b", index=500)
            assert (await bus.publish(words, "b")).index == 501

    async def test_what_is_expected_of_a_key_is_known(self, path: str) -> None:
        async with bus_on(path) as bus:
            await bus.publish(prices, Price("X", 1.0))
            await bus.publish(prices, Price("Y", 1.0))
        async with bus_on(path) as bus:
            with pytest.raises(Conflict) as caught:
                await bus.publish(prices, Price("X", 2.0), expect=0)
            assert caught.value.actual == 1
            await bus.publish(prices, Price("X", 2.0), expect=1)
            await bus.publish(prices, Price("Z", 2.0), expect=0)

    async def test_nothing_can_be_published_at_once(self, path: str) -> None:
        async with bus_on(path) as bus:
            assert not bus.can_nowait
            with pytest.raises(NowaitUnsupported):
                bus.publish_nowait(words, "a")


class Test_keys_of_topics_without_a_key_function:
    async def test_the_empty_key_is_expected_like_any(self, path: str) -> None:
        async with bus_on(path) as bus:
            await bus.publish(words, "a", expect=0)
            await bus.publish(words, "b", expect=1)
            await bus.publish(words, "c", key="k", expect=0)
            await bus.publish(words, "d", expect=2)
        async with bus_on(path) as bus:
            await bus.publish(words, "e", key="k", expect=3)
            await bus.publish(words, "f", expect=4)


class Test_compaction:
    async def publish(self, path: str) -> Position:
        async with bus_on(path) as bus:
            for number in range(100):
                await bus.publish(prices, Price(f"s{number % 7}", float(number)))
            await bus.delete(prices, "s3")
            return await bus.head(prices)

    async def test_the_state_survives(self, path: str) -> None:
        head = await self.publish(path)
        async with bus_on(path) as bus, bus.view(prices) as view:
            await view.ready()
            assert {key: price.bid for key, price in view.items()} == {
                "s0": 98, "s1": 99, "s2": 93, "s4": 95, "s5": 96, "s6": 97,
            }  # fmt: skip
            assert view.position == head

    async def test_the_snapshot_of_one_key(self, path: str) -> None:
        head = await self.publish(path)
        async with bus_on(path) as bus, bus.subscribe(prices, key="s5") as subscription:
            frames = subscription.frames()
            assert await anext(frames) == SnapshotStart(Position(head.epoch, 0), "new")
            event: Any = await anext(frames)
            assert (event.payload, event.index) == (Price("s5", 96.0), 97)
            assert await anext(frames) == SnapshotEnd(head)

    async def test_what_is_published_while_it_is_loaded_wins(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.publish(path)
        let = threading.Event()
        read_state = pages.read_state

        def slowly(*args: Any) -> Any:
            state = read_state(*args)
            let.wait()
            return state

        monkeypatch.setattr("eventstream.logs.sqlite.log.read_state", slowly)
        async with bus_on(path) as bus:
            async with bus.view(prices) as view, bus.subscribe(prices, key="s0") as of_key:
                await settle()
                await bus.publish(prices, Price("s0", 1000.0))
                await bus.delete(prices, "s1")
                await bus.publish(prices, Price("s3", 1001.0))
                head = await bus.head(prices)
                let.set()
                await view.reached(head)
                assert view["s0"].bid == 1000
                assert view["s3"].bid == 1001
                assert sorted(view) == ["s0", "s2", "s3", "s4", "s5", "s6"]
                assert await take(of_key, 1) == [Price("s0", 1000.0)]
            async with bus.subscribe(prices) as subscription:  # in the order of their indexes, as always
                assert [price.symbol for price in await take(subscription, 6)] == ["s2", "s4", "s5", "s6", "s0", "s3"]

    async def test_it_is_loaded_once_for_all(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.publish(path)
        calls: list[int] = []
        read_state = pages.read_state

        def counting(*args: Any) -> Any:
            calls.append(1)
            return read_state(*args)

        monkeypatch.setattr("eventstream.logs.sqlite.log.read_state", counting)
        async with bus_on(path) as bus:
            subscriptions = [bus.subscribe(prices, key=f"s{number}") for number in range(7)]
            subscriptions += [bus.subscribe(prices) for _ in range(3)]
            assert await take(subscriptions[-1], 1) == [Price("s2", 93.0)]
            assert calls == [1]
            bus.subscribe(prices, key="s9")
            await settle()
            assert calls == [1]

    async def test_a_log_that_cannot_be_read_fails_the_snapshot_and_is_tried_again(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.publish(path)
        with monkeypatch.context() as patch:

            def fail(*_: Any) -> None:
                raise sqlite3.OperationalError("disk I/O error")

            patch.setattr("eventstream.logs.sqlite.log.read_state", fail)
            async with bus_on(path) as bus:
                async with bus.subscribe(prices) as subscription:
                    with pytest.raises(SnapshotFailed) as caught:
                        await subscription.receive()
                    assert "disk I/O error" in str(caught.value.__cause__)
                patch.undo()
                async with bus.subscribe(prices) as subscription:
                    assert await take(subscription, 1) == [Price("s2", 93.0)]

    async def test_a_refresh_while_it_is_loaded_leaves_nothing_of_it(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.publish(path)
        let = threading.Event()
        read_state = pages.read_state

        def slowly(*args: Any) -> Any:
            state = read_state(*args)
            let.wait()
            return state

        monkeypatch.setattr("eventstream.logs.sqlite.log.read_state", slowly)
        async with bus_on(path) as bus, bus.subscribe(prices) as subscription:
            await settle()
            await bus.refresh(prices)
            let.set()
            frames = subscription.frames()
            start: Any = await anext(frames)
            assert start.reason == "refreshed"
            assert isinstance(await anext(frames), SnapshotEnd)
            await bus.publish(prices, Price("new", 1.0))
            async with bus.view(prices) as view:
                await view.ready()
                assert list(view) == ["new"]


@pytest.mark.usefixtures("small_pages")
class Test_further_back_than_memory:
    async def test_everything_comes_once_in_order_then_what_is_live(self, path: str) -> None:
        head = await fill(path, 300)
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            events = await read_to(subscription, head.index)
            assert [event.payload for event in events] == [str(n) for n in range(300)]
            await bus.publish(words, "live")
            assert await take(subscription, 1) == ["live"]

    async def test_in_the_same_life_of_the_bus(self, path: str) -> None:
        async with bus_on(path) as bus:
            for number in range(400):
                await bus.publish(words, str(number))
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                events = await read_to(subscription, 400)
                assert [event.payload for event in events] == [str(n) for n in range(400)]

    async def test_while_others_publish(self, path: str) -> None:
        head = await fill(path, 300)
        async with bus_on(path) as bus, anyio.create_task_group() as tasks:

            async def publish() -> None:
                for number in range(300, 900):
                    await bus.publish(words, str(number))

            async def read() -> None:
                async with bus.subscribe(words, after=Position(head.epoch, 1)) as subscription:
                    payloads = [event.payload async for event in _until(subscription, "899")]
                    assert payloads == [str(n) for n in range(3, 900)]

            tasks.start_soon(publish)
            for _ in range(5):
                tasks.start_soon(read)
                await settle()

    async def test_with_nothing_in_memory_at_all(self, path: str) -> None:
        topic = Topic("forgetful", str, retain=0)
        async with bus_on(path) as bus, anyio.create_task_group() as tasks:

            async def publish() -> None:
                for number in range(500):
                    await bus.publish(topic, str(number))

            async with bus.subscribe(topic, after=EARLIEST) as subscription:
                tasks.start_soon(publish)
                assert [event.payload async for event in _until(subscription, "499")] == [str(n) for n in range(500)]

    async def test_batches_are_never_split(self, path: str) -> None:
        async with bus_on(path) as bus:
            for size in (1, 5, 40, 200, 3, 129):
                position = await bus.publish_many(words, ["x"] * size)
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            seen: list[int] = []
            async for batch in subscription.batches():
                assert not seen or batch[0].index > seen[-1]
                seen += [event.index for event in batch]
                if batch[-1].index == position.index:
                    break
            assert [seen.count(index) for index in range(1, 7)] == [1, 5, 40, 200, 3, 129]

    async def test_one_key(self, path: str) -> None:
        async with bus_on(path) as bus:
            for number in range(300):
                await bus.publish(keyed, {"k": f"k{number % 5}", "n": number})
        async with bus_on(path) as bus, bus.subscribe(keyed, key="k2", after=EARLIEST) as subscription:
            assert [payload["n"] for payload in await take(subscription, 60)] == list(range(2, 300, 5))
            await settle()
            with anyio.move_on_after(0):
                await subscription.receive()
            await bus.publish(keyed, {"k": "k3", "n": 300})
            await bus.publish(keyed, {"k": "k2", "n": 301})
            assert (await subscription.receive()).payload["n"] == 301

    async def test_a_key_that_was_never_used_moves_to_the_head(self, path: str) -> None:
        head = await fill(path, 300)
        async with bus_on(path) as bus, bus.subscribe(words, key="none", after=EARLIEST) as subscription:
            frames = subscription.frames()
            assert isinstance(await anext(frames), Resumed)
            subscription.request_bookmark()
            assert await anext(frames) == Bookmark(head)
            await bus.publish(words, "it", key="none")
            event: Any = await anext(frames)
            assert event.payload == "it"

    async def test_a_prefix(self, path: str) -> None:
        async with bus_on(path) as bus:
            for number in range(300):
                await bus.publish(keyed, {"k": f"k{number % 5}", "n": number})
        async with bus_on(path) as bus, bus.subscribe(keyed, prefix="k4", after=EARLIEST) as subscription:
            assert [payload["n"] for payload in await take(subscription, 60)] == list(range(4, 300, 5))

    async def test_a_slow_reader_has_two_pages_read_for_it_and_no_more(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = Gate(monkeypatch)
        await fill(path, 300)
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            assert await take(subscription, 1) == ["0"]
            for _ in range(20):
                await to_thread.run_sync(checkpoint_in_thread)
            assert gate.reads <= 3
            assert subscription.lag == 299
            await take(subscription, 100)
            assert gate.reads <= 5
            assert subscription.lag == 199

    async def test_it_is_no_laggard_while_it_reads(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        topic = Topic("narrow", str, retain=10, max_lag=20)
        gate = Gate(monkeypatch)
        await fill(path, 300, topic)
        async with bus_on(path) as bus, bus.subscribe(topic, after=EARLIEST) as subscription:
            gate.open.clear()
            await settle()
            for number in range(300, 500):
                await bus.publish(topic, str(number))
            gate.open.set()
            assert [event.payload async for event in _until(subscription, "499")] == [str(n) for n in range(500)]
            assert bus.statistics().topics["narrow"].lagged == 0

    async def test_it_may_be_closed_at_any_moment(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = Gate(monkeypatch)
        await fill(path, 300)
        async with bus_on(path) as bus:
            gate.open.clear()
            subscription = bus.subscribe(words, after=EARLIEST)
            await settle()
            subscription.close()
            gate.open.set()
            await settle()
            assert bus.statistics().subscribers == 0

    async def test_what_is_trimmed_meanwhile_is_lost_and_said_so(self, path: str) -> None:
        await fill(path, 300)
        async with EventBus(log := SQLiteLog(path)) as bus:
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                assert await take(subscription, 1) == ["0"]
                log._retention = Retention(events=5)
                await log.trim()
                with pytest.raises(PositionLost) as caught:
                    await read_to(subscription, 100)
                assert caught.value.oldest == bus.statistics().topics["words"].floor == 98
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                assert await take(subscription, 6) == [str(n) for n in range(294, 300)]

    async def test_what_no_longer_fits_the_type_comes_after_what_does(self, path: str) -> None:
        untyped: Topic[Any] = Topic("words", Any, retain=10)
        async with bus_on(path) as bus:
            for number in range(20):
                await bus.publish(untyped, str(number))
            await bus.publish(untyped, 21)
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            assert await take(subscription, 20) == [str(n) for n in range(20)]
            with pytest.raises(InvalidPayload, match="words"):
                await subscription.receive()

    async def test_a_refresh_resets_it(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = Gate(monkeypatch)
        await fill(path, 300)
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            gate.open.clear()
            await settle()
            await bus.refresh(words)
            gate.open.set()
            with pytest.raises(PositionLost):
                await subscription.receive()

    async def test_a_position_is_never_ahead_of_what_was_handed_out(self, path: str) -> None:
        head = await fill(path, 300)
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            for number in range(300):
                event = await subscription.receive()
                is_last_of_batch = number % 3 == 2
                assert subscription.position.index == (event.index if is_last_of_batch else event.index - 1)
            assert subscription.position == head

    async def test_who_lives_on_memory_never_reads_the_file(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = Gate(monkeypatch)
        async with bus_on(path) as bus, bus.subscribe(words) as subscription:
            for number in range(100):
                await bus.publish(words, str(number))
                await subscription.receive()
            async with bus.subscribe(words, after=Position((await bus.head(words)).epoch, 95)) as recent:
                assert await take(recent, 5) == [str(n) for n in range(95, 100)]
            assert gate.reads == 0


class Test_publishing:
    async def test_a_payload_that_cannot_be_encoded_is_its_publishers_error(self, path: str) -> None:
        anything: Topic[Any] = Topic("anything", Any)
        async with bus_on(path) as bus:
            with pytest.raises(InvalidPayload):
                await bus.publish(anything, object())
            with pytest.raises(InvalidPayload):
                await bus.publish(anything, 1, headers={"bad": "\ud800"})
            assert (await bus.publish(anything, 1)).index == 1

    async def test_many_at_once_are_all_there_in_one_order(self, path: str) -> None:
        positions: list[Position] = []
        async with bus_on(path) as bus, bus.subscribe(words) as subscription:

            async def publish(number: int) -> None:
                positions.append(await bus.publish(words, str(number)))

            async with anyio.create_task_group() as tasks:
                for number in range(500):
                    tasks.start_soon(publish, number)
            assert sorted(position.index for position in positions) == list(range(1, 501))
            live = [event.payload for event in await read_to(subscription, 500)]
        async with bus_on(path) as bus, bus.subscribe(words, after=EARLIEST) as subscription:
            assert [event.payload for event in await read_to(subscription, 500)] == live

    async def test_one_conflict_among_many_harms_nobody_else(self, path: str) -> None:
        outcomes: list[object] = []
        async with bus_on(path) as bus:

            async def publish(number: int) -> None:
                try:
                    outcomes.append((await bus.publish(keyed, {"k": "same", "n": number}, expect=0)).index)
                except Conflict as error:
                    outcomes.append(error.actual)
                await bus.publish(keyed, {"k": f"own{number}", "n": number}, expect=0)

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(publish, number)
            assert outcomes == [1] * 50
            assert (await bus.head(keyed)).index == 51

    async def test_the_same_id_at_once_is_one_event(self, path: str) -> None:
        async with bus_on(path) as bus:
            positions: list[Position] = []

            async def publish() -> None:
                positions.append(await bus.publish(words, "a", id="one"))

            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(publish)
            assert {position.index for position in positions} == {1}
            assert (await bus.head(words)).index == 1

    async def test_too_many_on_their_way_wait_their_turn(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eventstream.logs.sqlite.writer.QUEUED", 3)
        async with bus_on(path) as bus:
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(bus.publish, words, str(number))
                for _ in range(5):
                    await checkpoint()
                log: Any = bus._log
                assert log._writer._queued <= 3
            assert (await bus.head(words)).index == 50

    async def test_who_is_cancelled_leaves_no_trace_but_maybe_its_event(self, path: str) -> None:
        async with bus_on(path) as bus:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    for number in range(20):
                        tasks.start_soon(bus.publish, words, str(number))
                    await checkpoint()
                    await checkpoint()
                    scope.cancel()
            await bus.publish(words, "last")
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                payloads = [event.payload for event in await read_to(subscription, (await bus.head(words)).index)]
                assert payloads[-1] == "last"
                assert len(set(payloads)) == len(payloads)

    async def test_what_was_published_when_the_bus_closes_is_in_the_file(self, path: str) -> None:
        acknowledged: list[int] = []

        async def publish(bus: EventBus, number: int) -> None:
            acknowledged.append((await bus.publish(words, str(number))).index)

        async with anyio.create_task_group() as tasks:
            async with bus_on(path) as bus:
                for number in range(20):
                    tasks.start_soon(publish, bus, number)
                await checkpoint()
                await checkpoint()
        async with bus_on(path) as bus:
            assert (await bus.head(words)).index >= len(acknowledged) > 0

    async def test_events_are_readable_in_the_file_as_their_codec_packs_them(self, path: str) -> None:
        await fill(path, 3)
        rows = await to_thread.run_sync(lambda: query(path, "SELECT idx, count, body FROM events_1"))
        assert [(row[0], row[1]) for row in rows] == [(1, 3)]
        assert msgspec.msgpack.decode(b"\x93" + rows[0][2])[2][3] == "2"


class Test_the_choices:
    def test_durability_is_one_of_two(self, path: str) -> None:
        with pytest.raises(ValueError, match="'power' or 'process'"):
            SQLiteLog(path, durability="none")  # type: ignore[arg-type]

    @pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
    async def test_what_it_means_for_sqlite(self, path: str, durability: Any, synchronous: int) -> None:
        log = SQLiteLog(path, durability=durability)
        async with EventBus(log):
            connection = log._store.connection  # type: ignore[union-attr]
            ask: Callable[[], Any] = lambda: [  # noqa: E731
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
            ]
            assert await to_thread.run_sync(ask) == ["wal", synchronous]

    @pytest.mark.parametrize("field", ["events", "seconds", "bytes"])
    @pytest.mark.parametrize("value", [0, -1, "many", True])
    def test_bounds_are_numbers_above_0(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=field):
            Retention(**{field: value})


def query(path: str, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def checkpoint_in_thread() -> None:
    """Gives other threads the time that it takes to come here and back."""


async def _until(subscription: Subscription[Any], last: str) -> Any:
    async for event in subscription:
        yield event
        if event.payload == last:
            return


def test_errors_of_logs_are_errors_of_ours() -> None:
    from eventstream import LogError

    assert issubclass(LogError, EventStreamError)


async def test_a_life_that_has_ended_has_no_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader starts again, and gets nothing more of what is over, though it is not removed yet."""
    monkeypatch.setattr(Trimming, "sweep", lambda self: False)
    log = SQLiteLog(tmp_path / "events.db", durability="process")
    async with EventBus(log) as bus:
        await bus.publish(words, "a")
        life, codec = log._lives["words"], log.codec("words")
        page = await log.read(lambda connection: read_page(connection, life, codec, 0, None))
        assert page is not None
        assert [event.payload for event in page.events] == ["a"]
        await bus.refresh(words)
        page = await log.read(lambda connection: read_page(connection, life, codec, 0, None))
        assert page is None


@pytest.mark.parametrize("is_given", [True, False])
async def test_ids_are_known_though_the_system_s_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_given: bool
) -> None:
    """Set forward by an hour, it would have made the log forget them all at once. One that is given is believed."""
    offset, real = 0.0, time.time

    def set_clock() -> float:
        return real() + offset

    if not is_given:
        monkeypatch.setattr(time, "time", set_clock)
    async with EventBus(SQLiteLog(tmp_path / "events.db", clock=set_clock)) as bus:
        assert (await bus.publish(words, "a", id="a")).index == 1
        offset = 3600.0
        assert bus.dedupe_seconds(words) == 120.0
        assert (await bus.publish(words, "b", id="b")).index == 2
        assert (await bus.publish(words, "a", id="a")).index == (3 if is_given else 1)
        assert (await bus.publish(words, "b", id="b")).index == 2


async def test_how_far_back_ids_are_known_is_told_when_there_was_no_room_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a restart and after it: a server refuses to repeat what is older."""
    for module in (life, store, log_module):
        monkeypatch.setattr(module, "DEDUPE_IDS", 3)
    now = 1000.0
    async with EventBus(SQLiteLog(tmp_path / "events.db", clock=lambda: now)) as bus:
        for number in range(5):
            now += 1.0
            await bus.publish(words, "a", id=f"{number}")
        now += 1.0
        assert bus.dedupe_seconds(words) == 4.0  # since the second one came
        assert (await bus.publish(words, "a", id="2")).index == 3
        assert (await bus.publish(words, "a", id="1")).index == 6
        now += 1.0
    async with EventBus(SQLiteLog(tmp_path / "events.db", clock=lambda: now)) as bus:
        assert (await bus.publish(words, "a", id="4")).index == 5
        assert bus.dedupe_seconds(words) == 4.0  # since the third

"""What a file keeps: by count, age and bytes; of compacted topics the state for ever; and that space comes back."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from eventstream import EARLIEST, Conflict, EventBus, InvalidPayload, PositionLost, Retention, SQLiteLog, Topic
from eventstream.logs.sqlite import store, trimming, writer
from eventstream.logs.sqlite.file import connect
from eventstream.logs.sqlite.pages import read_page
from support import Price

words = Topic("words", str, retain=0)
keyed = Topic("keyed", dict, key="k", retain=0)
prices = Topic("prices", Price, key="symbol", compacted=True, retain=0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def quick(path: str, **options: Any) -> SQLiteLog:
    """A log for whose disk no test waits."""
    return SQLiteLog(path, durability="process", **options)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "events.db")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "STEP", 3)


async def earliest(bus: EventBus, topic: Topic[Any]) -> list[Any]:
    head = (await bus.head(topic)).index
    found: list[Any] = []
    async with bus.subscribe(topic, after=EARLIEST) as subscription:
        if subscription.position.index == head:
            return found
        async for batch in subscription.batches():
            found += [event.payload for event in batch]
            if batch[-1].index == head:
                return found
    raise AssertionError("closed")


@pytest.mark.usefixtures("small_steps")
class Test_bounds:
    async def test_by_count(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(events=10))) as bus:
            for number in range(50):
                await bus.publish(words, str(number))
            await log.trim()
            assert await earliest(bus, words) == [str(n) for n in range(40, 50)]
            assert bus.statistics().topics["words"].floor == 40
            assert bus.statistics().topics["words"].retained == 10
            epoch = (await bus.head(words)).epoch
            with pytest.raises(PositionLost) as caught:
                await bus.subscribe(words, after=f"{epoch}.39").receive()
            assert caught.value.oldest == 40
            assert (await bus.subscribe(words, after=f"{epoch}.40").receive()).payload == "40"
        async with EventBus(quick(path)) as bus:
            assert await earliest(bus, words) == [str(n) for n in range(40, 50)]

    async def test_by_age(self, path: str) -> None:
        clock = Clock()
        retention = Retention(events=None, bytes=None, seconds=60)
        async with EventBus(log := quick(path, clock=clock, retention=retention)) as bus:
            for number in range(50):
                clock.now = 1000.0 + number
                await bus.publish(words, str(number))
            clock.now = 1000.0 + 60 + 20
            await log.trim()
            assert await earliest(bus, words) == [str(n) for n in range(20, 50)]
            clock.now += 1000
            await log.trim()
            assert await earliest(bus, words) == []
            assert (await bus.publish(words, "next")).index == 51

    async def test_by_bytes(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(bytes=10_000))) as bus:
            for _ in range(50):
                await bus.publish(words, "x" * 980)  # 1,000 with key, index and time
            await log.trim()
            assert 10 <= len(await earliest(bus, words)) <= 11

    async def test_of_one_topic(self, path: str) -> None:
        topics = {"keyed": Retention(events=5)}
        async with EventBus(log := quick(path, retention=Retention(events=20), topics=topics)) as bus:
            for number in range(50):
                await bus.publish(words, str(number))
                await bus.publish(keyed, {"k": f"k{number % 3}", "n": number})
            await log.trim()
            assert len(await earliest(bus, words)) == 20
            assert [event["n"] for event in await earliest(bus, keyed)] == list(range(45, 50))

    async def test_without_any_bound(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(events=None, bytes=None))) as bus:
            for number in range(50):
                await bus.publish(words, str(number))
            await log.trim()
            assert len(await earliest(bus, words)) == 50

    async def test_batches_stay_whole(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(events=5))) as bus:
            for number in range(10):
                await bus.publish_many(words, [str(number)] * 3)
            await log.trim()
            assert await earliest(bus, words) == ["8"] * 3 + ["9"] * 3

    async def test_what_is_expected_of_a_key_is_forgotten_with_its_newest_event(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(events=5))) as bus:
            await bus.publish(keyed, {"k": "a"})
            for _ in range(5):
                await bus.publish(keyed, {"k": "b"})
            await log.trim()
            await bus.publish(keyed, {"k": "a"}, expect=0)
            with pytest.raises(Conflict):
                await bus.publish(keyed, {"k": "b"}, expect=0)

    async def test_it_happens_by_itself(self, path: str) -> None:
        async with EventBus(quick(path, retention=Retention(events=10))) as bus:
            await bus.publish(words, "first")
            for number in range(2000):
                await bus.publish_many(words, [str(number)] * 10)
                if bus.statistics().topics["words"].floor:
                    break
            assert bus.statistics().topics["words"].floor > 0


class Test_space:
    async def test_it_is_used_again_or_given_back(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(bytes=1_000_000))) as bus:
            for _ in range(30):
                await bus.publish_many(words, ["x" * 10_000] * 100)
                await log.trim()
        size = await anyio.to_thread.run_sync(os.path.getsize, path)
        assert size < 8_000_000  # of 30 million that were published

    async def test_a_refreshed_topic_leaves_nothing(self, path: str) -> None:
        async with EventBus(log := quick(path)) as bus:
            for _ in range(10):
                await bus.publish_many(words, ["x" * 10_000] * 100)
            await bus.refresh(words)
            await bus.publish(words, "new")
            while log._trimming.ended:
                await anyio.lowlevel.checkpoint()
            await bus.publish(words, "newer")
        async with EventBus(quick(path)) as bus:
            assert await earliest(bus, words) == ["new", "newer"]

    async def test_a_life_that_ended_and_was_not_removed_is_removed_after_the_next_start(self, path: str) -> None:
        async with EventBus(log := quick(path)) as bus:
            await bus.publish(words, "old")
            log._trimming.sweep = lambda: False  # type: ignore[method-assign]
            await bus.refresh(words)
        async with EventBus(log := quick(path)) as bus:
            assert await earliest(bus, words) == []
            while log._trimming.ended:
                await anyio.lowlevel.checkpoint()


@pytest.mark.usefixtures("small_steps")
class Test_compacted_topics:
    @pytest.mark.parametrize("seed", range(8))
    async def test_against_a_model(self, path: str, seed: int) -> None:
        """Any changes, trims and restarts: the state is that of the model, and so are the history and the indexes."""
        random = Random(seed)
        state: dict[str, tuple[float, int]] = {}
        changes: list[tuple[int, str, float | None]] = []
        keys = [f"k{number}" for number in range(6)]
        for _ in range(5):
            async with EventBus(log := quick(path, retention=Retention(events=random.randint(1, 8)))) as bus:
                for _ in range(random.randint(1, 25)):
                    await self.change(bus, random, keys, state, changes)
                    if random.random() < 0.3:
                        await log.trim()
                await log.trim()
                await self.check(bus, keys, state, changes)

    async def change(
        self,
        bus: EventBus,
        random: Random,
        keys: list[str],
        state: dict[str, tuple[float, int]],
        changes: list[tuple[int, str, float | None]],
    ) -> None:
        kind, bid = random.random(), random.random()
        if kind < 0.3:
            key = random.choice(keys)
            position = await bus.delete(prices, key)
            state.pop(key, None)
            changes.append((position.index, key, None))
            return
        chosen = random.choices(keys, k=1 if kind < 0.7 else random.randint(2, 5))
        position = await bus.publish_many(prices, [Price(key, bid) for key in chosen])
        for key in chosen:
            state[key] = (bid, position.index)
            changes.append((position.index, key, bid))

    async def check(
        self,
        bus: EventBus,
        keys: list[str],
        state: dict[str, tuple[float, int]],
        changes: list[tuple[int, str, float | None]],
    ) -> None:
        async with bus.view(prices) as view:
            await view.ready()
            assert {key: price.bid for key, price in view.items()} == {key: bid for key, (bid, _) in state.items()}
        floor, head = bus.statistics().topics["prices"].floor, (await bus.head(prices)).index
        later = [change for change in changes if change[0] > floor]
        read: list[tuple[int, str, float | None]] = []
        async with bus.subscribe(prices, after=EARLIEST) as subscription:
            while len(read) < len(later):
                event = await subscription.receive()
                payload: Price | None = event.payload
                read.append((event.index, event.key, None if payload is None else payload.bid))
        assert read == later
        newest = {key: index for index, key, _ in changes}
        for key in keys:
            with pytest.raises(Conflict) as caught:
                await bus.publish(prices, Price(key, 0.0), expect=head + 1000)
            known = key in state or newest.get(key, 0) > floor
            assert caught.value.actual == (newest[key] if known else 0)

    async def test_the_file_keeps_one_event_for_each_key_below_the_floor(self, path: str) -> None:
        async with EventBus(log := quick(path, retention=Retention(events=5))) as bus:
            for number in range(200):
                await bus.publish(prices, Price(f"k{number % 7}", float(number)))
            for key in ("k1", "k2"):
                await bus.delete(prices, key)
            for number in range(20):
                await bus.publish(prices, Price("other", float(number)))
            await log.trim()
            store = log._store
            assert store is not None
            rows = await anyio.to_thread.run_sync(
                lambda: store.connection.execute("SELECT count(*) FROM events_1").fetchone()[0]
            )
            assert rows == 5 + 5

    async def test_a_topic_may_become_compacted_and_not_be_any_more(self, path: str) -> None:
        plain = Topic("prices", Price, key="symbol", retain=0)
        async with EventBus(quick(path)) as bus:
            for number in range(10):
                await bus.publish(plain, Price(f"k{number % 3}", float(number)))
        async with EventBus(quick(path)) as bus, bus.view(prices) as view:
            await view.ready()
            assert {key: price.bid for key, price in view.items()} == {"k0": 9, "k1": 7, "k2": 8}
        async with EventBus(log := quick(path, retention=Retention(events=2))) as bus:
            assert (await bus.head(plain)).index == 10
            await log.trim()
            assert [price.bid for price in await earliest(bus, plain)] == [8, 9]


def short_of_memory(path: str) -> sqlite3.Connection:
    """As `connect`; but texts end at 12 MiB, as they do at a billion bytes else."""
    connection = connect(path)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 12 << 20)
    return connection


@pytest.mark.usefixtures("large_payloads")
class Test_large_payloads:
    """Many are read in one text, in hex. What was too long for one could be written, and never read or removed."""

    @pytest.fixture
    def large_payloads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trimming, "STEP_BYTES", 1 << 20)
        monkeypatch.setattr(writer, "TENDED_BYTES", 1 << 19)
        monkeypatch.setattr(writer, "MOST_BYTES", 1 << 18)

    async def test_they_are_trimmed(self, path: str) -> None:
        log = quick(path, connect=short_of_memory, retention=Retention(bytes=2 << 20))
        async with EventBus(log) as bus:
            for number in range(48):
                await bus.publish(keyed, {"k": "abc"[number % 3], "x": bytes(1 << 18)})
            await log.trim()
            assert 8 <= log._lives["keyed"].retained <= 11
            assert len(await earliest(bus, keyed)) == log._lives["keyed"].retained

    async def test_trimming_keeps_up_with_them_while_they_come(self, path: str) -> None:
        log = quick(path, retention=Retention(bytes=2 << 20))
        async with EventBus(log) as bus:
            for _ in range(10):
                async with anyio.create_task_group() as tasks:
                    for _ in range(8):
                        tasks.start_soon(bus.publish, keyed, {"k": "a", "x": bytes(1 << 18)})
            await log.settle()
            assert log._lives["keyed"].size < 8 << 20

    async def test_a_state_of_them_is_read(self, path: str) -> None:
        blobs = Topic("blobs", dict, key="k", compacted=True, retain=0)
        for _ in range(2):
            async with EventBus(quick(path, connect=short_of_memory)) as bus:
                if not (await bus.head(blobs)).index:
                    for number in range(48):
                        await bus.publish(blobs, {"k": str(number), "x": bytes(1 << 18)})
                async with bus.view(blobs) as view:
                    await view.ready()
                    assert list(view) == [str(number) for number in range(48)]

    async def test_a_state_of_them_is_kept_when_tombstones_and_batches_are_trimmed(self, path: str) -> None:
        blobs = Topic("blobs", dict, key="k", compacted=True, retain=0)
        log = quick(path, connect=short_of_memory, retention=Retention(events=1))
        async with EventBus(log) as bus:
            for number in range(0, 48, 2):
                pair = [{"k": str(one), "x": bytes(1 << 18)} for one in (number, number + 1)]
                await bus.publish_many(blobs, pair)
            await log.trim()
            for number in range(0, 48, 2):
                await bus.delete(blobs, str(number))
            await bus.publish(blobs, {"k": "last"})
            await log.trim()
        async with EventBus(quick(path, connect=short_of_memory)) as bus, bus.view(blobs) as view:
            await view.ready()
            assert list(view) == [*(str(number) for number in range(1, 48, 2)), "last"]

    async def test_those_of_one_key_among_many_small_ones_are_read(self, path: str) -> None:
        """How many make a page was reckoned by what events take on the average."""
        async with EventBus(quick(path, connect=short_of_memory)) as bus:
            await bus.publish_many(keyed, [{"k": "small"}] * 10_000)
            for number in range(48):
                await bus.publish(keyed, {"k": "large", "n": number, "x": bytes(1 << 18)})
            async with bus.subscribe(keyed, key="large", after=EARLIEST) as subscription:
                assert [(await subscription.receive()).payload["n"] for _ in range(48)] == list(range(48))

    async def test_one_that_could_not_be_read_is_refused(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "LARGEST", 1 << 18)
        async with EventBus(quick(path)) as bus:
            with pytest.raises(InvalidPayload, match="a file takes at most 262144"):
                await bus.publish(keyed, {"k": "a", "x": bytes(1 << 18)})
            assert (await bus.publish(keyed, {"k": "a"})).index == 1


async def test_a_page_of_large_events_is_not_looked_for_to_the_end_of_the_file(path: str) -> None:
    """Each page of a long history ran through all that follows it, so reading it took the square of its length."""
    log = quick(path, retention=Retention(events=None, bytes=None))
    async with EventBus(log) as bus:
        for _ in range(12):
            async with anyio.create_task_group() as tasks:
                for _ in range(1000):
                    tasks.start_soon(bus.publish, keyed, {"k": "a", "x": bytes(2000)})
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        def read(connection: sqlite3.Connection) -> int:
            connection.set_progress_handler(count, 100)
            page = read_page(connection, log._lives["keyed"], log.codec("keyed"), 0, None)
            connection.set_progress_handler(None, 0)
            assert page is not None
            return page.index

        assert 400 < await log.read(read) < 600
        assert steps < 300  # of 100 instructions; 500 and more when it ran to the end


async def test_a_topic_that_was_not_compacted_for_a_while_remembers_no_state_of_before(path: str) -> None:
    """Its keys stayed when their events went: a key that nobody could see had a newest event."""
    plain = Topic("prices", Price, key="symbol", retain=0)
    few = Retention(events=1)
    log = quick(path, retention=few)
    async with EventBus(log) as bus:
        for symbol in "abc":
            await bus.publish(prices, Price(symbol, 1.0))
        await log.trim()
    log = quick(path, retention=few)
    async with EventBus(log) as bus:
        await bus.publish(plain, Price("d", 1.0))
        await log.trim()
    async with EventBus(quick(path)) as bus:
        async with bus.view(prices) as view:
            await view.ready()
            assert list(view) == ["d"]
        assert (await bus.publish(prices, Price("a", 2.0), expect=0)).index == 5


async def test_a_topic_that_was_declared_wrongly_for_a_moment_keeps_its_state(path: str) -> None:
    plain = Topic("prices", Price, key="symbol", retain=0)
    log = quick(path, retention=Retention(events=1))
    async with EventBus(log) as bus:
        for symbol in "abc":
            await bus.publish(prices, Price(symbol, 1.0))
        await log.trim()
    async with EventBus(quick(path)) as bus:
        await bus.head(plain)
    async with EventBus(quick(path)) as bus, bus.view(prices) as view:
        await view.ready()
        assert list(view) == ["a", "b", "c"]


async def test_an_age_is_kept_though_the_clock_was_ahead_for_a_while(path: str) -> None:
    """What stands before an old event is as old. It was kept until the time that the wrong clock had given it."""
    clock = Clock()
    log = quick(path, clock=clock, retention=Retention(seconds=10, events=None, bytes=None))
    async with EventBus(log) as bus:
        clock.now = 1_000_000.0
        await bus.publish(words, "from the future")
        clock.now = 1000.0
        await bus.publish(words, "old")
        clock.now = 1020.0
        await bus.publish(words, "new")
        await log.trim()
        assert await earliest(bus, words) == ["new"]

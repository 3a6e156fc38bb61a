"""The event loop writes by itself what comes alone, where nothing is synced; everything else is the thread's."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from threading import get_ident
from time import monotonic

import anyio
import pytest
import sqlite_vfs
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from sqlite_support import failing

from eventstream import EARLIEST, BusClosed, EventBus, LogFull, Retention, SQLiteLog, Topic
from eventstream.logs.sqlite import inplace, store, writer
from eventstream.logs.sqlite.file import Durability
from eventstream.logs.sqlite.inplace import CROWD, LEAST_REST, MOST_BYTES, MOST_REST, SLOW, InPlace
from eventstream.logs.sqlite.store import Store
from eventstream.logs.sqlite.trimming import STEP
from eventstream.logs.sqlite.writer import Job

words: Topic[str] = Topic("words", str)


class Seconds:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Test_decision:
    @pytest.fixture
    def clock(self) -> Seconds:
        return Seconds()

    @pytest.mark.parametrize(
        ("size", "others", "may"),
        [
            (0, 0, True),
            (MOST_BYTES, CROWD - 1, True),
            (MOST_BYTES + 1, 0, False),
            (0, CROWD, False),
        ],
    )
    def test_few_and_small(self, clock: Seconds, size: int, others: int, may: bool) -> None:
        assert InPlace(clock).begin(size, others) is may

    def test_a_write_that_took_long_is_the_last_for_a_while(self, clock: Seconds) -> None:
        in_place = InPlace(clock)
        self.write(in_place, clock, SLOW * 0.9)
        assert in_place.begin(0, 0)
        self.write(in_place, clock, SLOW * 1.1)
        clock.now += LEAST_REST * 0.99
        assert not in_place.begin(0, 0)
        clock.now += LEAST_REST * 0.02
        assert in_place.begin(0, 0)

    def test_twice_as_long_if_it_happens_again_up_to_a_bound(self, clock: Seconds) -> None:
        in_place = InPlace(clock)
        rests = []
        for _ in range(8):
            self.write(in_place, clock, SLOW * 2)
            rests.append(self.rest(in_place, clock))
        assert rests == [1, 2, 4, 8, 16, 32, 64, 64]

    def test_a_long_time_without_makes_it_short_again(self, clock: Seconds) -> None:
        in_place = InPlace(clock)
        for _ in range(3):
            self.write(in_place, clock, SLOW * 2)
            assert self.rest(in_place, clock) <= MOST_REST
        clock.now += 5
        self.write(in_place, clock, SLOW * 2)
        assert self.rest(in_place, clock) == LEAST_REST

    def write(self, in_place: InPlace, clock: Seconds, seconds: float) -> None:
        assert in_place.begin(0, 0)
        clock.now += seconds
        in_place.end()

    def rest(self, in_place: InPlace, clock: Seconds) -> int:
        seconds = 0
        while not in_place.begin(0, 0):
            seconds += 1
            clock.now += 1
        return seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each commit."""
    threads: list[int] = []
    commit = Store.commit

    def noted(self: Store) -> None:
        threads.append(get_ident())
        commit(self)

    monkeypatch.setattr(Store, "commit", noted)
    return threads


async def publish_at_once(bus: EventBus, payloads: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for payload in payloads:
            tasks.start_soon(bus.publish, words, payload)


async def all_of(bus: EventBus) -> list[tuple[int, str]]:
    head = (await bus.head(words)).index
    found: list[tuple[int, str]] = []
    async with bus.subscribe(words, after=EARLIEST) as subscription:
        while subscription.position.index < head:
            event = await subscription.receive()
            found.append((event.index, event.payload))
    return found


@pytest.mark.parametrize(("durability", "here"), [("process", True), ("power", False)])
async def test_who_writes_what_comes_alone(path: Path, commits: list[int], durability: Durability, here: bool) -> None:
    async with EventBus(SQLiteLog(path, durability=durability)) as bus:
        await bus.publish(words, "first")  # the thread, maybe: it reads first what is known of the topic
        commits.clear()
        for number in range(10):
            await bus.publish(words, str(number))
        assert (get_ident() in commits) is here  # not each: the thread looks around now and then
        assert len(commits) == 10


async def test_what_a_crowd_publishes_is_one_transaction_of_the_thread(path: Path, commits: list[int]) -> None:
    async with EventBus(SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "first")
        commits.clear()
        await publish_at_once(bus, ["a"] * 100)
        assert len(commits) <= 3 + CROWD  # the last few of them are no crowd any more
        assert get_ident() not in commits[:1]


async def test_a_large_publish_is_left_to_the_thread(path: Path, commits: list[int]) -> None:
    async with EventBus(SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "first")
        commits.clear()
        await bus.publish(words, "x" * (MOST_BYTES + 1))
        assert get_ident() not in commits


async def test_whoever_writes_it_is_one_order(path: Path, commits: list[int]) -> None:
    """Crowds and single ones take turns, so that both write, and readers, positions and the file say the same."""
    positions: list[int] = []
    async with EventBus(SQLiteLog(path, durability="process")) as bus:
        async with bus.subscribe(words, after=EARLIEST) as subscription:
            for turn in range(20):
                await publish_at_once(bus, [f"{turn}.{number}" for number in range(turn)])
                for number in range(3):
                    positions.append((await bus.publish(words, f"{turn}.alone.{number}")).index)
            head = (await bus.head(words)).index
            seen = [(event.index, event.payload) for event in [await subscription.receive() for _ in range(head)]]
    assert get_ident() in commits
    assert len(set(commits)) == 2
    assert [index for index, _ in seen] == list(range(1, head + 1))
    assert [index for index, payload in seen if "alone" in payload] == positions
    async with EventBus(SQLiteLog(path)) as bus:
        assert await all_of(bus) == seen


async def test_the_loop_never_waits_for_the_thread(path: Path) -> None:
    """The thread is held in the middle of a job: the loop goes on, and the publish is done after it, in order."""
    working, go_on = threading.Event(), threading.Event()

    def work() -> None:
        working.set()
        assert go_on.wait(10)

    async with EventBus(log := SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "first")
        log._running().put(Job(work))
        await anyio.to_thread.run_sync(working.wait)
        done: list[int] = []

        async def publish(payload: str) -> None:
            done.append((await bus.publish(words, payload)).index)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish, "second")
            for _ in range(10):
                await checkpoint()
            assert done == []
            tasks.start_soon(publish, "third")
            for _ in range(10):
                await checkpoint()
            go_on.set()
        assert sorted(done) == [2, 3]
        assert [payload for _, payload in await all_of(bus)] == ["first", "second", "third"]


async def test_a_refresh_at_the_same_time_does_not_mix_two_epochs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread had begun a new life of the topic, and the loop had not heard of it, when it wrote by itself."""
    go_on = threading.Event()
    async with EventBus(log := SQLiteLog(path, durability="process")) as bus:
        old = await bus.publish(words, "before")
        writer, begin = log._running(), InPlace.begin

        def wait_for_the_thread(self: InPlace, size: int, others: int) -> bool:
            go_on.set()
            end = monotonic() + 10
            while len(writer._written) < 2:
                assert monotonic() < end
            return begin(self, size, others)

        monkeypatch.setattr(InPlace, "begin", wait_for_the_thread)
        writer.put(Job(lambda: go_on.wait(10)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.refresh, words)
            await wait_all_tasks_blocked()
            position = await bus.publish(words, "after")
        monkeypatch.undo()
        assert position.epoch != old.epoch
        assert await bus.head(words) == position
        assert await all_of(bus) == [(1, "after")]


async def test_what_has_to_be_read_first_is_read_by_the_thread(path: Path, commits: list[int]) -> None:
    async with EventBus(log := SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "first")
        commits.clear()
        log._lives[words.name].ids = None  # as before the ids of a long history were read
        await bus.publish(words, "second", id="id")
        assert get_ident() not in commits
        for number in range(10):
            await bus.publish(words, "later", id=str(number))
        assert get_ident() in commits


async def test_a_full_disk_is_named_and_publishing_goes_on(path: Path, commits: list[int]) -> None:
    full = False

    def fails(sql: str) -> str | None:
        return "full" if full and sql.startswith("INSERT INTO events") else None

    async with EventBus(SQLiteLog(path, durability="process", connect=failing(fails))) as bus:
        await bus.publish(words, "a")
        full = True
        with pytest.raises(LogFull):
            await bus.publish(words, "lost")
        full = False
        assert (await bus.publish(words, "b")).index == 2
        assert get_ident() in commits
    async with EventBus(SQLiteLog(path)) as bus:
        assert await all_of(bus) == [(1, "a"), (2, "b")]


async def test_what_is_cancelled_is_not_written(path: Path) -> None:
    async with EventBus(SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.publish, words, "cancelled")
            await checkpoint()
            tasks.cancel_scope.cancel()
        assert (await bus.publish(words, "b")).index == 2


async def test_slow_writes_are_left_to_the_thread(
    path: Path, commits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inplace, "SLOW", -1.0)
    monkeypatch.setattr(inplace, "LEAST_REST", 1000.0)
    async with EventBus(SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "first")
        await bus.publish(words, "second")
        commits.clear()
        await bus.publish(words, "third")
        assert get_ident() not in commits


async def test_what_is_kept_is_bounded_though_the_thread_has_nothing_to_write(path: Path) -> None:
    """It looked once a second, when it had rested for so long: the loop had written 25,000 events by then."""
    async with EventBus(log := SQLiteLog(path, durability="process", retention=Retention(events=100))) as bus:
        for number in range(5000):
            await bus.publish(words, str(number))
        await log.settle()
        assert bus.statistics().topics["words"].retained < 100 + 2 * writer.TENDED_HERE + STEP


class Test_checkpoints:
    """What was written comes to its place by the thread: that syncs, and so does the first write after it."""

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "PAGES", 100)

    async def test_the_write_ahead_file_does_not_grow_for_ever(self, path: Path) -> None:
        async with EventBus(SQLiteLog(path, durability="process")) as bus:
            for _ in range(2000):  # that change 8,000 pages
                await bus.publish(words, "x" * 4000)
            assert Path(f"{path}-wal").stat().st_size < 4000 * 4096

    async def test_nor_if_the_thread_writes_all_of_it(self, path: Path) -> None:
        """Which it does with large ones."""
        async with EventBus(SQLiteLog(path, durability="process")) as bus:
            for _ in range(200):  # that change 1,200 pages
                await bus.publish(words, "x" * (MOST_BYTES + 4000))
            assert Path(f"{path}-wal").stat().st_size < 600 * 4096

    @pytest.mark.skipif(not sqlite_vfs.available(), reason="sqlite3 has a library of its own inside")
    @pytest.mark.parametrize(("pages", "times"), [(100, 10), (100_000, 0)])
    async def test_nothing_is_synced_on_the_loop(
        self, path: Path, commits: list[int], monkeypatch: pytest.MonkeyPatch, pages: int, times: int
    ) -> None:
        """The first write after a checkpoint synced, and it was the loop's. Nor does SQLite do so by itself."""
        monkeypatch.setattr(store, "PAGES", pages)
        sqlite_vfs.install()
        synced: list[int] = []

        def noted(kind: str) -> int:
            if kind == "sync":
                synced.append(get_ident())
            return 0

        monkeypatch.setattr("sqlite_vfs.fails", noted)
        log = SQLiteLog(path, durability="process", connect=sqlite_vfs.connect)
        async with EventBus(log) as bus:
            before = len(synced)
            for turn in range(2000):
                await bus.publish(words, str(turn))
                if turn % 10 == 0:  # so that a checkpoint is over before the next publish
                    await log.settle()
                if turn % 100 == 0:
                    await publish_at_once(bus, ["crowd"] * 20)
            assert len(synced) - before >= times
        assert commits.count(get_ident()) > 100
        assert get_ident() not in synced

    async def test_what_cannot_be_moved_is_logged_and_publishing_goes_on(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(self: Store) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(Store, "checkpoint", fail)
        with caplog.at_level(logging.WARNING, "eventstream.logs"):
            async with EventBus(log := SQLiteLog(path, durability="process")) as bus:
                for number in range(200):
                    await bus.publish(words, str(number))
                await log.settle()
                assert (await bus.head(words)).index == 200
        assert any("upkeep failed" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("turns", range(3))
async def test_what_is_about_to_be_written_when_the_log_is_closed_is_not(path: Path, turns: int) -> None:
    """It is at its checkpoint, and would write into a file that another thread closes."""
    told: list[str] = []

    async def publish(bus: EventBus) -> None:
        try:
            await bus.publish(words, "a")
            told.append("committed")
        except BusClosed:
            told.append("closed")

    log = SQLiteLog(path, durability="process")
    async with EventBus(log) as bus:
        await bus.publish(words, "a")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(publish, bus)
            for _ in range(turns):
                await checkpoint()
            await log.aclose()
    assert len(told) == 3
    assert turns != 1 or told == ["closed"] * 3
    async with EventBus(SQLiteLog(path)) as bus:
        assert (await bus.head(words)).index == 1 + told.count("committed")


async def test_an_interruption_commits_nothing_with_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come between any two steps: readers would never have seen what the next publish had committed."""
    async with EventBus(SQLiteLog(path, durability="process")) as bus:
        await bus.publish(words, "a")
        commit = Store.commit

        def interrupt(self: Store) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Store, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            await bus.publish(words, "lost")
        monkeypatch.setattr(Store, "commit", commit)
        assert (await bus.publish(words, "b")).index == 2

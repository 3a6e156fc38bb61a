"""The thread that writes: whatever goes wrong in it has a name, somebody who is told, and no say in what comes next."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from sqlite_support import Failing, failing, failure

from eventstream import BusClosed, EventBus, LogFailed, Retention, SQLiteLog, Topic
from eventstream.logs.sqlite import writer
from eventstream.logs.sqlite.file import connect
from eventstream.logs.sqlite.store import Store
from eventstream.logs.sqlite.trimming import Trimming

words: Topic[str] = Topic("words", str)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


async def publish_at_once(bus: EventBus, count: int) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(bus.publish, words, str(number))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (sqlite3.OperationalError("disk I/O error"), "upkeep failed, and is tried again"),
        (KeyError("a bug"), "upkeep failed"),
    ],
)
async def test_trimming_that_fails_is_logged_and_publishing_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, told: str
) -> None:
    monkeypatch.setattr(writer, "TENDED", 1)

    def fail(self: Trimming, *_: Any) -> bool:
        raise error

    monkeypatch.setattr(Trimming, "trim", fail)
    with caplog.at_level(logging.WARNING, "eventstream.logs"):
        async with EventBus(SQLiteLog(path, retention=Retention(events=1))) as bus:
            for number in range(3):
                assert (await bus.publish(words, "a")).index == number + 1
    assert any(told in record.getMessage() for record in caplog.records)


async def test_trimming_that_was_asked_for_and_fails_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trimming, *_: Any) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    log = SQLiteLog(path, retention=Retention(events=1))
    async with EventBus(log) as bus:
        await bus.publish(words, "a")
        monkeypatch.setattr(Trimming, "trim", fail)
        with pytest.raises(LogFailed, match="disk I/O error"):
            await log.trim()
        assert (await bus.publish(words, "b")).index == 2


async def test_a_bug_in_the_writer_is_raised_by_the_publishes_concerned(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Store.append

    def fail(self: Store, life: Any, publish: Any) -> int:
        if publish.entries[0][1] == "bad":
            raise RuntimeError("a bug")
        return append(self, life, publish)

    monkeypatch.setattr(Store, "append", fail)
    async with EventBus(SQLiteLog(path)) as bus:
        assert (await bus.publish(words, "good")).index == 1
        with pytest.raises(RuntimeError, match="a bug"):
            await bus.publish(words, "bad")
        assert (await bus.publish(words, "good")).index == 2


async def test_a_transaction_that_cannot_be_rolled_back_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite rolls it back by itself when the file is opened again; nothing that was acknowledged is in it."""
    armed = False

    def fails(sql: str) -> str | None:
        return "write" if armed and sql in ("COMMIT", "ROLLBACK") else None

    topics = [Topic(f"words{number}", str) for number in range(2)]
    with caplog.at_level(logging.ERROR, "eventstream.logs"):
        async with EventBus(SQLiteLog(path, connect=failing(fails))) as bus:
            for topic in topics:
                await bus.publish(topic, "a")
            armed = True

            async def publish(topic: Topic[str]) -> None:
                with pytest.raises(LogFailed):
                    await bus.publish(topic, "b", id="b")

            async with anyio.create_task_group() as tasks:
                for topic in topics:
                    for _ in range(3):
                        tasks.start_soon(publish, topic)
            armed = False
    async with EventBus(SQLiteLog(path)) as bus:
        for topic in topics:
            assert (await bus.publish(topic, "b", id="b")).index == 2


async def test_a_full_queue_makes_publishers_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUED", 2)
    async with EventBus(SQLiteLog(path)) as bus:
        await publish_at_once(bus, 20)
        assert (await bus.head(words)).index == 20


async def test_what_is_committed_when_the_bus_is_left_is_in_the_file(path: Path) -> None:
    """Publishes stand before the end in the writer's queue."""
    async with EventBus(SQLiteLog(path)) as bus:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(bus.publish, words, "a")
    async with EventBus(SQLiteLog(path)) as bus:
        assert (await bus.head(words)).index == 10


async def test_a_bug_of_one_publish_is_not_that_of_those_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishes that share a transaction share nothing else. All of them were refused with the error of one."""
    append = Store.append

    def fail(self: Store, life: Any, publish: Any) -> int:
        if publish.entries[0][1] == "5":
            raise RuntimeError("a bug")
        return append(self, life, publish)

    monkeypatch.setattr(Store, "append", fail)
    monkeypatch.setattr(writer, "TENDED", 1)
    failed: list[str] = []
    async with EventBus(SQLiteLog(path)) as bus:

        async def publish(word: str) -> None:
            try:
                await bus.publish(words, word)
            except RuntimeError:
                failed.append(word)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(publish, str(number))
        assert failed == ["5"]
        assert (await bus.publish(words, "more")).index == 10


async def test_a_job_that_cannot_be_rolled_back_neither_ends_the_writer_nor_is_committed_with_the_next(
    path: Path,
) -> None:
    """A refresh that failed half way had ended the topic's life in the open transaction: the next publish committed it,
    and after a restart the history was gone."""
    armed = False

    def fails(sql: str) -> str | None:
        return "write" if armed and (sql.startswith("CREATE TABLE") or sql == "ROLLBACK") else None

    log = SQLiteLog(path, connect=failing(fails))
    async with EventBus(log) as bus:
        epoch = (await bus.publish(words, "a")).epoch
        armed = True
        with pytest.raises(LogFailed), anyio.fail_after(5):
            await bus.refresh(words)
        armed = False
        with anyio.fail_after(5):
            assert (await bus.publish(words, "b")).index == 2
    async with EventBus(SQLiteLog(path)) as bus:
        head = await bus.head(words)
        assert (head.epoch, head.index) == (epoch, 2)


async def test_who_waits_for_room_when_the_log_is_closed_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put behind the end was never written, and whoever waited for it waited for ever."""
    monkeypatch.setattr(writer, "QUEUED", 2)
    told: list[str] = []

    async with anyio.create_task_group() as tasks:
        async with EventBus(SQLiteLog(path)) as bus:

            async def publish() -> None:
                try:
                    await bus.publish(words, "a")
                    told.append("committed")
                except BusClosed:
                    told.append("closed")

            for _ in range(20):
                tasks.start_soon(publish)
            await wait_all_tasks_blocked()
        with anyio.fail_after(5):
            while len(told) < 20:
                await anyio.lowlevel.checkpoint()
    async with EventBus(SQLiteLog(path)) as bus:
        assert (await bus.head(words)).index == told.count("committed")


async def test_a_reader_that_is_reading_when_the_log_is_closed_keeps_nothing_open(path: Path) -> None:
    """Its connection was put back into a list that nobody looked at any more."""
    begun, go_on = threading.Event(), threading.Event()
    log = SQLiteLog(path)
    kept: list[sqlite3.Connection] = []

    def read(connection: sqlite3.Connection) -> int:
        kept.append(connection)
        begun.set()
        go_on.wait(10)
        found: int = connection.execute("SELECT count(*) FROM lives").fetchone()[0]
        return found

    async with anyio.create_task_group() as tasks:
        async with EventBus(log) as bus:
            await bus.publish(words, "a")
            tasks.start_soon(log.read, read)
            await anyio.to_thread.run_sync(begun.wait)
        go_on.set()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        kept[0].execute("SELECT 1")
    with pytest.raises(BusClosed):
        await log.read(read)


async def test_a_reader_that_cannot_be_set_up_is_closed(path: Path) -> None:
    made: list[Any] = []

    def open_failing(path: str) -> Any:
        made.append(Failing(connect(path), lambda sql: "write" if sql == "PRAGMA query_only = ON" else None))
        return made[-1]

    log = SQLiteLog(path, connect=open_failing)
    async with EventBus(log):
        with pytest.raises(LogFailed):
            await log.read(lambda connection: None)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            made[-1].execute("SELECT 1")


async def test_closing_closes_everything_whatever_fails(path: Path) -> None:
    class Stubborn(Failing):
        def close(self) -> None:
            self._connection.close()
            raise failure("write")

    made: list[Any] = []

    def open_stubborn(path: str) -> Any:
        made.append(Stubborn(connect(path), lambda _: None))
        return made[-1]

    log = SQLiteLog(path, connect=open_stubborn)
    with pytest.raises(LogFailed):
        async with EventBus(log) as bus:
            await bus.publish(words, "a")
            await log.read(lambda connection: None)
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(log.read, lambda connection: connection.execute("SELECT 1").fetchone())
    assert len(made) > 1
    for one in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            one.execute("SELECT 1")
    async with EventBus(SQLiteLog(path)) as bus:
        assert (await bus.head(words)).index == 1

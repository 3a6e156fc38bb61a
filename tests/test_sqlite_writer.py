"""The thread that writes: whatever goes wrong in it has a name, somebody who is told, and no say in what comes next."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlite_support import failing

from eventstream import EventBus, LogFailed, Retention, SQLiteLog, Topic
from eventstream.logs.sqlite import writer
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
    [(sqlite3.OperationalError("disk I/O error"), "not trimmed now"), (KeyError("a bug"), "cannot be trimmed")],
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

"""The file of a log: who may open it, what is refused, and what happens when the disk does not do as it should."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from sqlite_support import failing

from eventstream import (
    EARLIEST,
    EventBus,
    LogError,
    LogFailed,
    LogFull,
    LogInUse,
    LogRefused,
    Retention,
    SQLiteLog,
    Topic,
)
from eventstream.logs.sqlite.file import connect
from eventstream.logs.sqlite.upkeep import info
from eventstream.remote.faults import from_fault, to_fault
from support import Price

words = Topic("words", str, retain=4)
prices = Topic("prices", Price, key="symbol", compacted=True, retain=4)

HOLD = """
import sys, anyio
from eventstream import EventBus, SQLiteLog, Topic
async def main():
    async with EventBus(SQLiteLog(sys.argv[1])) as bus:
        await bus.publish(Topic("words", str), "theirs")
        print("ready", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""

FORK = """
import os, sys, anyio
from eventstream import EventBus, SQLiteLog
async def main():
    async with EventBus(SQLiteLog(sys.argv[1])):
        done = os.pipe()
        if not (child := os.fork()):
            os.read(done[0], 1)
            os._exit(0)
    async with EventBus(SQLiteLog(sys.argv[1])):
        print("opened again", flush=True)
    os.write(done[1], b"x")
    os.waitpid(child, 0)
anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "events.db")


async def fill(path: str, count: int = 50, **options: Any) -> None:
    async with EventBus(SQLiteLog(path, **options)) as bus:
        await bus.publish_many(words, [str(number) for number in range(count)])
        for number in range(count):
            await bus.publish(words, str(number))


async def payloads(path: str) -> list[str]:
    async with EventBus(SQLiteLog(path)) as bus:
        head = (await bus.head(words)).index
        found: list[str] = []
        if head:
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                async for batch in subscription.batches():
                    found += [event.payload for event in batch]
                    if batch[-1].index == head:
                        break
        return found


async def refused(path: str) -> LogRefused:
    """Why a file is refused; that must not change it."""
    before = Path(path).read_bytes()
    with pytest.raises(LogRefused) as caught:
        async with EventBus(SQLiteLog(path)):
            pass
    assert Path(path).read_bytes() == before
    assert path in str(caught.value)
    return caught.value


class Test_one_owner:
    async def test_a_second_one_in_this_process_is_told_at_once(self, path: str) -> None:
        async with EventBus(SQLiteLog(path)) as bus:
            with pytest.raises(LogInUse) as caught:
                async with EventBus(SQLiteLog(path)):
                    pass
            assert caught.value.owner == os.getpid()
            assert (await bus.publish(words, "a")).index == 1
        async with EventBus(SQLiteLog(path)) as bus:
            assert (await bus.head(words)).index == 1

    @pytest.mark.may_block
    async def test_a_second_process_is_told_until_the_first_is_killed(self, path: str) -> None:
        child = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(LogInUse, match=str(child.pid)):
                async with EventBus(SQLiteLog(path)):
                    pass
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        assert await payloads(path) == ["theirs"]

    async def test_it_is_the_file_that_has_an_owner_whatever_its_path(self, path: str) -> None:
        link = f"{path}.link"
        os.symlink(path, link)
        await fill(path)  # all of it is in the file itself, where a second owner would find nothing missing
        async with EventBus(SQLiteLog(path)) as bus:
            with pytest.raises(LogInUse):
                async with EventBus(SQLiteLog(link)):
                    pass
            assert (await bus.publish(words, "a")).index == 52
        async with EventBus(SQLiteLog(link)) as bus:
            assert (await bus.head(words)).index == 52

    async def test_a_relative_path_stays_the_same_file(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Readers open it later than the owner does: the program may be in another directory by then."""
        await fill(path)
        monkeypatch.chdir(Path(path).parent)
        async with EventBus(SQLiteLog("events.db")) as bus:
            monkeypatch.chdir("/")
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                assert (await subscription.receive()).payload == "0"

    @pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
    @pytest.mark.may_block
    async def test_a_child_that_was_forked_does_not_keep_it_when_it_is_closed(self, path: str) -> None:
        """The child has the lock's descriptor too, for as long as it lives."""
        program = subprocess.run([sys.executable, "-c", FORK, path], capture_output=True, text=True, timeout=60)
        assert (program.stdout, program.stderr) == ("opened again\n", "")

    async def test_only_its_owner_can_read_what_it_made(self, path: str) -> None:
        before = os.umask(0)
        try:
            async with EventBus(SQLiteLog(path)) as bus:
                await bus.publish(words, "private")
                modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in Path(path).parent.iterdir()}
        finally:
            os.umask(before)
        assert len(modes) == 4
        assert set(modes.values()) == {0o600}, modes

    async def test_who_may_read_a_file_that_exists_is_not_changed(self, path: str) -> None:
        await fill(path)
        os.chmod(path, 0o640)
        await fill(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640

    async def test_looking_at_it_from_within_leaves_it_its_locks(self, path: str) -> None:
        """A process that closes any descriptor of a file loses all its locks on it. Another that then opened and closed
        the log took itself for the last one, and removed the write-ahead file from under the owner: what was published
        afterwards was nowhere."""
        async with EventBus(SQLiteLog(path)) as bus:
            await bus.publish(words, "a")
            await to_thread.run_sync(info, path)
            look = f"import sqlite3; sqlite3.connect({path!r}).execute('SELECT * FROM lives').fetchall()"
            await to_thread.run_sync(lambda: subprocess.run([sys.executable, "-c", look], check=True, timeout=60))
            assert os.path.exists(f"{path}-wal")
            await bus.publish(words, "b")
        assert await payloads(path) == ["a", "b"]

    async def test_a_log_that_cannot_be_opened_does_not_keep_the_lock(self, path: str) -> None:
        Path(path).write_text("no log, but long enough to be looked at: " * 10)
        await refused(path)
        await refused(path)

    async def test_it_may_be_read_by_others(self, path: str) -> None:
        await fill(path)
        async with EventBus(SQLiteLog(path)):
            rows = await to_thread.run_sync(lambda: connect(path).execute("SELECT count(*) FROM events_1").fetchone())
            assert rows == (51,)


class Test_what_is_refused:
    async def test_a_text(self, path: str) -> None:
        Path(path).write_text("Dear diary, " * 100)
        assert (await refused(path)).why == "foreign"

    async def test_a_short_text(self, path: str) -> None:
        Path(path).write_text("no")
        assert (await refused(path)).why == "foreign"

    async def test_a_database_of_another_program(self, path: str) -> None:
        def make() -> None:
            database = sqlite3.connect(path)
            database.execute("CREATE TABLE notes (text)")
            database.commit()
            database.close()

        await to_thread.run_sync(make)
        assert (await refused(path)).why == "foreign"

    async def test_a_later_format(self, path: str) -> None:
        await fill(path)

        def change() -> None:
            database = sqlite3.connect(path)
            database.execute("PRAGMA user_version = 99")
            database.close()

        await to_thread.run_sync(change)
        error = await refused(path)
        assert error.why == "newer"
        assert "update eventstream" in str(error)

    @pytest.mark.parametrize("bytes_left", [60, 100, 4096, 9000])
    async def test_a_torn_file(self, path: str, bytes_left: int) -> None:
        await fill(path, 500)
        with open(path, "r+b") as file:
            file.truncate(bytes_left)
        error = await refused(path)
        assert error.why == "damaged"
        assert "backup" in str(error)

    async def test_a_damaged_page(self, path: str) -> None:
        await fill(path)
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096 * 3)
        assert (await refused(path)).why == "damaged"

    async def test_a_directory_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(LogRefused, match="directory") as caught:
            async with EventBus(SQLiteLog(str(tmp_path / "none" / "events.db"))):
                pass
        assert caught.value.why == "unreachable"

    async def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(LogRefused):
            async with EventBus(SQLiteLog(str(tmp_path))):
                pass

    async def test_an_empty_file_becomes_a_log(self, path: str) -> None:
        Path(path).touch()
        await fill(path, 2)
        assert await payloads(path) == ["0", "1", "0", "1"]

    async def test_a_file_that_was_not_finished_becomes_a_log(self, path: str) -> None:
        def begin() -> None:
            database = connect(path)
            database.execute("PRAGMA journal_mode = WAL")
            database.close()

        await to_thread.run_sync(begin)
        await fill(path, 2)
        assert await payloads(path) == ["0", "1", "0", "1"]


class Test_a_full_disk:
    async def test_who_publishes_is_told_and_it_goes_on_when_there_is_room(self, path: str) -> None:
        log = SQLiteLog(path)
        big = "x" * 20_000
        kept: list[str] = []
        async with EventBus(log) as bus, bus.subscribe(words) as subscription:
            await bus.publish(words, "first")
            await pages_at_most(log, 40)
            failed = 0
            while failed < 3:
                try:
                    await bus.publish(words, f"{len(kept)}{big}")
                    kept.append(f"{len(kept)}{big}")
                except LogFull as error:
                    failed += 1
                    assert error.temporary
                    assert "room" in str(error)
            assert kept
            await bus.publish(words, "small")  # there is room for little ones
            await pages_at_most(log, 1_000_000)
            await bus.publish(words, "last")
            assert [(await subscription.receive()).payload for _ in range(len(kept) + 3)] == [
                "first", *kept, "small", "last",
            ]  # fmt: skip
        assert await payloads(path) == ["first", *kept, "small", "last"]

    async def test_of_many_at_once_only_those_fail_that_must(self, path: str) -> None:
        log = SQLiteLog(path)
        outcomes: dict[int, bool] = {}
        async with EventBus(log) as bus:
            await bus.publish(words, "first")
            await pages_at_most(log, 40)

            async def publish(number: int, text: str) -> None:
                try:
                    await bus.publish(words, text)
                    outcomes[number] = True
                except LogFull:
                    outcomes[number] = False

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(publish, number, f"{number} " + ("x" * 1_000_000 if number % 5 == 0 else ""))
            assert outcomes == {number: number % 5 != 0 for number in range(20)}
            assert (await bus.head(words)).index == 17
        found = await payloads(path)
        assert sorted(int(text) for text in found[1:]) == [number for number in range(20) if number % 5]

    async def test_a_topic_that_finds_no_room_at_first_is_made_later(self, path: str) -> None:
        log = SQLiteLog(path)
        async with EventBus(log) as bus:
            await bus.publish(words, "first")
            await pages_at_most(log, 1)
            with pytest.raises(LogFull):
                await bus.publish(prices, Price("X", 1.0))
            with pytest.raises(LogFull):
                await bus.refresh(words)
            await pages_at_most(log, 1000)
            assert (await bus.publish(prices, Price("X", 1.0), expect=0)).index == 1
            assert (await bus.publish(words, "second")).index == 2
        assert await payloads(path) == ["first", "second"]


async def pages_at_most(log: SQLiteLog, pages: int) -> None:
    assert log._store is not None
    connection = log._store.connection
    await to_thread.run_sync(lambda: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall())


class Test_failures_of_the_disk:
    """Each statement that writes fails once, in each way; see `Failing`."""

    @pytest.mark.parametrize("kind", ["full", "write", "fsync"])
    async def test_each_write_in_turn(self, path: str, kind: str) -> None:
        seen = 0
        for failing_at in range(1, 200):
            file = f"{path}.{failing_at}"
            seen = await self.run(file, kind, failing_at)
            if seen < failing_at:
                break
        assert 20 < seen < 199  # so there was one to fail for each

    async def run(self, path: str, kind: str, failing_at: int) -> int:
        writes = 0

        def fails(sql: str) -> str | None:
            nonlocal writes
            if not sql.startswith(("INSERT", "COMMIT", "BEGIN I", "UPDATE", "DELETE", "CREATE")):
                return None
            writes += 1
            return kind if writes == failing_at else None

        acknowledged: list[str] = []
        refused: list[str] = []
        try:
            async with EventBus(SQLiteLog(path, connect=failing(fails), retention=Retention(events=1000))) as bus:
                for number in range(6):
                    await self.publish(bus, f"{number}", acknowledged, refused)
                async with anyio.create_task_group() as tasks:
                    for number in range(6, 9):
                        tasks.start_soon(self.publish, bus, f"{number}", acknowledged, refused)
                try:
                    await bus.publish(prices, Price("X", 1.0), expect=0)
                except (LogFull, LogFailed):
                    await bus.publish(prices, Price("X", 1.0), expect=0)
                assert (await bus.head(words)).index == len(acknowledged)
        except (LogFull, LogFailed):  # while the file was made
            assert failing_at < 10
            acknowledged = []
        assert not set(acknowledged) & set(refused)
        found = await payloads(path)
        assert sorted(found) == sorted(acknowledged)
        assert found[:6] == [word for word in acknowledged if int(word) < 6][: len(found[:6])] or refused
        return writes

    async def publish(self, bus: EventBus, word: str, acknowledged: list[str], refused: list[str]) -> None:
        try:
            await bus.publish(words, word)
            acknowledged.append(word)
        except (LogFull, LogFailed):
            refused.append(word)

    async def test_a_commit_that_was_made_though_it_failed_is_found_at_the_next_start(self, path: str) -> None:
        armed = False

        def fails(sql: str) -> str | None:
            return "late fsync" if armed and sql.startswith("INSERT INTO events_") else None

        async with EventBus(SQLiteLog(path, connect=failing(fails))) as bus:
            await bus.publish(words, "a")
            armed = True
            with pytest.raises(LogFailed, match="same id"):
                await bus.publish(words, "b", id="b")
        async with EventBus(SQLiteLog(path)) as bus:
            assert (await bus.publish(words, "b", id="b")).index == 2  # the same id: one event of both
        assert await payloads(path) == ["a", "b"]

    async def test_what_cannot_be_read_ends_the_reader_alone(self, path: str) -> None:
        await fill(path, 10)
        armed = True

        def fails(sql: str) -> str | None:
            return "write" if armed and "group_concat" in sql else None

        async with EventBus(SQLiteLog(path, connect=failing(fails))) as bus:
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                with pytest.raises(LogFailed):
                    await subscription.receive()
            armed = False
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                assert (await subscription.receive()).payload == "0"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are Unix's")
class Test_a_limit_of_the_system:
    """The file cannot grow any more: a true failure of a write, from the system."""

    SCRIPT = """
import resource, signal, sys, anyio
from eventstream import EventBus, LogError, SQLiteLog, Topic
words = Topic("words", str)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def main():
    async with EventBus(SQLiteLog(sys.argv[1])) as bus:
        kept, failed = [], 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        while failed < 5:
            try:
                await bus.publish(words, f"{len(kept)} " + "x" * 5000)
                kept.append(len(kept))
            except LogError as error:
                failed += 1
                print(type(error).__name__, file=sys.stderr)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for _ in range(3):
            await bus.publish(words, f"{len(kept)} ")
            kept.append(len(kept))
        assert (await bus.head(words)).index == len(kept), (await bus.head(words), len(kept))
        print(len(kept))
anyio.run(main)
"""

    @pytest.mark.may_block
    async def test_it_goes_on_afterwards(self, path: str) -> None:
        done = subprocess.run([sys.executable, "-c", self.SCRIPT, path], capture_output=True, check=True, timeout=30)
        kept = int(done.stdout)
        assert kept > 10
        assert set(done.stderr.split()) <= {b"LogFull", b"LogFailed"}
        assert [int(text.split()[0]) for text in await payloads(path)] == list(range(kept))


@pytest.mark.parametrize(
    "error",
    [
        LogFull("/var/lib/app/events.db"),
        LogFailed("/var/lib/app/events.db", "disk I/O error"),
        LogRefused("/var/lib/app/events.db", "damaged", "SQLite says: malformed"),
    ],
)
def test_errors_name_the_file_alone_to_others(error: LogError) -> None:
    """Where the server keeps it is no affair of a client's, who may meet each of these."""
    told = from_fault(to_fault(error))
    assert type(told) is type(error)
    assert error.name == "events.db"
    assert "events.db" in str(told)
    assert "/var" not in str(told)

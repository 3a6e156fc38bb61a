"""The outbox's file: who may have it, what it must be, and what happens if the disk fails."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from cli_support import ENVIRONMENT
from outbox_support import FailingBus, notes

from eventstream import EventBus, Topic
from eventstream.errors import NotAccepted, NotStored, OutboxUnusable
from eventstream.outbox import Outbox, Sending
from eventstream.pipes import Retry

pytestmark = pytest.mark.may_block


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box"


async def refusal(path: Path) -> OutboxUnusable:
    with pytest.raises(OutboxUnusable) as raised:
        async with Outbox(path):
            pass
    return raised.value


async def fill(path: Path, count: int) -> None:
    async with Outbox(path) as outbox:
        for n in range(count):
            await outbox.publish(notes, {"n": n, "text": "x" * 500}, key=f"k{n % 3}")


async def test_only_its_owner_can_read_it(path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.publish(notes, {})
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert [file.name for file in path.parent.iterdir()] == ["box"]


async def test_what_it_keeps_is_on_the_disk_when_publish_returns(path: Path) -> None:
    """Each commit waits for the disk itself (FULL), in a write-ahead file. No test here can cut the power."""
    made: list[sqlite3.Connection] = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(*args, **options))
        return made[-1]

    async with Outbox(path, connect=connect) as outbox:
        await outbox.publish(notes, {})
        assert made[-1].execute("PRAGMA synchronous").fetchone() == (2,)
        assert made[-1].execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_one_outbox_at_a_time(path: Path) -> None:
    async with Outbox(path):
        error = await refusal(path)
        assert error.why == "busy"
        assert "another process has it" in str(error)
    async with Outbox(path):
        pass


async def test_who_is_refused_does_not_take_the_lock_away(path: Path) -> None:
    """A process that closes any descriptor of a file loses all its locks on it: who looked and left let others in."""
    other = path.with_name("other")
    async with Outbox(path):
        os.link(path, other)
        for name in (path, other):
            assert (await refusal(name)).why == "busy"
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stdout.readline() == b""
                assert b"OutboxUnusable" in process.stderr.read()
            finally:
                process.kill()


HOLD = """
import anyio, sys
from eventstream.outbox import Outbox
async def main():
    async with Outbox(sys.argv[1]):
        print("open", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_one_process_at_a_time_and_none_after_it_was_killed(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert (await refusal(path)).why == "busy"
        process.kill()
        process.wait(30)
    async with Outbox(path):
        pass


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("make", [write(b""), write(b"text\n" * 100), other_database], ids=["empty", "text", "other"])
async def test_a_foreign_file_is_refused_and_not_touched(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    before = path.read_bytes()
    error = await refusal(path)
    assert error.why == "foreign"
    assert "give another path" in str(error)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["box"]


async def test_a_newer_file_is_refused_and_not_touched(path: Path) -> None:
    await fill(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=2")
    connection.close()
    before = path.read_bytes()
    error = await refusal(path)
    assert (error.why, "update this one" in str(error)) == ("newer", True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("harm", ["torn", "zeroed", "scrambled"])
async def test_a_damaged_file_is_refused(path: Path, harm: str) -> None:
    await fill(path, 100)
    data = bytearray(path.read_bytes())
    assert len(data) > 40_000
    match harm:
        case "torn":
            del data[len(data) // 2 :]
        case "zeroed":
            data[8192:20_480] = bytes(20_480 - 8192)
        case _:
            data[4096 : len(data)] = bytes(255 - one for one in data[4096:])
    path.write_bytes(data)
    error = await refusal(path)
    assert error.why == "damaged"
    assert "keep a copy" in str(error)
    assert path.read_bytes()[4096:] == data[4096:]


async def test_a_damaged_payload_is_not_published(bus: EventBus, path: Path) -> None:
    """SQLite does not notice a changed byte of a value; the entry's checksum does."""
    async with Outbox(path) as outbox:
        await outbox.publish(notes, {"text": "precious"}, key="a")
        await outbox.publish(notes, {"text": "other"}, key="a")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"precious", b"previous"))
    async with Outbox(path, bus, topics=[notes]) as outbox:
        assert await outbox.flush() == 1
        [entry] = outbox.entries()
        assert (entry.state, entry.reason) == ("dead", "damaged in the file")
        with pytest.raises(ValueError, match="damaged in the file"):
            await outbox.content(entry.id)
    assert (await bus.head(notes)).index == 1


async def test_an_impossible_state_is_damage(path: Path) -> None:
    await fill(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO progress VALUES (1, 'lost', '', 0, 0, NULL)")
    connection.commit()
    connection.close()
    assert (await refusal(path)).why == "damaged"


@pytest.mark.parametrize(
    "wrong", [{"bus": "tcp://127.0.0.1:4000"}, {"topics": Topic("words", str)}, {"topics": ["words"]}]
)
async def test_what_is_no_bus_and_no_topics_is_refused(path: Path, wrong: dict[str, Any]) -> None:
    """At once, and not when something is to be sent."""
    with pytest.raises(
        TypeError, match=r"open_bus makes one of a URL|write \[words\]|topic must be a Topic, not 'words'"
    ):
        Outbox(path, **wrong)
    async with Outbox(path) as outbox:
        with pytest.raises(TypeError, match="bus must be a bus, not 7"):
            outbox.use(7)  # type: ignore[arg-type]  # wrong on purpose


async def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    """It is no fault of the disk's, so trying again does not help."""
    for wrong, says in ((tmp_path / "nowhere" / "box", "No such file"), (tmp_path, "Is a directory")):
        refused = await refusal(wrong)
        assert refused.why == "unreachable"
        assert not refused.temporary
        assert says in str(refused)
        assert "check the path" in str(refused)


async def test_the_space_of_what_is_gone_is_given_back(bus: EventBus, path: Path) -> None:
    await fill(path, 300)
    large = path.stat().st_size
    async with Outbox(path, bus, topics=[notes]) as outbox:
        assert await outbox.flush() == 0
    assert path.stat().st_size < large / 3


# A disk that fails.


class Faulty:
    """Opens databases of which the `at`-th statement of a kind fails."""

    def __init__(self, kind: str, at: int, error: str = "disk I/O error") -> None:
        self.kind, self.at, self.error = kind, at, error
        self.seen = 0

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        faulty = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                faulty.meet(sql)
                return super().execute(sql, *rest)

            def executemany(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                faulty.meet(sql)
                return super().executemany(sql, *rest)

        return sqlite3.connect(*args, factory=Connection, **options)

    def meet(self, sql: str) -> None:
        if sql.lstrip().startswith(self.kind):
            self.seen += 1
            if self.seen == self.at:
                raise sqlite3.OperationalError(self.error)


QUICK = Sending(retry=Retry(first=0.001, cap=0.001))


@pytest.mark.parametrize(
    "kind",
    ["BEGIN", "INSERT INTO entries", "INSERT OR REPLACE", "DELETE", "SELECT number, id, topic, key, payload", "COMMIT"],
)
async def test_each_statement_may_fail(tmp_path: Path, kind: str) -> None:
    """Who was told that an entry is kept finds it on the bus, once, in order; who was told otherwise may repeat it."""
    for at in range(1, 7):
        path = tmp_path / f"{at}"
        bus = FailingBus(delay=0.0)
        faulty = Faulty(kind, at)
        sent = []
        try:
            async with Outbox(path, bus, topics=[notes], sending=QUICK, connect=faulty.connect) as outbox:
                for n in range(5):
                    try:
                        await outbox.publish(notes, {"n": n}, key="a", id=f"id{n}")
                    except NotStored as error:
                        assert error.why == "failed"
                        await outbox.publish(notes, {"n": n}, key="a", id=f"id{n}")
                    sent.append(n)
                assert await outbox.flush() == 0
                assert outbox.statistics().trouble == ""
        except NotStored:
            assert not sent  # while it was opened
        assert [payload["n"] for payload in bus.of("a")] == sent
        async with Outbox(path, topics=[notes]) as outbox:
            assert not outbox.entries()


async def test_an_answer_that_could_not_be_written_is_written_later(path: Path) -> None:
    """Whoever waits is told then, and the next process knows it too."""
    bus = FailingBus(delay=0.0)
    faulty = Faulty("INSERT OR REPLACE INTO progress", 2)  # the first is what is noted before it is sent
    async with Outbox(path, bus, topics=[notes], sending=QUICK, connect=faulty.connect) as outbox:
        id = await outbox.publish(notes, {}, key="a", expect=7)
        with pytest.raises(NotAccepted, match="conflict"), anyio.fail_after(5):
            await outbox.wait(id)
        assert faulty.seen > 2
    async with Outbox(path, topics=[notes]) as outbox:
        assert [entry.state for entry in outbox.entries()] == ["conflict"]


async def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(path: Path) -> None:
    """As SQLite tells it, with a database that may not grow."""
    connections: list[sqlite3.Connection] = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(*args, **options)
        connections.append(connection)
        return connection

    kept = []
    async with Outbox(path, topics=[notes], connect=connect) as outbox:
        connections[-1].execute("PRAGMA max_page_count=30")
        with pytest.raises(NotStored, match="there is no room") as raised:
            for n in range(1000):
                await outbox.publish(notes, {"n": n, "text": "x" * 1000}, key="a")
                kept.append(n)
        assert (raised.value.why, raised.value.temporary) == ("full", True)
        assert len(kept) > 10
        with pytest.raises(NotStored):
            await outbox.publish(notes, {"n": -1, "text": "x" * 100_000}, key="b")
        assert len(outbox.entries()) == len(kept)
        outbox.use(bus := FailingBus(delay=0.0))
        assert await outbox.flush() == 0
        await outbox.publish(notes, {"n": 1000, "text": "x" * 1000}, key="a")
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in bus.of("a")] == [*kept, 1000]


LIMITED = """
import anyio, resource, signal, sys
from eventstream import Topic
from eventstream.errors import NotStored
from eventstream.outbox import Outbox
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
notes = Topic("notes", dict)
async def main():
    async with Outbox(sys.argv[1]) as outbox:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        kept = 0
        try:
            while True:
                await outbox.publish(notes, {"n": kept, "text": "x" * 1000}, key="a")
                kept += 1
        except NotStored as error:
            print(kept, error.why, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for n in range(10):
            await outbox.publish(notes, {"n": kept + n}, key="a")
anyio.run(main)
"""


async def test_a_file_that_the_system_does_not_let_grow(path: Path) -> None:
    """As the system tells it; after space returns it goes on."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    kept, why = ended.stdout.split()
    assert why in ("full", "failed")
    bus = FailingBus(delay=0.0)
    async with Outbox(path, bus, topics=[notes]) as outbox:
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in bus.of("a")] == [*range(int(kept) + 10)]


async def test_one_that_is_too_large_for_the_disk_does_not_fail_the_others(path: Path) -> None:
    """Though they would have shared its commit."""
    connections: list[sqlite3.Connection] = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connections.append(sqlite3.connect(*args, **options))
        return connections[-1]

    async with Outbox(path, connect=connect) as outbox:
        connections[-1].execute("PRAGMA max_page_count=40")
        outcomes: dict[int, str] = {}

        async def publish(n: int, size: int) -> None:
            try:
                await outbox.publish(notes, {"text": "x" * size})
                outcomes[n] = "kept"
            except NotStored as error:
                outcomes[n] = error.why

        async with anyio.create_task_group() as tasks:
            for n, size in enumerate([10, 10, 1_000_000, 10, 10]):
                tasks.start_soon(publish, n, size)
    assert outcomes == {0: "kept", 1: "kept", 2: "full", 3: "kept", 4: "kept"}

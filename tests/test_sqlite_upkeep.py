"""Looking after a log's file, from the program and from the command line."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from anyio import from_thread, to_thread

from eventstream import (
    EARLIEST,
    EventBus,
    LogFailed,
    LogFull,
    LogInUse,
    LogRefused,
    Retention,
    SQLiteLog,
    Topic,
    open_bus,
)
from eventstream.cli.app import call
from eventstream.errors import InvalidPayload
from eventstream.logs.sqlite import file, transfer, upkeep
from eventstream.logs.sqlite.file import connect
from eventstream.logs.sqlite.transfer import export_lines, import_lines
from eventstream.logs.sqlite.upkeep import backup, compact, info, verify
from support import Price

words = Topic("words", str, retain=0)
prices = Topic("prices", Price, key="symbol", compacted=True, retain=0)
raw = Topic("raw", bytes, retain=0)

TOPIC = [b'{"eventstream":"log","format":1}', b'{"topic":"t","epoch":"e"}']

pytestmark = pytest.mark.may_block  # commands do their work in threads, and so does nothing else here


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "events.db")


async def fill(path: str) -> None:
    log = SQLiteLog(path, durability="process", topics={"prices": Retention(events=5)}, clock=lambda: 1000.25)
    async with EventBus(log) as bus:
        for number in range(40):
            await bus.publish_many(words, [f"{number}", "zwölf"], headers={"h": str(number)}, id=f"id {number}")
            await bus.publish(prices, Price(f"s{number % 9}", float(number)))
            await bus.publish(raw, bytes([number, 255]))
        await bus.delete(prices, "s1")
        await log.trim()


async def contents(path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with EventBus(SQLiteLog(path, clock=lambda: 1001.0)) as bus:
        topics: list[Topic[Any]] = [words, prices, raw]
        for topic in topics:
            head = await bus.head(topic)
            events: list[Any] = []
            async with bus.subscribe(topic, after=EARLIEST) as subscription:
                async for batch in subscription.batches():
                    events += batch
                    if batch[-1].index == head.index:
                        break
            found[topic.name] = head, bus.statistics().topics[topic.name].floor, events
        async with bus.view(prices) as view:
            await view.ready()
            found["state"] = dict(view)
        found["id"] = await bus.publish(words, "again", id="id 39")
    return found


class Test_info:
    async def test_what_is_in_a_file(self, path: str) -> None:
        await fill(path)
        found = info(path)
        assert [(one.topic, one.head, one.events, one.compacted) for one in found.topics] == [
            ("words", 40, 80, False), ("prices", 41, 5, True), ("raw", 40, 40, False),
        ]  # fmt: skip
        assert found.size == os.path.getsize(path)

    async def test_a_bus_may_be_using_it(self, path: str) -> None:
        async with EventBus(SQLiteLog(path)) as bus:
            await bus.publish(words, "a")
            assert info(path).topics[0].head == 1

    async def test_of_a_file_that_is_not_there(self, path: str) -> None:
        with pytest.raises(LogRefused, match="no such file"):
            info(path)
        assert not Path(path).exists()

    def test_a_file_that_cannot_be_opened_now(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """For want of descriptors, say."""
        Path(path).write_bytes(b"SQLite format 3\0" + bytes(200))

        def fail(path: str) -> sqlite3.Connection:
            raise sqlite3.OperationalError("unable to open database file")

        monkeypatch.setattr(file, "connect", fail)
        with pytest.raises(LogFailed, match="unable to open"):
            info(path)


class Test_verify:
    async def test_a_good_file(self, path: str) -> None:
        await fill(path)
        assert list(verify(path)) == []

    @pytest.mark.parametrize(
        ("sql", "says"),
        [
            ("UPDATE events_1 SET body = x'00' WHERE idx = 3", "index 3"),
            ("UPDATE events_1 SET seq = seq + 1 WHERE idx = 7", "index 7: 14 events were expected"),
            ("DELETE FROM events_1 WHERE idx = 9", "index 10: 18 events were expected"),
            ("DELETE FROM keys_2 WHERE idx = 40", "index 40: its key 's3'"),
        ],
    )
    async def test_what_does_not_fit_together(self, path: str, sql: str, says: str) -> None:
        await fill(path)
        database = sqlite3.connect(path)
        database.execute(sql)
        database.commit()
        database.close()
        wrong = list(verify(path))
        assert wrong
        assert says in wrong[0]
        assert await to_thread.run_sync(call, ["log", "verify", path]) == 1

    async def test_a_damaged_page(self, path: str) -> None:
        async with EventBus(SQLiteLog(path)) as bus:
            for _ in range(300):
                await bus.publish(words, "x" * 500)
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            file.seek(size // 2 // 4096 * 4096)
            file.write(b"\xff" * 4096)
        try:
            assert list(verify(path))
        except LogRefused as error:
            assert error.why == "damaged"


class Test_backup:
    async def test_while_it_is_published_to(self, path: str) -> None:
        await fill(path)
        async with EventBus(SQLiteLog(path)) as bus:
            told: list[tuple[int, int]] = []
            await to_thread.run_sync(backup, path, f"{path}.copy", lambda *pages: told.append(pages))
            await bus.publish(words, "later")
        assert told
        assert list(verify(f"{path}.copy")) == []
        assert info(f"{path}.copy").topics[0].head == 40
        copy, original = await contents(f"{path}.copy"), await contents(path)
        assert copy["state"] == original["state"]
        assert copy["raw"][2] == original["raw"][2]
        for topic in ("words", "prices", "raw"):  # what was seen after this moment means nothing in the copy
            assert copy[topic][0].epoch != original[topic][0].epoch

    async def test_it_replaces_nothing(self, path: str) -> None:
        await fill(path)
        Path(f"{path}.copy").write_text("mine")
        with pytest.raises(LogRefused, match="does not replace"):
            backup(path, f"{path}.copy")
        assert Path(f"{path}.copy").read_text() == "mine"

    async def test_it_ends_though_events_keep_coming(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """SQLite begins a copy anew when its source has changed, unless it is read as it was at one moment."""
        monkeypatch.setattr(upkeep, "PAGES", 1)
        await fill(path)
        began: list[int] = []

        async with EventBus(SQLiteLog(path)) as bus:
            head = await bus.head(words)

            def tell(done: int, pages: int) -> None:
                began.extend([done] if done == 1 else [])
                assert len(began) == 1, "it has begun again"
                from_thread.run(bus.publish, words, "more")

            await to_thread.run_sync(backup, path, f"{path}.copy", tell)
            assert (await bus.head(words)).index > head.index + 5
        async with EventBus(SQLiteLog(f"{path}.copy")) as bus:
            assert (await bus.head(words)).index == head.index

    async def test_one_that_fails_leaves_nothing(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """For want of room, mostly: then its own part is in the way of what would make room."""
        await fill(path)
        Path(f"{path}.copy.partial").write_text("of one that was killed")

        def without_room(path: str) -> sqlite3.Connection:
            connection = connect(path)
            if path.endswith(".partial"):
                connection.execute("PRAGMA max_page_count = 3")
            return connection

        monkeypatch.setattr(upkeep, "connect", without_room)
        with pytest.raises(LogFull):
            backup(path, f"{path}.copy")
        assert sorted(os.listdir(Path(path).parent)) == ["events.db", "events.db.lock"]


class Test_compact:
    async def test_unused_space_goes_and_nothing_else(self, path: str) -> None:
        async with EventBus(log := SQLiteLog(path, durability="process", retention=Retention(bytes=1000))) as bus:
            for _ in range(10):
                await bus.publish_many(words, ["x" * 10_000] * 10)
            await bus.publish(words, "last")
            await log.trim()
        before, after = compact(path)
        assert after < before / 4
        assert info(path).topics[0].head == 11
        assert list(verify(path)) == []

    async def test_not_while_a_bus_uses_it(self, path: str) -> None:
        async with EventBus(SQLiteLog(path)):
            with pytest.raises(LogInUse):
                compact(path)


class Test_export_and_import:
    async def test_what_was_exported_and_imported_is_the_same_log(self, path: str) -> None:
        await fill(path)
        lines = list(export_lines(path))
        counts = import_lines(f"{path}.new", lines)
        assert counts["words"] == 80
        assert list(verify(f"{path}.new")) == []
        assert list(export_lines(f"{path}.new")) == lines
        assert await contents(f"{path}.new") == await contents(path)

    async def test_lines_are_json_that_people_can_read(self, path: str) -> None:
        await fill(path)
        lines = [json.loads(line) for line in export_lines(path, frozenset({"words", "raw"}))]
        assert lines[0] == {"eventstream": "log", "format": 1}
        assert lines[1].keys() == {"topic", "epoch", "compacted", "floor"}
        assert lines[2] == {
            "index": 1, "key": "", "time": 1000.25, "payload": "0", "headers": {"h": "0"}, "id": "id 0",
        }  # fmt: skip
        assert lines[-1].keys() == {"index", "key", "time", "packed"}
        assert {line["topic"] for line in lines if "topic" in line} == {"words", "raw"}

    async def test_a_topic_that_is_there_already_is_refused(self, path: str) -> None:
        await fill(path)
        with pytest.raises(LogRefused, match="has a topic 'words' already"):
            import_lines(path, list(export_lines(path)))
        assert list(verify(path)) == []

    async def test_a_topic_is_there_whole_or_not_at_all(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half of one had its epoch: a position of the other half was taken for one of events to come."""
        monkeypatch.setattr(transfer, "GROUP", 3)
        await fill(path)
        lines = list(export_lines(path))
        names = [json.loads(line).get("topic") for line in lines]
        middle = names.index("prices") + 8
        with pytest.raises(InvalidPayload, match=f"line {middle + 1}"):
            import_lines(f"{path}.new", [*lines[:middle], b"torn", *lines[middle:]])
        assert [topic.topic for topic in info(f"{path}.new").topics] == ["words"]
        rest = [lines[0], *lines[names.index("prices") :]]
        assert import_lines(f"{path}.new", rest).keys() == {"prices", "raw"}
        assert await contents(f"{path}.new") == await contents(path)
        assert list(verify(f"{path}.new")) == []

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            ([b'{"something":"else"}'], "line 1"),
            ([b'{"eventstream":"log","format":99}'], "format 1 or before"),
            ([b'{"eventstream":"log","format":1}', b'{"index":1,"key":"","time":1,"payload":1}'], "before its topic"),
            ([b'{"eventstream":"log","format":1}', b"no json"], "line 2"),
            ([b'{"eventstream":"log","format":1}', b'{"topic":"","epoch":"e"}'], "line 2'.*: topic name"),
            ([b'{"eventstream":"log","format":1}', b'{"topic":"t","epoch":"e.1"}'], "line 2.*position"),
            ([b'{"eventstream":"log","format":1}', b'{"topic":"t","epoch":"e","floor":-1}'], "line 2.*position"),
            ([*TOPIC, b'{"index":1,"key":"a\\u0000","time":1,"payload":1}'], "line 3.*: key"),
            ([*TOPIC, b'{"index":1,"key":"a","time":1,"payload":1,"id":""}'], "line 3.*: id"),
            ([*TOPIC, b'{"index":1,"key":"a","time":1,"payload":1,"headers":{"":""}}'], "line 3.*: header name"),
        ],
    )
    @pytest.mark.parametrize("more", [[], [b'{"topic":"t","epoch":"e"}']])
    async def test_lines_that_cannot_be_read(self, path: str, lines: list[bytes], says: str, more: list[bytes]) -> None:
        with pytest.raises(InvalidPayload, match=says):
            import_lines(path, [*lines, *more])


class Test_the_commands:
    async def test_each(self, path: str, capfd: pytest.CaptureFixture[str]) -> None:
        await fill(path)

        def commands() -> None:
            assert call(["log", "info", path]) == 0
            assert "prices: compacted, head" in capfd.readouterr().out
            assert call(["log", "info", "--json", path]) == 0
            assert json.loads(capfd.readouterr().out)["topics"][0]["topic"] == "words"
            assert call(["log", "verify", path]) == 0
            assert call(["log", "backup", path, f"{path}.copy"]) == 0
            assert call(["log", "compact", path]) == 0
            capfd.readouterr()
            assert call(["log", "export", path]) == 0
            exported = capfd.readouterr().out
            Path(f"{path}.ndjson").write_text(exported, "utf-8")
            assert call(["log", "import", f"{path}.new", f"{path}.ndjson"]) == 0
            assert "words: 80 events" in capfd.readouterr().err
            assert call(["log", "export", f"{path}.new"]) == 0
            assert capfd.readouterr().out == exported
            assert call(["log", "info", f"{path}.none"]) == 1
            assert "no such file; check the path" in capfd.readouterr().err

        await to_thread.run_sync(commands)

    async def test_what_is_wrong_is_said_of_the_right_file(self, path: str, capfd: pytest.CaptureFixture[str]) -> None:
        await fill(path)

        def commands() -> None:
            assert call(["log", "export", path, "words", "wodrs"]) == 1  # and not a part of what was asked for
            captured = capfd.readouterr()
            assert captured.out == ""
            assert f"{path} has no topic 'wodrs'; it has: prices, raw, words" in captured.err
            Path(f"{path}.bad").write_text('\n{"symbol":"X"}\n', "utf-8")
            assert call(["log", "import", f"{path}.new", f"{path}.bad"]) == 1
            assert f"{path}.bad, line 2: this does not fit" in capfd.readouterr().err
            assert call(["log", "backup", path, f"{path}/in/a/file"]) == 1
            assert f"{path}/in/a/file: it cannot be made" in capfd.readouterr().err

        await to_thread.run_sync(commands)


class Test_open_bus:
    async def test_a_file(self, path: str) -> None:
        async with open_bus(f"sqlite://{path}") as bus:
            position = await bus.publish(words, "a")
        async with EventBus(SQLiteLog(path)) as local:
            assert await local.head(words) == position

    @pytest.mark.parametrize("url", ["sqlite://events.db", "sqlite:///", "sqlite:///a?b=c"])
    def test_an_address_that_is_none(self, url: str) -> None:
        with pytest.raises(ValueError, match="write sqlite:///path"):
            open_bus(url)

"""Each write and each fsync that SQLite does fails once, on a disk of ours: what was acknowledged stays, once.

Of the writes every sixth, for want of time; all with EVENTSTREAM_EVERY=1.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
import sqlite_vfs

from eventstream import EARLIEST, EventBus, LogError, LogFailed, LogFull, SQLiteLog, Topic
from eventstream.logs.sqlite.file import Durability
from eventstream.logs.sqlite.upkeep import verify

words = Topic("words", str, retain=2)
pytestmark = [
    pytest.mark.skipif(not sqlite_vfs.available(), reason="sqlite3 has a library of its own inside"),
    pytest.mark.may_block,
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize(
    ("durability", "kind", "code"),
    [
        *[("power", kind, code) for kind, code in sqlite_vfs.FAILURES],
        *[("process", kind, code) for kind, code in sqlite_vfs.FAILURES if kind == "write"],  # it waits for no sync
    ],
)
async def test_each_operation_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, kind: str, code: int, for_good: bool
) -> None:
    await sqlite_vfs.fail_each(
        tmp_path,
        monkeypatch,
        lambda at: sqlite_vfs.Disk(at, code, kind, for_good=for_good),
        lambda path, disk: run(path, disk, durability),
    )


async def run(path: Path, disk: sqlite_vfs.Disk, durability: Durability) -> int:
    """Publishes on a disk that fails, has it repaired, publishes more; returns how many publishes failed."""
    acknowledged: list[str] = []
    unsure: list[str] = []

    async def publish(bus: EventBus, word: str) -> None:
        try:
            await bus.publish(words, word, id=word[:8])
            acknowledged.append(word)
        except (LogFull, LogFailed):
            unsure.append(word)

    for life in range(2):
        try:
            async with EventBus(SQLiteLog(path, durability=durability, connect=sqlite_vfs.connect)) as bus:
                for number in range(4):
                    await publish(bus, f"{life}.{number} " + "x" * 3000)
                async with anyio.create_task_group() as tasks:
                    for number in range(4, 8):
                        tasks.start_soon(publish, bus, f"{life}.{number}")
                disk.repair()
                await publish(bus, f"{life}.last")
                assert acknowledged[-1] == f"{life}.last"
                live = (await bus.head(words)).index
                assert live >= len(acknowledged)
        except LogError:  # while it was opened, made or closed
            disk.repair()
    found = await read(path)
    assert [word for word in found if word in set(acknowledged)] == acknowledged
    assert len(set(found)) == len(found)
    assert set(acknowledged) <= set(found) <= set(acknowledged) | set(unsure)
    assert list(verify(str(path))) == []
    return len(unsure)


async def read(path: Path) -> list[str]:
    async with EventBus(SQLiteLog(path)) as bus:
        head = (await bus.head(words)).index
        found: list[str] = []
        async with bus.subscribe(words, after=EARLIEST) as subscription:
            while head and subscription.position.index < head:
                found.append((await subscription.receive()).payload)
        return found

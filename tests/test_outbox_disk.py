"""Each write, each fsync and the rename of an outbox's file fails once: what was acknowledged is published, once.

Of the writes every sixth, for want of time; all with EVENTSTREAM_EVERY=1.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlite_vfs

from eventstream import EARLIEST, EventBus, Topic
from eventstream.errors import NotStored, OutboxUnusable
from eventstream.outbox import Outbox, Sending
from eventstream.pipes import Retry

notes: Topic[str] = Topic("notes", str)
QUICK = Sending(retry=Retry(first=0.001, cap=0.001))


@pytest.mark.skipif(not sqlite_vfs.available(), reason="sqlite3 has a library of its own inside")
@pytest.mark.may_block
@pytest.mark.timeout(120)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize(("kind", "code"), sqlite_vfs.FAILURES)
async def test_each_operation_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, for_good: bool
) -> None:
    await sqlite_vfs.fail_each(
        tmp_path, monkeypatch, lambda at: sqlite_vfs.Disk(at, code, kind, for_good=for_good), play
    )


async def play(path: Path, disk: sqlite_vfs.Disk) -> int:
    """Keeps entries and sends them on a disk that fails, has it repaired, does more; returns how many calls failed."""
    safe: list[str] = []
    unsure: list[str] = []

    async def keep(outbox: Outbox, word: str) -> None:
        try:
            await outbox.publish(notes, word, id=word[:8])
            safe.append(word)
        except NotStored:
            unsure.append(word)

    async with EventBus() as bus:
        for life in range(3):
            try:
                async with Outbox(path, connect=sqlite_vfs.connect, topics=[notes], sending=QUICK) as outbox:
                    for number in range(3):
                        await keep(outbox, f"{life}.{number} " + "x" * 3000)
                    async with anyio.create_task_group() as tasks:
                        for number in range(3, 6):
                            tasks.start_soon(keep, outbox, f"{life}.{number}")
                    outbox.use(bus)  # what was accepted is taken off the file, which may fail too
                    await outbox.flush(0.05)
                    if life == 1:
                        disk.repair()
            except (NotStored, OutboxUnusable):  # while it was opened or made
                disk.repair()
                unsure.append("all of a life")
        async with Outbox(path, bus, topics=[notes], sending=QUICK) as outbox:
            assert await outbox.flush(10) == 0
            assert outbox.entries() == []
        found = await everything(bus)
    assert len(set(found)) == len(found)
    assert set(safe) <= set(found) <= set(safe) | set(unsure)
    assert [word for word in found if word in set(safe)] == safe
    return len(unsure)


async def everything(bus: EventBus) -> list[str]:
    head = (await bus.head(notes)).index
    async with bus.subscribe(notes, after=EARLIEST) as subscription:
        return [(await subscription.receive()).payload for _ in range(head)]


@pytest.mark.parametrize("name", ["link and rename", "fsync"])
async def test_a_file_that_cannot_be_put_in_place_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Made under another name first, so that nobody ever sees half of it; the next time it is made anew."""

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        for function in name.split(" and "):
            patch.setattr(os, function, fail)
        with pytest.raises(NotStored):
            async with Outbox(tmp_path / "outbox.db"):
                pass
    assert [file.name for file in tmp_path.iterdir() if ".new-" in file.name] == []
    async with Outbox(tmp_path / "outbox.db") as outbox:
        await outbox.publish(notes, "a")


async def test_a_file_system_without_links_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", fail)
    async with Outbox(tmp_path / "outbox.db") as outbox:
        await outbox.publish(notes, "a")
    assert [file.name for file in tmp_path.iterdir() if ".new-" in file.name] == []

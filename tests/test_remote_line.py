"""One client's publishes on a log that has to wait: they share its syncs, and keep their order.

Over real connections, with a real file: the log writes in a thread, which simulated time cannot wait for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from sqlite_support import failing

from eventstream import EARLIEST, Conflict, EventBus, RemoteBus, Server, SQLiteLog, Topic, open_bus
from eventstream.remote import line

words: Topic[str] = Topic("words", str)
SENT = 500


@asynccontextmanager
async def served(path: Path, commits: list[str]) -> AsyncIterator[tuple[EventBus, RemoteBus]]:
    """A bus on a file, and a client of its server; notes each commit."""

    def note(sql: str) -> None:
        if sql.startswith("INSERT INTO events_"):  # all that one commit has for a topic
            commits.append(sql)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with EventBus(SQLiteLog(path, connect=failing(note))) as bus, anyio.create_task_group() as tasks:
        tasks.start_soon(Server(bus, [words]).serve, listener)
        client: Any = open_bus(f"tcp://127.0.0.1:{port}")
        async with client:
            await client.wait_connected()
            yield bus, client
        tasks.cancel_scope.cancel()


async def publish_at_once(client: RemoteBus, count: int) -> list[int]:
    """Each in a task of its own; returns their indexes in the order in which the calls were made."""
    called: list[int] = []
    indexes: dict[int, int] = {}

    async def publish(number: int) -> None:
        called.append(number)
        indexes[number] = (await client.publish(words, str(number))).index

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(publish, number)
    return [indexes[number] for number in called]


async def test_publishes_of_one_client_share_syncs_and_keep_their_order(tmp_path: Path) -> None:
    """The server awaited each commit before it looked at the next message: a sync for each event of one client."""
    commits: list[str] = []
    async with served(tmp_path / "events.db", commits) as (bus, client):
        assert await publish_at_once(client, SENT) == list(range(1, SENT + 1))
        assert 0 < len(commits) < SENT / 4
        assert (await bus.head(words)).index == SENT


async def test_a_line_that_is_full_makes_the_client_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on when it is empty."""
    monkeypatch.setattr(line, "MOST", 3)
    add = line.Line.add
    lengths: list[int] = []

    async def note(self: line.Line, *args: Any) -> None:
        await add(self, *args)
        lengths.append(len(self))

    monkeypatch.setattr(line.Line, "add", note)
    async with served(tmp_path / "events.db", []) as (_, client):
        assert await publish_at_once(client, 50) == list(range(1, 51))
    assert max(lengths) == 3


async def test_what_is_asked_later_sees_what_was_published_before(tmp_path: Path) -> None:
    """The head, and a subscription from now on, which must not get what was published before it was opened."""
    async with served(tmp_path / "events.db", []) as (_, client), anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(client.publish, words, "before")
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        async with client.subscribe(words) as subscription:
            assert (await client.head(words)).index == 20
            await client.publish(words, "after")
            assert (await subscription.receive()).payload == "after"


async def test_each_is_told_what_became_of_its_own(tmp_path: Path) -> None:
    """Some are in conflict, those around them are not."""
    outcomes: dict[int, str] = {}

    async with served(tmp_path / "events.db", []) as (_, client):

        async def publish(number: int) -> None:
            try:
                await client.publish(words, str(number), expect=0 if number % 2 else None)
                outcomes[number] = "published"
            except Conflict:
                outcomes[number] = "conflict"

        await client.publish(words, "first")
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(publish, number)
        assert outcomes == {number: "conflict" if number % 2 else "published" for number in range(40)}
        async with client.subscribe(words, after=EARLIEST) as subscription:
            assert len([await subscription.receive() for _ in range(21)]) == 21

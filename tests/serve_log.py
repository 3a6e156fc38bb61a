"""A server with a log in a file, as a process: `python tests/serve_log.py FILE SOCKET`. Killed and started again."""

from __future__ import annotations

import sys

import anyio

from eventstream import EventBus, SQLiteLog, Topic
from eventstream.codec import Keyed
from eventstream.remote import Server

words = Topic("words", dict[str, int], retain=100_000)
state = Topic("state", Keyed, key="key", compacted=True)


async def main(file: str, socket: str) -> None:
    await anyio.Path(socket).unlink(missing_ok=True)  # what a killed one has left
    listener = await anyio.create_unix_listener(socket)
    async with EventBus(SQLiteLog(file, durability="process")) as bus, anyio.create_task_group() as tasks:
        await tasks.start(Server(bus, [words, state]).serve, listener)
        print("listening at", socket, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])

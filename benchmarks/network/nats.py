"""NATS: nats-server, and nats-py on both ends. Live events by the core, what is kept by JetStream in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from .peer import HOST, TOPIC, Client, Peer, Sample, Sink, as_bytes, from_bytes, process_cpu, server_process

__all__ = ("Nats",)

BUCKET = "state"
KEPT = "kept"
UNBOUNDED = {"pending_msgs_limit": -1, "pending_bytes_limit": -1}  # else the client drops what it is slow to take
PATIENCE = 90.0  # seconds; the default of 5 is not enough where 100 clients share a process


def _configuration(port: int, folder: str) -> list[str]:
    file = Path(folder, "nats.conf")
    file.write_text(
        f'host: "{HOST}"\nport: {port}\nmax_pending: 1GB\n'
        f'jetstream {{ store_dir: "{folder}/js", max_mem: 2GB, max_file: 2GB }}\n'
    )
    return ["-c", str(file)]


class NatsClient(Client):
    """nats-py."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def follow(self, started: Callable[[], None], sink: Sink) -> None:
        subscription = await self._connection.subscribe(TOPIC, **UNBOUNDED)
        await self._connection.flush()
        started()
        async for message in subscription.messages:
            sink(from_bytes(message.data))

    async def replay(self, count: int, sink: Sink) -> None:
        stream = self._connection.jetstream(timeout=PATIENCE)
        subscription = await stream.subscribe(KEPT, ordered_consumer=True, **UNBOUNDED)
        left = count
        async for message in subscription.messages:
            sink(from_bytes(message.data))
            left -= 1
            if not left:
                return

    async def mirror(self, complete: Callable[[int], None]) -> None:
        bucket = await self._connection.jetstream(timeout=PATIENCE).key_value(BUCKET)
        state: dict[str, Sample] = {}
        watcher = await bucket.watchall()
        async for entry in watcher:
            if entry is None:
                complete(len(state))
            else:
                state[entry.key] = from_bytes(entry.value)


class Nats(Peer):
    """nats-server in a third process."""

    name = "nats-server, nats-py"
    needs: tuple[str, ...] = ("nats",)
    program: str | None = "nats-server"

    async def open(self, stack: AsyncExitStack) -> None:
        import nats

        self._pid, self.port = stack.enter_context(server_process("nats-server", _configuration))
        self._connection: Any = await nats.connect(f"nats://{HOST}:{self.port}")
        stack.push_async_callback(self._connection.close)

    async def publish(self, samples: list[Sample]) -> None:
        for sample in samples:
            await self._connection.publish(TOPIC, as_bytes(sample))
        await self._connection.flush()

    async def keep(self, count: int) -> None:
        stream = self._connection.jetstream(publish_async_max_pending=1000)
        await stream.add_stream(name=KEPT, subjects=[KEPT], storage="memory")
        await self._put(stream, [(KEPT, Sample.make(number)) for number in range(count)])

    async def fill(self, keys: int) -> None:
        from nats.js import api

        stream = self._connection.jetstream(publish_async_max_pending=1000)
        await stream.create_key_value(api.KeyValueConfig(bucket=BUCKET, storage=api.StorageType.MEMORY))
        names = [f"boiler-{number}" for number in range(keys)]
        await self._put(stream, [(f"$KV.{BUCKET}.{name}", Sample.make(at, name)) for at, name in enumerate(names)])

    async def _put(self, stream: Any, entries: list[tuple[str, Sample]]) -> None:
        for first in range(0, len(entries), 500):
            some = entries[first : first + 500]
            await asyncio.gather(*[await stream.publish_async(subject, as_bytes(sample)) for subject, sample in some])

    def cpu(self) -> float:
        return process_cpu(self._pid)

    @classmethod
    @asynccontextmanager
    async def client(cls, port: int) -> AsyncIterator[Client]:
        import nats

        connection = await nats.connect(f"nats://{HOST}:{port}")
        try:
            yield NatsClient(connection)
        finally:
            await connection.close()

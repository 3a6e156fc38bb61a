"""Redis: redis-server, and redis-py with hiredis on both ends. Live events by pub/sub, what is kept by a stream, and
state by a hash whose changes are published: as one would build it oneself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from .peer import HOST, TOPIC, Client, Peer, Sample, Sink, as_bytes, from_bytes, process_cpu, server_process

__all__ = ("Redis",)

KEPT = "kept"
STATE = "state"


def _options(port: int, folder: str) -> list[str]:
    return [
        *("--bind", HOST, "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "no"),
        *("--maxclients", "4000", "--client-output-buffer-limit", "pubsub 0 0 0"),
    ]


class RedisClient(Client):
    """redis-py."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def follow(self, started: Callable[[], None], sink: Sink) -> None:
        pubsub = self._connection.pubsub()
        await pubsub.subscribe(TOPIC)
        await pubsub.get_message(timeout=5)
        started()
        async for message in pubsub.listen():
            sink(from_bytes(message["data"]))

    async def replay(self, count: int, sink: Sink) -> None:
        left: int = count
        last: str | bytes = "0"
        while left > 0:
            for _, entries in await self._connection.xread({KEPT: last}, count=1000):
                for _, fields in entries:
                    sink(from_bytes(fields[b"e"]))
                last = entries[-1][0]
                left -= len(entries)

    async def mirror(self, complete: Callable[[int], None]) -> None:
        pubsub = self._connection.pubsub()
        await pubsub.subscribe(STATE)
        stored = await self._connection.hgetall(STATE)
        state = {key: from_bytes(value) for key, value in stored.items()}
        complete(len(state))
        async for message in pubsub.listen():
            if message["type"] == "message":
                sample = from_bytes(message["data"])
                state[sample.sensor.encode()] = sample


class Redis(Peer):
    """redis-server in a third process."""

    name = "redis-server, redis-py"
    needs: tuple[str, ...] = ("redis", "hiredis")
    program: str | None = "redis-server"

    async def open(self, stack: AsyncExitStack) -> None:
        from redis.asyncio import Redis as Connection

        self._pid, self.port = stack.enter_context(server_process("redis-server", _options))
        self._connection: Any = Connection(host=HOST, port=self.port)
        stack.push_async_callback(self._connection.aclose)

    async def publish(self, samples: list[Sample]) -> None:
        async with self._connection.pipeline(transaction=False) as pipeline:
            for sample in samples:
                pipeline.publish(TOPIC, as_bytes(sample))
            await pipeline.execute()

    async def keep(self, count: int) -> None:
        for first in range(0, count, 1000):
            async with self._connection.pipeline(transaction=False) as pipeline:
                for number in range(first, min(first + 1000, count)):
                    pipeline.xadd(KEPT, {"e": as_bytes(Sample.make(number))})
                await pipeline.execute()

    async def fill(self, keys: int) -> None:
        for first in range(0, keys, 500):
            async with self._connection.pipeline(transaction=False) as pipeline:
                for number in range(first, min(first + 500, keys)):
                    pipeline.hset(STATE, f"boiler-{number}", as_bytes(Sample.make(number, f"boiler-{number}")))
                await pipeline.execute()

    def cpu(self) -> float:
        return process_cpu(self._pid)

    @classmethod
    @asynccontextmanager
    async def client(cls, port: int) -> AsyncIterator[Client]:
        from redis.asyncio import Redis as Connection

        connection = Connection(host=HOST, port=port, socket_timeout=None)
        await connection.ping()
        try:
            yield RedisClient(connection)
        finally:
            await connection.aclose()

"""eventstream: the server's process has the bus in it and publishes there, as a service with a bus inside does."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import process_time
from typing import Any, Final

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from eventstream import EARLIEST, EventBus, Topic
from eventstream.remote import RemoteBus, Server, open_bus

from .peer import HOST, TOPIC, Client, Peer, Sample, Sink

__all__ = ("Ours",)

SAMPLES: Final = Topic(TOPIC, Sample, key="sensor", retain=100_000)
STATE: Final = Topic("state", Sample, key="sensor", compacted=True)


class OurClient(Client):
    """A `RemoteBus`."""

    def __init__(self, bus: RemoteBus) -> None:
        self._bus = bus

    async def follow(self, started: Callable[[], None], sink: Sink) -> None:
        async with self._bus.subscribe(SAMPLES) as subscription:
            await self._bus.head(SAMPLES)  # answered after the subscription was opened
            started()
            async for batch in subscription.batches():
                for event in batch:
                    sink(event.payload)

    async def replay(self, count: int, sink: Sink) -> None:
        left = count
        async with self._bus.subscribe(SAMPLES, after=EARLIEST) as subscription:
            async for batch in subscription.batches():
                for event in batch:
                    sink(event.payload)
                left -= len(batch)
                if left <= 0:
                    return

    async def mirror(self, complete: Callable[[int], None]) -> None:
        async with self._bus.view(STATE) as view:
            await view.ready()
            complete(len(view))
            await anyio.sleep_forever()


class Ours(Peer):
    """A `Server` on an `EventBus`."""

    name = "eventstream"

    async def open(self, stack: AsyncExitStack) -> None:
        self._bus = await stack.enter_async_context(EventBus())
        listener = await anyio.create_tcp_listener(local_host=HOST, backlog=2048)
        self.port = listener.extra(SocketAttribute.local_port)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(Server(self._bus, [SAMPLES, STATE]).serve, listener)

    async def publish(self, samples: list[Sample]) -> None:
        for sample in samples:
            self._bus.publish_nowait(SAMPLES, sample)
        await checkpoint()

    async def keep(self, count: int) -> None:
        for number in range(count):
            self._bus.publish_nowait(SAMPLES, Sample.make(number))
        gc.collect()

    async def fill(self, keys: int) -> None:
        for number in range(keys):
            self._bus.publish_nowait(STATE, Sample.make(number, f"boiler-{number}"))
        gc.collect()

    def cpu(self) -> float:
        return process_time()

    @classmethod
    @asynccontextmanager
    async def client(cls, port: int) -> AsyncIterator[Client]:
        bus: Any = open_bus(f"tcp://{HOST}:{port}")
        async with bus:
            await bus.wait_connected()
            yield OurClient(bus)

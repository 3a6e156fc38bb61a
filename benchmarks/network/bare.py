"""The floor: what is left of each part when nobody has to be told apart, resumed, waited for or bounded.

The same bus publishes the same samples; their bytes are made once and written to every connection by the event loop's
own transport, a burst with one call; the client finds where a burst ends, decodes it to the same Struct, and calls the
sink in the callback that brings the bytes. No task, no subscription, no acknowledgement, no credit, no position. What
a Python program can reach is between its row and ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import process_time
from typing import Any, Final, cast

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from eventstream import EventBus, Topic

from .peer import HOST, TOPIC, Client, Peer, Sample, Sink, as_bytes

__all__ = ("Bare",)

SAMPLES: Final = Topic(TOPIC, Sample, key="sensor", retain=100_000)
LENGTH: Final = 4  # bytes before a burst
BURST: Final = 1000  # events of a reply to a late joiner
LIVE, KEPT = b"l", b"k"  # what a client asks for

_decode: Final = msgspec.msgpack.Decoder(list[Sample]).decode


def _framed(samples: list[Sample]) -> bytes:
    body = as_bytes(samples)
    return len(body).to_bytes(LENGTH, "big") + body


class _Serving(asyncio.Protocol):
    def __init__(self, house: Bare) -> None:
        self._house = house

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if data == LIVE:
            self._house.writers.append(self._transport.write)
            self._transport.write(_framed([]))  # it will miss none any more
        else:
            self._transport.writelines(self._house.kept)

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.forget(self._transport.write)


class _Reading(asyncio.Protocol):
    """Gives each burst to a callable."""

    def __init__(self) -> None:
        self.take: Callable[[list[Sample]], None]
        self.transport: asyncio.WriteTransport
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at, view = 0, memoryview(data)
        while len(data) - at >= LENGTH:
            end = at + LENGTH + int.from_bytes(data[at : at + LENGTH], "big")
            if end > len(data):
                break
            self.take(_decode(view[at + LENGTH : end]))
            at = end
        self._rest = data[at:]


class BareClient(Client):
    """A protocol of the event loop."""

    def __init__(self, reading: _Reading) -> None:
        self._reading = reading

    def _ask(self, what: bytes, take: Callable[[list[Sample]], None]) -> None:
        self._reading.take = take
        self._reading.transport.write(what)

    async def follow(self, started: Callable[[], None], sink: Sink) -> None:
        def take(samples: list[Sample]) -> None:
            if not samples:
                started()
            for sample in samples:
                sink(sample)

        self._ask(LIVE, take)
        await anyio.sleep_forever()

    async def replay(self, count: int, sink: Sink) -> None:
        left, done = count, anyio.Event()

        def take(samples: list[Sample]) -> None:
            nonlocal left
            for sample in samples:
                sink(sample)
            left -= len(samples)
            if left <= 0:
                done.set()

        self._ask(KEPT, take)
        await done.wait()

    async def mirror(self, complete: Callable[[int], None]) -> None:
        state: dict[str, Sample] = {}

        def take(samples: list[Sample]) -> None:
            state.update((sample.sensor, sample) for sample in samples)
            if len(samples) < BURST:
                complete(len(state))

        self._ask(KEPT, take)
        await anyio.sleep_forever()


class Bare(Peer):
    """The event loop's own transports, in our server's place."""

    name = "(bare transports)"

    def __init__(self) -> None:
        self.writers: list[Callable[[bytes], Any]] = []
        self.kept: list[bytes] = []

    def forget(self, write: Callable[[bytes], Any]) -> None:
        """A client has gone."""
        if write in self.writers:
            self.writers.remove(write)

    async def open(self, stack: AsyncExitStack) -> None:
        self._bus = await stack.enter_async_context(EventBus())
        server = await asyncio.get_running_loop().create_server(lambda: _Serving(self), HOST, 0, backlog=2048)
        stack.callback(server.close)
        self.port = server.sockets[0].getsockname()[1]

    async def publish(self, samples: list[Sample]) -> None:
        for sample in samples:
            self._bus.publish_nowait(SAMPLES, sample)
        burst = _framed(samples)
        for write in self.writers:
            write(burst)
        await checkpoint()

    async def keep(self, count: int) -> None:
        self._keep([Sample.make(number) for number in range(count)])

    async def fill(self, keys: int) -> None:
        self._keep([Sample.make(number, f"boiler-{number}") for number in range(keys)])

    def _keep(self, samples: list[Sample]) -> None:
        bursts = [samples[first : first + BURST] for first in range(0, len(samples) + 1, BURST)]  # the last is short
        self.kept = [_framed(burst) for burst in bursts]

    def cpu(self) -> float:
        return process_time()

    @classmethod
    @asynccontextmanager
    async def client(cls, port: int) -> AsyncIterator[Client]:
        transport, reading = await asyncio.get_running_loop().create_connection(_Reading, HOST, port)
        try:
            yield BareClient(reading)
        finally:
            transport.close()

"""`eventstream bench`: how fast events go through one server, there and back.

Two measurements, because they exclude each other: latency is taken while little is published, throughput while as much
is as gets through. The publisher and all subscribers are in this one process, each with a connection of its own, and
share its processor: what it says is what one client machine sees, not what the server can do for many.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Final

import anyio
import msgspec
from anyio import create_task_group, current_time, sleep_until

from ..events import Topic
from ..remote import RemoteBus
from ..topics import Subscription
from .links import Link, connected
from .running import DONE, Failure, Output

__all__ = ("Load", "bench")

TOPIC: Final = Topic("eventstream.bench", bytes, retain=0)
STAMP: Final = struct.Struct("<d")  # the time at which an event was given to `publish`
CALM: Final = 0.005  # seconds between events while the latency is measured
UNDER_WAY: Final = 256  # publishes that wait for their answer
AHEAD: Final = 8192  # events that the slowest subscriber may be behind: below the lag bound of any topic
SETTLE: Final = 10.0  # seconds for the last events to arrive


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How much; see the command's help."""

    subscribers: int = 1
    seconds: float = 5.0
    payload: int = 100


async def bench(url: str, load: Load, link: Link) -> int:
    """Measures, and prints a table."""
    waits: list[float] = []
    published, seconds = 0, 0.0
    async with AsyncExitStack() as stack:
        key = token_hex(8)  # nobody else's events
        listeners = []
        for _ in range(load.subscribers):
            bus = await stack.enter_async_context(connected(url, link))
            subscription = await stack.enter_async_context(bus.subscribe(TOPIC, key=key))
            await anext(subscription.frames())  # it is there from here on
            listeners.append(Listener(subscription))
        publisher = Publisher(await stack.enter_async_context(connected(url, link)), key, load.payload, listeners)
        async with create_task_group() as tasks:
            for listener in listeners:
                tasks.start_soon(listener.run)
            await publisher.calm(load.seconds / 2)
            waits = sorted(wait for listener in listeners for wait in listener.waits)
            published, seconds = await publisher.hurry(load.seconds / 2)
            await Output().write(_table(load, waits, published, seconds).encode())
            tasks.cancel_scope.cancel()
    return DONE


class Listener:
    """One subscriber.

    Attributes:
        count: Events that it got.
        waits: Seconds from publish to arrival, of the first events.
    """

    def __init__(self, subscription: Subscription[bytes]) -> None:
        self.count: int = 0
        self.waits: list[float] = []
        self.calm = True
        self.more: anyio.Event = anyio.Event()
        self._subscription = subscription

    async def run(self) -> None:
        """Until it is cancelled."""
        async for events in self._subscription.batches():
            self.count += len(events)
            if self.calm:
                now = time.perf_counter()
                self.waits += [now - STAMP.unpack_from(event.payload)[0] for event in events]
            self.more.set()


class Publisher:
    """Publishes, and waits for the listeners where it would leave them too far behind."""

    def __init__(self, bus: RemoteBus, key: str, size: int, listeners: Sequence[Listener]) -> None:
        self._bus = bus
        self._key = key
        self._padding = bytes(max(size - STAMP.size, 0))
        self._listeners = listeners
        self._count = 0

    async def calm(self, seconds: float) -> None:
        """One event at a time, with a pause after each."""
        begin = due = current_time()
        while due < begin + seconds:
            await self._publish()
            due += CALM
            await sleep_until(due)
        await self._all_have(self._count)
        for listener in self._listeners:
            listener.calm = False

    async def hurry(self, seconds: float) -> tuple[int, float]:
        """As fast as it goes. Returns how many events that were, and in what time everybody had them."""
        before, begin = self._count, current_time()
        async with create_task_group() as tasks:
            for _ in range(UNDER_WAY):
                tasks.start_soon(self._publish_until, begin + seconds)
        await self._all_have(self._count)
        return self._count - before, current_time() - begin

    async def _publish_until(self, end: float) -> None:
        while current_time() < end:
            await self._publish()
            await self._all_have(self._count - AHEAD)

    async def _publish(self) -> None:
        self._count += 1
        await self._bus.publish(TOPIC, STAMP.pack(time.perf_counter()) + self._padding, key=self._key)

    async def _all_have(self, count: int) -> None:
        with anyio.move_on_after(SETTLE) as patience:
            for listener in self._listeners:
                while listener.count < count:
                    listener.more = anyio.Event()
                    await listener.more.wait()
        if patience.cancelled_caught:
            raise Failure(f"after {SETTLE:g} s a subscriber had still not got everything")


def _table(load: Load, waits: list[float], published: int, seconds: float) -> str:
    rows = {
        "subscribers": f"{load.subscribers:,}",
        "payload": f"{max(load.payload, STAMP.size):,} bytes",
        "published": f"{published / seconds:,.0f} events/s",
        "delivered": f"{published * load.subscribers / seconds:,.0f} events/s",
        "latency p50": f"{_part(waits, 0.5) * 1000:.2f} ms",
        "latency p99": f"{_part(waits, 0.99) * 1000:.2f} ms",
    }
    return "".join(f"{name:<12} {value}\n" for name, value in rows.items())


def _part(numbers: Sequence[float], part: float) -> float:
    return numbers[min(int(part * len(numbers)), len(numbers) - 1)]

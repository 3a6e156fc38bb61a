"""One feed for each peer: it starts n subscribers, whose consumers give every event to the sink, and publishes.

A peer is used as its own documentation shows it. Each has an independent consumer coroutine per subscriber, but
blinker, which calls functions and has neither queue nor consumer: it shows what the rest costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

import msgspec

from eventstream import EventBus, Subscription, Topic

from .stage import Stage

__all__ = ("FEEDS", "OURS", "QUEUE", "READING", "TRIO_CHANNEL", "Feed", "Reading", "Sink", "missing")

Sink = Callable[[Any], None]


class Reading(msgspec.Struct, frozen=True):
    """What is published: a small typed payload."""

    sensor: str
    value: float
    unit: str
    good: bool


READING = Reading("boiler-1", 21.5, "celsius", True)  # one for all events, so that making it is no part of any figure


class Feed:
    """A peer.

    Attributes:
        name: Its row.
        loops: Where it runs.
        needs: The package it needs, beside the standard library and eventstream's own.
        awaits: Whether one publishes with `await apublish` instead of `publish`.
    """

    name: str
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    needs: str | None = None
    awaits: bool = False

    def __init__(self, stage: Stage, stack: AsyncExitStack) -> None:
        self.stage = stage
        self.stack = stack

    async def subscribe(self, n: int, sink: Sink) -> None:
        """Starts n subscribers. Called once with 0 before, so that imports are done."""
        raise NotImplementedError

    def publish(self, payload: Reading) -> None:
        """Publishes at once."""
        raise NotImplementedError

    async def apublish(self, payload: Reading) -> None:
        """Publishes, waiting for what the peer waits for."""
        raise NotImplementedError


class QueueEach(Feed):
    """What one writes without a library."""

    name = "asyncio.Queue each"

    async def subscribe(self, n: int, sink: Sink) -> None:
        self.queues: list[asyncio.Queue[Reading]] = [asyncio.Queue() for _ in range(n)]
        for queue in self.queues:
            self.stage.spawn(self._consume(queue, sink))

    async def _consume(self, queue: asyncio.Queue[Reading], sink: Sink) -> None:
        while True:
            sink(await queue.get())

    def publish(self, payload: Reading) -> None:
        for queue in self.queues:
            queue.put_nowait(payload)


class TrioChannelEach(Feed):
    """The same on trio."""

    name = "trio memory channel each"
    loops: tuple[str, ...] = ("trio",)
    needs: str | None = "trio"

    async def subscribe(self, n: int, sink: Sink) -> None:
        import trio

        pairs = [trio.open_memory_channel[Reading](float("inf")) for _ in range(n)]
        self.senders = [sender for sender, _ in pairs]
        for _, receiver in pairs:
            self.stage.spawn(self._consume(receiver, sink))

    async def _consume(self, receiver: Any, sink: Sink) -> None:
        async for payload in receiver:
            sink(payload)

    def publish(self, payload: Reading) -> None:
        for sender in self.senders:
            sender.send_nowait(payload)


class Broadcaster(Feed):
    """encode/broadcaster on its memory backend."""

    name = "broadcaster (memory)"
    needs: str | None = "broadcaster"
    awaits = True

    async def subscribe(self, n: int, sink: Sink) -> None:
        from broadcaster import Broadcast

        self.broadcast = await self.stack.enter_async_context(Broadcast("memory://"))
        for _ in range(n):
            self.stage.spawn(self._consume(sink))

    async def _consume(self, sink: Sink) -> None:
        async with self.broadcast.subscribe("sensors") as subscriber:
            async for event in subscriber:  # type: ignore[union-attr]  # __aiter__ is declared to give None as well
                sink(event)

    async def apublish(self, payload: Reading) -> None:
        await self.broadcast.publish("sensors", payload)


class AioPubSub(Feed):
    """aiopubsub with a queue per subscriber, consumed by `consume()`."""

    name = "aiopubsub"
    needs: str | None = "aiopubsub"

    async def subscribe(self, n: int, sink: Sink) -> None:
        from aiopubsub import Hub, Key, Publisher, Subscriber  # type: ignore[import-untyped]  # it ships no types

        hub = Hub()
        self.publisher = Publisher(hub, Key("plant"))
        for number in range(n):
            subscriber = Subscriber(hub, number)
            subscriber.subscribe(Key("plant", "sensors"))
            self.stage.spawn(self._consume(subscriber, sink))

    async def _consume(self, subscriber: Any, sink: Sink) -> None:
        while True:
            _, payload = await subscriber.consume()
            sink(payload)

    def publish(self, payload: Reading) -> None:
        self.publisher.publish("sensors", payload)


class Blinker(Feed):
    """Plain calls: no consumer, no queue, nothing that could be slow on its own."""

    name = "blinker (calls, no consumers)"
    loops: tuple[str, ...] = ("asyncio",)
    needs: str | None = "blinker"

    async def subscribe(self, n: int, sink: Sink) -> None:
        from blinker import Signal

        self.signal = Signal()
        self.receivers = [self._receiver(sink) for _ in range(n)]  # the signal refers to them weakly
        for receiver in self.receivers:
            self.signal.connect(receiver)

    def _receiver(self, sink: Sink) -> Callable[..., None]:
        def receive(sender: object, payload: Reading) -> None:
            sink(payload)

        return receive

    def publish(self, payload: Reading) -> None:
        self.signal.send(self, payload=payload)


class _Node:
    __slots__ = ("following", "payload")

    def __init__(self, payload: Reading | None) -> None:
        self.payload = payload
        self.following: _Node | None = None


class LinkedList(Feed):
    """The bare idea: all read one list of nodes, and whoever is at its end parks a future. No history, no bounds."""

    name = "(design: linked list of nodes)"

    async def subscribe(self, n: int, sink: Sink) -> None:
        self.tail = _Node(None)
        self.parked: list[asyncio.Future[None]] = []
        self.future = asyncio.get_running_loop().create_future
        for _ in range(n):
            self.stage.spawn(self._consume(sink))

    async def _payloads(self) -> AsyncIterator[Reading | None]:
        node = self.tail
        while True:
            while (following := node.following) is not None:
                node = following
                yield node.payload
            future = self.future()
            self.parked.append(future)
            await future

    async def _consume(self, sink: Sink) -> None:
        async for payload in self._payloads():
            sink(payload)

    def publish(self, payload: Reading) -> None:
        node = _Node(payload)
        self.tail.following = node
        self.tail = node
        if self.parked:
            parked, self.parked = self.parked, []
            for future in parked:
                if not future.done():
                    future.set_result(None)


class OursByEvent(Feed):
    """`async for event in subscription`."""

    name = "eventstream, async for"
    loops: tuple[str, ...] = ("asyncio", "uvloop", "trio")

    async def subscribe(self, n: int, sink: Sink) -> None:
        self.bus = await self.stack.enter_async_context(EventBus())
        self.topic: Topic[Reading] = Topic("sensors", Reading)
        for _ in range(n):
            self.stage.spawn(self._consume(self.bus.subscribe(self.topic), sink))

    async def _consume(self, subscription: Subscription[Reading], sink: Sink) -> None:
        async with subscription:
            async for event in subscription:
                sink(event)

    def publish(self, payload: Reading) -> None:
        self.bus.publish_nowait(self.topic, payload)


class OursByBatch(OursByEvent):
    """`async for batch in subscription.batches()`."""

    name = "eventstream, batches()"

    async def _consume(self, subscription: Subscription[Reading], sink: Sink) -> None:
        async with subscription:
            async for batch in subscription.batches():
                for event in batch:
                    sink(event)


_ALL: tuple[type[Feed], ...] = (
    QueueEach, TrioChannelEach, Broadcaster, AioPubSub, Blinker, LinkedList, OursByEvent, OursByBatch,
)  # fmt: skip
QUEUE, TRIO_CHANNEL = QueueEach.name, TrioChannelEach.name
OURS = (OursByEvent.name, OursByBatch.name)
FEEDS: dict[str, type[Feed]] = {
    feed.name: feed for feed in _ALL if feed.needs is None or find_spec(feed.needs) is not None
}


def missing() -> list[str]:
    """The peers whose package is not installed."""
    return [feed.name for feed in _ALL if feed.name not in FEEDS]

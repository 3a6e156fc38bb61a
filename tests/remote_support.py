"""A server and its clients in one event loop, over the network in memory."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

import anyio
import pytest

from eventstream import Event, EventBus, Subscription, Topic
from eventstream.errors import PipeBroken
from eventstream.pipes import BackedPipe, Retry
from eventstream.remote import RemoteBus, Server
from eventstream.remote.faults import from_fault
from eventstream.remote.messages import VERSION, Goodbye, Greeting, Message, MessageDecoder, Welcome, encode
from eventstream.testing import Network, run_simulated
from support import settle as settle_locally
from support import take

__all__ = ("QUICK", "Stranger", "Town", "drain", "receive_now", "settle", "simulated", "stranger", "take")

T = TypeVar("T")
M = TypeVar("M")
QUICK = Retry(first=0.05, cap=0.5)


async def settle(turns: int = 20) -> None:
    """Lets all tasks run that can, and all bytes arrive that are under way."""
    await settle_locally(5 * turns)


async def drain(subscription: Subscription[T]) -> list[T]:
    """The payloads of all events that come without anything else happening."""
    payloads = []
    while True:
        await settle()
        try:
            while True:
                payloads.append(subscription.receive_nowait().payload)
        except anyio.WouldBlock:
            if not subscription.lag:
                return payloads


async def receive_now(subscription: Subscription[T]) -> Event[T]:
    """The next event, if it comes without anything else happening."""
    await settle()
    return subscription.receive_nowait()


class Town:
    """A network with one bus and its server, which can be replaced, and any number of clients.

    Attributes:
        bus: The bus that is served now.
        server: Its server.
        network: Between the server and the clients.
    """

    def __init__(self, *topics: Topic[Any], **options: Any) -> None:
        self.network = Network()
        self.topics = topics
        self.options = options
        self.clock: Callable[[], float] = time.time  # of the buses
        self.bus: EventBus
        self.server: Server
        self._tasks: anyio.abc.TaskGroup
        self._serving: anyio.CancelScope | None = None
        self._servers = 0

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Town, None]:
        """Serves until it is left."""
        failure: Exception | None = None
        async with EventBus(clock=self.clock) as self.bus, anyio.create_task_group() as self._tasks:
            try:
                await self.serve()
                yield self
            except Exception as error:
                failure = error
            self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def serve(self, **options: Any) -> None:
        """Puts another server before the present bus; the old one is gone at once."""
        await self.stop()
        self._servers += 1
        self.server = Server(self.bus, self.topics, **{"random": Random(self._servers), **self.options, **options})
        await self._tasks.start(self._serve)

    async def stop(self) -> None:
        """The server is gone at once, without a word."""
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
            await settle_locally()

    async def restart(self) -> None:
        """The server's process is replaced: another bus, which knows nothing."""
        await self.stop()
        fresh = EventBus(clock=self.clock)
        await self._tasks.start(self._run_bus, fresh)
        self.bus = fresh
        await self.serve()

    async def _run_bus(self, bus: EventBus, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with bus:
            task_status.started()
            await anyio.sleep_forever()

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as self._serving:
            await self.server.serve(self.network.listen(), task_status=task_status)

    def client(self, **options: Any) -> RemoteBus:
        """One more client, to be entered."""
        return RemoteBus(self.network.dial, **{"retry": QUICK, "random": Random(2), **options})

    def cut(self) -> None:
        """Cuts all connections."""
        for link in self.network.links:
            link.cut()


def simulated(behaviour: Callable[..., Awaitable[None]]) -> Any:
    """Makes a test that runs in simulated time, on both event loops."""

    @pytest.mark.parametrize("loop", ["asyncio", "trio"])
    @functools.wraps(behaviour)
    def test(*args: Any, loop: Any, **kwargs: Any) -> None:
        run_simulated(functools.partial(behaviour, *args, **kwargs), backend=loop, limit=3600.0)

    signature = inspect.signature(behaviour)
    parameter = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    vars(test)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), parameter])
    return test


class Stranger:
    """Speaks the protocol by hand.

    Attributes:
        heard: What the server said.
    """

    def __init__(self, pipe: BackedPipe) -> None:
        self.pipe = pipe
        self.heard: list[Message] = []
        self._decoder = MessageDecoder()

    async def say(self, *messages: Message | bytes) -> None:
        """Messages, or whatever bytes."""
        await self.pipe.send(b"".join(one if isinstance(one, bytes) else encode(one) for one in messages))

    async def hear(self, kind: type[M], seconds: float = 5.0) -> M:
        """The next message of a kind; those before it are in `heard`."""
        with anyio.fail_after(seconds):
            while True:
                for message in self.heard:
                    if isinstance(message, kind):
                        self.heard.remove(message)
                        return message
                self.heard += self._decoder.feed(await self.pipe.receive())

    async def refusal(self) -> str:
        """Why the server ends the connection."""
        fault = (await self.hear(Goodbye)).fault
        with pytest.raises((PipeBroken, anyio.EndOfStream)):
            await self.pipe.receive()
        return "" if fault is None else str(from_fault(fault))


@asynccontextmanager
async def stranger(town: Town, *, greet: bool = True) -> AsyncGenerator[Stranger, None]:
    """Who has a pipe to the server, and maybe was polite."""
    async with BackedPipe(town.network.dial, random=Random(9), retry=QUICK) as pipe:
        other = Stranger(pipe)
        if greet:
            await other.say(Greeting(VERSION, None))
            await other.hear(Welcome)
        yield other

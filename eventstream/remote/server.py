"""Serves a bus to other processes: pipes below, one `Connection` for each client above."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from random import Random
from typing import Any

import msgspec
from anyio import TASK_STATUS_IGNORED, CancelScope, Event, current_time
from anyio.abc import ByteStream, Listener, TaskStatus

from ..bus import EventBus
from ..codec import Keyed
from ..errors import LimitReached, TopicConflict, UnknownTopic, shown
from ..events import Topic
from ..pipes import Pipe, PipeLimits, PipeServer, PipeServerStatistics
from .access import Authenticate, Authorize, ServerLimits
from .connection import COME_AGAIN, Connection
from .house import Shelf
from .messages import OpenTopic
from .sharing import EVENTS, LISTS, Kept

__all__ = ("Server", "ServerStatistics")


class ServerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A server at one moment.

    Attributes:
        connections: Clients, with and without a link.
        encoded: Events that were turned into bytes so far; each once, however many clients got it.
        pipes: The pipes below.
    """

    connections: int
    encoded: int
    pipes: PipeServerStatistics


class Server:
    """Serves a running bus over any anyio listeners: TCP, TLS, Unix sockets.

        async with EventBus() as bus:
            await Server(bus, [prices]).serve(await anyio.create_tcp_listener(local_port=4000))

    It belongs to the event loop of the bus. It encodes each event once, whatever the number of its readers, and never
    lets a slow client hold up another, or a publisher.

    Args:
        bus: The bus; it must be running while `serve` does.
        topics: The topics that clients may use, with their types: what a client publishes is validated by them.
        create: Whether clients may use other topics too, whose payloads pass through as they are; a name is theirs from
            then on. Such a topic retains as many events, and lets its readers fall behind as far, as the first client
            that uses it has declared; both at most `limits.created_retain`.
        authenticate: Says who a client is, from its token or certificate; without it everybody is welcome.
        authorize: Says what it may do; without it everything.
        limits: What one client gets.
        grace: Seconds for which a client that lost its connection is kept: within them nothing is even resumed.
        pipe_limits: What strangers can make the server hold.
        clock: The time in POSIX seconds, for grants that expire.
        random: For the epoch of the pipes; the system's by default.

    Raises:
        TypeError: if the bus is none, or is a `RemoteBus`, or a topic is no `Topic`.
        TopicConflict: if a name is declared in two ways.
    """

    def __init__(
        self,
        bus: EventBus,
        topics: Iterable[Topic[Any]] = (),
        *,
        create: bool = False,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        limits: ServerLimits | None = None,
        grace: float = 60.0,
        pipe_limits: PipeLimits | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        if not isinstance(bus, EventBus):
            raise TypeError(f"bus must be the EventBus itself, not {shown(bus)}")
        self.bus = bus
        self.clock = clock
        self.limits: ServerLimits = limits or ServerLimits()
        self.authenticate = authenticate
        self.authorize = authorize
        self._create = create
        self._created = 0
        self._kept = Kept(EVENTS), Kept(LISTS)
        self.shelves: dict[str, Shelf] = {}
        for topic in _checked(topics):
            self.shelves[topic.name] = Shelf(topic, topic.key is not None, *self._kept)
        self._connections: dict[Connection, None] = {}  # in the order of their coming
        self._closing = False
        self._left = Event()
        self._pipes = PipeServer(self._connected, grace=grace, limits=pipe_limits, random=random)

    async def serve(
        self, listener: Listener[ByteStream], *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Serves clients on `listener` until it is cancelled or `aclose` is called. May run for several at once."""
        await self._pipes.serve(listener, task_status=task_status)

    async def aclose(self, *, linger: float = 5.0) -> None:
        """Stops politely: tells the clients to come again, sends what is owed, and ends all `serve` calls.

        Args:
            linger: Seconds that this may take.
        """
        self._closing = True
        deadline = current_time() + linger
        for connection in list(self._connections):
            connection.part(COME_AGAIN)
        with CancelScope(deadline=deadline):
            while self._connections:
                await self._left.wait()
        with CancelScope(deadline=deadline):
            await self._pipes.aclose()

    def revoke(self, principal: Hashable) -> int:
        """Closes the principal's connections, with all their subscriptions, at once. Returns how many there were.

        Nothing that these clients said and that was not done yet is done any more. They are told, and do not come
        again by themselves; whether they may is for `authenticate` to say. Who is just being authenticated, and turns
        out to be this principal, is refused too.

        Raises:
            ValueError: if it is None, which is nobody.
        """
        if principal is None:
            raise ValueError("principal None is nobody: give what authenticate gave")
        return sum([connection.revoke(principal) for connection in self._connections])

    def statistics(self) -> ServerStatistics:
        """How it stands. Never waits."""
        return ServerStatistics(
            connections=len(self._connections),
            encoded=sum(shelf.shared.encoded for shelf in self.shelves.values()),
            pipes=self._pipes.statistics(),
        )

    def shelf(self, declared: OpenTopic, may_create: bool) -> Shelf:
        """The topic that a client means. (For its connections only.)"""
        shelf = self.shelves.get(declared.name)
        if shelf is None:
            if not (self._create and may_create):
                raise UnknownTopic(declared.name)
            if self._created >= self.limits.created_topics:
                raise LimitReached("created_topics", self.limits.created_topics)
            topic = _as_declared(declared, self.limits.created_retain)
            shelf = self.shelves[declared.name] = Shelf(topic, declared.keyed, *self._kept)
            self._created += 1
        elif shelf.topic.compacted != declared.compacted:
            raise TopicConflict(declared.name, "compacted")
        elif shelf.keyed != declared.keyed:
            raise TopicConflict(declared.name, "key")
        return shelf

    async def _connected(self, pipe: Pipe) -> None:
        connection = Connection(self, pipe)
        self._connections[connection] = None
        if self._closing:
            connection.part(COME_AGAIN)
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            self._left.set()
            self._left = Event()


def _checked(topics: Iterable[Topic[Any]]) -> list[Topic[Any]]:
    """Each name once."""
    if isinstance(topics, Topic):
        raise TypeError(f"topics must be a list of Topics: write [{topics.name}]")
    found: dict[str, Topic[Any]] = {}
    for topic in topics:
        if not isinstance(topic, Topic):
            raise TypeError(f"topics must be a list of Topics, {shown(topic)} is none")
        if (difference := found.setdefault(topic.name, topic).differs_in(topic)) is not None:
            raise TopicConflict(topic.name, difference)
    return list(found.values())


def _as_declared(message: OpenTopic, most: int) -> Topic[Keyed]:
    """A topic that this process knows only by what a client says of it."""
    return Topic(
        message.name,
        Keyed,
        key="key" if message.keyed else None,
        compacted=message.compacted,
        retain=min(message.retain, most),
        max_lag=min(message.max_lag, most),
    )

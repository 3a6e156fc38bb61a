"""The bus of another process: the methods of `EventBus`, over backed pipes.

    RemoteBus ──▶ Conversation ── requests, feeds ──▶ BackedPipe ══ links ══▶ Server ──▶ EventBus

Three recoveries stand behind it. A lost link is the pipe's affair: nothing here notices. If the pipe itself is over
(the server was restarted, or we were away for too long) the `Caller` makes a new one, each subscription goes on after
what had come, and each request that has no answer is said again; publishes carry an id, so that the server appends none
twice. And where the server's history has changed, its answer to the resumed subscription is the reset that readers
know.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from random import Random, SystemRandom
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from anyio import AsyncContextManagerMixin, create_task_group
from anyio.abc import TaskGroup

from ..bus import Handler, OnError
from ..bus.arguments import check_after, check_filter, terms
from ..bus.handlers import Handlings
from ..codec import NIL, TopicCodec
from ..errors import BusClosed, NotCompacted, NowaitUnsupported, ServerOnly
from ..events import Earliest, Position, Topic, check_name
from ..events import Event as TopicEvent
from ..pipes import Reconnector, Retry
from ..snapshots import View
from ..snapshots.mirrors import Mirrors
from ..topics import Subscription, Waker, current_waker
from .caller import Caller, Token
from .conversation import Conversation
from .feed import RemoteSubscription
from .messages import Head, ListTopics, Publish, Refresh
from .requests import Told
from .standing import Changes

__all__ = ("RemoteBus",)

T = TypeVar("T")

WINDOW: Final = 1024 * 1024  # bytes of events that one subscription may have here unread


class RemoteBus(AsyncContextManagerMixin):
    """A bus that runs in another process. Use it with `async with`; it can be used once.

    It has the methods of `EventBus`, with the same types, frames and errors, and belongs to the event loop that entered
    it. Entering returns at once and connects in the background; calls wait until they are answered, however often the
    connection is lost meanwhile, so give them a time limit (`anyio.fail_after`) where waiting has no use.

    What one client publishes is in the order of its calls, over all topics, whichever tasks call. A publish that was
    cancelled before it could be said did not happen; a later one may or may not have: publish again with the same `id`,
    within the server's dedupe window. A publish without an answer is said again when the connection is back; if that
    is later than the server can know, it is not: `OutcomeUnknown`.

    Not over the network: `publish_nowait`, `snapshot`, `revoke` (`ServerOnly`), `authorize=` and `principal=` of
    `subscribe`: they belong to the server.

    Args:
        reconnector: Makes one connection to the server each time it is called.
        token: What the server's `authenticate` gets; a callable, async or not, is asked before each new pipe. If it
            raises, that is logged and it is asked again, as a server that is away is dialed again; what ends the bus
            is a `NotAuthorized` of its own, or that `retry` gives up.
        window: Bytes of events that one subscription may have here unread.
        heartbeat: Seconds between signs of life; a dead connection is noticed in two to three times that.
        retry: The schedule of dials.
        on_error: As of `EventBus`.
        random: For jitter and ids; the system's by default.

    Raises:
        TypeError, ValueError: if one of these cannot be used.
    """

    def __init__(
        self,
        reconnector: Reconnector,
        *,
        token: Token = None,
        window: int = WINDOW,
        heartbeat: float = 10.0,
        retry: Retry | None = None,
        on_error: OnError | None = None,
        random: Random | None = None,
    ) -> None:
        _check(reconnector, token, window, heartbeat)
        self._random = random or SystemRandom()
        self._name = self._random.randbytes(12).hex()  # of this client, for the ids of its publishes
        self._window = window
        self._conversation = Conversation()
        self._caller = Caller(self._conversation, reconnector, token, heartbeat, retry or Retry(), self._random)
        self._handlings = Handlings(on_error)
        self._mirrors = Mirrors(self._running, self._random, self._conversation.standing.away)
        self._tasks: TaskGroup
        self._entered = False
        self._waker: Waker

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[RemoteBus, None]:
        if self._entered:
            raise BusClosed("closed" if self._closed else "running")
        self._entered = True
        self._waker = current_waker()
        failure: BaseException | None = None
        async with create_task_group() as self._tasks:
            self._conversation.begin()
            self._tasks.start_soon(self._caller.run, name="eventstream connection")
            try:
                self._handlings.start(self._tasks)
                yield self
            except BaseException as error:
                failure = error  # raised below, outside the task group, which would wrap it in a group of one
            self._conversation.end(BusClosed("closed"))
            if failure is None or isinstance(failure, Exception):
                await self._caller.take_leave()
            self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    # Publishing.

    async def publish(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """As `EventBus.publish`: returns when the server has committed the event.

        Raises (besides):
            OutcomeUnknown: if the answer stayed out for longer than the server remembers ids.
            InvalidPayload, LimitReached, NotAuthorized, UnknownTopic: if the server refuses it.
        """
        number, codec = self._known(topic)
        entries = [(topic.key_for(payload, key), msgspec.Raw(codec.encode_payload(payload)))]
        return await self._publish(number, entries, "one", (expect, id, headers, index))

    async def publish_many(
        self,
        topic: Topic[T],
        payloads: Iterable[T],
        *,
        key: str | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """As `EventBus.publish_many`: one atomic batch, of at most the server's `message_bytes`."""
        number, codec = self._known(topic)
        entries = [(topic.key_for(one, key), msgspec.Raw(codec.encode_payload(one))) for one in payloads]
        if not entries:
            return await self.head(topic)
        return await self._publish(number, entries, "many", (None, id, headers, index))

    async def delete(
        self,
        topic: Topic[Any],
        key: str,
        *,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
    ) -> Position:
        """As `EventBus.delete`."""
        number, _ = self._known(topic)
        if not topic.compacted:
            raise NotCompacted(topic.name, "delete from", "compacted=True")
        entries = [(check_name("key", key), msgspec.Raw(NIL))]
        return await self._publish(number, entries, "delete", (expect, id, headers, index))

    def submit(
        self,
        topic: Topic[Any],
        key: str,
        payload: bytes | None,
        terms: tuple[int | None, str, Mapping[str, str]],
        about: Any,
        told: Told,
    ) -> None:
        """Not for users: publishes what another part of the library has checked and encoded, and keeps.

        It takes its place among this client's publishes, and no task waits: `told` is called once with the request
        (`about`, `answer`, `error`), in the loop's thread, maybe before this returns. It must not raise.

        Args:
            topic, key: As of `publish`; `key` is the event's, also if the topic finds it in the payload.
            payload: As MessagePack; None for a tombstone.
            terms: Index to expect, id, headers.
            about, told: Who wants to know, and of what.

        Raises:
            BusClosed, NotAuthorized, ReconnectFailed: if the bus is not running, and why.
            TopicConflict, NotCompacted: as of `publish` and `delete`.
        """
        number, _ = self._known(topic)
        expect, id, headers = terms
        if payload is None and not topic.compacted:
            raise NotCompacted(topic.name, "delete from", "compacted=True")
        form: Any = "one" if payload is not None else "delete"
        entries: Any = [(key, msgspec.Raw(NIL if payload is None else payload))]
        copied = dict(headers) if headers else None
        self._conversation.submit(
            lambda request: Publish(request, number, entries, id, expect, None, copied, form), about, told
        )

    def forget(self, told: Told) -> None:
        """Not for users: who has submitted something does not want to be told any more.

        What was said may happen; what waits to be said, or to be said again, is not.
        """
        self._conversation.requests.forget(told)

    def publish_nowait(self, topic: Topic[T], payload: T, **_: object) -> NoReturn:
        """Raises NowaitUnsupported: a network has to be waited for."""
        raise NowaitUnsupported("a server")

    async def refresh(self, topic: Topic[Any]) -> Position:
        """As `EventBus.refresh`. If the connection is lost at that moment it may happen twice, with no harm done."""
        number, _ = self._known(topic)
        position: Position = await self._conversation.ask(lambda request: Refresh(request, number))
        return position

    async def head(self, topic: Topic[Any]) -> Position:
        """The position of the topic's newest event, as the server knows it when it answers."""
        number, _ = self._known(topic)
        position: Position = await self._conversation.ask(lambda request: Head(request, number))
        return position

    async def topics(self) -> dict[str, dict[str, Any]]:
        """The server's topics, each with its epoch, head, floor, retained, subscribers, lag and lagged."""
        answer: dict[str, dict[str, Any]] = await self._conversation.ask(ListTopics)
        return answer

    def _publish(
        self,
        topic: int,
        entries: list[tuple[str | None, msgspec.Raw]] | Any,
        form: Any,
        asked: tuple[int | None, str | None, Mapping[str, str] | None, int | None],
    ) -> Awaitable[Position]:
        expect, id, headers, index = asked
        terms(*asked)  # the checks are the bus's own
        copied = dict(headers) if headers else None
        return self._conversation.ask(
            lambda request: Publish(
                request, topic, entries, id or f"{self._name}:{request}", expect, index, copied, form
            )
        )

    # Reading.

    def subscribe(
        self,
        topic: Topic[T],
        *,
        key: str | None = None,
        prefix: str | None = None,
        after: Position | str | Earliest | None = None,
        principal: Hashable | None = None,
        authorize: Callable[[TopicEvent[T]], bool] | None = None,
    ) -> Subscription[T]:
        """As `EventBus.subscribe`. It misses nothing from the moment when the server hears of it, which is before it
        hears of any later publish of this client; what the first frame says is where it starts.
        """
        if principal is not None or authorize is not None:
            raise ServerOnly("subscribe(principal=, authorize=)")
        _, codec = self._known(topic)
        filters = check_filter(key, prefix)
        start = check_after(after)
        feed = self._conversation.subscribe(codec, filters, start, self._window, self._waker)
        return RemoteSubscription(feed, self._waker)

    def view(self, topic: Topic[T], *, key: str | None = None, prefix: str | None = None) -> View[T]:
        """As `EventBus.view`; whether the topic has a state, only the server knows."""
        self._known(topic)
        key, prefix = check_filter(key, prefix)
        return self._mirrors.view(
            (topic.name, key, prefix),
            lambda after: self.subscribe(topic, key=key, prefix=prefix, after=after),
            lambda: self.head(topic),
        )

    def on(
        self, topic: Topic[T], *, key: str | None = None, prefix: str | None = None
    ) -> Callable[[Handler[T]], Handler[T]]:
        """As `EventBus.on`."""
        key, prefix = check_filter(key, prefix)
        if self._closed:
            raise BusClosed("closed")
        return self._handlings.decorator(lambda: self.subscribe(topic, key=key, prefix=prefix))

    def snapshot(self, topic: Topic[Any]) -> NoReturn:
        """Raises ServerOnly: a source stands where the bus is."""
        raise ServerOnly("@bus.snapshot")

    def revoke(self, principal: Hashable) -> NoReturn:
        """Raises ServerOnly: principals are the server's."""
        raise ServerOnly("revoke")

    # Standing.

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the server, which has accepted this client.

        A connection that has died silently is noticed after two to three heartbeats.
        """
        return self._conversation.standing.connected

    async def wait_connected(self) -> None:
        """Waits until it is connected. Any number of tasks may wait.

        Raises:
            NotAuthorized: if the server does not accept this client.
            ReconnectFailed: if the server cannot be reached and never will.
            BusClosed: if the bus is not running.
        """
        await self._conversation.standing.wait()

    def connection_changes(self) -> AsyncIterator[bool]:
        """Tells whether it is connected: now, then each time when that changes. For those who show it.

            async for connected in bus.connection_changes():
                lamp.green() if connected else lamp.red()

        No loss is passed over, however short; who looks seldom is told of several as one. Nothing else is to be done
        about a loss: calls wait, and subscriptions go on or are reset explicitly. Each call gives an iterator of its
        own, for one task. It ends as `wait_connected` does, with the bus.
        """
        return Changes(self._conversation.standing)

    def __repr__(self) -> str:
        talk = self._conversation
        state = "closed" if self._closed else "connected" if talk.standing.connected else "connecting"
        return f"<RemoteBus {state} with {talk.topics} topics>"

    def _known(self, topic: Topic[T]) -> tuple[int, TopicCodec[T]]:
        return self._conversation.topic(topic)

    @property
    def _closed(self) -> bool:
        return self._entered and self._conversation.error is not None

    def _running(self) -> TaskGroup:
        self._conversation.check()
        return self._tasks


def _check(reconnector: object, token: object, window: int, heartbeat: float) -> None:
    """What would else be an error in a task, much later."""
    if not callable(reconnector):
        raise TypeError("reconnector must be a callable that dials; for an address use open_bus(url)")
    if token is not None and not isinstance(token, str) and not callable(token):
        raise TypeError(f"token must be text or a callable that gives it, not {type(token).__name__}")
    if window < 1:
        raise ValueError(f"window is a number of bytes, at least 1, not {window}")
    if not 0 < heartbeat < math.inf:
        raise ValueError(f"heartbeat is a positive time in seconds, not {heartbeat}")

"""The bus of another process: the methods of `EventBus`, over backed pipes.

    RemoteBus ── requests, feeds ──▶ BackedPipe ══ links ══▶ Server ──▶ EventBus

Three recoveries stand behind it. A lost link is the pipe's affair: nothing here notices. If the pipe itself is over
(the server was restarted, or we were away for too long) a new one is made, each subscription goes on after what had
come, and each request that has no answer is said again; publishes carry an id, so that the server appends none twice.
And where the server's history has changed, its answer to the resumed subscription is the reset that readers know.

What is to be said on a new pipe is always made from `_requests` and `_feeds`; so nothing has to be remembered about
what an old pipe may have carried.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from random import Random, SystemRandom
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from anyio import (
    AsyncContextManagerMixin,
    ClosedResourceError,
    EndOfStream,
    Event,
    WouldBlock,
    create_task_group,
    current_time,
    move_on_after,
    sleep,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from ..bus import Handler, OnError
from ..bus.arguments import check_after, check_filter, terms
from ..bus.handlers import Handling
from ..codec import TopicCodec
from ..errors import (
    BadFrame,
    BusClosed,
    EventStreamError,
    InvalidPayload,
    LimitReached,
    NotAuthorized,
    NotCompacted,
    NowaitUnsupported,
    PipeBroken,
    ReconnectFailed,
    ResumeRefused,
    ServerOnly,
    TopicConflict,
)
from ..events import Earliest, Position, Topic, check_name
from ..events import Event as TopicEvent
from ..pipes import BackedPipe, Reconnector, Retry
from ..snapshots import Mirror, View
from ..topics import Subscription, Waker, current_waker
from .faults import from_fault
from .feed import Feed, RemoteSubscription
from .messages import (
    LENGTH,
    MAX_MESSAGE,
    VERSION,
    Bookmarked,
    Credit,
    Done,
    Ended,
    Events,
    Failed,
    Goodbye,
    Greeting,
    Head,
    ListTopics,
    Mark,
    Message,
    MessageDecoder,
    OpenTopic,
    Publish,
    Refresh,
    Subscribe,
    TopicList,
    Unsubscribe,
    Welcome,
    encode,
)
from .outgoing import Outgoing
from .requests import Request, Requests

__all__ = ("RemoteBus",)

T = TypeVar("T")

LINGER: Final = 2.0  # seconds that saying goodbye may take
CHUNK: Final = 256 * 1024  # bytes that are heard before other tasks get a turn
WINDOW: Final = 1024 * 1024  # bytes of events that one subscription may have here unread


class RemoteBus(AsyncContextManagerMixin):
    """A bus that runs in another process. Use it with `async with`; it can be used once.

    It has the methods of `EventBus`, with the same types, frames and errors, and belongs to the event loop that entered
    it. Entering returns at once and connects in the background; calls wait until they are answered, however often the
    connection is lost meanwhile, so give them a time limit (`anyio.fail_after`) where waiting has no use. A publish
    that was cancelled may or may not have happened: publish again with the same `id`.

    Not over the network: `publish_nowait`, `snapshot`, `revoke` (`ServerOnly`), `authorize=` and `principal=` of
    `subscribe`: they belong to the server.

    Args:
        reconnector: Makes one connection to the server each time it is called.
        token: What the server's `authenticate` gets; a callable, async or not, is asked before each new pipe. What it
            raises ends the bus: it is the cause of the `NotAuthorized` that calls then raise.
        window: Bytes of events that one subscription may have here unread.
        heartbeat: Seconds between signs of life; a dead connection is noticed in two to three times that.
        retry: The schedule of dials.
        on_error: As of `EventBus`.
        random: For jitter and ids; the system's by default.
    """

    def __init__(
        self,
        reconnector: Reconnector,
        *,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        window: int = WINDOW,
        heartbeat: float = 10.0,
        retry: Retry | None = None,
        on_error: OnError | None = None,
        random: Random | None = None,
    ) -> None:
        self._reconnector = reconnector
        self._token = token
        self._window = window
        self._heartbeat = heartbeat
        self._retry = retry or Retry()
        self._on_error = on_error
        self._random = random or SystemRandom()
        self._name = self._random.randbytes(12).hex()  # of this client, for the ids of its publishes
        self._codecs: dict[str, tuple[int, TopicCodec[Any]]] = {}
        self._feeds: dict[int, Feed] = {}
        self._requests = Requests()
        self._asked = 0
        self._subscribed = 0
        self._mirrors: dict[tuple[str, str | None, str | None], Mirror[Any]] = {}
        self._handlings: list[Handling] = []
        self._outgoing: Outgoing | None = None  # Invariant: set while there is a pipe
        self._welcomed = False
        self._largest = MAX_MESSAGE
        self._error: EventStreamError | None = None  # why there will be no connection any more
        self._changed = Event()
        self._gone = Event()
        self._tasks: TaskGroup | None = None
        self._entered = False
        self._closed = False
        self._waker: Waker

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[RemoteBus, None]:
        if self._entered:
            raise BusClosed("closed" if self._closed else "running")
        self._entered = True
        self._waker = current_waker()
        failure: BaseException | None = None
        async with create_task_group() as self._tasks:
            self._tasks.start_soon(self._keep_connected, name="eventstream connection")
            try:
                for handling in self._handlings:
                    handling.start(self._tasks)
                yield self
            except BaseException as error:
                failure = error  # raised below, outside the task group, which would wrap it in a group of one
            tasks = self._tasks
            self._end(BusClosed("closed"))
            if failure is None or isinstance(failure, Exception):
                await self._take_leave()
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _take_leave(self) -> None:
        """Lets the server know, if it is there, so that it need not keep what is ours until the grace time is over."""
        if self._outgoing is not None:
            self._outgoing.close()
            with move_on_after(LINGER):
                await self._gone.wait()

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
        """As `EventBus.publish`: returns when the server has committed the event."""
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
        entries = [(check_name("key", key), msgspec.Raw(b"\xc0"))]
        return await self._publish(number, entries, "delete", (expect, id, headers, index))

    def publish_nowait(self, topic: Topic[T], payload: T, **_: object) -> NoReturn:
        """Raises NowaitUnsupported: a network has to be waited for."""
        raise NowaitUnsupported("a server")

    async def refresh(self, topic: Topic[Any]) -> Position:
        """As `EventBus.refresh`. If the connection is lost at that moment it may happen twice, with no harm done."""
        number, _ = self._known(topic)
        position: Position = await self._ask(lambda request: Refresh(request, number))
        return position

    async def head(self, topic: Topic[Any]) -> Position:
        """The position of the topic's newest event, as the server knows it when it answers."""
        number, _ = self._known(topic)
        position: Position = await self._ask(lambda request: Head(request, number))
        return position

    async def topics(self) -> dict[str, dict[str, Any]]:
        """The server's topics, each with its epoch, head, floor, retained, subscribers, lag and lagged."""
        answer: dict[str, dict[str, Any]] = await self._ask(ListTopics)
        return answer

    async def _publish(
        self,
        topic: int,
        entries: list[tuple[str | None, msgspec.Raw]] | Any,
        form: Any,
        asked: tuple[int | None, str | None, Mapping[str, str] | None, int | None],
    ) -> Position:
        expect, id, headers, index = asked
        terms(*asked)  # the checks are the bus's own
        copied = dict(headers) if headers else None
        position: Position = await self._ask(
            lambda request: Publish(
                request, topic, entries, id or f"{self._name}:{request}", expect, index, copied, form
            )
        )
        return position

    async def _ask(self, make: Callable[[int], Message]) -> Any:
        """Says something that is answered, now and on each new pipe until the answer comes."""
        await checkpoint()
        self._running()
        await self._requests.wait_for_room()
        self._running()
        self._asked += 1
        number = self._asked
        data = encode(make(number))
        if self._welcomed:  # else it is said when the server has said how much it takes
            self._check_size(data)
            self._say(data)
        return await self._requests.answer(number, Request(data))

    def _check_size(self, data: bytes) -> None:
        if len(data) - LENGTH > self._largest:
            raise LimitReached("message_bytes", self._largest)

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
        number, codec = self._known(topic)
        filters = check_filter(key, prefix)
        start = check_after(after)
        self._subscribed += 1
        feed = Feed(self._subscribed, codec, filters, start, self._window, self, self._waker)
        subscription: Subscription[T] = RemoteSubscription(feed, self._waker)
        self._feeds[feed.number] = feed
        self._say(encode(self._subscribe_message(feed, number)))
        return subscription

    def view(self, topic: Topic[T], *, key: str | None = None, prefix: str | None = None) -> View[T]:
        """As `EventBus.view`; whether the topic has a state, only the server knows."""
        self._known(topic)
        key, prefix = check_filter(key, prefix)
        name = (topic.name, key, prefix)
        return View(topic.name, lambda: self._acquire(topic, name), lambda mirror: self._release(name, mirror))

    def _acquire(self, topic: Topic[Any], name: tuple[str, str | None, str | None]) -> Mirror[Any]:
        tasks = self._running()
        mirror = self._mirrors.get(name)
        if mirror is None:
            _, key, prefix = name
            mirror = self._mirrors[name] = Mirror(
                topic.name,
                lambda after: self.subscribe(topic, key=key, prefix=prefix, after=after),
                lambda: self.head(topic),
                self._random,
            )
            tasks.start_soon(mirror.run, name=f"eventstream view of {topic.name}")
        mirror.users += 1
        return mirror

    def _release(self, name: tuple[str, str | None, str | None], mirror: Mirror[Any]) -> None:
        mirror.users -= 1
        if not mirror.users:
            self._mirrors.pop(name, None)
            mirror.scope.cancel()

    def on(
        self, topic: Topic[T], *, key: str | None = None, prefix: str | None = None
    ) -> Callable[[Handler[T]], Handler[T]]:
        """As `EventBus.on`."""
        key, prefix = check_filter(key, prefix)
        if self._closed:
            raise BusClosed("closed")

        def register(handler: Handler[T]) -> Handler[T]:
            handling = Handling(lambda: self.subscribe(topic, key=key, prefix=prefix), handler, self._on_error)
            self._handlings.append(handling)
            if self._tasks is not None:
                handling.start(self._tasks)
            return handler

        return register

    def snapshot(self, topic: Topic[Any]) -> NoReturn:
        """Raises ServerOnly: a source stands where the bus is."""
        raise ServerOnly("@bus.snapshot")

    def revoke(self, principal: Hashable) -> NoReturn:
        """Raises ServerOnly: principals are the server's."""
        raise ServerOnly("revoke")

    # Standing.

    async def wait_connected(self) -> None:
        """Waits until the server has accepted this client.

        Raises:
            NotAuthorized: if it does not.
            ReconnectFailed: if the server cannot be reached and never will.
            BusClosed: if the bus is not running.
        """
        await checkpoint()
        while not self._welcomed:
            self._running()
            await self._changed.wait()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._welcomed else "connecting"
        return f"<RemoteBus {state} with {len(self._codecs)} topics>"

    # Topics.

    def _known(self, topic: Topic[T]) -> tuple[int, TopicCodec[T]]:
        """The topic's number and codec. A topic that is used for the first time is opened."""
        if not isinstance(topic, Topic):
            raise TypeError(f"topic must be a Topic, not {topic!r}")
        self._running()
        known = self._codecs.get(topic.name)
        if known is None:
            known = self._codecs[topic.name] = (len(self._codecs) + 1, TopicCodec(topic))
            self._say(encode(_open_message(*known)))
        elif known[1].topic is not topic and (difference := known[1].topic.differs_in(topic)):
            raise TopicConflict(topic.name, difference)
        return known

    def _running(self) -> TaskGroup:
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._tasks is None:
            raise BusClosed("new")
        return self._tasks

    # As upstream of its feeds.

    def grant(self, feed: Feed, size: int) -> None:
        """There is room for more events of this feed."""
        self._say(encode(Credit(feed.number, size)))

    def ask_bookmark(self, feed: Feed) -> None:
        """This feed's reader wants to know where it stands."""
        self._say(encode(Bookmarked(feed.number)))

    def leave(self, feed: Feed) -> None:
        """This feed's reader has gone."""
        if self._feeds.pop(feed.number, None) is not None:
            self._say(encode(Unsubscribe(feed.number)))

    # Talking.

    def _say(self, data: bytes) -> None:
        """Says it on the present pipe; without one it is said when there is one, from what is to be said then."""
        if self._outgoing is not None:
            self._outgoing.say(data)

    async def _keep_connected(self) -> None:
        try:
            await self._connect_again_and_again()
        finally:
            self._gone.set()

    async def _connect_again_and_again(self) -> None:
        failures = 0
        while self._error is None:
            began = current_time()
            try:
                await self._connect()
            except EventStreamError as error:
                if isinstance(error, ReconnectFailed) or not isinstance(error, PipeBroken):
                    self._end(error)
            failures = 0 if self._welcomed and current_time() - began > 1.0 else failures + 1
            self._welcomed = False
            if self._error is None:
                await sleep(self._retry.delay(failures, self._random.random()))

    async def _connect(self) -> None:
        """One pipe, from its beginning to its end; says on it what is still to be said."""
        token = await self._present_token()
        async with BackedPipe(
            self._reconnector, heartbeat=self._heartbeat, linger=LINGER, retry=self._retry, random=self._random
        ) as pipe:
            self._outgoing = Outgoing(pipe)
            try:
                self._introduce(token)
                await self._talk(pipe, self._outgoing)
            finally:
                self._outgoing = None

    async def _present_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            token = self._token()
            return await token if isinstance(token, Awaitable) else token
        except Exception as error:
            raise NotAuthorized(None, "connect: its own token callable failed") from error

    def _introduce(self, token: str | None) -> None:
        """Says what the server has to know before it is asked for anything."""
        self._say(encode(Greeting(VERSION, token)))
        for number, codec in self._codecs.values():
            self._say(encode(_open_message(number, codec)))
        for feed in self._feeds.values():
            self._say(encode(self._subscribe_message(feed, self._codecs[feed.codec.topic.name][0])))

    def _be_welcome(self, message: Welcome) -> None:
        """Asks what has no answer yet."""
        self._welcomed = True
        self._largest = message.max_message
        for number, data in self._requests.unanswered():
            try:
                self._check_size(data)
            except LimitReached as error:
                self._requests.fail(number, error)
            else:
                self._say(data)
        self._announce()

    def _subscribe_message(self, feed: Feed, topic: int) -> Subscribe:
        after = feed.at if feed.at is not None else feed.after
        text = "earliest" if isinstance(after, Earliest) else None if after is None else str(after)
        return Subscribe(feed.number, topic, feed.key, feed.prefix, text, feed.credit())

    async def _talk(self, pipe: BackedPipe, outgoing: Outgoing) -> None:
        failure: Exception | None = None
        async with create_task_group() as tasks:

            async def send() -> None:
                with suppress(PipeBroken, ClosedResourceError):  # the receiving side is told the same, and tells why
                    await outgoing.run()
                    tasks.cancel_scope.cancel()  # all was said, and we leave

            tasks.start_soon(send)
            try:
                await self._listen(pipe)
            except EndOfStream:
                failure = ResumeRefused("closed", "the server ended the connection")
            except (EventStreamError, ClosedResourceError) as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _listen(self, pipe: BackedPipe) -> None:
        decoder = MessageDecoder()
        while True:
            chunk = await pipe.receive(CHUNK)
            heard = 0
            while chunk:
                for message in decoder.feed(chunk):
                    self._hear(message)
                heard += len(chunk)
                chunk = self._more(pipe) if heard < CHUNK else b""

    def _more(self, pipe: BackedPipe) -> bytes:
        """What has come already, in as many pieces as it was sent in: a turn of the event loop for each is too much."""
        try:
            return pipe.receive_nowait(CHUNK)
        except (WouldBlock, EndOfStream, ClosedResourceError, PipeBroken):  # whatever it is, `receive` will tell
            return b""

    def _hear(self, message: Message) -> None:
        match message:
            case Events():
                self._hear_events(message)
            case Done():
                self._requests.succeed(message.request, Position(message.epoch, message.index))
            case Mark():
                if feed := self._feeds.get(message.subscription):
                    feed.mark(message)
            case Failed():
                self._requests.fail(message.request, from_fault(message.fault))
            case Ended():
                if feed := self._feeds.pop(message.subscription, None):
                    feed.close(from_fault(message.fault))
            case TopicList():
                self._requests.succeed(message.request, message.topics)
            case Welcome():
                self._be_welcome(message)
            case Goodbye():
                if message.fault is None:
                    raise ResumeRefused("closed", "the server stops")
                if message.again:
                    raise ResumeRefused("closed", str(from_fault(message.fault)))
                raise from_fault(message.fault)
            case _:
                raise BadFrame(f"{type(message).__name__} from a server")

    def _hear_events(self, message: Events) -> None:
        feed = self._feeds.get(message.subscription)
        if feed is None:
            return  # it was left, and the server has not heard of that yet
        try:
            feed.events(message.data)
        except InvalidPayload as error:
            self.leave(feed)
            feed.close(error)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = Event()

    def _end(self, error: EventStreamError) -> None:
        """There will be no connection any more; the first reason stays."""
        if self._error is None:
            self._error = error
        self._closed = True
        self._requests.end(self._error)
        for feed in list(self._feeds.values()):
            feed.close(self._error)
        self._feeds.clear()
        self._announce()


def _open_message(number: int, codec: TopicCodec[Any]) -> OpenTopic:
    topic = codec.topic
    return OpenTopic(number, topic.name, topic.compacted, topic.retain, topic.max_lag, topic.key is not None)

"""One client on the server: its greeting, its topics, its subscriptions and publishes. Lives as long as its pipe.

The receiving task does what a message asks for, in the order in which messages come; so a client that subscribes and
then publishes gets its own event. Each subscription is fed by a task of its own, and one task sends what all of them
say.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Hashable
from contextlib import suppress
from typing import Any, Final

from anyio import (
    TASK_STATUS_IGNORED,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    create_task_group,
    move_on_after,
    sleep,
)
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.tls import TLSAttribute

from ..bus import submit
from ..errors import (
    BadFrame,
    BusClosed,
    EventStreamError,
    LimitReached,
    NotAuthorized,
    OutcomeUnknown,
    PipeBroken,
)
from ..events import EARLIEST, Earliest, Position, Topic
from ..logs import Pending
from ..pipes import Pipe
from .ages import Ages
from .faults import to_fault
from .feeding import Feeding
from .house import House, Shelf
from .line import Line
from .messages import (
    VERSION,
    Bookmarked,
    Credit,
    Done,
    Ended,
    Failed,
    Fault,
    Goodbye,
    Greeting,
    Head,
    ListTopics,
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
from .rights import NotKnownYet, Rights, recognise

__all__ = ("COME_AGAIN", "Connection")

STRANGER_BYTES: Final = 64 * 1024  # of a message before we know who sends it: a long token, with ease
LOOK: Final = 60.0  # seconds between two looks at the time, for a grant that ends
LINGER: Final = 2.0  # seconds in which the last words may reach the client
COME_AGAIN: Final = Goodbye()
logger: Final = logging.getLogger("eventstream.remote")


class Connection:
    """Serves one client."""

    def __init__(self, house: House, pipe: Pipe) -> None:
        self.principal: Hashable = None
        self._house = house
        self._pipe = pipe
        self._outgoing = Outgoing(pipe)
        self._decoder = MessageDecoder(min(STRANGER_BYTES, house.limits.message_bytes))
        self._topics: dict[int, Shelf | EventStreamError] = {}
        self._feedings: dict[int, Feeding] = {}
        self._ending: set[Feeding] = set()  # closed by the client; their tasks have not noticed yet
        self._ended = Event()  # one of them has
        self._line = Line(self._answer_in_line)
        self._all_sent = Event()
        self._serving = CancelScope()
        self._ages = Ages(house.clock)
        self._welcomed = 0.0  # when, on that clock
        self._goodbye: Goodbye | None = None  # the last word; None if the client left by itself
        self._rights: Rights  # from the greeting on
        self._revoked: set[Hashable] | None = set()  # until it is known who this is
        self._tasks: TaskGroup

    async def run(self) -> None:
        """Until the client leaves, breaks the rules, or is parted with."""
        async with create_task_group() as self._tasks:
            self._tasks.start_soon(self._send)
            with self._serving:
                await self._serve()
            for feeding in list(self._feedings.values()):
                feeding.close()
            if self._goodbye is not None:
                self._outgoing.say(encode(self._goodbye))
                await self._flush()
            self._tasks.cancel_scope.cancel()

    def part(self, goodbye: Goodbye) -> None:
        """Ends the connection: nothing more is done for this client, and it is told why. The first reason stays."""
        if self._goodbye is None:
            self._goodbye = goodbye
        self._serving.cancel()

    def revoke(self, principal: Hashable) -> bool:
        """Parts with the client if it is this one, or turns out to be. Returns whether it is."""
        if self.principal == principal:
            self.part(Goodbye(to_fault(NotAuthorized(principal))))
            return True
        if self._revoked is not None:
            self._revoked.add(principal)
        return False

    async def _serve(self) -> None:
        try:
            messages = await self._greet()
            if self._rights.expires is not None:
                self._tasks.start_soon(self._expire, self._rights.expires)
            await self._receive(messages)
        except (PipeBroken, ClosedResourceError, EndOfStream) as error:
            logger.debug("a client's pipe has ended: %r", error)
        except BusClosed:
            self.part(COME_AGAIN)  # maybe to another bus
        except NotKnownYet as error:
            self.part(Goodbye(to_fault(error.refusal), again=True))
        except EventStreamError as error:
            logger.info("a client is refused: %s", error)
            self.part(Goodbye(to_fault(error)))

    async def _send(self) -> None:
        try:
            await self._outgoing.run()
        except (PipeBroken, ClosedResourceError) as error:
            logger.debug("a client's pipe has ended: %r", error)
            self._tasks.cancel_scope.cancel()
        self._all_sent.set()

    async def _flush(self) -> None:
        """Lets what was said reach the client, if it is there."""
        self._outgoing.close()
        with move_on_after(LINGER):
            await self._all_sent.wait()
            with suppress(PipeBroken, ClosedResourceError):  # it left before it was told
                await self._pipe.drain()

    async def _expire(self, expires: float) -> None:
        # That clock may be set, and the loop's stands still while the machine sleeps: so it is looked at now and then.
        while (left := expires - self._house.clock()) > 0.0:  # noqa: ASYNC110  a clock sets no event
            await sleep(min(left, LOOK))
        self.part(Goodbye(to_fault(NotAuthorized(self.principal, "stay: its grant has expired")), again=True))

    # Greeting.

    async def _greet(self) -> list[Message]:
        """Knows the client, or raises why it is refused; returns messages that came along."""
        seconds = self._house.limits.greeting_seconds
        with move_on_after(seconds):
            messages: list[Message] = []
            while not messages:
                messages += self._decoder.feed(await self._pipe.receive())
            greeting = messages.pop(0)
            if not isinstance(greeting, Greeting):
                raise BadFrame(f"{type(greeting).__name__} before the greeting")
            if greeting.version != VERSION:
                raise BadFrame(f"version {greeting.version} of the bus's protocol; this server speaks {VERSION}")
            certificate = self._pipe.extra(TLSAttribute.peer_certificate, None)  # noqa: S610  anyio's, not Django's
            self._rights = await recognise(self._house, greeting.token, certificate)
            revoked, self._revoked = self._revoked, None
            if revoked and self._rights.principal in revoked:  # what was looked up may be older than that
                raise NotAuthorized(self._rights.principal)
            self.principal = self._rights.principal
            self._decoder.most = self._house.limits.message_bytes
            self._welcomed = self._ages.now()
            self._outgoing.say(encode(Welcome(VERSION, self._house.limits.message_bytes)))
            return messages
        raise NotKnownYet(LimitReached("greeting_seconds", seconds))

    # Doing.

    async def _receive(self, messages: list[Message]) -> None:
        while True:
            for message in messages:
                if self._outgoing.is_full:
                    await self._outgoing.wait_for_room()
                await self._do(message)
            await self._outgoing.flush()
            messages = list(self._decoder.feed(await self._pipe.receive()))

    async def _do(self, message: Message) -> None:
        if self._line and not isinstance(message, Publish | Credit):
            await self._line.emptied()  # what was asked later sees what was published before
        match message:
            case Publish():
                await self._take(message)
            case Credit():
                if feeding := self._feedings.get(message.subscription):
                    feeding.grant(message.size)
            case Subscribe():
                await self._subscribe(message)
            case Unsubscribe():
                if feeding := self._feedings.pop(message.subscription, None):
                    self._ending.add(feeding)
                    feeding.close()
            case Bookmarked():
                if feeding := self._feedings.get(message.subscription):
                    feeding.bookmark()
            case OpenTopic():
                self._open(message)
            case Refresh() | Head():
                await self._answer(message.request, self._look(message))
            case ListTopics():
                self._list(message)
            case _:
                raise BadFrame(f"{type(message).__name__} from a client")

    async def _answer(self, request: int, work: Awaitable[Position]) -> None:
        """Tells the client how its request went."""
        try:
            self._done(request, await work)
        except Exception as error:
            self._failed(request, error)

    def _done(self, request: int, position: Position) -> None:
        self._outgoing.say(encode(Done(request, position.epoch, position.index)))

    def _failed(self, request: int, error: Exception) -> None:
        """Whatever is not the client's fault stays in our log."""
        if isinstance(error, BusClosed | BadFrame):
            raise error
        if isinstance(error, EventStreamError):
            fault = to_fault(error)
        else:
            logger.error("a client's request failed", exc_info=error)
            fault = Fault("EventStreamError", {"text": "the server failed: see its log"})
        self._outgoing.say(encode(Failed(request, fault)))

    async def _take(self, message: Publish) -> None:
        try:
            outcome = await self._publish(message)
            if isinstance(outcome, Position):
                self._done(message.request, outcome)
                return
        except Exception as error:
            self._failed(message.request, error)
        else:
            await self._line.add(message.request, outcome, self._tasks)

    async def _answer_in_line(self, request: int, work: Awaitable[Position]) -> None:
        try:
            await self._answer(request, work)
        except BusClosed:
            self.part(COME_AGAIN)

    def _open(self, message: OpenTopic) -> None:
        if len(self._topics) >= self._house.limits.topics and message.topic not in self._topics:
            return  # told to whoever uses it: opening has no answer of its own
        try:
            may_create = self._rights.allow("create", message.name, None)
            self._topics[message.topic] = self._house.shelf(message, may_create)
        except (EventStreamError, ValueError) as error:
            self._topics[message.topic] = _known_error(error)  # as above

    def _shelf(self, number: int) -> Shelf:
        shelf = self._topics.get(number)
        if shelf is None:
            if len(self._topics) >= self._house.limits.topics:
                raise LimitReached("topics", self._house.limits.topics)
            raise BadFrame(f"topic {number} was not opened")
        if isinstance(shelf, EventStreamError):
            raise shelf.with_traceback(None)
        return shelf

    async def _subscribe(self, message: Subscribe) -> None:
        number = message.subscription
        if number in self._feedings:
            raise BadFrame(f"subscription {number} is open already")
        while len(self._ending) >= self._house.limits.subscriptions:  # so that those have a bound too
            self._ended = Event()
            await self._ended.wait()
        try:
            feeding = self._feeding(message)
        except (BusClosed, BadFrame):
            raise
        except (EventStreamError, ValueError) as error:
            self._outgoing.say(encode(Ended(number, to_fault(_known_error(error)))))
            return
        self._feedings[number] = feeding
        await self._tasks.start(self._feed, number, feeding)

    def _feeding(self, message: Subscribe) -> Feeding:
        shelf = self._shelf(message.topic)
        most = self._house.limits.subscriptions
        if len(self._feedings) >= most:
            raise LimitReached("subscriptions", most)
        self._rights.check("subscribe", shelf.topic.name, message.key)
        subscription = self._house.bus.subscribe(
            shelf.topic,
            key=message.key,
            prefix=message.prefix,
            after=_after(message.after),
            principal=self.principal,
        )
        return Feeding(
            message.subscription,
            subscription,
            shelf.shared,
            (message.key, message.prefix),
            message.credit,
            self._outgoing,
            self._feedings,
        )

    async def _feed(
        self, number: int, feeding: Feeding, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        try:
            if not await feeding.run(task_status=task_status):
                self.part(COME_AGAIN)
        finally:
            self._ending.discard(feeding)
            self._ended.set()
            if self._feedings.get(number) is feeding:
                del self._feedings[number]

    async def _publish(self, message: Publish) -> Position | Pending:
        shelf = self._shelf(message.topic)
        topic, codec, bus = shelf.topic, shelf.codec, self._house.bus
        if message.form != "many" and len(message.entries) != 1:
            raise BadFrame(f"a publish of one event has {len(message.entries)} entries")
        self._check_known(topic, message)
        terms: dict[str, Any] = {"id": message.id, "headers": message.headers, "index": message.index}
        if message.form == "delete":
            [(key, _)] = message.entries
            self._rights.check("delete", topic.name, key)
            return await bus.delete(topic, key or "", expect=message.expect, **terms)
        if not message.entries:  # its answer is the head, which is for those who may publish too
            self._rights.check("publish", topic.name, None)
        payloads = []
        for key, raw in message.entries:
            payload = codec.decode_payload(key or "", raw)
            self._rights.check("publish", topic.name, topic.key_for(payload, None if topic.key is not None else key))
            payloads.append(payload)
        given = None if topic.key is not None or not message.entries else message.entries[0][0]
        if message.form == "one":
            [payload] = payloads
            return await submit(bus, topic, payload, key=given, expect=message.expect, **terms)
        return await bus.publish_many(topic, payloads, key=given, **terms)

    def _check_known(self, topic: Topic[Any], message: Publish) -> None:
        """A publish that comes again is not done unless it can be seen whether it was done before.

        It was first said at most `age` seconds before we welcomed this client, who said it again after that; so the
        time that these bytes needed to come here, over whatever losses, is counted too.
        """
        if message.age:
            seconds = message.age + self._ages.now() - self._welcomed
            if seconds > self._house.bus.dedupe_seconds(topic):
                raise OutcomeUnknown(topic.name, message.id, seconds)

    async def _look(self, message: Refresh | Head) -> Position:
        topic = self._shelf(message.topic).topic
        if isinstance(message, Refresh):
            self._rights.check("refresh", topic.name, None)
            return await self._house.bus.refresh(topic)
        self._rights.check("subscribe", topic.name, None)
        return await self._house.bus.head(topic)

    def _list(self, message: ListTopics) -> None:
        topics = {}
        used = self._house.bus.statistics().topics
        for name, shelf in self._house.shelves.items():
            if (numbers := used.get(name)) is not None and self._rights.allow("list", name, None):
                topics[name] = {
                    "compacted": shelf.topic.compacted,
                    "keyed": shelf.keyed,
                    "epoch": numbers.head.epoch,
                    "head": numbers.head.index,
                    "floor": numbers.floor,
                    "retained": numbers.retained,
                    "subscribers": numbers.subscribers,
                    "lag": numbers.lag,
                    "lagged": numbers.lagged,
                }
        self._outgoing.say(encode(TopicList(message.request, topics)))


def _known_error(error: EventStreamError | ValueError) -> EventStreamError:
    return error if isinstance(error, EventStreamError) else EventStreamError(str(error))


def _after(text: str | None) -> Position | Earliest | None:
    if text is None:
        return None
    return EARLIEST if text == "earliest" else Position.parse(text)

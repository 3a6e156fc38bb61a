"""What a client and its server have to say to each other, over one pipe after another.

It knows what is asked and not answered, and what is subscribed; what is to be said on a new pipe is always made from
these, so nothing has to be remembered about what an old pipe may have carried. It waits for nothing but room and
answers: pipes are made, and read, by the `caller`.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from anyio import current_time
from anyio.lowlevel import checkpoint_if_cancelled, current_token

from ..codec import TopicCodec
from ..errors import (
    BadFrame,
    BusClosed,
    EventStreamError,
    InvalidPayload,
    LimitReached,
    ResumeRefused,
    TopicConflict,
)
from ..events import Earliest, Position, Topic
from ..topics import Waker
from .faults import from_fault
from .feed import Feed
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
    Mark,
    Message,
    OpenTopic,
    Publish,
    Subscribe,
    TopicList,
    Unsubscribe,
    Welcome,
    encode,
    with_age,
)
from .outgoing import Outgoing
from .requests import Request, Requests, Told
from .standing import Standing

__all__ = ("Conversation",)

T = TypeVar("T")

MOST_UNSAID: Final = 4 * 1024 * 1024  # bytes besides requests: ten thousand subscriptions that begin at once, with ease


class Conversation:
    """Of one client. Used in its event loop alone.

    Attributes:
        requests: What was asked and is not answered.
        standing: Whether we are connected.
        error: Why it is over; None while it is not.
    """

    def __init__(self) -> None:
        self.requests: Requests = Requests(self._say_request)
        self.error: EventStreamError | None = BusClosed("new")
        self.standing: Standing = Standing(self.check)
        self._codecs: dict[str, tuple[int, TopicCodec[Any]]] = {}
        self._feeds: dict[int, Feed] = {}
        self._asked = 0
        self._subscribed = 0
        self._clock: Callable[[], float]
        self._outgoing: Outgoing | None = None  # Invariant: set while there is a pipe that is not given up
        self._give_up: Callable[[], None]
        self._introduction = 0  # bytes of it that the pipe did not take at once
        self._largest = MAX_MESSAGE

    def begin(self) -> None:
        """The bus runs."""
        self._clock = _loop_clock()
        self.error = None

    @property
    def topics(self) -> int:
        """How many are in use."""
        return len(self._codecs)

    def check(self) -> None:
        """Raises EventStreamError: if it is over, or has not begun."""
        if self.error is not None:
            raise self.error.with_traceback(None)

    def end(self, error: EventStreamError) -> None:
        """There will be no connection any more; the first reason stays."""
        if self.error is None:
            self.error = error
        self.requests.end(self.error)
        for feed in list(self._feeds.values()):
            feed.close(self.error)
        self._feeds.clear()
        self.standing.announce()

    # What we say.

    def topic(self, topic: Topic[T]) -> tuple[int, TopicCodec[T]]:
        """The topic's number and codec. A topic that is used for the first time is opened."""
        if not isinstance(topic, Topic):
            raise TypeError(f"topic must be a Topic, not {topic!r}")
        self.check()
        known = self._codecs.get(topic.name)
        if known is None:
            known = self._codecs[topic.name] = (len(self._codecs) + 1, TopicCodec(topic))
            self._say(encode(_open_message(*known)))
        elif known[1].topic is not topic and (difference := known[1].topic.differs_in(topic)):
            raise TopicConflict(topic.name, difference)
        return known

    async def ask(self, make: Callable[[int], Message]) -> Any:
        """Says something that is answered, now and on each new pipe until the answer comes.

        What is asked later is said later. Cancelled before it was said, nothing has happened.
        """
        await checkpoint_if_cancelled()  # a full one would let others come first, who asked later
        self.check()
        return await self.requests.answer(self._request(make))

    def submit(self, make: Callable[[int], Message], about: Any, told: Told) -> None:
        """As `ask`, but returns at once; `told` is called with the request when it is answered, or cannot be."""
        self.check()
        self.requests.ask(self._request(make, about), told)

    def _request(self, make: Callable[[int], Message], about: Any = None) -> Request:
        self._asked += 1
        message = make(self._asked)
        return Request(self._asked, encode(message), type(message) is Publish, about)

    def _say_request(self, request: Request) -> None:
        if not self.standing.accepted:
            return  # it is said when the server has said how much it takes
        try:
            self._check_size(request.data)
        except LimitReached as error:
            self.requests.fail(request.number, error)
            return
        now = self._clock()
        if request.said is None:
            request.said = now
            self._say(request.data)
        else:
            self._say(with_age(request.data, now - request.said) if request.is_publish else request.data)

    def subscribe(
        self,
        codec: TopicCodec[Any],
        filters: tuple[str | None, str | None],
        start: Position | Earliest | None,
        window: int,
        waker: Waker,
    ) -> Feed:
        """Opens a subscription; see `Feed` for the arguments."""
        self._subscribed += 1
        feed = self._feeds[self._subscribed] = Feed(self._subscribed, codec, filters, start, window, self, waker)
        self._say(encode(self._subscribe_message(feed)))
        return feed

    def _subscribe_message(self, feed: Feed) -> Subscribe:
        topic, _ = self._codecs[feed.codec.topic.name]
        after = feed.at if feed.at is not None else feed.after
        text = "earliest" if isinstance(after, Earliest) else None if after is None else str(after)
        return Subscribe(feed.number, topic, feed.key, feed.prefix, text, feed.credit())

    def _check_size(self, data: bytes) -> None:
        if len(data) - LENGTH > self._largest:
            raise LimitReached("message_bytes", self._largest)

    def _say(self, data: bytes) -> None:
        """Says it on the present pipe; without one it is said when there is one, from what is to be said then.

        Requests are bounded, a reader's credit too, and an introduction by what is in use; but who opens and leaves
        subscriptions while the pipe takes nothing has ever more to say. When that is too much, the pipe is given up: a
        new one is told only what is still true.
        """
        if self._outgoing is not None:
            self._outgoing.say(data)
            if self._outgoing.size > self._introduction + self.requests.size + MOST_UNSAID:
                self._outgoing = None
                self._give_up()

    # What the feeds say.

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

    # One pipe after another.

    def introduce(self, outgoing: Outgoing, token: str | None, give_up: Callable[[], None]) -> None:
        """There is a pipe. Says what the server has to know before it is asked for anything.

        Args:
            outgoing: Takes what is said.
            token: Tells who we are.
            give_up: Called if there is more to say than the pipe takes.
        """
        self._give_up = give_up
        outgoing.say(encode(Greeting(VERSION, token)))
        for number, codec in self._codecs.values():
            outgoing.say(encode(_open_message(number, codec)))
        for feed in self._feeds.values():
            outgoing.say(encode(self._subscribe_message(feed)))
        self._outgoing = outgoing
        self._introduction = outgoing.size

    def lose(self) -> None:
        """The pipe has ended."""
        self._outgoing = None
        self.standing.move(accepted=False, linked=False)

    def hear(self, message: Message) -> None:
        """Does what the server's message asks for.

        Raises:
            EventStreamError: if that is to end the pipe; a `ResumeRefused`: to begin another.
        """
        match message:
            case Events():
                self._hear_events(message)
            case Done():
                self.requests.succeed(message.request, Position(message.epoch, message.index))
            case Mark():
                if feed := self._feeds.get(message.subscription):
                    feed.mark(message)
            case Failed():
                self.requests.fail(message.request, from_fault(message.fault))
            case Ended():
                if feed := self._feeds.pop(message.subscription, None):
                    feed.close(from_fault(message.fault))
            case TopicList():
                self.requests.succeed(message.request, message.topics)
            case Welcome():
                self._be_welcome(message)
            case Goodbye():
                _part(message)
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

    def _be_welcome(self, message: Welcome) -> None:
        """Asks what has no answer yet."""
        self._largest = message.max_message
        self.standing.move(accepted=True)
        self.requests.say_again()


def _loop_clock() -> Callable[[], float]:
    """What `anyio.current_time` reads, found once: for each publish it would look again for the loop that runs."""
    loop = current_token().native_token
    return loop.time if isinstance(loop, AbstractEventLoop) else current_time


def _part(message: Goodbye) -> NoReturn:
    if message.fault is None:
        raise ResumeRefused("closed", "the server stops")
    if message.again:
        raise ResumeRefused("closed", str(from_fault(message.fault)))
    raise from_fault(message.fault)


def _open_message(number: int, codec: TopicCodec[Any]) -> OpenTopic:
    topic = codec.topic
    return OpenTopic(number, topic.name, topic.compacted, topic.retain, topic.max_lag, topic.key is not None)

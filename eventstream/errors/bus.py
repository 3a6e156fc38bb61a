"""Errors of topics, publishes and subscriptions, wherever the bus is."""

from __future__ import annotations

from typing import Literal

from .root import EventStreamError, PositionLike, shown

__all__ = (
    "BusClosed",
    "Conflict",
    "IndexOrder",
    "InvalidName",
    "InvalidPayload",
    "InvalidPosition",
    "LimitReached",
    "NotAuthorized",
    "NotCompacted",
    "NowaitUnsupported",
    "OutcomeUnknown",
    "PayloadTypeError",
    "PositionLost",
    "Reentered",
    "ServerOnly",
    "SlowSubscriber",
    "SnapshotFailed",
    "SubscriptionClosed",
    "SubscriptionReset",
    "TopicConflict",
    "UnknownTopic",
)


class InvalidName(EventStreamError, ValueError):
    """A topic name, key, publish id or header is out of bounds. Your fault: send a shorter, printable text."""

    def __init__(self, what: str, value: object, why: str) -> None:
        self.what = what
        self.value = value
        self.why = why
        super().__init__(f"{what} {shown(value)} {why}")


class InvalidPosition(EventStreamError, ValueError):
    """A text is no position. Your fault: pass what `str(subscription.position)` gave, unchanged."""

    def __init__(self, text: object) -> None:
        self.text = text
        super().__init__(f"{shown(text)} is not a position: pass the text that str(subscription.position) gave")


class PayloadTypeError(EventStreamError, TypeError):
    """A payload is not of its topic's type. Your fault: nothing was published."""

    def __init__(self, topic: str, expected: object, payload: object) -> None:
        self.topic = topic
        self.expected = expected
        self.actual: type = type(payload)
        wanted = getattr(expected, "__name__", None) or str(expected)
        super().__init__(f"topic {topic!r} carries {wanted}, not {type(payload).__name__}")


class InvalidPayload(EventStreamError, ValueError):
    """A payload cannot cross the border of the process. Whoever sent it is at fault: `why` shows the path inside it.

    What was to be published was not; a subscription that meets such an event ends.
    """

    def __init__(self, topic: str, why: str) -> None:
        self.topic = topic
        self.why = why
        super().__init__(f"a payload of topic {topic!r} does not fit its type: {why}")


class UnknownTopic(EventStreamError, LookupError):
    """The server does not have this topic, and its clients may not make topics. Your fault: declare it there."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"the server has no topic {topic!r}: declare it there, or let clients create topics")


class ServerOnly(EventStreamError, RuntimeError):
    """This cannot be done over the network. Your fault: do it in the process where the bus runs."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} is possible only on the bus itself, not over the network")


class LimitReached(EventStreamError):
    """You have, or sent, more of something than the server allows. Your fault: use less, or raise its limits."""

    def __init__(self, limit: str, bound: float) -> None:
        self.limit = limit
        self.bound = bound
        what = limit.replace("_", " ")
        super().__init__(f"the server allows at most {bound} {what}: use less, or raise ServerLimits({limit}=) there")


class TopicConflict(EventStreamError, ValueError):
    """One name was declared in two ways on one bus. Your fault: share one `Topic` object."""

    def __init__(self, topic: str, difference: str) -> None:
        self.topic = topic
        self.difference = difference
        super().__init__(f"topic {topic!r} is declared twice with different {difference}: share one Topic object")


class NotCompacted(EventStreamError, ValueError):
    """The topic has no state to delete from or to show. Your fault: declare it so, or register a snapshot source."""

    def __init__(self, topic: str, action: str, needs: str) -> None:
        self.topic = topic
        self.action = action
        self.needs = needs
        super().__init__(f"cannot {action} topic {topic!r}: it needs {needs}")


class NowaitUnsupported(EventStreamError, RuntimeError):
    """This bus's log has to wait for a disk or a network to commit. Your fault: use `await bus.publish(...)`."""

    def __init__(self, log: str) -> None:
        self.log = log
        super().__init__(f"publish_nowait needs a log in memory, this bus has {log}: use await bus.publish(...)")


class Reentered(EventStreamError, RuntimeError):
    """A publish interrupted another one to the same topic, in the same thread. Your fault: nothing was published.

    That is so if a signal handler, or the finalizer (`__del__`) of an object that is collected just then, publishes:
    let it only note what is to be published, and publish it from a task.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"topic {topic!r} is just being published to by this thread: publish later, from a task")


class Conflict(EventStreamError):
    """The key's newest event is not the expected one. Nobody's fault: read the key again, then decide again."""

    def __init__(self, topic: str, key: str, expected: int, actual: int) -> None:
        self.topic = topic
        self.key = key
        self.expected = expected
        self.actual = actual
        super().__init__(f"key {key!r} of topic {topic!r} is at index {actual}, not {expected}; nothing was published")


class OutcomeUnknown(EventStreamError):
    """A publish happened once or not at all, and nobody can tell which any more. Nobody's fault: read the topic back.

    Its answer was lost with the connection, and when that was back the server did not remember the ids of publishes
    far enough back to see whether this one had come. It was not published again, as it might then be there twice. If
    the topic does not have it, publish again; if it must not be there twice, with `expect`. `seconds` is how long ago
    it was first said.
    """

    def __init__(self, topic: str, id: str, seconds: float) -> None:
        self.topic = topic
        self.id = id
        self.seconds = seconds
        super().__init__(
            f"whether publish {shown(id)} to topic {topic!r} happened {seconds:.0f} s ago is not known any more: "
            "read the topic back, and publish again (with expect=) if it is not there"
        )


class IndexOrder(EventStreamError, ValueError):
    """A given index does not grow, or leaves none to follow it. Your fault: publish in the order of your own sequence.

    The last index is 2**63 - 1. Whoever gives it leaves none for the next publish, which gets this error, with the
    impossible one as `index`, until `bus.refresh(topic)` begins a new epoch.
    """

    def __init__(self, topic: str, index: int, head: int) -> None:
        self.topic = topic
        self.index = index
        self.head = head
        if index <= head:
            why = f"index {index} does not follow {head}, the head of topic {topic!r}"
        else:
            why = f"no index follows {head}, the head of topic {topic!r}: refresh(topic) begins a new epoch"
        super().__init__(f"{why}; nothing was published")


class BusClosed(EventStreamError):
    """The bus is not running, or was to be entered twice. Your fault: use it inside `async with EventBus() as bus`."""

    def __init__(self, state: Literal["new", "running", "closed"]) -> None:
        self.state = state
        texts = {
            "new": "the bus was not started: use 'async with bus'",
            "running": "the bus runs already: enter it once",
            "closed": "the bus is closed",
        }
        super().__init__(texts[state])


class SubscriptionClosed(EventStreamError):
    """A subscription or view is closed, or was not entered. Your fault: use it inside its `async with`."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"the subscription or view of topic {topic!r} is not open: use it inside its 'async with'")


class NotAuthorized(EventStreamError):
    """The principal may not do this (any more). Your fault: come again with credentials that may."""

    def __init__(self, principal: object, action: str = "") -> None:
        self.principal = principal
        self.action = action
        super().__init__(f"principal {shown(principal)} is not authorized{' to ' if action else ''}{action}")


class PositionLost(EventStreamError):
    """A position cannot be resumed, and the topic has no snapshot to start from.

    Nobody's fault: the events after it were trimmed (`requested.index < oldest`), it belongs to another epoch, or
    to an index that this history never reached (`requested.index > newest`). Events were missed: subscribe again
    with `after=EARLIEST` or `after=None`, or retain more.
    """

    def __init__(self, topic: str, requested: PositionLike, epoch: str, oldest: int, newest: int) -> None:
        self.topic = topic
        self.requested = requested
        self.epoch = epoch
        self.oldest = oldest
        self.newest = newest
        if requested.epoch != epoch:
            why = f"belongs to another epoch than {epoch}"
        else:
            why = f"is not within {oldest} to {newest}"
        super().__init__(
            f"position {requested.index} of topic {topic!r} {why}; retained events can be read with after=EARLIEST"
        )


class SlowSubscriber(EventStreamError):
    """The reader fell further behind than its bound, and the topic has no snapshot to start again from.

    Your fault: read faster, in `batches()`, or declare a larger `max_lag`. The publisher lost nothing and waited
    for nobody; this reader missed `lag` events.
    """

    def __init__(self, topic: str, lag: int, bound: int) -> None:
        self.topic = topic
        self.lag = lag
        self.bound = bound
        super().__init__(f"a reader of topic {topic!r} was {lag} events behind, its bound is {bound}")


class SubscriptionReset(EventStreamError):
    """What you know is out of date; a snapshot follows. Nobody's fault: forget it, then go on reading.

    The same subscription goes on with the snapshot's events. Raised only by the ways of reading that give events
    alone; `frames()` and views go on by themselves.
    """

    def __init__(self, topic: str, reason: str, position: PositionLike) -> None:
        self.topic = topic
        self.reason = reason
        self.position = position
        super().__init__(f"topic {topic!r} starts again from a snapshot ({reason}): forget what you know, then read on")


class SnapshotFailed(EventStreamError):
    """A snapshot could not be built. The source's fault; the next subscriber tries again.

    `why` is one of `raised` (the source's exception is the `__cause__`), `timeout`, `index` (it returned no index,
    or one below what it appended or what is retained), `payload` (what it appended is not of the topic's type or
    key), `size` (it appended more than `max_events`), `lagged` (more events than the topic's `max_lag` were published
    while it ran), `refreshed` and `abandoned` (nobody needs it any more; only its own `append` tells).
    """

    temporary = True

    def __init__(self, topic: str, key: str | None, why: str, detail: str) -> None:
        self.topic = topic
        self.key = key
        self.why = why
        self.detail = detail
        of_key = "" if key is None else f", key {key!r}"
        super().__init__(f"the snapshot of topic {topic!r}{of_key} failed ({why}): {detail}")

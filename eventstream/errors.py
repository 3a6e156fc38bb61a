"""Every error of eventstream, in one tree.

Each class says whose fault it is and what to do next; what it knows is in attributes, and the text is built here.
`temporary` is True where trying the same again later can help without anything else being changed.

    EventStreamError
    ├── InvalidName (ValueError)          you: a topic name, key, id or header that is out of bounds
    ├── InvalidPosition (ValueError)      you: a token that is no position
    ├── PayloadTypeError (TypeError)      you: a payload that is not of its topic's type
    ├── InvalidPayload (ValueError)       you: a payload whose inside does not fit its topic's type
    ├── TopicConflict (ValueError)        you: one name declared in two ways on one bus
    ├── NotCompacted (ValueError)         you: a compacted topic, or one with a snapshot source, is needed here
    ├── NowaitUnsupported (RuntimeError)  you: the bus's log cannot commit without waiting
    ├── Reentered (RuntimeError)          you: a finalizer or signal handler interrupted a publish with another
    ├── UnknownTopic (LookupError)        you: a topic that the server does not have, and may not make
    ├── ServerOnly (RuntimeError)         you: what can be done only where the bus itself is
    ├── LimitReached                      you: more of something than the server gives to one client
    ├── Conflict                          another publisher was faster: read again, decide again
    ├── OutcomeUnknown                    the world: a publish happened or not, and nobody can tell any more
    ├── IndexOrder (ValueError)           you: a given index that does not grow, or was the last there is
    ├── BusClosed                         you: the bus is not running (any more)
    ├── SubscriptionClosed                you: the subscription or view was closed
    ├── NotAuthorized                     you: the principal lost (or never had) the right to read
    ├── PositionLost                      the world: this position cannot be resumed, and there is no snapshot
    ├── SlowSubscriber                    you: the reader fell behind its bound, and there is no snapshot
    ├── SubscriptionReset                 the world: forget what you know, a snapshot follows
    ├── SnapshotFailed                    the source: it failed, hung, or broke its promise (temporary)
    ├── LogError                          the file in which a log keeps its events
    │   ├── LogInUse                      you: another process, or another log of this one, has the file open
    │   ├── LogRefused                    the file: not a log, damaged, or of a newer version
    │   ├── LogFull                       the disk: no room for what was to be published (temporary)
    │   └── LogFailed                     the disk: it could not be read or written (temporary)
    ├── PipeBroken (BrokenResourceError)  the world: this backed pipe has ended, and not cleanly
    │   ├── ResumeRefused                 the peer: it cannot, or will not, go on with this pipe
    │   ├── PipeClosed                    the peer: it closed the pipe before everything was said
    │   ├── PipeAbandoned                 this end: the peer did not come back in time
    │   └── ReconnectFailed               the network, or you: dialing has failed for good
    ├── OutboxClosed                      you: the outbox is not open (any more)
    ├── OutboxFull                        you: its quota is used up; nothing was kept
    ├── OutboxUnusable                    you: its file is in use, foreign, of a newer program, or damaged
    ├── NotStored                         the disk: full, or failing; what was to be kept was not (temporary)
    ├── NotAccepted                       the bus, or you: this entry of the outbox will not be published
    ├── UnknownEntry (LookupError)        you: the outbox has no such entry (any more)
    ├── LinkRefused                       the peer: no link now (temporary, unless the versions differ)
    ├── LinkSilent                        the network: nothing was heard for too long (temporary)
    └── BadFrame (ValueError)             the peer: bytes that are no frame, or a frame out of order (temporary)

Two tasks that read one subscription or pipe at once get `anyio.BusyResourceError`; an empty `receive_nowait` raises
`anyio.WouldBlock`; a pipe that you closed yourself raises `anyio.ClosedResourceError`, one whose peer has said all
`anyio.EndOfStream`: these words are known already, so they have no second name here.
"""

from __future__ import annotations

from typing import Literal, Protocol

from anyio import BrokenResourceError

__all__ = (
    "BadFrame",
    "BusClosed",
    "Conflict",
    "EventStreamError",
    "IndexOrder",
    "InvalidPayload",
    "InvalidName",
    "InvalidPosition",
    "LimitReached",
    "LinkRefused",
    "LinkSilent",
    "LogError",
    "LogFailed",
    "LogFull",
    "LogInUse",
    "LogRefused",
    "NotAuthorized",
    "NotCompacted",
    "NotAccepted",
    "NotStored",
    "NowaitUnsupported",
    "OutboxClosed",
    "OutboxFull",
    "OutboxUnusable",
    "OutcomeUnknown",
    "PayloadTypeError",
    "PipeAbandoned",
    "PipeBroken",
    "PipeClosed",
    "PositionLost",
    "ReconnectFailed",
    "Reentered",
    "ResumeRefused",
    "ServerOnly",
    "SlowSubscriber",
    "SnapshotFailed",
    "SubscriptionClosed",
    "SubscriptionReset",
    "TopicConflict",
    "UnknownEntry",
    "UnknownTopic",
)

SHOWN = 80  # characters of an offending value that an error shows: enough to recognise it, too few to leak it all


class PositionLike(Protocol):
    """What an error tells of a position. (`Position` itself stands on the floor above this one.)"""

    @property
    def epoch(self) -> str: ...

    @property
    def index(self) -> int: ...


def shown(value: object) -> str:
    """The start of `repr(value)`, so that an error never carries megabytes."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


class EventStreamError(Exception):
    """The root: catch it to catch everything that eventstream itself raises."""

    temporary: bool = False


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
        super().__init__(f"the server allows at most {bound} {limit.replace('_', ' ')}")


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


class LogError(EventStreamError):
    """Something about the file in which a log keeps its events. What, and whose fault it is, its subclasses say."""

    path: str

    @property
    def name(self) -> str:
        """The file's name alone: what another process may be told."""
        return self.path.replace("\\", "/").rpartition("/")[2]


class LogInUse(LogError):
    """A log's file has an owner already. Your fault: one process at a time; others connect to it over the network.

    `owner` is that process's id, 0 if it cannot be told. The lock goes when that process ends, however it ends.
    """

    def __init__(self, path: str, owner: int = 0) -> None:
        self.path = path
        self.owner = owner
        who = f"process {owner}" if owner else "another process"
        super().__init__(f"{path} is in use by {who}: close it there, or connect to that process over the network")


class LogRefused(LogError):
    """A file is not opened as a log; nothing in it was changed. Your fault, unless the disk has damaged it.

    `why` is `foreign` (it is something else: give another path), `newer` (a later version of eventstream wrote it:
    update), `damaged` (it is torn or corrupt: restore a backup, or export what can be read) or `unreachable` (its
    directory is missing, or you may not write there).
    """

    def __init__(self, path: str, why: str, detail: str) -> None:
        self.path = path
        self.why = why
        self.detail = detail
        advice = {
            "foreign": "give the path of a log, or of a file that does not exist yet",
            "newer": "update eventstream, or give another path",
            "damaged": "restore a backup, or save what can be read with 'eventstream log export'",
            "unreachable": "create the directory, or make it writable",
        }
        super().__init__(f"{path}: {detail}; {advice.get(why, 'look at the file')}. Nothing in it was changed")


class LogFull(LogError):
    """The disk, or the file by its own bound, has no room. What was to be published was not.

    Nobody's fault: make room, then publish again. The log goes on by itself as soon as there is room.
    """

    temporary = True

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: there is no room for this event; nothing was published. Make room, then publish again"
        )


class LogFailed(LogError):
    """The disk could not be read or written. Nobody's fault, mostly the disk's: look at `why`.

    What was to be published cannot be read now. If the process ends before anything else is published, it may be there
    after the next start: publish again with the same `id`, which makes one event of both.
    """

    temporary = True

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: {why}; look at the disk, then publish again with the same id")


class PipeBroken(EventStreamError, BrokenResourceError):
    """A backed pipe has ended without having said all. Whose fault, and why, its subclasses say.

    The bytes that the peer did not acknowledge may be lost.

    Lost links never raise this; only what no reconnect can repair does. Open a new pipe, and let the protocol inside
    find out where it stood.
    """


class ResumeRefused(PipeBroken):
    """The peer does not go on with this pipe. Mostly nobody's fault: open a new pipe.

    Its bytes, or ours, cannot be completed.

    `reason` is one of `unknown` (it never had this pipe, or has forgotten it), `epoch` (it was restarted), `expired`
    (the grace time has passed), `evicted` (it needed the memory), `closed` (it closed the pipe), `finished` (it holds
    that all was said), `position` (what the two ends have does not fit together), `proof` (the HELLO was not made by
    the holder of this pipe's token).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"the peer cannot resume this pipe ({reason}){': ' if detail else ''}{detail}; open a new one")


class PipeClosed(PipeBroken):
    """The peer ended the pipe before it had said all (`send_eof`). Its fault, or its wish.

    `reason` is one of `closed` (its program closed the pipe), `failed` (its program failed), `going-away` (it is
    shutting down), `finished` (it holds that all was said).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"the peer ended this pipe ({reason}){': ' if detail else ''}{detail}")


class PipeAbandoned(PipeBroken):
    """The server gave this pipe up. Nobody's fault; the program that served it can only clean up.

    `reason` is one of `expired` (the grace time passed with no link), `evicted` (it had no link, and its bytes or
    its place were needed) and `going-away` (the server stopped).
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the server gave this pipe up ({reason})")


class ReconnectFailed(PipeBroken):
    """No further dial will be made. The `__cause__` is the last dial's error.

    Either that error is not temporary (your fault: repair what it says), or `Retry.give_up_after` has passed.
    """

    def __init__(self, attempts: int, seconds: float) -> None:
        self.attempts = attempts
        self.seconds = seconds
        super().__init__(f"no link after {attempts} attempts in {seconds:.1f} s")


class LinkRefused(EventStreamError):
    """The peer gives no link now. Your fault only if the versions differ.

    `reason` is `busy` (it has as many pipes as it may) or `replayed` (a later HELLO, or a copy of this one, came before
    it), both temporary; or `version` (one of the two is too old: update it).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        self.temporary: bool = reason != "version"
        super().__init__(f"the peer refused the link ({reason}){': ' if detail else ''}{detail}")


class LinkSilent(EventStreamError):
    """Nothing was heard over a link for too long, so it is taken for dead. Nobody's fault: a new one is dialed."""

    temporary = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"nothing was heard for at least {seconds:g} s")


class BadFrame(EventStreamError, ValueError):
    """What came over a link is no frame, or one that cannot come here.

    The peer's fault, or that of whoever changed its bytes: the link ends, and a new one is dialed.
    """

    temporary = True

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class OutboxClosed(EventStreamError):
    """The outbox is not open. Your fault: use it inside `async with Outbox(...) as outbox`, once.

    What it had is in its file.
    """

    def __init__(self, state: Literal["new", "closed"]) -> None:
        self.state = state
        texts = {
            "new": "the outbox was not opened: use 'async with outbox'",
            "closed": "the outbox is closed; what it had is in its file",
        }
        super().__init__(texts[state])


class OutboxFull(EventStreamError):
    """The outbox has as much as it may; nothing was kept of this publish. Your fault, or that of a long outage.

    Let it drain, discard what is dead, or raise its limits. `limit` is `entries` or `bytes`.
    """

    def __init__(self, limit: str, bound: int) -> None:
        self.limit = limit
        self.bound = bound
        super().__init__(f"the outbox is full, its bound is {bound} {limit}: let it drain, or discard what is dead")


class OutboxUnusable(EventStreamError):
    """A file cannot be the outbox of this program. Your fault, or the disk's; the file was not changed.

    `why` is one of `busy` (another process, or another `Outbox`, has it), `foreign` (it is something else), `newer` (a
    later version made it) and `damaged`.
    """

    def __init__(self, path: str, why: str, detail: str) -> None:
        self.path = path
        self.why = why
        self.detail = detail
        advice = {
            "busy": "another process has it: use that one, or stop it",
            "foreign": "it is not an outbox: give another path",
            "newer": "a later version of eventstream made it: update this one",
            "damaged": "it is damaged: keep a copy, restore it with 'sqlite3 FILE .recover', or give another path",
        }
        super().__init__(f"{path} cannot be the outbox; {advice[why]} ({detail})")


class NotStored(EventStreamError):
    """The outbox could not write to its disk. The disk's fault: make room or repair it, then go on.

    `why` is `full` or `failed`. What was to be kept was not; after a failure (not of room) and a power loss it may turn
    up all the same, so repeat a publish with its id. Nothing that was kept before is lost by this.
    """

    temporary = True

    def __init__(self, path: str, why: str, detail: str) -> None:
        self.path = path
        self.why = why
        self.detail = detail
        what = "there is no room" if why == "full" else "its disk fails"
        super().__init__(f"the outbox {path} cannot be written, {what}: {detail}; nothing was kept, try again")


class NotAccepted(EventStreamError):
    """An entry of the outbox will not be published as it is. Whose fault, and what to do, depends on its `state`.

    `conflict` and `unknown` wait for a person, with those of their key behind them: `retry` or `discard` it. `dead` can
    be retried when the cause is gone. `discarded` was given up. `closed`: the outbox was left while it waited; the
    entry is in the file.
    """

    def __init__(self, id: str, state: str, reason: str) -> None:
        self.id = id
        self.state = state
        self.reason = reason
        super().__init__(f"entry {id!r} is {state}{': ' if reason else ''}{reason}")


class UnknownEntry(EventStreamError, LookupError):
    """The outbox has no entry of this id. Your fault, or it was accepted or discarded before."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(f"there is no entry {shown(id)}: it was accepted or discarded, or never was here")

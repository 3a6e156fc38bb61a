"""`eventstream tail`: prints a topic's events as they come, for as long as anybody wants them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any, Final

import anyio
import msgspec

from ..codec import Keyed
from ..errors import InvalidPosition, PositionLost, SlowSubscriber
from ..events import EARLIEST, Bookmark, Earliest, Event, Position, Resumed, SnapshotEnd, SnapshotStart, Topic
from ..remote import RemoteBus
from ..topics import Subscription
from .links import Link, connected
from .running import DONE, USAGE, Failure, Output, as_json, printable, tell
from .untyped import check_filter, find, key_and_plain

__all__ = ("Selection", "tail")

PREFIX: Final = "eventstream tail:"
LOOK: Final = 0.5  # seconds between two looks for a topic that is not there yet


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which events; see the command's help."""

    key: str | None = None
    prefix: str | None = None
    after: str | None = None
    count: int | None = None

    def start(self) -> Position | Earliest | None:
        """Where to begin.

        Raises:
            Failure: if `after` is no position.
        """
        if self.after is None:
            return None
        try:
            return EARLIEST if self.after == "earliest" else Position.parse(self.after)
        except InvalidPosition:
            why = f"--after {self.after!r} is no position: give one as --json prints it, or earliest"
            raise Failure(why, USAGE) from None


async def tail(url: str, name: str, selection: Selection, link: Link, json: bool) -> int:
    """Prints events until there were `selection.count`, or for ever."""
    check_filter(selection.key, selection.prefix)
    start = selection.start()
    output = Output()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(output.until_gone)
        await _tail(url, name, Following(selection, start, json, output), link)
        tasks.cancel_scope.cancel()
    return DONE


async def _tail(url: str, name: str, following: Following, link: Link) -> None:
    async with connected(url, link) as bus:
        topic = await find(bus, name)
    if topic is None:
        tell(f"{PREFIX} the server has no topic {name!r} yet; waiting for it")
        topic = await _wait_for(url, name, link)
        if not topic.compacted:
            following.begin_at_the_beginning()  # it is younger than our wish to read it
    async with connected(url, link, lasting=True) as bus, anyio.create_task_group() as tasks:
        tasks.start_soon(following.watch, bus)
        await following.run(bus, topic)
        tasks.cancel_scope.cancel()


async def _wait_for(url: str, name: str, link: Link) -> Topic[Keyed]:
    """The topic, when somebody has made it: who only reads must not be the one that decides what it is."""
    async with connected(url, link, lasting=True) as bus:
        while (topic := await find(bus, name)) is None:  # noqa: ASYNC110  it is another process that makes it
            await anyio.sleep(LOOK)
    return topic


class Following:
    """Follows one topic over every loss of its connection, and tells of each how it ended.

    A bus goes on by itself after a loss. When it is connected again a bookmark is asked for, and if that comes without
    a reset before it, nothing was missed.
    """

    def __init__(self, selection: Selection, start: Position | Earliest | None, json: bool, output: Output) -> None:
        self._selection = selection
        self._after = start
        self._line = _json_line if json else _plain_line
        self._left = selection.count
        self._output = output
        self._snapshot: Position | None = None  # Invariant: set between SnapshotStart and SnapshotEnd
        self._unsure = False  # whether there was a loss of which the outcome was not told yet
        self._subscription: Subscription[Keyed] | None = None

    def begin_at_the_beginning(self) -> None:
        """Unless it was said where to begin."""
        if self._after is None:
            self._after = EARLIEST

    async def watch(self, bus: RemoteBus) -> None:
        """After each loss, asks where the reader stands."""
        async for back in bus.connection_changes():
            if not back:
                tell(f"{PREFIX} the connection was lost; trying again")
                self._unsure = True
            elif self._unsure and self._subscription is not None:
                self._subscription.request_bookmark()

    async def run(self, bus: RemoteBus, topic: Topic[Keyed]) -> None:
        """Until enough was printed."""
        key, prefix = self._selection.key, self._selection.prefix
        while True:
            async with bus.subscribe(topic, key=key, prefix=prefix, after=self._after) as subscription:
                self._subscription = subscription
                try:
                    return await self._read(subscription)
                except SlowSubscriber as error:
                    self._after = subscription.position  # the events may still be retained
                    self._tell(f"fell {error.lag} events behind")
                except PositionLost as error:
                    self._after = EARLIEST
                    self._tell(_what_was_lost(error))

    async def _read(self, subscription: Subscription[Keyed]) -> None:
        async for item in subscription.chunks():
            if isinstance(item, list):
                await self._print(item, subscription.position)
                if self._left == 0:
                    return
            else:
                self._note(item)

    def _note(self, mark: Any) -> None:
        match mark:
            case SnapshotStart(position, reason):
                self._snapshot = position
                if reason != "new":
                    self._tell(f"reset ({reason}): the topic starts again from its state")
            case SnapshotEnd():
                self._snapshot = None
            case Resumed(position):
                self._tell(f"goes on after {position}")
            case Bookmark(position) if self._unsure:
                self._tell(f"resumed after {position}: nothing was missed")

    def _tell(self, text: str) -> None:
        self._unsure = False
        tell(f"{PREFIX} {text}")

    async def _print(self, events: list[Event[Keyed]], end: Position) -> None:
        positions = _positions(events, end) if self._snapshot is None else repeat(self._snapshot)
        placed = zip(events, positions, strict=False)
        lines = [self._line(event, position) for event, position in islice(placed, self._left)]
        if self._left is not None:
            self._left -= len(lines)
        await self._output.write(b"".join(lines))


def _positions(events: list[Event[Any]], end: Position) -> Iterator[Position]:
    """From where a reader goes on that has each of these: before a batch until all of that is there."""
    complete = events[0].index - 1
    for event, following in zip(events, [*events[1:], None], strict=True):
        if following is None or following.index != event.index:
            complete = event.index
        yield Position(end.epoch, complete)


def _json_line(event: Event[Keyed], position: Position) -> bytes:
    key, payload = key_and_plain(event)
    fields = {
        "topic": event.topic,
        "key": key,
        "index": event.index,
        "position": str(position),
        "time": event.time,
        "payload": payload,
        "headers": dict(event.headers),
    }
    return as_json(fields) + b"\n"


def _plain_line(event: Event[Keyed], _: Position) -> bytes:
    key, payload = key_and_plain(event)
    at = time.strftime("%H:%M:%S", time.localtime(event.time))
    text = "deleted" if event.tombstone else as_json(payload).decode()
    return (printable(f"{at}  {event.index}  {key or '-'}  {text}") + "\n").encode()


def _what_was_lost(error: PositionLost) -> str:
    if error.requested.epoch != error.epoch:
        return "reset (epoch): the topic's history begins anew there; goes on with its oldest event"
    return (
        f"reset (expired): what followed {error.requested.index} is not kept any more; "
        f"goes on with the oldest event after {error.oldest}"
    )

"""`eventstream publish`: each line of JSON becomes an event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from anyio import Semaphore, create_task_group, current_time, sleep_until

from ..codec import Keyed
from ..errors import EventStreamError, PipeBroken
from ..events import NO_KEY, Position, Topic, check_name
from ..remote import RemoteBus
from .lines import Line, read_lines, total_bytes
from .links import Link, connected
from .progress import Reached, progress
from .running import DONE, USAGE, Failure, counted, tell
from .untyped import find, to_keyed, untyped

__all__ = ("Input", "publish")

UNDER_WAY: Final = 512  # publishes that wait for their answer: enough for 10,000 a second over 50 ms


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish; see the command's help."""

    files: Sequence[Path] = ()
    key: str | None = None
    key_field: str | None = None
    compacted: bool = False
    rate: float | None = None

    def check(self) -> None:
        """Refuses what contradicts itself.

        Raises:
            Failure, InvalidName: if it does.
        """
        if self.key is not None and self.key_field is not None:
            raise Failure("give --key or --key-field, not both", USAGE)
        if self.key is not None:
            check_name("key", self.key)

    def key_of(self, line: Line, payload: Any) -> str:
        """The event's key.

        Raises:
            Failure: if the payload has none.
        """
        if self.key_field is None:
            return NO_KEY if self.key is None else self.key
        if not isinstance(payload, dict) or self.key_field not in payload:
            what = "this object has" if isinstance(payload, dict) else "this is no object, and so has"
            raise line.failure(f"{what} no field {self.key_field!r}, which is to be the key")
        found = payload[self.key_field]
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if not isinstance(found, str):
            shown = msgspec.json.encode(found).decode()
            raise line.failure(f"the field {self.key_field!r} is to be the key, so text or a whole number, not {shown}")
        try:
            return check_name(f"the field {self.key_field!r}", found)
        except EventStreamError as error:
            raise line.failure(str(error)) from None


async def publish(url: str, name: str, input: Input, link: Link) -> int:
    """Publishes every line, in order, up to the first that is no JSON."""
    input.check()
    async with connected(url, link) as bus:
        topic = await find(bus, name) or untyped(name, compacted=input.compacted, keyed=input.key_field is not None)
    if topic.key is not None and input.key is None and input.key_field is None:
        raise Failure(f"the events of {name!r} have keys: say with --key-field or --key what they are about", USAGE)
    async with connected(url, link) as bus:
        publishing = Publishing(bus, topic, input)
        try:
            with progress(total_bytes(input.files), publishing.reached) as publishing.show:
                await publishing.run()
        finally:
            last = "" if publishing.last is None else f"; last position {publishing.last}"
            tell(f"published {counted(publishing.count, 'event')} to {name}{last}")
    return DONE


class Publishing:
    """Publishes many events at once, in the order of their lines.

    Attributes:
        count: Events that the server has committed.
        last: The position of the last of them.
        read: Bytes of the input that they stand for.
        show: Called after each event; None if nobody watches.
    """

    show: Callable[[], None] | None = None

    def __init__(self, bus: RemoteBus, topic: Topic[Keyed], input: Input) -> None:
        self.count: int = 0
        self.last: Position | None = None
        self.read: int = 0
        self._bus = bus
        self._topic = topic
        self._input = input
        self._room = Semaphore(UNDER_WAY)

    def reached(self) -> Reached:
        """How far it has come."""
        return Reached(self.read, self.count, counted(self.count, "event"))

    async def run(self) -> None:
        """To the end of the input.

        Raises:
            Failure: if a line cannot be published; what stands before it was, if it is no JSON.
        """
        begin, given = current_time(), 0
        bad: Failure | None = None
        async with create_task_group() as tasks:
            async for line in read_lines(self._input.files):
                try:
                    key, keyed = self._parse(line)
                except Failure as error:
                    bad = error  # raised when what stands before it was published
                    break
                if self._input.rate is not None:
                    await sleep_until(begin + given / self._input.rate)
                given += 1
                await self._room.acquire()
                tasks.start_soon(self._publish, line, key, keyed)  # asyncio runs tasks in the order of their start
        if bad is not None:
            raise bad

    def _parse(self, line: Line) -> tuple[str, Keyed | None]:
        """The key and the payload; None is a tombstone."""
        payload = line.decode()
        key = self._input.key_of(line, payload)
        if payload is None and self._topic.compacted:
            return key, None
        try:
            return key, to_keyed(key, payload)
        except ValueError as error:
            raise line.failure(str(error)) from None

    async def _publish(self, line: Line, key: str, keyed: Keyed | None) -> None:
        topic = self._topic
        try:
            if keyed is None:
                position = await self._bus.delete(topic, key)
            else:
                position = await self._bus.publish(topic, keyed, key=key if topic.key is None else None)
        except PipeBroken:
            raise  # about the connection, not about this line
        except EventStreamError as error:
            raise line.failure(str(error)) from None
        finally:
            self._room.release()
        self.count += 1
        self.read = max(self.read, line.read)
        if self.last is None or position.index > self.last.index or position.epoch != self.last.epoch:
            self.last = position
        if self.show is not None:
            self.show()

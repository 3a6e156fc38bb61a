"""An outbox without threads, for simulated time, and a bus that fails as it is told."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
from anyio import current_time
from anyio.abc import TaskGroup

from eventstream import Conflict, NotAuthorized, Position, Topic
from eventstream.errors import EventStreamError, OutcomeUnknown
from eventstream.outbox import Outbox
from eventstream.outbox.file import failure, open_file, read_all
from eventstream.outbox.writer import Writer, _in_transaction, _Request

__all__ = ("START", "CallingBus", "FailingBus", "InlineWriter", "notes", "wall")

START = 1_700_000_000.0
WINDOW = 120.0
notes: Topic[Any] = Topic("notes", dict)


def wall() -> float:
    """POSIX seconds in simulated time."""
    return START + current_time()


class InlineWriter(Writer):
    """Works at once, in the loop: a thread has no part in simulated time. `dead`: the process was killed."""

    dead = False

    async def open(self) -> Any:
        self._connection = open_file(self._path, self._connect)
        try:
            return read_all(self._connection, self._path)
        except BaseException:
            self._connection.close()
            raise

    def insert(self, row: tuple[Any, ...], then: Callable[..., None]) -> None:
        self._at_once(_Request(None, row, then))

    def ask(self, work: Callable[[sqlite3.Connection], Any], then: Callable[..., None]) -> None:
        self._at_once(_Request(work, (), then))

    def _at_once(self, request: _Request[Any]) -> None:
        if self.dead:
            return
        try:
            _in_transaction(self._connection, [request])
        except Exception as error:
            request.result, request.error = None, failure(self._path, error)
        request.then(request.result, request.error)

    async def aclose(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()


class FailingBus:
    """Remembers ids for 120 s; what comes of the next publishes can be said before.

    `ok`; before the commit `unreachable`, `refused`, `busy`, `unsure`, `silent`; after it `lost`, `forgotten`.

    Attributes:
        events: (key, payload, id) of what was committed, in order.
        plan: What comes of the next publishes.
        asked: (key, id) of all attempts.
    """

    def __init__(self, delay: float = 0.01) -> None:
        self.events: list[tuple[str, Any, str]] = []
        self.plan: deque[str] = deque()
        self.always = "ok"
        self.asked: list[tuple[str, str]] = []
        self.times: list[float] = []
        self._delay = delay
        self._ids: dict[str, tuple[float, int]] = {}
        self._newest: dict[str, int] = {}

    async def publish(
        self,
        topic: Topic[Any],
        payload: Any,
        *,
        key: str | None = None,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Position:
        assert id is not None
        key = topic.key_for(payload, key) if payload is not None else key or ""
        self.asked.append((key, id))
        self.times.append(current_time())
        how = self.plan.popleft() if self.plan else self.always
        await anyio.sleep(self._delay)
        match how:
            case "unreachable":
                raise ConnectionRefusedError("nobody listens")
            case "refused":
                raise NotAuthorized("device", f"publish {topic.name}/{key}")
            case "busy":
                raise EventStreamError("the server failed: see its log")
            case "unsure":
                raise OutcomeUnknown(topic.name, id, 130.0)
            case "silent":
                await anyio.sleep_forever()
        position = self._commit(topic, key, payload, expect, id)
        if how == "lost":
            raise ConnectionResetError("the answer was lost")
        if how == "forgotten":
            await anyio.sleep_forever()
        return position

    async def delete(self, topic: Topic[Any], key: str, **terms: Any) -> Position:
        return await self.publish(topic, None, key=key, **terms)

    def _commit(self, topic: Topic[Any], key: str, payload: Any, expect: int | None, id: str) -> Position:
        time, index = self._ids.get(id, (float("-inf"), 0))
        if current_time() - time < WINDOW:
            return Position("life", index)
        actual = self._newest.get(key, 0)
        if expect is not None and expect != actual:
            raise Conflict(topic.name, key, expect, actual)
        self.events.append((key, payload, id))
        self._newest[key] = len(self.events)
        self._ids[id] = (current_time(), len(self.events))
        return Position("life", len(self.events))

    def of(self, key: str) -> list[Any]:
        """The payloads of a key."""
        return [payload for name, payload, _ in self.events if name == key]


class CallingBus(FailingBus):
    """Calls back, as a `RemoteBus` does: nobody's task waits, and what had no answer for long is told to be unknown."""

    def __init__(self, tasks: TaskGroup) -> None:
        super().__init__()
        self._tasks = tasks
        self._wanted: list[SimpleNamespace] = []

    async def wait_connected(self) -> None:
        await anyio.lowlevel.checkpoint()

    def submit(
        self, topic: Topic[Any], key: str, payload: bytes | None, terms: tuple[Any, ...], about: Any, told: Any
    ) -> None:
        request = SimpleNamespace(about=about, answer=None, error=None, told=told)
        self._wanted.append(request)
        self._tasks.start_soon(self._answer, request, topic, key, payload, terms)

    def forget(self, told: Any) -> None:
        self._wanted = [request for request in self._wanted if request.told != told]

    async def _answer(self, request: SimpleNamespace, topic: Topic[Any], key: str, payload: Any, terms: Any) -> None:
        expect, id, headers = terms
        content = None if payload is None else msgspec.msgpack.decode(payload)
        request.error = OutcomeUnknown(topic.name, id, WINDOW)
        try:
            with anyio.move_on_after(WINDOW):
                request.answer = await self.publish(topic, content, key=key, expect=expect, id=id, headers=headers)
                request.error = None
        except Exception as error:
            request.error = error
        if request in self._wanted:
            self._wanted.remove(request)
            request.told(request)


def at(path: Path, bus: Any, **options: Any) -> Outbox:
    """An outbox that knows `notes`, in simulated time."""
    return Outbox(path, bus, **{"topics": [notes], "clock": wall, **options})

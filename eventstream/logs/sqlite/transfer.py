"""A log as lines of JSON, and back: to look at, to keep for ever, to move to another version, to save from damage.

The first line names the format. A line with `epoch` begins a topic; the lines after it are its events, oldest first:

    {"eventstream":"log","format":1}
    {"topic":"prices","epoch":"9f…","compacted":true,"floor":0}
    {"index":1,"key":"X","time":1700000000.5,"payload":{"symbol":"X","bid":1.0},"headers":{"h":"v"},"id":"a"}

Events of one batch have one index. A payload that JSON cannot hold exactly (bytes, for one) is `packed`: its
MessagePack in base64. What was exported and imported is the same log: epochs and indexes stay, so positions stay valid.
"""

from __future__ import annotations

import secrets
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from ...codec import Keyed, pack_headers, parts_of
from ...errors import InvalidPayload, LogRefused
from ...events import Position, check_headers, check_name
from ..log import Terms
from .faults import fault
from .file import connect, load, open_writing
from .life import Life
from .owner import Ownership
from .store import Publish, Store
from .upkeep import reading

__all__ = ("export_lines", "import_lines")

FORMAT: Final = 1
GROUP: Final = 1000  # batches in one transaction


class _Head(msgspec.Struct, frozen=True):
    eventstream: str
    format: int


class _Kind(msgspec.Struct, frozen=True):
    """Tells a topic from an event."""

    epoch: str | None = None


class _Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    topic: str
    epoch: str
    compacted: bool = False
    floor: int = 0


class _Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    index: int
    key: str
    time: float
    payload: Any = msgspec.UNSET
    headers: dict[str, str] = {}
    id: str | None = None
    packed: str | None = None


def export_lines(path: str, topics: frozenset[str] = frozenset()) -> Iterator[bytes]:
    """The lines of a log, or of some of its topics, without their ends. It may be published to meanwhile.

    Raises:
        LogError: if it is no log, or cannot be read any further.
    """
    with reading(path) as connection:
        connection.execute("BEGIN")
        lives, _, _ = load(path, connection)
        yield msgspec.json.encode(_Head("log", FORMAT))
        for life in lives.values():
            if not topics or life.topic in topics:
                yield msgspec.json.encode(_Topic(life.topic, life.epoch, life.compacted, life.floor))
                yield from _events(connection, life)


def _events(connection: sqlite3.Connection, life: Life) -> Iterator[bytes]:
    sql = f"SELECT idx, count, id, body FROM {life.tables.events} ORDER BY idx"  # noqa: S608  # a number of ours
    for index, count, id, body in connection.execute(sql):
        for key, time, payload, headers in parts_of(count, body):
            plain = _plain(payload)
            packed = b64encode(payload).decode() if plain is msgspec.UNSET else None
            yield msgspec.json.encode(_Event(index, key, time, plain, headers, id, packed))


def _plain(payload: bytes) -> Any:
    """A payload as JSON says it, if nothing of it gets lost."""
    try:
        plain = msgspec.msgpack.decode(payload)
        same = msgspec.msgpack.encode(msgspec.json.decode(msgspec.json.encode(plain)))
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError, OverflowError):
        return msgspec.UNSET
    return plain if same == payload else msgspec.UNSET


def import_lines(path: str, lines: Iterable[bytes]) -> dict[str, int]:
    """Adds topics to a log, which is made if there is none.

    Returns:
        How many events each got.

    Raises:
        LogInUse: if a bus has it open.
        LogRefused: if it has such a topic already.
        InvalidPayload: if a line cannot be read; the topics before it were added. A topic is added whole or not at all:
            a part of it, in its own epoch, would make positions valid whose events are missing.
        LogError: as of `SQLiteLog.open`.
    """
    owner = Ownership(path)
    try:
        connection = open_writing(path, connect, "power")
        try:
            lives, _, greatest = load(path, connection)
            return _Import(path, Store(connection, lives, 0.0), greatest).run(lines)
        except sqlite3.Error as error:
            raise fault(path, error) from error
        finally:
            connection.close()
    finally:
        owner.release()


class _Import:
    """Takes lines in, batch by batch."""

    def __init__(self, path: str, store: Store, greatest: int) -> None:
        self._path = path
        self._store = store
        self._number = greatest
        self._counts: dict[str, int] = {}
        self._topic: _Topic | None = None
        self._life: Life | None = None
        self._batch: list[_Event] = []
        self._waiting = 0
        self._floor = (0, 0)

    def run(self, lines: Iterable[bytes]) -> dict[str, int]:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                self._take(number, line)
            self._end_topic()
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise InvalidPayload(f"line {number}", str(error)) from error
        return self._counts

    def _take(self, number: int, line: bytes) -> None:
        if number == 1:
            head = msgspec.json.decode(line, type=_Head)
            if head.eventstream != "log" or head.format > FORMAT:
                raise ValueError(f"this is no export of format {FORMAT} or before: {head}")
        elif msgspec.json.decode(line, type=_Kind).epoch is not None:
            self._end_topic()
            self._begin(msgspec.json.decode(line, type=_Topic))
        else:
            event = msgspec.json.decode(line, type=_Event)
            _check(event)
            if self._batch and self._batch[0].index != event.index:
                self._end_batch()
            self._batch.append(event)

    def _begin(self, topic: _Topic) -> None:
        check_name("topic name", topic.topic)
        Position.parse(str(Position(topic.epoch, topic.floor)))
        if topic.topic in self._store.lives:
            raise LogRefused(self._path, "foreign", f"it has a topic {topic.topic!r} already")
        self._number += 1
        self._topic = topic
        self._life = Life(self._number, topic.topic, secrets.token_hex(8), topic.compacted, stored=False)
        self._store.lives[topic.topic] = self._life
        self._store.declare(self._life, 0.0)
        # If this process ends before the topic does, a part of it is there as if it were over: it will be removed.
        self._store.connection.execute("UPDATE lives SET ended = 1 WHERE number = ?", (self._number,))
        self._counts[topic.topic] = 0
        self._floor = (0, 0)

    def _end_batch(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        life, topic, first = self._life, self._topic, batch[0]
        if life is None or topic is None:
            raise ValueError("an event stands before its topic")
        payloads = [
            b64decode(event.packed) if event.packed is not None else msgspec.msgpack.encode(event.payload)
            for event in batch
        ]
        headers = pack_headers(topic.topic, first.headers)
        terms = Terms(index=first.index, id=first.id)
        entries = tuple([(event.key, Keyed) for event in batch])  # the payloads that count are the encoded ones
        publish = Publish(entries, payloads, headers, terms, (first.time, first.time))
        self._store.append(life, publish)
        if first.index <= topic.floor:
            self._floor = (life.seq, life.total)
        self._counts[topic.topic] += len(batch)
        self._waiting += 1
        if self._waiting >= GROUP:
            self._waiting = 0
            self._store.commit()

    def _end_topic(self) -> None:
        self._end_batch()
        life, topic = self._life, self._topic
        if life is None or topic is None:
            return
        self._store.commit()
        values = (topic.epoch, topic.floor, *self._floor, life.number)
        sql = "UPDATE lives SET epoch = ?, ended = 0, floor = ?, floor_seq = ?, floor_total = ? WHERE number = ?"
        self._store.connection.execute(sql, values)
        self._life = self._topic = None


def _check(event: _Event) -> None:
    """Whoever wrote the line: what is in a log is as if it had been published."""
    for what, name in (("key", event.key or None), ("id", event.id)):
        if name is not None:
            check_name(what, name)
    check_headers(event.headers)

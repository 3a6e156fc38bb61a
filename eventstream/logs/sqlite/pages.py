"""Reads: the pages of a history, and the state of a compacted topic. In worker threads, on connections of their own.

A page is whole batches, bounded in rows and bytes. Each is read in one transaction with the life's floor, so it is
known whether anything before it has been trimmed: then there is no page.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from ...codec import TopicCodec, keys_of, list_of, split_events
from ...errors import InvalidPayload
from ...topics import AnyEvent, Page
from .life import Life

__all__ = ("PAGE_BYTES", "PAGE_ROWS", "read_page", "read_state")

PAGE_ROWS: Final = 1024  # enough that the rest costs nothing for each event, little enough to hold up nobody
PAGE_BYTES: Final = 1 << 20  # a reader may have two pages in memory


def read_page(
    connection: sqlite3.Connection, life: Life, codec: TopicCodec[Any], after: int, key: str | None
) -> Page | None:
    """The next page; None if the life has ended, or some of what follows `after` is trimmed.

    Raises:
        InvalidPayload: if the very first event does not fit the topic's type; others that do not, end the page.
        sqlite3.Error: if it cannot be read.
    """
    connection.execute("BEGIN")
    try:
        standing = connection.execute(life.tables.standing, (life.number, after)).fetchone()
        if standing is None:
            return None
        has_ended, floor, first, first_total, head, head_seq = standing
        if has_ended or after < floor:
            return None
        if first is None:
            return Page([], after, 0)
        if key is None:
            return _whole(connection, life, codec, (first, first_total + PAGE_BYTES), head_seq)
        return _of_key(connection, life, codec, (key, after), (head, head_seq))
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def read_state(connection: sqlite3.Connection, life: Life, codec: TopicCodec[Any]) -> dict[str, AnyEvent]:
    """The newest event of each living key, in the order of their indexes.

    Raises:
        InvalidPayload: if an event does not fit the topic's type.
        sqlite3.Error: if it cannot be read.
    """
    state: dict[str, AnyEvent] = {}
    if not life.stored:
        return state
    connection.execute("BEGIN")
    try:
        for (indexes,) in connection.execute(life.tables.newest, (PAGE_BYTES, PAGE_ROWS)).fetchall():
            rows, count, bodies = connection.execute(life.tables.at, (indexes,)).fetchone()
            events = codec.decode_events(list_of(count, bytes.fromhex(bodies)))
            if rows != count:
                events = _newest(connection, life, events)
            for event in events:
                state.pop(event.key, None)
                if event.payload is not None:
                    state[event.key] = event
        return state
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def _whole(
    connection: sqlite3.Connection, life: Life, codec: TopicCodec[Any], bounds: tuple[int, int], head_seq: int
) -> Page:
    count, last, seq, bodies = connection.execute(life.tables.page, (*bounds, PAGE_ROWS)).fetchone()
    return _page(codec, count, bytes.fromhex(bodies), last, head_seq - seq)


def _of_key(
    connection: sqlite3.Connection, life: Life, codec: TopicCodec[Any], of: tuple[str, int], end: tuple[int, int]
) -> Page:
    values = (*of, PAGE_ROWS, PAGE_BYTES)
    rows, are_all, count, last, seq, bodies = connection.execute(life.tables.page_of_key, values).fetchone()
    key, _ = of
    if are_all:
        last, seq = end
    if not rows:
        return Page([], last, 0)
    page = _page(codec, count, bytes.fromhex(bodies), last, end[1] - seq)
    return Page([event for event in page.events if event.key == key], page.index, page.behind)


def _page(codec: TopicCodec[Any], count: int, data: bytes, last: int, behind: int) -> Page:
    packed = list_of(count, data)
    try:
        return Page(codec.decode_events(packed), last, behind)
    except InvalidPayload:
        good = _good(codec, packed)
        if not good:
            raise
        return Page(good, good[-1].index, behind + count - len(good))


def _good(codec: TopicCodec[Any], packed: bytes) -> list[AnyEvent]:
    """The events before the batch with the first that cannot be decoded."""
    good: list[AnyEvent] = []
    heads = keys_of(packed)
    try:
        for body in split_events(packed):
            good += codec.decode_events(list_of(1, body))
    except InvalidPayload:
        bad = heads[len(good)][1]
        while good and good[-1].index == bad:
            good.pop()
    return good


def _newest(connection: sqlite3.Connection, life: Life, events: list[AnyEvent]) -> list[AnyEvent]:
    """Those that are the newest of their keys: a batch stays whole if any of its events is."""
    found = []
    for event in events:
        newest = connection.execute(life.tables.newest_of_key, (event.key,)).fetchone()[0]
        if newest == event.index:
            found.append(event)
    return found

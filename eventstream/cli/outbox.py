"""`eventstream outbox`: what a program's outbox has kept, decisions about it, and draining it without the program.

The file belongs to one process at a time, so this works while the program does not run; else it is told so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ..errors import OutboxUnusable
from ..outbox import Entry, EntryState, Outbox, Sending
from ..pipes import Retry
from .links import Link, connected
from .progress import Reached, progress
from .running import DONE, FAILED, USAGE, Failure, Output, as_json, counted, printable, tell

__all__ = ("discard", "drain", "list_entries", "retry", "show")

QUICK: Final = Sending(retry=Retry(first=0.1, cap=1.0))  # somebody watches


async def list_entries(path: Path, state: EntryState | None, json: bool) -> int:
    """Prints one line for each entry, oldest first."""
    async with _opened(path) as outbox:
        entries = outbox.entries(state)
    lines = (as_json(entry) if json else _line(entry) for entry in entries)
    await Output().write(b"".join(line + b"\n" for line in lines))
    if not json:
        tell(f"{_entries(len(entries))}{'' if state is None else f' in state {state}'}")
    return DONE


async def show(path: Path, id: str, json: bool) -> int:
    """Prints an entry with its payload and headers."""
    async with _opened(path) as outbox:
        content = await outbox.content(id)
        [entry] = [one for one in outbox.entries() if one.id == id]
    fields: dict[str, Any] = {**msgspec.structs.asdict(entry), **msgspec.structs.asdict(content)}
    if json:
        await Output().write(as_json(fields) + b"\n")
    else:
        fields["queued"] = _time(entry.queued)
        lines = (f"{name:<9} {as_json(value).decode()}" for name, value in fields.items())
        await Output().write("".join(printable(line) + "\n" for line in lines).encode())
    return DONE


async def retry(path: Path, ids: Sequence[str], expect: int | Literal["same", "any"]) -> int:
    """Lets entries be tried again when the outbox is drained next."""
    async with _opened(path) as outbox:
        for id in ids:
            await outbox.retry(id, expect=expect)
    tell(f"{_entries(len(ids))} will be tried again")
    return DONE


async def discard(path: Path, ids: Sequence[str]) -> int:
    """Gives entries up."""
    async with _opened(path) as outbox:
        for id in ids:
            await outbox.discard(id)
    tell(f"{_entries(len(ids))} {'was' if len(ids) == 1 else 'were'} discarded")
    return DONE


async def drain(path: Path, url: str, link: Link, json: bool) -> int:
    """Sends everything that can be sent."""
    async with connected(url, link) as bus, _opened(path) as outbox:
        total = outbox.statistics().entries

        def reached() -> Reached:
            accepted = outbox.statistics().accepted
            return Reached(accepted, accepted, f"{accepted:,} of {total:,}")

        with progress(total, reached) as show:
            outbox.on_change = None if show is None else lambda _: show()
            outbox.use(bus)
            await _until_it_stands_still(outbox, link.timeout)
        statistics = outbox.statistics()
    if json:
        await Output().write(as_json(statistics) + b"\n")
    left = ", ".join(
        f"{count:,} {state}"
        for state in ("pending", "held", "conflict", "unknown", "dead")
        if (count := getattr(statistics, state))
    )
    tell(f"drained {_entries(statistics.accepted)}{'; left: ' if left else ''}{left}")
    return FAILED if left else DONE


async def _until_it_stands_still(outbox: Outbox, seconds: float) -> None:
    """Until nothing was accepted for so long, or nothing is left that could be."""
    while True:
        before = outbox.statistics().accepted
        await outbox.flush(seconds)
        if outbox.statistics().accepted == before:
            return


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Outbox]:
    if not path.exists():  # noqa: ASYNC240  one look, before anything else runs
        raise Failure(f"{path}: there is no such file", USAGE)
    if not path.is_file():  # noqa: ASYNC240
        raise Failure(f"{path}: this is no file", USAGE)
    try:
        async with Outbox(path, sending=QUICK) as outbox:
            outbox.declare(*outbox.untyped())
            yield outbox
    except OutboxUnusable as error:
        if error.why != "busy":
            raise
        raise Failure(f"{path} is in use: ask the program that has it, or stop it first") from None


def _entries(number: int) -> str:
    return counted(number, "entry", "entries")


def _line(entry: Entry) -> bytes:
    what = f"{entry.id}  {_time(entry.queued)}  {entry.state:<8}  {entry.topic}/{entry.key}"
    return printable(f"{what}  {entry.reason}".rstrip()).encode()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")[:19]

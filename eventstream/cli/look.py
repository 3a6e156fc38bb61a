"""`eventstream topics` and `eventstream snapshot`: what a server has now."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len

from ..codec import Keyed
from ..events import Event, Position, SnapshotEnd, SnapshotStart
from ..topics import Subscription
from .links import Link, connected
from .running import DONE, Failure, Output, as_json, counted, printable, tell
from .untyped import check_filter, find, key_and_plain

__all__ = ("snapshot", "topics")

NUMBERS = ("head", "retained", "subscribers", "lag", "lagged")


async def topics(url: str, link: Link, json: bool) -> int:
    """Prints one line for each topic."""
    async with connected(url, link) as bus:
        found = await bus.topics()
    output = Output()
    if json:
        lines = (as_json({"topic": name, **found[name]}) + b"\n" for name in sorted(found))
        await output.write(b"".join(lines))
    elif found:
        await output.write(_table(found))
    else:
        tell("eventstream topics: the server has none yet")
    return DONE


async def snapshot(url: str, name: str, key: str | None, prefix: str | None, link: Link, json: bool) -> int:
    """Prints a topic's state, and the position at which it holds."""
    check_filter(key, prefix)
    async with connected(url, link) as bus:
        topic = await find(bus, name)
        if topic is None:
            there = ", ".join(sorted(await bus.topics())) or "none"
            raise Failure(f"the server has no topic {name!r}; it has: {there}")
    async with connected(url, link) as bus, bus.subscribe(topic, key=key, prefix=prefix) as subscription:
        state, position = await _state(subscription, name)
    output = Output()
    if json:
        await output.write(as_json({"topic": name, "position": str(position), "state": state}) + b"\n")
        return DONE
    lines = (printable(f"{key}  {as_json(payload).decode()}") + "\n" for key, payload in state.items())
    await output.write("".join(lines).encode())
    tell(f"{counted(len(state), 'key')} at position {position}")
    return DONE


async def _state(subscription: Subscription[Keyed], name: str) -> tuple[dict[str, Any], Position]:
    """The newest payload of each key."""
    state: dict[str, Any] = {}
    async for frame in subscription.frames():
        match frame:
            case Event():
                key, payload = key_and_plain(frame)
                state[key] = payload
            case SnapshotStart():
                state.clear()
            case SnapshotEnd(position):
                return state, position
            case _:
                break
    raise Failure(f"topic {name!r} has no state: it is not compacted. Read its events with eventstream tail")


def _table(found: dict[str, dict[str, Any]]) -> bytes:
    """In columns as wide as they have to be: neither a name nor a number is ever cut, however narrow the terminal."""
    rows: list[tuple[str, ...]] = [("topic", *NUMBERS)]
    rows += [(printable(name), *(f"{found[name][number]:,}" for number in NUMBERS)) for name in sorted(found)]
    first, *others = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            [
                name + " " * (first - cell_len(name)),
                *(cell.rjust(width) for cell, width in zip(cells, others, strict=True)),
            ]
        )
        for name, *cells in rows
    )
    return "".join(f"{line}\n" for line in lines).encode()

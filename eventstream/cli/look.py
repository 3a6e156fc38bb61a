"""`eventstream topics` and `eventstream snapshot`: what a server has now."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..codec import Keyed
from ..events import Event, Position, SnapshotEnd, SnapshotStart
from ..topics import Subscription
from .links import Link, connected
from .running import DONE, Failure, Output, as_json, printable, tell
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
    tell(f"{len(state):,} keys at position {position}")
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
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("topic", overflow="fold")
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for name in sorted(found):
        table.add_row(printable(name), *(f"{found[name][number]:,}" for number in NUMBERS))
    console = Console(highlight=False, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).encode() + b"\n"

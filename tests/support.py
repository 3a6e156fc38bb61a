"""A few words to say things shortly in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from eventstream import Event, Subscription

T = TypeVar("T")


class Price(msgspec.Struct, frozen=True):
    symbol: str
    bid: float


TURNS = 20  # of the event loop: until nothing can run any more, if nothing has to pass a network


async def settle(turns: int | None = None) -> None:
    """Lets all tasks run that can."""
    for _ in range(turns or TURNS):
        await checkpoint()


@asynccontextmanager
async def counting_turns() -> AsyncIterator[Callable[[], int]]:
    """A task that does nothing but count how often it gets its turn; yields how often that was so far."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        yield lambda: turns
        tasks.cancel_scope.cancel()


async def take(subscription: Subscription[T], count: int) -> list[T]:
    """The payloads of the next events."""
    return [(await subscription.receive()).payload for _ in range(count)]


def drain(subscription: Subscription[T]) -> list[T]:
    """The payloads of all events that are there now."""
    payloads = []
    while True:
        try:
            payloads.append(subscription.receive_nowait().payload)
        except anyio.WouldBlock:
            return payloads


@asynccontextmanager
async def collecting(subscription: Subscription[Any]) -> AsyncIterator[list[Any]]:
    """Reads frames in a task of its own; yields the list that they go to, events as their payloads."""
    seen: list[Any] = []

    async def read() -> None:
        async for frame in subscription.frames():
            seen.append(frame.payload if isinstance(frame, Event) else frame)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await settle()
        try:
            yield seen
        finally:
            tasks.cancel_scope.cancel()
            subscription.close()

"""What users' type checkers must find out by themselves. Checked by mypy and pyright, never run."""

from __future__ import annotations

from typing import Any, assert_type

import msgspec

from eventstream import (
    Append,
    Bookmark,
    Event,
    EventBus,
    Position,
    Resumed,
    SnapshotEnd,
    SnapshotStart,
    Subscription,
    Topic,
    View,
)


class Price(msgspec.Struct, frozen=True):
    symbol: str
    bid: float


def symbol_of(price: Price) -> str:
    return price.symbol


prices = Topic("prices", Price, key="symbol", compacted=True)
by_callable = Topic("prices", Price, key=symbol_of)
anything: Topic[Any] = Topic("anything", Any)
union: Topic[int | str] = Topic("union", int | str)

assert_type(prices, Topic[Price])
assert_type(by_callable, Topic[Price])


async def publish(bus: EventBus) -> None:
    assert_type(await bus.publish(prices, Price("X", 1.0)), Position)
    assert_type(bus.publish_nowait(union, "x"), Position)
    await bus.publish(prices, "x")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    await bus.publish_many(prices, [Price("X", 1.0)])
    await bus.delete(prices, "X")


async def read(bus: EventBus) -> None:
    subscription = bus.subscribe(prices, authorize=lambda event: event.payload.bid > 0)
    assert_type(subscription, Subscription[Price])
    async with subscription:
        assert_type(await subscription.receive(), Event[Price])
        async for event in subscription:
            assert_type(event, Event[Price])
            assert_type(event.payload, Price)
        async for batch in subscription.batches():
            assert_type(batch, list[Event[Price]])
        async for frame in subscription.frames():
            match frame:
                case Event():
                    assert_type(frame.payload, Price)
                case Resumed(position) | SnapshotStart(position) | SnapshotEnd(position) | Bookmark(position):
                    assert_type(position, Position)


async def view(bus: EventBus) -> None:
    async with bus.view(prices) as current:
        assert_type(current, View[Price])
        assert_type(current["X"], Price)
        assert_type(current.position, Position | None)
        async for keys in current.changes():
            assert_type(keys, frozenset[str])


def decorate(bus: EventBus) -> None:
    @bus.snapshot(prices)
    async def source(key: str | None, append: Append) -> int:
        append(Price("X", 1.0))
        return 1

    @bus.on(prices)
    async def handler(event: Event[Price]) -> None:
        assert_type(event.payload, Price)

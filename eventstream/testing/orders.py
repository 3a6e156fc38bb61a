"""What is to happen on a link when so many bytes have passed: kept here, done by the link.

Pure: it knows how many bytes have passed by asking, and hands out what is due. The link lets no more bytes in than up
to the next order, so an order is due exactly at its byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from .faults import Direction

__all__ = ("Action", "Orders")

Action: TypeAlias = Callable[[], object]


class _Order(msgspec.Struct):
    at: int  # Invariant: more than have passed, between two calls of the link
    direction: Direction | None
    action: Action


class Orders:
    """The orders of one link.

    Args:
        passed: Tells how many bytes have passed in a direction; None: in both together.
    """

    def __init__(self, passed: Callable[[Direction | None], int]) -> None:
        self._passed = passed
        self._orders: list[_Order] = []

    def add(self, count: int, direction: Direction | None, action: Action) -> None:
        """Keeps what is to be done when `count` more bytes have passed; at least one."""
        assert count > 0
        self._orders.append(_Order(self._passed(direction) + count, direction, action))

    def room(self, direction: Direction) -> float:
        """How many bytes may pass in a direction before something is due; inf: any number."""
        counts = (o.at - self._passed(o.direction) for o in self._orders if o.direction in (direction, None))
        return min(counts, default=float("inf"))

    def pop_due(self) -> Action | None:
        """What is due and was ordered first. What is done may change the orders, so ask again after each."""
        for place, order in enumerate(self._orders):
            if order.at <= self._passed(order.direction):
                del self._orders[place]
                return order.action
        return None

    def clear(self) -> None:
        """Forgets everything."""
        self._orders.clear()

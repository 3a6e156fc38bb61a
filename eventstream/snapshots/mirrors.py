"""The mirrors of one bus, local or remote: equal views share one, which runs as long as there is a view of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeAlias, TypeVar

from anyio.abc import TaskGroup

from ..events import Position
from .mirror import Mirror, Subscribe
from .view import View

__all__ = ("Mirrors",)

T = TypeVar("T")
Name: TypeAlias = tuple[str, str | None, str | None]  # topic, key, prefix


class Mirrors:
    """Makes views, and the mirrors behind them. Used in the bus's event loop alone.

    Args:
        running: The task group of the bus, where mirrors run; raises if the bus does not run.
        random: For the jitter of their retries.
        away: Seconds for which a bus in another process could not be reached; 0 while it can.
    """

    def __init__(
        self, running: Callable[[], TaskGroup], random: Random, away: Callable[[], float] | None = None
    ) -> None:
        self._running = running
        self._away = away
        self._random = random
        self._shared: dict[Name, Mirror[Any]] = {}  # Invariant: each has users

    def __len__(self) -> int:
        return len(self._shared)

    def view(self, name: Name, subscribe: Subscribe[T], head: Callable[[], Awaitable[Position]]) -> View[T]:
        """A view, which finds or makes its mirror when it is entered.

        Args:
            name: The topic's name, and the key or prefix: views of one name are equal.
            subscribe: Opens a subscription of that, after a position.
            head: Tells the topic's present head.
        """

        def acquire() -> Mirror[T]:
            tasks = self._running()
            mirror = self._shared.get(name)
            if mirror is None:
                mirror = self._shared[name] = Mirror(name[0], subscribe, head, self._random, self._away)
                tasks.start_soon(mirror.run, name=f"eventstream view of {name[0]}")
            mirror.users += 1
            return mirror

        return View(name[0], acquire, lambda mirror: self._release(name, mirror))

    def _release(self, name: Name, mirror: Mirror[Any]) -> None:
        mirror.users -= 1
        if not mirror.users:
            self._shared.pop(name, None)
            mirror.scope.cancel()

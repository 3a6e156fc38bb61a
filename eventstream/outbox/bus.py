"""What an outbox asks of a bus. `EventBus` and `RemoteBus` are such buses; any other that keeps the promise may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from ..events import Position, Topic

__all__ = ("Answered", "Bus", "Reachable", "Submitting")


class Bus(Protocol):
    """Where entries go to.

    The promise: a publish that returns was committed; the same `id` again, within the time that the outbox was told as
    `dedupe_seconds`, commits nothing and returns. Calls come from many tasks at once; one that is cancelled may or may
    not have been committed.
    """

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
        """As `EventBus.publish`."""
        ...

    async def delete(
        self,
        topic: Topic[Any],
        key: str,
        *,
        expect: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Position:
        """As `EventBus.delete`."""
        ...


@runtime_checkable
class Reachable(Protocol):
    """A bus that knows whether it can be reached: nothing is given to it before it can.

    It answers each publish once it can be reached again, if only with `OutcomeUnknown`; so no attempt is given up here,
    and repeated beside one that is still on its way.
    """

    async def wait_connected(self) -> None:
        """Returns at once while it can be reached; raises if it never will be."""
        ...


class Answered(Protocol):
    """What became of something that was submitted: an answer, or an error.

    Attributes:
        about: As it was submitted.
        answer: The event's position; None beside an error.
        error: Why there is none.
    """

    about: Any
    answer: Any
    error: Any


@runtime_checkable
class Submitting(Reachable, Protocol):
    """A bus that takes a publish as it is kept here, and calls back: half as dear as one that a task waits for.

    Not for users: as `RemoteBus` does it. Who changes the `publish` of one changes its `submit`, too.
    """

    def submit(
        self,
        topic: Topic[Any],
        key: str,
        payload: bytes | None,
        terms: tuple[int | None, str, Mapping[str, str]],
        about: Any,
        told: Callable[[Any], None],
    ) -> None:
        """As `RemoteBus.submit`: `told` is called once with an `Answered`, maybe before this returns."""
        ...

    def forget(self, told: Callable[[Any], None]) -> None:
        """`told` is not called any more."""
        ...

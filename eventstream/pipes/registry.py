"""The pipes that a server holds: who they are, which of them have no link, and which are gone and why.

Pure bookkeeping: time comes as an argument, and what has to end is returned or called, never awaited. Pipes without a
link are bounded three times: each by the grace time, all together by a budget of bytes, and all pipes by their number.
Where a bound is reached, the pipe that has been without a link for the longest time goes first (where bytes are needed,
of those that hold some), and its peer is told why when it comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from .frames import RejectCode

__all__ = ("Registry", "Suspendable")

REMEMBERED: Final = 4096  # ended pipes whose reason is kept: a few hundred kilobytes


class Suspendable(Protocol):
    """What the registry needs of a pipe."""

    @property
    def id(self) -> bytes:
        """What its dialer calls it."""
        ...

    @property
    def held(self) -> int:
        """Bytes that it keeps in memory."""
        ...


P = TypeVar("P", bound=Suspendable)


class Registry(Generic[P]):
    """All pipes of one server. Written by the server and its pipes.

    Args:
        grace: Seconds that a pipe may be without a link.
        budget: Bytes that all pipes without a link may hold together.
        evict: Ends a pipe for the given reason.
    """

    def __init__(self, grace: float, budget: int, evict: Callable[[P, RejectCode], None]) -> None:
        self._grace = grace
        self._budget = budget
        self._evict = evict
        self.pipes: dict[bytes, P] = {}
        self.held: int = 0  # Invariant: the sum of what was counted for each suspended pipe
        self._suspended: OrderedDict[bytes, tuple[float, int]] = OrderedDict()  # id: (deadline, bytes counted)
        self._ended: OrderedDict[bytes, RejectCode] = OrderedDict()

    @property
    def suspended(self) -> int:
        """How many pipes have no link."""
        return len(self._suspended)

    @property
    def next_deadline(self) -> float | None:
        """When the next pipe has to end; the order of suspension is the order of deadlines."""
        for deadline, _ in self._suspended.values():
            return deadline
        return None

    def add(self, pipe: P) -> None:
        """A new pipe."""
        self.pipes[pipe.id] = pipe

    def remove(self, pipe: P, reason: RejectCode) -> None:
        """The pipe has ended; `reason` is for its peer, should it come back. The first one stays."""
        if self._holds(pipe):
            self.resume(pipe)
            del self.pipes[pipe.id]
            self._ended[pipe.id] = reason
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def why_ended(self, pipe_id: bytes) -> RejectCode | None:
        """Why a pipe is not there any more; None if that is not known (any more)."""
        return self._ended.get(pipe_id)

    def suspend(self, pipe: P, now: float) -> None:
        """The pipe has lost its link."""
        if self._holds(pipe) and pipe.id not in self._suspended:
            self._suspended[pipe.id] = (now + self._grace, 0)
            self.count(pipe)

    def resume(self, pipe: P) -> None:
        """The pipe has a link again, or needs none any more."""
        if self._holds(pipe):
            _, counted = self._suspended.pop(pipe.id, (0.0, 0))
            self.held -= counted

    def count(self, pipe: P) -> None:
        """What a pipe without a link holds has changed."""
        if self._holds(pipe) and pipe.id in self._suspended:
            deadline, counted = self._suspended[pipe.id]
            self._suspended[pipe.id] = (deadline, pipe.held)
            self.held += pipe.held - counted
            while self.held > self._budget:  # who holds nothing frees nothing, and may stay
                self._give_up(next(key for key, (_, size) in self._suspended.items() if size), "evicted")

    def expire(self, now: float) -> None:
        """Ends the pipes whose grace time has passed."""
        while (deadline := self.next_deadline) is not None and deadline <= now:
            self.evict_longest("expired")

    def evict_longest(self, reason: RejectCode) -> bool:
        """Ends the pipe that has been without a link for the longest time; False if all have one."""
        for pipe_id in self._suspended:
            self._give_up(pipe_id, reason)
            return True
        return False

    def _holds(self, pipe: P) -> bool:
        """Whether this very pipe is here; one that has ended may outlive its id's next use."""
        return self.pipes.get(pipe.id) is pipe

    def _give_up(self, pipe_id: bytes, reason: RejectCode) -> None:
        pipe = self.pipes[pipe_id]
        self.remove(pipe, reason)
        self._evict(pipe, reason)

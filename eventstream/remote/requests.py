"""What a client has asked and not heard of yet. Bounded in number and bytes; each is said again on a new pipe.

The order of the calls is the order in which they are said, whatever loop they run in: a call takes its place at once,
before it waits for anything. What finds no room stands in line, and is said in its turn by whoever makes room, not by
the task that waits for the answer: on trio, tasks that are woken together run in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..errors import EventStreamError
from ..pipes.signal import Signal

__all__ = ("Request", "Requests")

MOST: Final = 10_000  # requests that were said and have no answer
MOST_BYTES: Final = 32 * 1024 * 1024  # of them


class Request:
    """One question: its bytes, and later its answer.

    Attributes:
        number: By which the answer names it.
        data: What is said.
        is_publish: What is said then tells how long ago it was said first.
        said: When that was; None: never.
    """

    __slots__ = ("answer", "answered", "data", "error", "is_publish", "number", "said")

    def __init__(self, number: int, data: bytes, is_publish: bool = False) -> None:
        self.number: int = number
        self.data: bytes = data
        self.is_publish: bool = is_publish
        self.said: float | None = None
        self.answered: Signal = Signal()
        self.answer: Any = None
        self.error: EventStreamError | None = None


class Requests:
    """The open questions of one client, in the order in which they were asked.

    Args:
        say: Says one, if there is somebody to say it to.
    """

    def __init__(self, say: Callable[[Request], None]) -> None:
        self._say = say
        self._open: dict[int, Request] = {}
        self._waiting: dict[int, Request] = {}  # for room; each belongs to a task that waits for its answer
        self._admitting = False
        self.size: int = 0  # bytes of the open ones

    async def answer(self, request: Request) -> Any:
        """Asks, now or when there is room, and waits for the answer.

        Cancelled while there is no room, it was not asked; later, what was asked may happen all the same.

        Raises:
            EventStreamError: if that is the answer.
        """
        self._waiting[request.number] = request
        self._admit()
        try:
            await request.answered.wait()
        finally:
            self._waiting.pop(request.number, None)
            self._close(request.number)
        if request.error is not None:
            raise request.error.with_traceback(None)
        return request.answer

    def _admit(self) -> None:
        if self._admitting:
            return  # what was just said has failed at once: whoever said it goes on with the next
        self._admitting = True
        try:
            while self._waiting and len(self._open) < MOST and self.size <= MOST_BYTES:
                number = next(iter(self._waiting))
                request = self._open[number] = self._waiting.pop(number)
                self.size += len(request.data)
                self._say(request)
        finally:
            self._admitting = False

    def say_again(self) -> None:
        """Says all that was asked and has no answer, in its order; then what there is room for."""
        self._admitting = True
        try:
            for request in list(self._open.values()):
                self._say(request)
        finally:
            self._admitting = False
        self._admit()

    def __len__(self) -> int:
        return len(self._open)

    def succeed(self, number: int, answer: Any) -> None:
        """The answer has come. One that nobody waits for any more, or a second one, is dropped."""
        if request := self._close(number):
            request.answer = answer
            request.answered.set()

    def fail(self, number: int, error: EventStreamError) -> None:
        """An error is the answer."""
        if request := self._close(number):
            request.error = error
            request.answered.set()

    def end(self, error: EventStreamError) -> None:
        """There will be no more answers."""
        everybody = [*self._open.values(), *self._waiting.values()]
        self._open.clear()
        self._waiting.clear()
        self.size = 0
        for request in everybody:
            request.error = error
            request.answered.set()

    def _close(self, number: int) -> Request | None:
        request = self._open.pop(number, None)
        if request is not None:
            self.size -= len(request.data)
            self._admit()
        return request

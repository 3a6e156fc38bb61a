"""What a client has asked and not heard of yet. Bounded in number and bytes; each is said again on a new pipe.

Who asks is told by a callback: mostly one that wakes the task which waits, but who has hundreds of questions under way
needs no task for each.

The order of the calls is the order in which they are said, whatever loop they run in: a call takes its place at once,
before it waits for anything. What finds no room stands in line, and is said in its turn by whoever makes room, not by
the task that waits for the answer: on trio, tasks that are woken together run in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ..errors import EventStreamError
from ..pipes.signal import Signal

__all__ = ("Request", "Requests", "Told")

MOST: Final = 10_000  # requests that were said and have no answer
MOST_BYTES: Final = 32 * 1024 * 1024  # of them


class Request:
    """One question: its bytes, and later its answer.

    Args:
        number: By which the answer names it.
        data: What is said.
        is_publish: What is said then tells how long ago it was said first.
        about: Whatever who asks wants to know when the answer comes.

    Attributes:
        said: When it was said first; None: never.
        told: Called once, when there is an answer or an error. It must not raise.
    """

    __slots__ = ("about", "answer", "data", "error", "is_publish", "number", "said", "told")

    def __init__(self, number: int, data: bytes, is_publish: bool = False, about: Any = None) -> None:
        self.number: int = number
        self.data: bytes = data
        self.is_publish: bool = is_publish
        self.about: Any = about
        self.said: float | None = None
        self.told: Told
        self.answer: Any = None
        self.error: EventStreamError | None = None


Told: TypeAlias = Callable[[Request], None]


class Requests:
    """The open questions of one client, in the order in which they were asked.

    Args:
        say: Says one, if there is somebody to say it to.
    """

    def __init__(self, say: Callable[[Request], None]) -> None:
        self._say = say
        self._open: dict[int, Request] = {}
        self._waiting: dict[int, Request] = {}  # for room; bounded by those who ask
        self._admitting = False
        self._unused: list[Signal] = []  # of tasks that waited, no more than ever did so at once
        self.size: int = 0  # bytes of the open ones

    async def answer(self, request: Request) -> Any:
        """Asks, now or when there is room, and waits for the answer.

        Cancelled while there is no room, it was not asked; later, what was asked may happen all the same.

        Raises:
            EventStreamError: if that is the answer.
        """
        signal = self._unused.pop() if self._unused else Signal()
        self.ask(request, lambda _: signal.set())
        try:
            await signal.wait()
        except BaseException:
            self._drop(request.number)
            raise
        self._unused.append(signal)  # not if it was cancelled: it may be set
        if request.error is not None:
            raise request.error.with_traceback(None)
        return request.answer

    def ask(self, request: Request, told: Told) -> None:
        """Asks, now or when there is room. `told` is called with the answer, maybe before this returns."""
        request.told = told
        self._waiting[request.number] = request
        self._admit()

    def forget(self, told: Told) -> None:
        """Drops all questions of this asker, who is not told any more. What was said may happen all the same."""
        for request in [*self._waiting.values(), *self._open.values()]:  # so that none is said that is dropped then
            if request.told == told:
                self._drop(request.number)

    def _drop(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._close(number)

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
            request.told(request)

    def fail(self, number: int, error: EventStreamError) -> None:
        """An error is the answer."""
        if request := self._close(number):
            request.error = error
            request.told(request)

    def end(self, error: EventStreamError) -> None:
        """There will be no more answers."""
        everybody = [*self._open.values(), *self._waiting.values()]
        self._open.clear()
        self._waiting.clear()
        self.size = 0
        for request in everybody:
            request.error = error
            request.told(request)

    def _close(self, number: int) -> Request | None:
        request = self._open.pop(number, None)
        if request is not None:
            self.size -= len(request.data)
            if self._waiting:
                self._admit()
        return request

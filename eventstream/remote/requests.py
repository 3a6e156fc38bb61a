"""What a client has asked and not heard of yet. Bounded in number and bytes; each is said again on a new pipe."""

from __future__ import annotations

from typing import Any, Final

from anyio import Event

from ..errors import EventStreamError
from ..pipes.signal import Signal

__all__ = ("Request", "Requests")

MOST: Final = 10_000  # requests
MOST_BYTES: Final = 32 * 1024 * 1024


class Request:
    """One question: its bytes, and later its answer."""

    __slots__ = ("answer", "answered", "data", "error")

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data
        self.answered: Signal = Signal()
        self.answer: Any = None
        self.error: EventStreamError | None = None


class Requests:
    """The open questions of one client, oldest first."""

    def __init__(self) -> None:
        self._open: dict[int, Request] = {}
        self._size = 0
        self._room: Event | None = None

    async def wait_for_room(self) -> None:
        """Returns as soon as one more may be asked."""
        while len(self._open) >= MOST or self._size > MOST_BYTES:
            if self._room is None:
                self._room = Event()
            await self._room.wait()

    async def answer(self, number: int, request: Request) -> Any:
        """Waits for the answer. Cancelled, it is not waited for any more; what was asked may happen all the same.

        Raises:
            EventStreamError: if that is the answer.
        """
        self._open[number] = request
        self._size += len(request.data)
        try:
            await request.answered.wait()
        finally:
            self._close(number)
        if request.error is not None:
            raise request.error.with_traceback(None)
        return request.answer

    def unanswered(self) -> list[tuple[int, bytes]]:
        """What has to be said again, in the order in which it was said, by number."""
        return [(number, request.data) for number, request in self._open.items()]

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
        for number in list(self._open):
            self.fail(number, error)
        self._make_room()

    def _close(self, number: int) -> Request | None:
        request = self._open.pop(number, None)
        if request is not None:
            self._size -= len(request.data)
            self._make_room()
        return request

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

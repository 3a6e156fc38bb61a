"""The server's end of one pipe: as any pipe, but others make its links, and it may outlive its handler.

When the handler is done and the peer is away, the rest waits here for the grace time, so that the peer can still fetch
it: what TCP leaves to the kernel, a pipe has to do itself.
"""

from __future__ import annotations

from typing import Protocol

from anyio import current_time

from .frames import Hello
from .pipe import Pipe
from .registry import Registry
from .session import Session

__all__ = ("House", "ServedPipe")


class House(Protocol):
    """What a served pipe needs of its server."""

    @property
    def registry(self) -> Registry[ServedPipe]:
        """All pipes of the server."""
        ...

    def suspended(self, pipe: ServedPipe, now: float) -> None:
        """The pipe has no link any more: its grace time begins."""
        ...


class ServedPipe(Pipe):
    """The server's end of a pipe. It may outlive its handler, until the peer has fetched the rest."""

    def __init__(self, house: House, hello: Hello, session: Session, linger: float) -> None:
        super().__init__(session, linger)
        self.id: bytes = hello.pipe
        self.token: bytes = hello.token
        self._house = house

    @property
    def generation(self) -> int:
        """Of the latest link."""
        return self._session.generation

    @property
    def held(self) -> int:
        """Bytes that it keeps in memory."""
        return self._session.writer.ring.size + self._session.reader.unread

    def check_resume(self, position: int) -> None:
        """Raises ResumeRefused: if a link cannot go on from there."""
        self._session.writer.check_resume(position)

    def _on_held(self) -> None:
        self._house.registry.count(self)

    def _abandon(self, failed: bool) -> None:
        if failed or self._session.writer.settled or self._session.is_closed:
            self._finish(None)
        else:  # with or without a link, the peer has the grace time to fetch the rest
            self._house.suspended(self, current_time())

    def _finish(self, error: Exception | None) -> None:
        finished = self._session.finished
        super()._finish(error)
        self._house.registry.remove(self, "finished" if finished else "closed")

    def _on_input(self) -> bool:
        received = super()._on_input()
        if self._session.is_closed:
            self._finish(None)
        elif self._closed and self._session.writer.settled:
            self._say_close()
        return received

    @property
    def is_abandoned(self) -> bool:
        """Whether its handler is done with it."""
        return self._closed

    @property
    def is_linked(self) -> bool:
        """Whether it has a link."""
        return self._link is not None

    def say_goodbye(self) -> None:
        """Tells the peer that the server stops."""
        self._session.close("going-away")
        if self._link is not None:
            self._link.wake()

    async def wait_unlinked(self) -> None:
        """Returns as soon as there is no link."""
        while self._link is not None:
            await self._change()

    def link_gone(self, now: float) -> None:
        """A link of this pipe has ended; if it was the present one, the grace time begins."""
        if self._link is not None or self._session.is_closed:
            return
        if self._session.finished or (self._closed and self._session.writer.settled):
            self._finish(None)
        else:
            self._house.suspended(self, now)

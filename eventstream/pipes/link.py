"""One connection of a pipe: four small tasks that move bytes between a stream and the session.

    listen    stream ─▶ decoder ─▶ session          heartbeat   a tick each interval: ask, or give the link up
    flush     session ─▶ stream, when woken         ack         what is owed and not urgent, a little later

A link ends with its first error, whatever the stream raised: from then on nothing that it brings is applied. The
session outlives it. No lock is held anywhere: tasks of one event loop change the session only between two awaits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from anyio import EndOfStream, aclose_forcefully, create_task_group, current_time, sleep
from anyio.abc import ByteStream, TaskGroup

from ..errors import LinkSilent
from .frames import Decoder, Frame
from .liveness import Verdict
from .session import Session
from .signal import Signal

__all__ = ("ACK_DELAY", "Link")

ACK_DELAY: Final = 0.05  # seconds: long enough that bulk transfers are acknowledged by their volume alone
RECEIVE: Final = 64 * 1024  # bytes asked of the stream at once


class Link:
    """A connection that has passed the handshake.

    Args:
        stream: The connection; the link closes it when it ends.
        session: What it carries.
        decoder: The decoder that has read the handshake; it may hold the beginning of a frame.
        on_input: Called after something was applied to the session.
    """

    def __init__(
        self,
        stream: ByteStream,
        session: Session,
        decoder: Decoder,
        on_input: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._session = session
        self._decoder = decoder
        self._on_input = on_input
        self._tasks: TaskGroup | None = None
        self._output = Signal()
        self._owing = Signal()
        self._over = False
        self.error: Exception | None = None

    def wake(self) -> None:
        """There is something to send."""
        self._output.set()

    def stop(self, error: Exception | None = None) -> None:
        """Ends the link, now. The first reason stays."""
        if not self._over:
            self._over = True
            self.error = error
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()

    async def run(self, frames: list[Frame], preface: bytes = b"") -> None:
        """Moves bytes until the link is over.

        Args:
            frames: What came along with the handshake.
            preface: What goes out before anything else: the server's WELCOME.

        Raises nothing of its own: why it ended is in `error`. Cancelled, it closes the stream at once.
        """
        try:
            async with create_task_group() as tasks:
                self._tasks = tasks
                if self._over:
                    return
                tasks.start_soon(self._guard, self._flush, preface)
                tasks.start_soon(self._guard, self._heartbeat)
                tasks.start_soon(self._guard, self._ack)
                await self._guard(self._listen, frames)
                tasks.cancel_scope.cancel()
        finally:
            self._over = True
            await aclose_forcefully(self._stream)

    async def _guard(self, part: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await part(*args)
        except Exception as error:  # a stream is the user's: whatever it raises ends this link, no more
            self.stop(error)

    async def _listen(self, frames: list[Frame]) -> None:
        while True:
            if frames:
                self._apply(frames)
                if self._session.has_output:
                    self._output.set()
                elif self._session.reader.owes_ack:
                    self._owing.set()
            chunk = await self._stream.receive(RECEIVE)
            if self._over:
                return  # fenced while we were waiting: these bytes will come again on the new link
            if not chunk:
                raise EndOfStream
            frames = self._decoder.feed(chunk)

    def _apply(self, frames: list[Frame]) -> None:
        try:
            self._session.apply(frames, current_time())
        finally:  # frames before a bad one count, and their readers must hear of them
            self._on_input()

    async def _flush(self, preface: bytes) -> None:
        if preface:
            await self._stream.send(preface)
        while True:
            data = self._session.next_output()
            if data:
                await self._stream.send(data)
            else:
                await self._output.wait()

    async def _heartbeat(self) -> None:
        liveness = self._session.liveness
        while True:
            if liveness.tick(current_time()) is Verdict.DEAD:
                raise LinkSilent(2 * liveness.interval)
            self._session.ping(current_time())
            self._output.set()
            await sleep(liveness.interval)

    async def _ack(self) -> None:
        while True:
            await self._owing.wait()
            await sleep(ACK_DELAY)
            self._session.ack_soon()
            self._output.set()

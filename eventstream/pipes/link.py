"""One connection of a pipe: four small tasks that move bytes between a stream and the session.

    listen    stream ─▶ decoder ─▶ session          heartbeat   a tick each interval: ask, or give the link up
    flush     session ─▶ stream, when woken         ack         what is owed and not urgent, a little later

Whoever waits for bytes reads the stream itself, if it comes back for more (`read_directly`): the listening task *lends*
it the stream, and takes it back when somebody needs what the peer says and nobody is reading. That saves a task
switch on the way of each message. Likewise what answers a message is written by the task that says it (`flush_now`).

A link ends with its first error, whatever the stream raised: from then on nothing that it brings is applied. The
session outlives it. No lock is held anywhere: tasks of one event loop change the session only between two awaits.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from anyio import CancelScope, EndOfStream, aclose_forcefully, create_task_group, current_time, sleep
from anyio.abc import ByteStream, SocketStream, TaskGroup
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSStream

from ..errors import LinkSilent
from .direct import DirectWriter
from .frames import Decoder, Frame
from .liveness import Verdict
from .pieces import Piece
from .session import Session
from .signal import Signal

__all__ = ("ACK_DELAY", "Link", "hang_up")

ACK_DELAY: Final = 0.2  # seconds: a thousand readers of a slow stream would else answer each of its events
RECEIVE: Final = 256 * 1024  # bytes asked of the stream at once: what asyncio reads; less would cut and copy it


logger: Final = logging.getLogger("eventstream.pipes")


async def hang_up(stream: ByteStream) -> None:
    """Closes a connection at once. It is given up in any case, so that its closing fails is no news."""
    try:
        await aclose_forcefully(stream)
    except Exception as error:
        logger.debug("closing a connection failed: %r", error)


class Link:
    """A connection that has passed the handshake.

    Args:
        stream: The connection; the link closes it when it ends.
        session: What it carries.
        decoder: The decoder that has read the handshake; it may hold the beginning of a frame.
        on_input: Called after something was applied to the session; says whether a task was waiting for those bytes.
    """

    def __init__(
        self,
        stream: ByteStream,
        session: Session,
        decoder: Decoder,
        on_input: Callable[[], bool],
    ) -> None:
        self._stream = stream
        self._session = session
        self._decoder = decoder
        self._on_input = on_input
        self._direct = DirectWriter(stream)
        self._rest: Piece = b""  # of what was taken from the session: not written yet, and nobody is writing it
        self._tasks: TaskGroup | None = None
        self._output = Signal()
        self.wake: Callable[[], None] = self._output.set  # there is something to send
        self._owing = Signal()
        self._turn = Signal()  # for the listening task: take the stream back
        self._gathering: list[Signal] = []  # of those who wait for the next write to be over
        # Sockets wake who waits for them when they are closed; other streams may not, so their callers are cancelled.
        self._wakes_callers = isinstance(stream, SocketStream | TLSStream)
        self._callers: set[CancelScope] = set()
        self._reading = False  # a task waits for the stream
        self._is_lent = False
        self._over = False
        self._sending = True  # somebody is writing to the stream: until the preface is out, the flush task
        self.error: Exception | None = None

    def listen(self) -> None:
        """Somebody needs to hear what the peer says, and will not read it."""
        if self._is_lent and not self._reading:
            self._turn.set()

    @property
    def is_lent(self) -> bool:
        """Whether a task that waits for bytes shall read them itself."""
        return self._is_lent and not self._reading and not self._over

    def tell_written(self, signal: Signal) -> None:
        """Will set it as soon as the next write is over, or there is nothing that may be written, or no link."""
        if self._over:
            signal.set()
        else:
            self._gathering.append(signal)

    def _written(self) -> None:
        told, self._gathering = self._gathering, []
        for signal in told:
            signal.set()

    def stop(self, error: Exception | None = None) -> None:
        """Ends the link, now. The first reason stays."""
        if not self._over:
            self._over = True
            self.error = error
            self._written()
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()
            for scope in self._callers:
                scope.cancel()

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
            self._written()
            await hang_up(self._stream)

    async def _guard(self, part: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await part(*args)
        except Exception as error:  # a stream is the user's: whatever it raises ends this link, no more
            self.stop(error)

    async def _listen(self, frames: list[Frame]) -> None:
        self._apply(frames)
        while True:
            if await self._read():
                self._is_lent = True
                while self._is_lent:
                    await self._turn.wait()
                    self._is_lent = self._reading  # the borrower may have come back meanwhile

    def read_directly(self) -> Awaitable[None]:
        """Reads once, from the task that waits for the bytes; allowed if `is_lent`.

        Whatever the stream raises ends the link, not the caller. Cancelled, it gives the stream back.
        """
        if self._wakes_callers:  # as `_in_callers_task`, with a frame less for each message to pass
            return self._read_for_caller()
        return self._in_callers_task(self._read_for_caller)

    async def _read_for_caller(self) -> None:
        try:
            await self._read()
        except Exception as error:  # as in `_guard`
            self.stop(error)
        except BaseException:
            self._turn.set()
            raise

    async def _in_callers_task(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does work that `stop` must end, though the link's own scope does not hold the caller."""
        if self._wakes_callers:
            await work()
            return
        with CancelScope() as scope:
            self._callers.add(scope)
            try:
                await work()
            finally:
                self._callers.discard(scope)

    async def _read(self) -> bool:
        self._reading = True
        try:
            chunk = await self._stream.receive(RECEIVE)
        finally:
            self._reading = False
        if self._over:
            return False  # fenced while we were waiting: these bytes will come again on the new link
        if not chunk:
            raise EndOfStream
        return self._apply(self._decoder.feed(chunk))

    def _apply(self, frames: list[Frame]) -> bool:
        session = self._session
        try:
            session.apply(frames, current_time)
        finally:  # frames before a bad one count, and their readers must hear of them
            somebody_waited = self._on_input()
        if session.has_output:
            self._output.set()
        if session.reader.owes_ack:
            self._owing.set()
        return somebody_waited

    async def _flush(self, preface: bytes) -> None:
        self._rest, self._sending = preface, bool(preface)
        while not self._over:  # one that was fenced must not take what the new link has to send
            if self._rest:
                rest, self._rest = self._rest, b""
                await self._stream.send(bytes(rest))
                self._sending = False
                self._written()
            elif self._sending:
                await self._output.wait()
            elif not self._put_out():
                self._written()
                await self._output.wait()

    def _put_out(self) -> bool:
        """Writes what there is, as far as the system takes it at once; the rest is to be sent. Whether there was any.

        Nobody may be writing.
        """
        data = self._session.next_output()
        if not data:
            return False
        self._rest = self._direct.write(data)
        self._sending = bool(self._rest)
        return True

    def pass_on(self, data: bytes) -> bool:
        """Accepts a message that comes alone, and writes it; returns False, and does nothing, if it is not alone."""
        if self._sending or self._over:
            return False
        frame = self._session.pass_on(data)
        if frame is None:
            return False
        self._rest = self._direct.write(frame)
        if self._rest:
            self._sending = True
            self.wake()
        return True

    def flush_nowait(self) -> None:
        """Writes at once what the system takes at once; the flush task does the rest."""
        if self._sending or self._over or not self._put_out() or self._rest or self._session.has_output:
            self.wake()

    async def flush_now(self) -> None:
        """Sends from the caller's own task if nobody else does: one turn of the loop less on the way of an answer.

        Whatever the stream raises ends the link, not the caller. So does a cancellation: half a frame may be out.
        """
        if not self._sending and not self._over and self._put_out() and self._rest:
            await self._in_callers_task(self._flush_for_caller)
        else:
            if self._session.has_output:
                self.wake()
            await checkpoint()

    async def _flush_for_caller(self) -> None:
        rest, self._rest = self._rest, b""
        try:
            await self._stream.send(bytes(rest))
        except Exception as error:  # as in `_guard`
            self.stop(error)
        except BaseException:
            self.stop()
            raise
        finally:
            self._sending = False
            self._written()
            if self._session.has_output:
                self.wake()

    async def _heartbeat(self) -> None:
        liveness = self._session.liveness
        while not self._over:
            if liveness.tick(current_time()) is Verdict.DEAD:
                raise LinkSilent(2 * liveness.interval)
            self._session.ping(current_time())
            self._output.set()
            self.listen()
            await sleep(liveness.interval)

    async def _ack(self) -> None:
        while True:
            await self._owing.wait()
            await sleep(ACK_DELAY)
            if self._over:
                return
            self._session.ack_soon()
            self.flush_nowait()
            self.listen()

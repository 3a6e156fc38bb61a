"""The end that is dialed: one handler for each pipe, however many connections carry it.

    connection ─▶ HELLO in time? ─▶ new pipe: register it, start its handler ─┐
                     │              known pipe: proof, generation, positions ─┴▶ fence, WELCOME, carry
                     └▶ REJECT(code)

Everything that a stranger can make us hold is bounded: connections that say nothing (the longest waiting goes first),
pipes, and the bytes of those without a link.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random, SystemRandom
from typing import Any, Final, TypeAlias

import msgspec
from anyio import (
    TASK_STATUS_IGNORED,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    current_time,
    move_on_after,
    sleep_forever,
)
from anyio.abc import ByteStream, Listener, TaskGroup, TaskStatus

from ..errors import PipeAbandoned, PipeBroken
from .dialing import CAPACITY, HEARTBEAT, LINGER
from .frames import VERSION, Ack, Decoder, Frame, Hello, Reject, RejectCode, encode
from .handshake import make_welcome, proves, refuse_resume
from .link import hang_up
from .pipe import Pipe
from .registry import Registry
from .served import ServedPipe
from .session import Session

__all__ = ("PipeHandler", "PipeLimits", "PipeServer", "PipeServerStatistics")

HANDSHAKE: Final = 2048  # bytes asked for while waiting for a HELLO
REFUSAL: Final = 1.0  # seconds that saying no may take
logger: Final = logging.getLogger("eventstream.pipes")

PipeHandler: TypeAlias = Callable[[Pipe], Awaitable[Any]]
"""Serves one pipe, from its first link to its end; the pipe is closed when it returns."""


class PipeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What strangers can make a server hold.

    Args:
        pipes: The most pipes at once. If all have a link, a new one is refused (`busy`); else one without is evicted.
        handshakes: The most connections that have not said HELLO yet; beyond, the one that waited longest is closed.
        handshake_timeout: Seconds for a HELLO to arrive whole.
        suspended_bytes: The most bytes held by all pipes without a link together.
    """

    pipes: int = 10_000
    handshakes: int = 256
    handshake_timeout: float = 10.0
    suspended_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if min(self.pipes, self.handshakes, self.suspended_bytes) < 1 or self.handshake_timeout <= 0:
            raise ValueError(f"limits are positive: {self}")


class PipeServerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A server at one moment.

    Args:
        pipes: Pipes held, with and without a link.
        suspended: How many of them have no link.
        suspended_bytes: Bytes that these hold.
        handshakes: Connections that have not said HELLO yet.
        refused: Connections that got no link so far, for whatever reason.
    """

    pipes: int
    suspended: int
    suspended_bytes: int
    handshakes: int
    refused: int


class PipeServer:
    """Serves backed pipes on any number of listeners.

        async def echo(pipe):
            async for chunk in pipe:
                await pipe.send(chunk)

        await PipeServer(echo).serve(await anyio.create_tcp_listener(local_port=4000))

    It stops when `serve` is cancelled, at once, or politely by `aclose`.

    Args:
        handler: Called once for each pipe, in a task of its own, with the server's end of it. When it returns, the pipe
            is closed: what was sent still reaches the peer, if that comes back within the grace time. An exception is
            logged, and ends that pipe alone.
        capacity: Bytes, in each direction, as in `BackedPipe`.
        heartbeat: Seconds between signs of life, as in `BackedPipe`.
        linger: Seconds for which closing a pipe may wait for its peer.
        grace: Seconds for which a pipe without a link is kept.
        limits: What strangers can make it hold.
        random: For the epoch; the system's by default.
    """

    def __init__(
        self,
        handler: PipeHandler,
        *,
        capacity: int = CAPACITY,
        heartbeat: float = HEARTBEAT,
        linger: float = LINGER,
        grace: float = 120.0,
        limits: PipeLimits | None = None,
        random: Random | None = None,
    ) -> None:
        if not 0 < grace < math.inf or not 0 <= linger < math.inf:
            raise ValueError(f"grace and linger are times in seconds, not {grace} and {linger}")
        Session(capacity, heartbeat)  # refuses what is out of bounds now, not at the first connection
        self._handler = handler
        self._capacity = capacity
        self._heartbeat = heartbeat
        self._linger = linger
        self._limits = limits or PipeLimits()
        self._epoch = (random or SystemRandom()).randbytes(16)
        self.registry: Registry[ServedPipe] = Registry(grace, self._limits.suspended_bytes, self._evict)
        self._handshakes: dict[int, CancelScope] = {}  # in the order of their beginning
        self._accepted = 0
        self._refused = 0
        self._sweeps: set[CancelScope] = set()
        self._calls: dict[CancelScope, CancelScope] = {}  # of `serve`: its whole, and its listening
        self._closing = False

    def statistics(self) -> PipeServerStatistics:
        """How it stands. Never waits."""
        return PipeServerStatistics(
            pipes=len(self.registry.pipes),
            suspended=self.registry.suspended,
            suspended_bytes=self.registry.held,
            handshakes=len(self._handshakes),
            refused=self._refused,
        )

    async def serve(
        self, listener: Listener[ByteStream], *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Serves pipes on `listener` until it is cancelled, and closes it then.

        May run for several listeners at once: a pipe may come back over any of them. When the last of these calls ends,
        so do all pipes, at once; handlers of pipes that began here are cancelled with this call. After `aclose` it
        returns.

        Raises:
            ClosedResourceError: if `aclose` was called before.
        """
        self._check_open()
        whole, accepting = CancelScope(), CancelScope()
        self._calls[whole] = accepting
        try:
            with whole:
                async with create_task_group() as tasks, listener:
                    tasks.start_soon(self._sweep)
                    task_status.started()
                    with accepting:
                        await listener.serve(partial(self._connected, tasks), tasks)
        finally:
            del self._calls[whole]
            if not self._calls:
                self._end_all()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedResourceError

    def _end_all(self) -> None:
        for pipe in list(self.registry.pipes.values()):
            pipe._finish(PipeAbandoned("going-away"))

    async def aclose(self) -> None:
        """Stops politely: accepts no more connections, tells the peers (`PipeClosed("going-away")`), and ends `serve`.

        It takes at most `linger` seconds; cancelled, it stops at once. Handlers that still run are cancelled at its
        end: if they have more to say, let them say it before this.
        """
        self._closing = True
        for accepting in self._calls.values():
            accepting.cancel()
        try:
            with move_on_after(self._linger):
                await self._say_goodbye()
        finally:
            self._end_all()
            for whole in self._calls:
                whole.cancel()

    async def _say_goodbye(self) -> None:
        pipes = [pipe for pipe in self.registry.pipes.values() if pipe.is_linked]
        for pipe in pipes:
            pipe.say_goodbye()
        for pipe in pipes:
            await pipe.wait_unlinked()

    async def _connected(self, tasks: TaskGroup, stream: ByteStream) -> None:
        """Serves one connection, from its first byte to its end."""
        decoder = Decoder()
        try:
            frames = await self._hello(stream, decoder)
            match frames.pop(0) if frames else None:
                case Hello() as hello:
                    pipe = self._judge(hello)
                    if isinstance(pipe, ServedPipe):
                        await self._link(tasks, pipe, hello, (stream, decoder, frames))
                    else:
                        await self._refuse(stream, pipe)
                case None:
                    self._refused += 1
                case _:
                    await self._refuse(stream, Reject("version", "a HELLO was expected"))
        finally:
            await hang_up(stream)

    async def _hello(self, stream: ByteStream, decoder: Decoder) -> list[Frame]:
        """The connection's first frames; none if they did not come in time, or are none."""
        self._accepted += 1
        number = self._accepted
        with move_on_after(self._limits.handshake_timeout) as scope:
            self._handshakes[number] = scope
            if len(self._handshakes) > self._limits.handshakes:
                self._handshakes.pop(next(iter(self._handshakes))).cancel()
            try:
                while not (frames := decoder.feed(await stream.receive(HANDSHAKE))):
                    pass
                return frames
            except Exception as error:  # strangers' bytes and strangers' connections: no news
                logger.debug("a connection ended before its HELLO: %r", error)
            finally:
                self._handshakes.pop(number, None)
        return []

    async def _refuse(self, stream: ByteStream, reject: Reject) -> None:
        """Says no, if that is possible."""
        self._refused += 1
        with move_on_after(REFUSAL):
            try:
                await stream.send(encode(reject))
            except Exception as error:
                logger.debug("a refusal could not be sent: %r", error)

    def _judge(self, hello: Hello) -> ServedPipe | Reject:
        """Which pipe this connection is for, or why it gets none. A new pipe is registered here."""
        if hello.version != VERSION:
            return Reject("version", f"this server speaks version {VERSION}")
        if self._closing:
            return Reject("busy", "the server stops")
        if hello.epoch and hello.epoch != self._epoch:
            return Reject("epoch")
        known = self.registry.pipes.get(hello.pipe)
        if known is not None:
            return refuse_resume(hello, known) or known
        ended = self.registry.why_ended(hello.pipe)
        if ended is not None:
            return Reject(ended)
        if hello.epoch:
            return Reject("unknown")
        if not hello.token or not proves(hello.token, hello):
            return Reject("proof")
        if hello.position:
            return Reject("position", "this pipe is new")
        if len(self.registry.pipes) >= self._limits.pipes and not self.registry.evict_longest("evicted"):
            return Reject("busy", f"{self._limits.pipes} pipes are open")
        return ServedPipe(self, hello, Session(self._capacity, self._heartbeat), self._linger)

    async def _link(
        self, tasks: TaskGroup, pipe: ServedPipe, hello: Hello, connection: tuple[ByteStream, Decoder, list[Frame]]
    ) -> None:
        """Carries a pipe over this connection. No await until the old link is fenced and our position is told."""
        stream, decoder, frames = connection
        is_new = not pipe.generation
        link = pipe._attach(stream, decoder, hello.generation, Ack(hello.position, hello.limit))
        welcome = make_welcome(pipe.token, hello, self._epoch, pipe._session.reader.tell())
        if not pipe.is_abandoned:
            self.registry.resume(pipe)
        if is_new:
            self.registry.add(pipe)
            tasks.start_soon(self._handle, pipe)
        if pipe.is_abandoned and pipe._session.writer.settled:
            pipe._say_close()
        try:
            await pipe._carry(link, frames, encode(welcome))
        finally:
            pipe.link_gone(current_time())

    async def _handle(self, pipe: ServedPipe) -> None:
        """Runs the handler; whatever it raises ends this pipe and no other."""
        failed = True
        try:
            await self._handler(pipe)
            failed = False
        except Exception as error:
            failed = not _ended_with_its_pipe(error)
            if failed:
                logger.exception("the handler of %r failed", pipe)
            else:
                logger.debug("the handler of %r ended with its pipe: %r", pipe, error)
        finally:
            await pipe._close(failed=failed)

    def _evict(self, pipe: ServedPipe, reason: RejectCode) -> None:
        logger.info("%r was given up: %s", pipe, reason)
        pipe._finish(PipeAbandoned(reason))

    def suspended(self, pipe: ServedPipe, now: float) -> None:
        """A pipe has lost its link. (For its pipes only.)"""
        self.registry.suspend(pipe, now)
        deadline = self.registry.next_deadline
        for scope in self._sweeps:
            scope.deadline = min(scope.deadline, deadline or scope.deadline)

    async def _sweep(self) -> None:
        """Ends the pipes whose grace time is over: one sleep, whatever their number."""
        while True:
            with CancelScope() as scope:
                deadline = self.registry.next_deadline
                if deadline is not None:
                    scope.deadline = deadline
                self._sweeps.add(scope)
                try:
                    await sleep_forever()
                finally:
                    self._sweeps.discard(scope)
            self.registry.expire(current_time())


def _ended_with_its_pipe(error: BaseException) -> bool:
    """Whether a handler only let out what its pipe told it; out of a task group, that comes in a group."""
    if isinstance(error, BaseExceptionGroup):
        return all(_ended_with_its_pipe(one) for one in error.exceptions)
    return isinstance(error, PipeBroken | EndOfStream | ClosedResourceError)

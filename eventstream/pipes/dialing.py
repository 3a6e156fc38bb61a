"""The end that dials: makes the first link and every later one, one dial at a time.

One supervisor does it, in a task group that the caller's `async with` opens and closes. It looks at the end of *its*
link, not at a queue of error events: there is nothing that could be stale, doubled or dropped. Each dial has the next
generation number, so that a server can tell a late one.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from random import Random, SystemRandom
from types import TracebackType
from typing import Final, Self, TypeAlias

from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    current_time,
    fail_after,
    sleep,
)
from anyio.abc import ByteStream, TaskGroup

from ..errors import BadFrame, EventStreamError, LinkRefused, PipeBroken, ReconnectFailed, ResumeRefused
from .frames import Ack, Decoder, Frame, Reject, Welcome, encode
from .handshake import check_welcome, make_hello
from .link import Link, hang_up
from .pipe import Pipe
from .retry import Retry
from .session import Session

__all__ = ("CAPACITY", "HEARTBEAT", "LINGER", "BackedPipe", "Reconnector", "is_temporary")

CAPACITY: Final = 1024 * 1024  # bytes: 100 Mbit/s over a round trip of 80 ms
HEARTBEAT: Final = 10.0  # seconds: a dead link is noticed in half a minute, for two small frames a turn
LINGER: Final = 5.0  # seconds
DIAL_TIMEOUT: Final = 10.0  # seconds
HANDSHAKE: Final = 4096  # bytes asked for while waiting for a WELCOME
WORTH_A_WORD: Final = 6  # failures in a row: about 1.5 s with the default schedule
logger: Final = logging.getLogger("eventstream.pipes")

Reconnector: TypeAlias = Callable[[], Awaitable[ByteStream]]
"""Makes one new connection to the server each time it is called; never called twice at once for one pipe."""


def is_temporary(error: Exception) -> bool:
    """Whether dialing again can help: the network's and the peer's passing troubles, not a mistake of ours.

    A certificate that cannot be verified is final: it will not get better by itself, and every further try is a chance
    for whoever stands in the middle.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, EventStreamError):
        return error.temporary
    return isinstance(error, OSError | EndOfStream | BrokenResourceError | ClosedResourceError)


class BackedPipe(Pipe):
    """A byte stream to a `PipeServer` that outlives its connections.

        async with BackedPipe(lambda: anyio.connect_tcp("127.0.0.1", 4000)) as pipe:
            await pipe.send(b"hello")
            print(await pipe.receive())

    Entering it returns at once, and dials in the background: what is sent meanwhile waits for the first link (or await
    `wait_connected`). Leaving it closes it, see `aclose`; `drain` before, if the peer must have everything. Leaving it
    with an exception tells the peer that this end failed. It can be used once.

    Args:
        reconnector: Called without arguments for each connection; returns a fresh `anyio.abc.ByteStream`: TCP, TLS,
            Unix, anything. It is cancelled when the pipe is closed or `dial_timeout` passes.
        capacity: Bytes, in each direction: accepted and not yet acknowledged, arrived and not yet received.
        heartbeat: Seconds between signs of life. A dead link is noticed two to three heartbeats after its last byte.
        linger: Seconds for which `aclose` may go on delivering.
        dial_timeout: Seconds for one dial, handshake included.
        retry: The schedule of dials.
        temporary: Says of an error of a dial or a link whether dialing again can help; if not, the pipe fails.
        random: For jitter, ids and tokens; the system's by default.
    """

    def __init__(
        self,
        reconnector: Reconnector,
        *,
        capacity: int = CAPACITY,
        heartbeat: float = HEARTBEAT,
        linger: float = LINGER,
        dial_timeout: float = DIAL_TIMEOUT,
        retry: Retry | None = None,
        temporary: Callable[[Exception], bool] = is_temporary,
        random: Random | None = None,
    ) -> None:
        super().__init__(Session(capacity, heartbeat), linger)
        if not 0 <= linger < math.inf or not 0 < dial_timeout < math.inf:
            raise ValueError(f"linger and dial_timeout are times in seconds, not {linger} and {dial_timeout}")
        self._reconnector = reconnector
        self._dial_timeout = dial_timeout
        self._retry = retry or Retry()
        self._temporary = temporary
        self._random = random or SystemRandom()
        self._id = self._random.randbytes(16)
        self._token = self._random.randbytes(32)
        self._epoch = b""
        self._dials = 0
        self._tasks: TaskGroup | None = None
        self._supervision = CancelScope()  # not the group's scope: that one holds the caller's own code too
        self._pause: CancelScope | None = None

    async def __aenter__(self) -> Self:
        if self._tasks is not None or self._closed:
            raise RuntimeError("a BackedPipe is entered once: make a new one")
        tasks = create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks
        tasks.start_soon(self._supervise)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        assert self._tasks is not None
        try:
            await self._close(failed=exc_type is not None)
        finally:
            # The body's own exception goes on by itself; given to the group, it would come out wrapped in another.
            await self._tasks.__aexit__(None, None, None)

    def _abandon(self, failed: bool) -> None:
        self._finish(None)
        self._supervision.cancel()

    def _hurry(self) -> None:
        if self._pause is not None:
            self._pause.cancel()

    async def _supervise(self) -> None:
        with self._supervision:
            await self._keep_linked()

    async def _keep_linked(self) -> None:
        failures, down_since = 0, current_time()
        while not self._session.is_closed:
            before = self._session.progress
            error = await self._link_once()
            if self._session.finished:
                self._finish(None)
            elif not self._session.is_closed:
                if self._session.progress != before:  # that link did work
                    failures, down_since = 0, current_time()
                else:
                    failures += 1
                down = current_time() - down_since
                if error is not None and not self._goes_on(error, down):
                    self._finish(self._final(error, failures, down))
                    return
                if failures == WORTH_A_WORD:  # once: who waits for a wrong address would never know why
                    logger.warning("no connection for %.1f s, and dialing on: %s", down, _in_words(error))
                await self._wait(self._retry.delay(failures, self._random.random()))

    async def _link_once(self) -> Exception | None:
        """Makes one link and carries it; returns why it ended, or why there is none."""
        try:
            link, frames = await self._dial()
        except Exception as error:  # the reconnector is the user's; `temporary` judges what it raises
            self._session.link_lost(error)
            return error
        await self._carry(link, frames)
        return link.error

    async def _dial(self) -> tuple[Link, list[Frame]]:
        self._dials += 1
        with fail_after(self._dial_timeout):
            stream = await self._reconnector()
            try:
                return await self._greet(stream)
            except BaseException:
                await hang_up(stream)
                raise

    async def _greet(self, stream: ByteStream) -> tuple[Link, list[Frame]]:
        """Exchanges positions, and attaches the link only if everything fits."""
        session, generation = self._session, self._dials
        hello = make_hello(self._id, self._token, self._epoch, generation, session.reader.tell())
        await stream.send(encode(hello))
        decoder = Decoder()
        frames: list[Frame] = []
        while not frames:
            frames = decoder.feed(await stream.receive(HANDSHAKE))
        match frames.pop(0):
            case Welcome() as welcome:
                check_welcome(self._token, hello, welcome)
                session.writer.check_resume(welcome.position)
            case Reject() as reject:
                raise self._rejected(reject)
            case other:
                raise BadFrame(f"{type(other).__name__} instead of a WELCOME")
        self._epoch = welcome.epoch
        return self._attach(stream, decoder, generation, Ack(welcome.position, welcome.limit)), frames

    def _rejected(self, reject: Reject) -> Exception:
        if reject.code in ("busy", "version", "replayed"):
            return LinkRefused(reject.code, reject.detail)
        return ResumeRefused(reject.code, reject.detail)

    def _goes_on(self, error: Exception, down: float) -> bool:
        limit = self._retry.give_up_after
        return self._temporary(error) and (limit is None or down < limit)

    def _final(self, error: Exception, attempts: int, down: float) -> Exception | None:
        """How the pipe ends because of `error`; None if it had said and heard all."""
        if isinstance(error, ResumeRefused) and error.reason == "finished" and self._session.reader.ended:
            return None  # only the acknowledgement of our FIN was lost
        if isinstance(error, PipeBroken):
            return error
        failed = ReconnectFailed(attempts, down)
        failed.__cause__ = error
        return failed

    async def _wait(self, seconds: float) -> None:
        with CancelScope() as self._pause:
            await sleep(seconds)
        self._pause = None


def _in_words(error: Exception | None) -> str:
    """What a person needs to find the mistake: many errors of the network have no text, or only a text."""
    return f"{type(error).__name__}: {error}".rstrip(": ")

"""Calls the server, again and again, for as long as the conversation with it is not over."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Final

from anyio import (
    ClosedResourceError,
    EndOfStream,
    Event,
    WouldBlock,
    create_task_group,
    current_time,
    move_on_after,
    sleep,
)

from ..errors import EventStreamError, NotAuthorized, PipeAbandoned, PipeBroken, ReconnectFailed, ResumeRefused
from ..pipes import BackedPipe, Reconnector, Retry
from .conversation import Conversation
from .messages import MessageDecoder
from .outgoing import Outgoing

__all__ = ("Caller", "Token")

logger: Final = logging.getLogger("eventstream.remote")

Token = str | Callable[[], str | Awaitable[str]] | None

CHUNK: Final = 256 * 1024  # bytes that are heard before other tasks get a turn
LINGER: Final = 2.0  # seconds that saying goodbye may take
LASTING: Final = 1.0  # seconds after which a connection that was accepted has proved to be none that fails at once


class Caller:
    """Makes the pipes of one client, and reads what comes on them.

    Args:
        conversation: What is said on them.
        reconnector, token, heartbeat, retry, random: As of `RemoteBus`.
    """

    def __init__(
        self,
        conversation: Conversation,
        reconnector: Reconnector,
        token: Token,
        heartbeat: float,
        retry: Retry,
        random: Random,
    ) -> None:
        self._conversation = conversation
        self._reconnector = reconnector
        self._token = token
        self._heartbeat = heartbeat
        self._retry = retry
        self._random = random
        self._outgoing: Outgoing | None = None  # Invariant: set while there is a pipe
        self._gone = Event()

    async def run(self) -> None:
        """Until the conversation is over, and the goodbye was said."""
        try:
            await self._connect_again_and_again()
        finally:
            self._gone.set()

    async def take_leave(self) -> None:
        """Lets the server know, if it is there, so that it need not keep what is ours until the grace time is over."""
        standing = self._conversation.standing
        if self._outgoing is not None and (standing.accepted or standing.linked):
            self._outgoing.close()
            with move_on_after(LINGER):
                await self._gone.wait()

    async def _connect_again_and_again(self) -> None:
        talk = self._conversation
        failures = 0
        while talk.error is None:
            began = current_time()
            lasted = False
            try:
                await self._connect()
            except EventStreamError as error:
                if isinstance(error, ReconnectFailed) or not isinstance(error, PipeBroken):
                    talk.end(error)
            finally:
                lasted = talk.standing.accepted and current_time() - began > LASTING
                talk.lose()
            failures = 0 if lasted else failures + 1
            if talk.error is None:
                await sleep(self._retry.delay(failures, self._random.random()))

    async def _connect(self) -> None:
        """One pipe, from its beginning to its end; says on it what is still to be said."""
        token = await self._present_token()
        async with BackedPipe(
            self._reconnector, heartbeat=self._heartbeat, linger=LINGER, retry=self._retry, random=self._random
        ) as pipe:
            self._outgoing = Outgoing(pipe)
            try:
                await self._talk(pipe, self._outgoing, token)
            finally:
                self._outgoing = None

    async def _present_token(self) -> str | None:
        """The token to show. A callable is asked until it gives one: what it asks may be away, as the server may."""
        began, failures = current_time(), 0
        while True:
            try:
                token = self._token() if callable(self._token) else self._token
                return await token if isinstance(token, Awaitable) else token
            except NotAuthorized:
                raise
            except Exception as error:
                failures += 1
                seconds = current_time() - began
                if self._retry.give_up_after is not None and seconds >= self._retry.give_up_after:
                    raise ReconnectFailed(failures, seconds) from error
                if failures == 1:
                    logger.warning("the token callable failed; it is asked again until it gives one", exc_info=error)
            await sleep(self._retry.delay(failures, self._random.random()))

    async def _talk(self, pipe: BackedPipe, outgoing: Outgoing, token: str | None) -> None:
        failure: Exception | None = None
        async with create_task_group() as tasks:

            async def send() -> None:
                with suppress(PipeBroken, ClosedResourceError):  # the receiving side is told the same, and tells why
                    await outgoing.run()
                    tasks.cancel_scope.cancel()  # all was said, and we leave

            async def watch() -> None:
                standing = self._conversation.standing
                with suppress(PipeBroken, ClosedResourceError):  # as above
                    while True:
                        await pipe.wait_connected()
                        standing.move(linked=True)
                        await pipe.wait_disconnected()
                        standing.move(linked=False)

            def give_up() -> None:
                nonlocal failure
                failure = PipeAbandoned("evicted")
                tasks.cancel_scope.cancel()

            self._conversation.introduce(outgoing, token, give_up)
            tasks.start_soon(send)
            tasks.start_soon(watch)
            try:
                await self._listen(pipe)
            except EndOfStream:
                failure = ResumeRefused("closed", "the server ended the connection")
            except (EventStreamError, ClosedResourceError) as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _listen(self, pipe: BackedPipe) -> None:
        decoder = MessageDecoder()
        hear = self._conversation.hear
        while True:
            chunk = await pipe.receive(CHUNK)
            heard = 0
            while chunk:
                for message in decoder.feed(chunk):
                    hear(message)
                heard += len(chunk)
                chunk = _more(pipe) if heard < CHUNK and pipe.unread else b""


def _more(pipe: BackedPipe) -> bytes:
    """What has come already, in as many pieces as it was sent in: a turn of the event loop for each is too much."""
    try:
        return pipe.receive_nowait(CHUNK)
    except (WouldBlock, EndOfStream, ClosedResourceError, PipeBroken):  # whatever it is, `receive` will tell
        return b""

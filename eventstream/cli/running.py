"""How every command runs: one event loop, one line for an error that was to be expected, and an exit code.

0    done
1    the world did not allow it: no server, a refusal, input that cannot be used
2    it was called in a way that cannot work
130  Ctrl-C
141  whoever read the output has gone (`| head`), as shells say it of SIGPIPE
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import msgspec

from ..errors import EventStreamError, InvalidName, InvalidPosition

__all__ = (
    "DONE",
    "FAILED",
    "GONE",
    "INTERRUPTED",
    "USAGE",
    "Failure",
    "Interrupted",
    "Output",
    "as_json",
    "counted",
    "first",
    "interruptible",
    "printable",
    "run",
    "tell",
)

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
GONE: Final = 141

ATOMIC: Final = 4096  # bytes that a pipe takes without waiting once it takes any (PIPE_BUF)
SHOWN: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}


class Failure(Exception):
    """The command ends, and its user reads why. The text says what to do."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        self.code = code
        super().__init__(text)


class Interrupted(Exception):
    """Ctrl-C, where there is something to be said before the end."""


@asynccontextmanager
async def interruptible() -> AsyncIterator[None]:
    """Ctrl-C ends the block by `Interrupted`, an error as others are: what stands around it may wait and say goodbye.

    A cancellation, which Ctrl-C is elsewhere, would let it do neither. The second Ctrl-C ends that too.
    """
    if os.name == "nt":  # signals cannot be waited for there
        yield
        return
    with anyio.open_signal_receiver(signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                async for _ in signals:
                    raise Interrupted

            tasks.start_soon(watch)
            yield
            tasks.cancel_scope.cancel()


def run(name: str, command: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Runs a command to its exit code. What is not an expected error keeps its traceback."""
    try:
        return anyio.run(command, *arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as raised:
        error = first(raised)
        if isinstance(error, Interrupted):
            return INTERRUPTED
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end
            return GONE
        if isinstance(error, Failure | EventStreamError):
            tell(f"eventstream {name}: {error}")
            return _code(error)
        raise


def tell(text: str) -> None:
    """One line for the user, beside the output."""
    if sys.stderr is not None:  # closed; None would mean standard output to `print`
        print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Without characters that could command a terminal."""
    return text.translate(SHOWN)


def counted(number: int, one: str, many: str | None = None) -> str:
    """How many there are of something: `1 key`, `2,000 keys`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def as_json(value: object) -> bytes:
    """Whatever MessagePack can hold, as JSON in one line."""
    return msgspec.json.encode(value, enc_hook=_plain)


class Output:
    """Standard output, for an event loop: waiting for a slow reader stops neither the loop nor Ctrl-C.

    Raises:
        Failure: if it is closed.
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise Failure("standard output is closed: give it somewhere to go")
        sys.stdout.flush()
        self._fd = sys.stdout.fileno()
        self._mode = os.fstat(self._fd).st_mode
        self._can_wait = not stat.S_ISREG(self._mode)

    async def write(self, data: bytes) -> None:
        """Writes all of it, at once.

        Raises:
            BrokenPipeError: if nobody reads it any more.
            Failure: if there is no room for it, or it fails.
        """
        rest = memoryview(data)
        while rest:
            await self._wait()
            try:
                rest = rest[os.write(self._fd, rest[:ATOMIC]) :]
            except BrokenPipeError:
                raise
            except OSError as error:
                raise Failure(f"standard output: {error.strerror or error}") from None

    async def until_gone(self) -> None:
        """Waits until nobody reads it any more, for who may have nothing to write for long.

        It is known of pipes, on systems that tell it by poll; elsewhere this waits for ever, and `write` will notice.

        Raises:
            BrokenPipeError: if nobody reads it any more.
        """
        if stat.S_ISFIFO(self._mode) and sys.platform == "linux":
            await anyio.wait_readable(self._fd)  # the end that is written to has nothing to read, but for this news
            raise BrokenPipeError
        await anyio.sleep_forever()

    async def _wait(self) -> None:
        if self._can_wait:
            try:
                await anyio.wait_writable(self._fd)
            except OSError:  # a device or a system where one cannot wait for it
                self._can_wait = False


def _code(error: Failure | EventStreamError) -> int:
    if isinstance(error, Failure):
        return error.code
    return USAGE if isinstance(error, InvalidName | InvalidPosition) else FAILED


def first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that task groups make."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, msgspec.msgpack.Ext):
        return {"ext": value.code, "data": bytes(value.data)}
    return str(value)

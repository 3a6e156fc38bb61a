"""The demo's server: `eventstream serve`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ("ServerFailed", "serving")

COMMAND: Final = ("-m", "eventstream.cli", "serve", "--listen", "tcp://127.0.0.1:0", "--until-eof")
PATIENCE: Final = 30.0  # seconds to start, on a very busy computer
STOPPING: Final = 10.0  # seconds


class ServerFailed(Exception):
    """The server did not start, or is gone; the text says which."""


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """Runs a server on this computer; gives its port.

    It ends when its standard input does: also if this process is killed, nothing of it stays behind. Ctrl-C is not for
    it (a session of its own): it is needed until everybody was counted.

    Raises:
        ServerFailed: if it does not start.
    """
    process = await anyio.open_process(
        [sys.executable, *COMMAND], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield await _port(process)
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)


async def _port(process: anyio.abc.Process) -> int:
    assert process.stdout is not None
    try:
        with anyio.fail_after(PATIENCE):
            ready = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 1000)
    except (anyio.IncompleteRead, anyio.DelimiterNotFound, TimeoutError):
        raise ServerFailed("the server did not start; try: eventstream serve --listen tcp://127.0.0.1:0") from None
    return int(ready.rpartition(b":")[2])


async def _stop(process: anyio.abc.Process) -> None:
    assert process.stdin is not None
    await process.stdin.aclose()
    with anyio.move_on_after(STOPPING):
        await process.wait()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.aclose()

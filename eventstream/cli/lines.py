"""Lines of JSON, out of files and out of what is typed or piped in, one by one as they come."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio.to_thread import run_sync

from .links import told_of_files
from .running import Failure

__all__ = ("Line", "read_lines", "read_some", "standard_input", "total_bytes")

CHUNK: Final = 256 * 1024  # bytes that are read at a time
LONGEST: Final = 16 * 1024 * 1024  # bytes of a line: what servers take in one message


class Line(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
        source: The file that it stands in.
        number: From 1.
        data: Its bytes.
        read: Bytes of all files up to here.
    """

    source: str
    number: int
    data: bytes
    read: int

    def decode(self) -> Any:
        """What it says.

        Raises:
            Failure: if it is no JSON.
        """
        try:
            return msgspec.json.decode(self.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.failure(f"this is no JSON: {error}") from None

    def failure(self, why: str) -> Failure:
        """Why it cannot be used, with where it stands."""
        return Failure(f"{self.source}, line {self.number}: {why}")


async def read_lines(files: Sequence[Path]) -> AsyncIterator[Line]:
    """The lines of the files, or of standard input if there are none. Empty lines are passed over.

    Raises:
        Failure: if a file cannot be read, or a line is too long.
    """
    read = 0
    inputs: Sequence[Path | None] = files or [None]
    for file in inputs:
        source, number, rest = "standard input" if file is None else str(file), 0, b""
        async for chunk in _chunks(file):
            *lines, rest = (rest + chunk).split(b"\n")
            for data in lines:
                number += 1
                read += len(data) + 1
                if data.strip():
                    yield Line(source, number, data, read)
            if len(rest) > LONGEST:
                raise Failure(f"{source}, line {number + 1}: longer than {LONGEST} bytes")
        if rest.strip():
            read += len(rest)
            yield Line(source, number + 1, rest, read)


def total_bytes(files: Sequence[Path]) -> int | None:
    """The size of all files together; None if that cannot be known."""
    try:
        return sum(file.stat().st_size for file in files) or None
    except OSError:
        return None


async def _chunks(file: Path | None) -> AsyncIterator[bytes]:
    with told_of_files(file):
        fd = standard_input() if file is None else os.open(file, os.O_RDONLY)
        try:
            while chunk := await read_some(fd):
                yield chunk
        finally:
            if file is not None:
                os.close(fd)


def standard_input() -> int:
    """Its number.

    Raises:
        Failure: if it is closed.
    """
    if sys.stdin is None:
        raise Failure("standard input is closed: give it lines, or name files")
    return sys.stdin.fileno()


async def read_some(fd: int) -> bytes:
    """What is there; nothing at the end. It can be cancelled while it waits, as a thread that reads could not."""
    try:
        await anyio.wait_readable(fd)
    except OSError:  # a file: it never waits for long
        return await run_sync(os.read, fd, CHUNK)
    return os.read(fd, CHUNK)

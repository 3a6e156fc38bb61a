"""Writes to a socket at once, past the stream that stands over it, as far as the system takes the bytes.

A stream's `send` gives other tasks a turn, asks whether it was cancelled, and shields its waiting: on asyncio that is
more than half of what a small write costs. None of it is needed where the system has room, which is nearly always.

Bytes keep their order, since anyio's socket streams hold none back, nor does ours: a `send` returns when the system has
everything. Only these types are used so: another one may change the bytes, or count them. Written and read by the
link alone. Rejected: a duplicate of the file descriptor (two for each connection).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from anyio.abc import ByteStream, SocketAttribute, SocketStream

from .pieces import Piece
from .tcp import TcpStream

__all__ = ("DirectWriter",)


class DirectWriter:
    """The short way to a stream's socket, if there is one.

    Args:
        stream: Of any kind.
    """

    __slots__ = ("_socket",)

    def __init__(self, stream: ByteStream) -> None:
        known = isinstance(stream, SocketStream) and (
            type(stream) is TcpStream or type(stream).__module__.startswith("anyio.")
        )
        self._socket: Any = None
        if known and sys.platform != "win32":
            self._socket = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610  anyio's, not Django's

    def write(self, data: bytes) -> Piece:
        """Writes what the system takes now; returns the rest, for the stream's own `send`.

        No `send` may be under way. What goes wrong is left to `send`, which finds and tells the same.
        """
        if self._socket is None:
            return data
        descriptor = self._socket.fileno()
        if descriptor < 0:  # closed: the number may be another connection's by now
            return data
        try:
            written = os.write(descriptor, data)
        except OSError:
            return data
        return b"" if written == len(data) else memoryview(data)[written:]

"""A TCP connection that stays in asyncio's selector while nobody waits for it.

anyio's stream takes its socket out of the selector after each `receive` and puts it back for the next one: on asyncio's
own loop that is a fifth of what a client does for an event that comes alone. This stream leaves it there, and takes it
out only while more than `MOST` bytes wait to be received. Otherwise it behaves as anyio's, but that who closes it with
bytes unread need not reset the connection; a pipe's end does not look at which way a link ends.

Made by whoever dials a server by its address; read and written as any anyio stream. On trio anyio's own stream is as
good: its loop waits with one call of the system.

Rejected: a second descriptor of the socket, for a reader that the loop keeps (two for each connection); the transport
within anyio's stream (its own affair, which any release may change); asyncio's own race of addresses (it leaves tasks
behind when it is cancelled, and tells of several failures as one text, from which nobody can give advice).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import Final, cast

from anyio import (
    BrokenResourceError,
    BusyResourceError,
    ClosedResourceError,
    EndOfStream,
    Event,
    ResourceGuard,
    create_task_group,
    getaddrinfo,
    move_on_after,
)
from anyio import connect_tcp as connect_by_anyio
from anyio.abc import SocketStream
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, current_token

__all__ = ("TcpStream", "connect_tcp")

MOST: Final = 64 * 1024  # bytes unread: asyncio reads up to 256 KiB at once, so it is that much more at most
NEXT_ADDRESS: Final = 0.25  # seconds until the next address of a host is tried too: what RFC 8305 recommends


async def connect_tcp(host: str, port: int) -> SocketStream:
    """Connects to a server.

    Raises:
        OSError: if the host has no address (then a `socket.gaierror`), or none that answers; the cause says why.
    """
    loop = current_token().native_token
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return await connect_by_anyio(host, port)
    found = await getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await _Race(loop, port).run([str(address[0]) for *_, address in found])


class _Race:
    """Dials the addresses of one host: each as soon as the one before it has failed, or has taken long."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self._loop = loop
        self._port = port
        self._tasks = create_task_group()
        self._streams: list[TcpStream] = []
        self._errors: list[OSError] = []

    async def run(self, addresses: list[str]) -> TcpStream:
        """The first that is connected."""
        winner = None
        try:
            async with self._tasks:
                for address in addresses:
                    failed = Event()
                    self._tasks.start_soon(self._dial, address, failed)
                    with move_on_after(NEXT_ADDRESS):
                        await failed.wait()
            winner = self._streams[0] if self._streams else None
        finally:  # one that came in at the same time, or all if we are cancelled
            for stream in self._streams:
                if stream is not winner:
                    stream.abort()
        if winner is None:
            causes = self._errors
            cause = causes[0] if len(causes) == 1 else ExceptionGroup("none of the addresses answers", causes)
            raise OSError("no connection to any address of the host") from cause
        return winner

    async def _dial(self, address: str, failed: Event) -> None:
        try:
            _, stream = await self._loop.create_connection(TcpStream, address, self._port)
        except OSError as error:
            self._errors.append(error)
            failed.set()
        else:
            self._streams.append(stream)
            self._tasks.cancel_scope.cancel()


class TcpStream(SocketStream, asyncio.Protocol):
    """One connection; an asyncio protocol, and an anyio stream for its user.

    One task may receive while another sends.

    Attributes:
        unread: Bytes that have come and were not received yet.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._chunks: deque[bytes] = deque()
        self.unread: int = 0
        self._reading = True  # the loop reads the socket
        self._ended = False  # nothing more will come
        self._error: Exception | None = None  # why the connection was lost
        self._closed = False  # by our own program
        self._is_receiving = False
        self._waiter: asyncio.Future[None] | None = None  # of the task that receives
        self._writable = asyncio.Event()  # not set while the system has not taken all that was sent
        self._writable.set()
        self._send_guard = ResourceGuard("writing to")

    @property
    def _raw_socket(self) -> socket.socket:
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        """Bytes have come. (Of Windows' loop in an array that it may use again.)"""
        self._chunks.append(bytes(data))
        self.unread += len(data)
        if self.unread > MOST and self._reading:
            self._reading = False
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The peer says no more. The other direction goes on."""
        self._ended = True
        self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._ended = True
        self._error = exc
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        """The system takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has taken everything."""
        self._writable.set()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():  # else it was woken, or is being cancelled
            self._waiter.set_result(None)

    # What the program says.

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """As of `anyio.abc.ByteReceiveStream`. Cancelling it loses nothing."""
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        if self._is_receiving:
            raise BusyResourceError("reading from")
        self._is_receiving = True
        try:
            if self._chunks or self._ended:
                await checkpoint()
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            return self._take(max_bytes)
        finally:
            self._is_receiving = False

    def _take(self, limit: int) -> bytes:
        if self._closed:
            raise ClosedResourceError
        if not self._chunks:
            if self._error is not None:
                raise BrokenResourceError from self._error
            raise EndOfStream
        chunk = self._chunks.popleft()
        if len(chunk) > limit:
            self._chunks.appendleft(chunk[limit:])
            chunk = chunk[:limit]
        self.unread -= len(chunk)
        if not self._reading and self.unread <= MOST:
            self._reading = True
            self._transport.resume_reading()
        return chunk

    async def send(self, item: bytes) -> None:
        """As of `anyio.abc.ByteSendStream`. Returns when the system has everything.

        Cancelled while it waits for that, the bytes go out nevertheless.
        """
        with self._send_guard:
            await checkpoint_if_cancelled()
            await self._writable.wait()
            self._check_sending()
            self._transport.write(item)
            if self._writable.is_set():
                await cancel_shielded_checkpoint()
            else:
                await self._writable.wait()
                self._check_sending()

    def _check_sending(self) -> None:
        if self._closed:
            raise ClosedResourceError
        if self._transport.is_closing():
            raise BrokenResourceError from self._error

    async def send_eof(self) -> None:
        """The peer gets everything that was sent, and then the end."""
        with suppress(OSError):  # it is over already
            self._transport.write_eof()

    async def aclose(self) -> None:
        """Closes it at once. What the system has taken still goes to the peer."""
        self.abort()
        await checkpoint()

    def abort(self) -> None:
        """As `aclose`, without a turn for others."""
        self._closed = True
        self._transport.abort()

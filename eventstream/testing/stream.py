"""The ends of a simulated link, as anyio streams: the waiting, the guards, and nothing else.

They behave as anyio's TCP streams do; `tests/test_testing_streams.py` runs one suite over both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    ResourceGuard,
    current_time,
)
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from .link import Link
from .wire import Wire

__all__ = ("NetworkStream",)


class NetworkStream(ByteStream):
    """One end of a link: an `anyio.abc.ByteStream`.

    One task may receive while another sends. All calls are checkpoints.

    Attributes:
        link: The link that this is an end of.
    """

    def __init__(self, link: Link, *, dialled: bool, closed: Callable[[NetworkStream], object]) -> None:
        self.link = link
        self._dialled = dialled
        self._outbound: Wire = link.up if dialled else link.down
        self._inbound: Wire = link.down if dialled else link.up
        self._tell_closed = closed
        self._closed = False
        self._finished = False
        self._receive_guard = ResourceGuard("reading from")
        self._send_guard = ResourceGuard("writing to")

    def __repr__(self) -> str:
        return f"<NetworkStream {'to' if self._dialled else 'at'} {self.link.address!r}, {self.link!r}>"

    @property
    def dialled(self) -> bool:
        """Whether this is the end of who dialled."""
        return self._dialled

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """`SocketAttribute.local_address` and `remote_address`, which differ from link to link."""
        there = (self.link.address, 0)
        here = ("dialler", self.link.number)
        if not self._dialled:
            here, there = there, here
        return {SocketAttribute.local_address: lambda: here, SocketAttribute.remote_address: lambda: there}

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """Waits for bytes and returns what has arrived, at least one.

        Args:
            max_bytes: How many at most.

        Raises:
            ValueError: if `max_bytes` is not positive.
            anyio.EndOfStream: if the other end was closed or sends no more, or the network closed the link.
            anyio.BrokenResourceError: if the link was cut, or the other end was closed with bytes unread.
            anyio.ClosedResourceError: if this stream was closed, also by another task meanwhile.
            anyio.BusyResourceError: if another task is receiving.

        Cancelling it loses no bytes.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        with self._receive_guard:
            await checkpoint()  # before the bytes are taken: none are lost if it is cancelled
            while True:
                if self._closed:
                    raise ClosedResourceError
                data = self.link.take(self._inbound, max_bytes)
                if data:
                    return data
                if self._inbound.ended():
                    if self._inbound.reset:
                        raise BrokenResourceError
                    raise EndOfStream
                await self._inbound.readable.wait(self._inbound.next_time())

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Puts bytes into the link's buffer, and waits while that is full.

        What was put in may still be lost: success says nothing about the other end.

        Args:
            item: The bytes; also a `bytearray` or `memoryview`, which is copied.

        Raises:
            anyio.BrokenResourceError: if the link was cut or closed by the network, the other end is known to be
                closed, or `send_eof` was called. Some of the bytes may have been sent.
            anyio.ClosedResourceError: if this stream was closed, also by another task meanwhile.
            anyio.BusyResourceError: if another task is sending.

        A send that is cancelled while it waits has sent a part of the bytes, and does not say which.
        """
        with self._send_guard:
            await checkpoint()
            data = memoryview(bytes(item))  # copied if it could change, and cut up without further copies
            while True:
                self._check_sending()
                data = data[self.link.enter(self._outbound, data) :]
                if not data:
                    return
                if self._outbound.room:
                    continue  # it was stopped by something ordered for this byte, which may have cut the link
                await self._outbound.writable.wait(self._inbound.next_time())

    async def send_eof(self) -> None:
        """Says that no more bytes come. The other direction goes on. Does nothing the second time.

        Raises:
            anyio.ClosedResourceError: if this stream was closed.
        """
        await checkpoint()
        if self._closed:
            raise ClosedResourceError
        if not self._finished:
            self._finished = True
            self.link.finish(self._outbound)

    async def aclose(self) -> None:
        """Closes this end, at once and even if it is cancelled. Waiting calls end with `anyio.ClosedResourceError`."""
        self.close_nowait()
        await checkpoint()

    def close_nowait(self) -> None:
        """Closes this end. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self.link.leave(self._outbound, self._inbound)
            self._tell_closed(self)

    def _check_sending(self) -> None:
        if self._closed:
            raise ClosedResourceError
        self._inbound.settle(current_time())
        if self._finished or self.link.severed or self._inbound.gone:
            raise BrokenResourceError

"""The pipe that programs hold: an anyio byte stream over a session, whatever becomes of its links.

Here callers wait: for room, for bytes, for a link, for the peer to have everything. What they wait for is decided in
the session; who makes links is `dialing.py` (we dial) and `server.py` (they dial).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from anyio import BusyResourceError, ClosedResourceError, EndOfStream, WouldBlock, current_time, move_on_after
from anyio.abc import ByteStream
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .frames import Ack, Decoder, Frame
from .link import Link
from .session import PipeStatistics, Session, State
from .signal import News, Signal

__all__ = ("Pipe",)

YIELD_SENDS: Final = 64  # sends after which other tasks get a turn, even if there was room for more
YIELD_BYTES: Final = 256 * 1024  # and bytes


class Pipe(ByteStream):
    """A reliable byte stream that outlives its connections. Both ends have one, and both behave alike.

    Bytes arrive in order, each once, however many links are lost and made; or `receive` and `send` raise a
    `PipeBroken` that says why that cannot be any more. A lost link is not an error here: calls just take longer.

    One task may send while another receives; two that send, or two that receive, get `anyio.BusyResourceError`.
    It belongs to the event loop that made it.
    """

    def __init__(self, session: Session, linger: float) -> None:
        self._session = session
        self._linger = linger
        self._link: Link | None = None
        self._attributes: Mapping[Any, Callable[[], Any]] = {}
        self._closed = False  # by our own program
        self._readable = Signal()
        self._room = Signal()
        self._unused: list[Signal] = []  # of those who gather, no more than ever did so at once
        self._changed = News()
        self._relinked = News()  # for those who wait for links to come and go, and for nothing else
        self._is_sending = False  # by a task of our program
        self._is_receiving = False
        self._sends = 0  # since other tasks had a turn
        self._bytes = 0
        self._receiver_waits = False
        self._answering = False  # something was received since the last send

    def __repr__(self) -> str:
        session = self._session
        return (
            f"<{type(self).__name__} {session.state.value}, generation {session.generation}, "
            f"sent {session.writer.sequence}, received {session.reader.position}>"
        )

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the latest connection (addresses, certificates): they may differ from link to link."""
        return self._attributes

    @property
    def unread(self) -> int:
        """Bytes that have come and were not received yet."""
        return self._session.reader.unread

    def statistics(self) -> PipeStatistics:
        """How it stands. Never waits, whatever the links do."""
        return self._session.statistics()

    async def send(self, item: bytes) -> None:
        """Accepts bytes for delivery; waits, connected or not, while they do not fit into `capacity`.

        When it returns, the bytes are kept until the peer has them; `drain` waits for that. Small sends are gathered:
        one call on the connection carries all that came in one turn of the event loop; but what answers something that
        was received goes out at once. Not every call gives other tasks a turn: a run of sends does, again and again.

        Cancellation: while it waits for room, nothing was accepted of an item that is not larger than `capacity`; a
        larger one is cut, and what was accepted of it will be delivered. If a cancellation hits in the rare moment
        when the bytes are written out in this call and the connection is slow to take them, the item was accepted;
        the connection is replaced. `statistics().sequence` tells.

        Raises:
            ClosedResourceError: if `send_eof` or `aclose` was called here.
            PipeBroken: if the pipe has ended.
            BusyResourceError: if another task is sending.
        """
        if self._is_sending:
            raise BusyResourceError("sending to")
        self._is_sending = True
        try:
            if self._answering or not self._sends:
                await checkpoint_if_cancelled()
            self._check_sending()
            data = item if type(item) is bytes else bytes(item)
            if not self._session.writer.accept(data):
                await self._accept_when_there_is_room(data)
            await self._hand_over(len(data))
        finally:
            self._is_sending = False

    def offer(self, *items: bytes) -> bool:
        """Accepts all items, to go out with the next `flush` or `flush_soon`; or none of them, and returns False.

        For tasks that share a pipe, as it needs no turn of its own: False if they do not fit, or a task is in `send`.

        Raises:
            ClosedResourceError, PipeBroken: as of `send`.
        """
        self._check_sending()
        writer = self._session.writer
        if self._is_sending or sum(map(len, items)) > writer.ring.free:
            return False
        for item in items:
            writer.accept(item)
        if self._link is None:
            self._on_held()
        return True

    def flush_soon(self) -> None:
        """Lets what was accepted go out, with what else comes in this turn of the event loop."""
        if self._link is not None:
            self._link.wake()

    def offer_now(self, *items: bytes) -> bool:
        """As `offer`; writes to the connection what it takes at once, and lets the rest go out soon.

        A single item before which nothing waits, which is what a message that comes alone is, takes a short way:
        neither its frame nor what goes with it has to be looked for.

        Raises:
            ClosedResourceError, PipeBroken: as of `send`.
        """
        link = self._link
        if len(items) == 1 and link is not None and not self._is_sending and link.pass_on(items[0]):
            return True
        if not self.offer(*items):
            return False
        if link is not None:
            link.flush_nowait()
        return True

    async def gather(self) -> None:
        """Waits until the next write to the connection is over, so that what comes meanwhile goes together.

        It waits for one write, not for all, and not for the peer; without a connection not at all. Any number of tasks
        may wait. Cancelling it changes nothing.
        """
        if self._link is not None:
            written = self._unused.pop() if self._unused else Signal()
            self._link.tell_written(written)
            self._link.wake()
            await written.wait()
            self._unused.append(written)  # not if it was cancelled: the link may still set it

    async def flush(self) -> None:
        """Writes to the connection what was accepted, unless another task is at it, which then goes on. A checkpoint.

        If a cancellation hits while the connection is slow to take it, the connection is replaced; nothing is lost.
        """
        if self._link is None:
            await checkpoint()
        else:
            await self._link.flush_now()

    async def _accept_when_there_is_room(self, data: bytes) -> None:
        writer = self._session.writer
        capacity = writer.ring.capacity
        size = len(data) if len(data) <= capacity else max(1, capacity // 4)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            while not writer.accept(part):
                if self._link is not None:
                    self._link.wake()
                    self._link.listen()
                await self._room.wait()
                self._check_sending()

    async def _hand_over(self, size: int) -> None:
        """Lets what was accepted go out: at once if it answers what was received, else with what else comes soon."""
        link = self._link
        if link is None:
            self._on_held()
        elif self._answering:
            self._answering = False
            await link.flush_now()
        else:
            link.wake()
            self._sends += 1
            self._bytes += size
            if self._sends >= YIELD_SENDS or self._bytes >= YIELD_BYTES:
                self._sends = self._bytes = 0
                await cancel_shielded_checkpoint()

    def _on_held(self) -> None:
        """Bytes were taken in, or given out, while there is no link. (The server keeps account of them.)"""

    def _check_sending(self) -> None:
        if self._closed or self._session.writer.finished:
            raise ClosedResourceError
        if self._session.is_closed:
            self._raise_end()

    def _raise_end(self) -> None:
        """Raises why the session has ended."""
        raise self._session.end_anew() or ClosedResourceError()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes: at least one, at most `max_bytes`. Waits while there are none, connected or not.

        Cancellation loses nothing: the bytes stay for the next call.

        Raises:
            EndOfStream: if the peer has called `send_eof` or closed its end, and all its bytes were received.
            ClosedResourceError: if `aclose` was called here.
            PipeBroken: if the pipe has ended without that; the bytes that had arrived are received first.
            BusyResourceError: if another task is receiving.
            ValueError: if `max_bytes` is not positive.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        if self._is_receiving:
            raise BusyResourceError("receiving from")
        self._is_receiving = True
        try:
            reader = self._session.reader
            if reader.unread:
                await checkpoint()
            while not reader.unread or self._closed:
                if reader.ended:
                    await checkpoint()
                self._check_receiving()
                link = self._link
                if link is not None and link.is_lent:
                    await link.read_directly()
                else:
                    await self._wait_for_bytes()
            return self._take(max_bytes)
        finally:
            self._is_receiving = False

    def receive_nowait(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, if some have come already: for those who do more with each turn than take one piece.

        Raises:
            anyio.WouldBlock: if there are none yet.
            anyio.BusyResourceError: if another task is receiving.
            Others: as of `receive`.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        if self._is_receiving:
            raise BusyResourceError("receiving from")
        self._check_receiving()
        if not self._session.reader.unread:
            raise WouldBlock
        return self._take(max_bytes)

    def _check_receiving(self) -> None:
        """Raises why there will be no more bytes, if that is so."""
        reader = self._session.reader
        if self._closed:
            raise ClosedResourceError
        if not reader.unread:
            if reader.ended:
                raise EndOfStream
            if self._session.is_closed:
                self._raise_end()

    def _take(self, max_bytes: int) -> bytes:
        reader = self._session.reader
        data = reader.take(max_bytes)
        self._answering = True
        if self._link is None:
            self._on_held()
        elif reader.ack_is_urgent:
            self._link.wake()
        return data

    async def _wait_for_bytes(self) -> None:
        """Until somebody else has read what we wait for."""
        self._receiver_waits = True
        try:
            await self._readable.wait()
        finally:
            self._receiver_waits = False

    async def send_eof(self) -> None:
        """Says that no more bytes follow; the peer's `receive` raises `EndOfStream` after the last of them.

        It does not wait for that. Calling it again changes nothing. Receiving goes on.

        Raises:
            ClosedResourceError: if `aclose` was called here.
            PipeBroken: if the pipe has ended.
            BusyResourceError: if another task is sending.
        """
        if self._is_sending:
            raise BusyResourceError("sending to")
        self._is_sending = True
        try:
            await checkpoint()
            if self._closed:
                raise ClosedResourceError
            if not self._session.writer.finished:
                self._check_sending()
                self._session.writer.finish()
                if self._link is not None:
                    self._link.wake()
        finally:
            self._is_sending = False

    async def drain(self) -> None:
        """Waits until the peer's end of the pipe has every byte that was sent (and the end of them, if it was said).

        It does not say that the peer's program has taken them. Any number of tasks may wait.

        Raises:
            ClosedResourceError: if `aclose` is called here.
            PipeBroken: if the pipe ends before.
        """
        await checkpoint()
        while not self._session.writer.settled or self._session.is_closed:
            if self._session.is_closed:
                if self._session.ended_by is None and not self._closed:
                    return
                self._raise_end()
            await self._change()

    async def wait_connected(self) -> None:
        """Waits until there is a link. Any number of tasks may wait.

        Raises:
            ClosedResourceError: if `aclose` is called here.
            PipeBroken: if the pipe ends before.
        """
        await checkpoint()
        await self._wait_link_after(0)

    async def wait_disconnected(self) -> None:
        """Waits until there is no link, or another one than when this was called. Any number of tasks may wait.

        What was sent is safe all the same: this is for those who want to show it, or to reckon with a delay.

        Raises:
            ClosedResourceError: if `aclose` is called here.
            PipeBroken: if the pipe ends before.
        """
        links = self._session.links
        await checkpoint()
        self._check_open()
        while self._session.links == links and self._session.state is State.CONNECTED:
            await self._link_change()
            self._check_open()

    async def force_reconnect(self) -> None:
        """Gives the present link up, healthy or not, and waits until there is a new one (which the dialer makes).

        Calls at the same time share one reconnect. A cancelled call does not stop it. A dial that is under way, or
        waits for its time, counts as the new one, and is not put off any longer.

        Raises:
            ClosedResourceError: if `aclose` is called here.
            PipeBroken: if the pipe ends before.
        """
        await checkpoint()
        links = self._session.links
        self._hurry()
        if self._link is not None:
            self._link.stop()
        await self._wait_link_after(links)

    def _hurry(self) -> None:
        """A link is wanted now. (Who dials does not wait any longer; who is dialed can do nothing.)"""

    async def _wait_link_after(self, links: int) -> None:
        while self._session.links <= links or self._session.state is not State.CONNECTED:
            self._check_open()
            await self._link_change()

    async def _link_change(self) -> None:
        if self._link is not None:
            self._link.listen()
        await self._relinked.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedResourceError
        if self._session.is_closed:
            self._raise_end()

    async def aclose(self) -> None:
        """Ends the pipe. What was sent still goes to the peer, if there is a link, for at most `linger` seconds.

        It never hangs: without a link it returns at once, a dial under way is interrupted, and a cancelled call closes
        at once. To be sure that the peer has everything, `drain` before. Closing again changes nothing.
        """
        await self._close(failed=False)

    async def _close(self, *, failed: bool) -> None:
        """Ends the pipe; a program that failed has not said all, so its bytes get no end (FIN), only a CLOSE."""
        if self._closed:
            await checkpoint()
            return
        self._closed = True
        session = self._session
        session.reader.discard()
        if failed:
            session.close("failed")
        else:
            session.writer.finish()
        self._announce()
        try:
            with move_on_after(self._linger):
                await checkpoint()
                await self._linger_on(failed)
        finally:
            self._abandon(failed)

    async def _linger_on(self, failed: bool) -> None:
        """Delivers what is left while there is a link, says CLOSE, and waits until the peer hangs up."""
        link = self._link
        if link is None:
            return
        link.wake()
        while link is self._link and not self._session.writer.settled and not failed:
            await self._change()
        if not failed and link is self._link:
            self._say_close()
        while link is self._link:
            await self._change()

    def _say_close(self) -> None:
        self._session.close("finished" if self._session.finished else "closed")
        if self._link is not None:
            self._link.wake()

    def _abandon(self, failed: bool) -> None:
        """Our program is done with the pipe."""
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        """Ends the pipe for good, now; None: nothing was lost, or our own program gave it up."""
        self._session.end(error)
        if self._link is not None:
            self._link.stop(error)
        self._announce()

    def _announce(self) -> None:
        """Something changed that somebody may wait for."""
        self._readable.set()
        self._room.set()
        self._changed.tell()
        self._relinked.tell()

    async def _change(self) -> None:
        if self._link is not None:
            self._link.listen()
        await self._changed.wait()

    def _on_input(self) -> bool:
        """A link has applied frames to the session. Returns whether a task was waiting to receive, and goes on now."""
        session = self._session
        if session.reader.unread or session.reader.ended:
            self._readable.set()
        self._room.set()
        if session.is_closed or (self._changed.awaited and session.writer.settled):
            self._announce()
        if session.is_closed and self._link is not None:
            self._link.stop(session.ended_by)
        return self._receiver_waits and session.reader.unread > 0

    def _attach(self, stream: ByteStream, decoder: Decoder, generation: int, peer: Ack) -> Link:
        """Makes a link over `stream` the present one. The old one is fenced: what it brings does not count any more."""
        old = self._link
        self._link = Link(stream, self._session, decoder, self._on_input)
        self._attributes = stream.extra_attributes
        self._session.link_up(generation, peer, current_time())
        if old is not None:
            old.stop()
        self._announce()
        return self._link

    async def _carry(self, link: Link, frames: list[Frame], preface: bytes = b"") -> None:
        """Lets an attached link work until it is over."""
        try:
            await link.run(frames, preface)
        finally:
            if self._link is link:
                self._link = None
                self._session.link_lost(link.error)
                self._announce()

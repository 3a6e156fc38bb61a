"""One end of a backed pipe, without its links: what it has said, what it has heard, and in which state it is.

    CONNECTING ── LINKED ──▶ CONNECTED ── LOST ──▶ SUSPENDED
                             ▲  │    ▲                │
                             └──┘    └──── LINKED ────┘         every state but CLOSED ── ENDED ──▶ CLOSED

Sans-I/O: the shell (`link.py`, `pipe.py`) feeds frames and ticks in, and takes bytes out; time comes as an argument.
Both ends of a pipe are such a session; only the handshake tells the dialer from the server.

A link's frames are applied only while that link is the present one. So a new link *fences* the old one: bytes that
still arrive on it are dropped, the position told in the handshake stays true, and the peer sends them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

import msgspec

from ..errors import BadFrame, PipeClosed
from .frames import Ack, Close, CloseCode, Data, Fin, Frame, Ping, Pong, encode
from .liveness import Liveness
from .pieces import Piece
from .reader import BackedReader
from .writer import BackedWriter

__all__ = ("Event", "PipeStatistics", "Session", "State")

MAX_CAPACITY: Final = 2**40  # bytes: beyond it a limit told to the peer could exceed any position
FLUSH: Final = 128 * 1024  # bytes handed to a link at once: larger blocks are faulted in anew each time


class State(Enum):
    """Where a session stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class Event(Enum):
    """What moves a session from state to state."""

    LINKED = "linked"
    LOST = "lost"
    ENDED = "ended"


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.CONNECTING, Event.LINKED): State.CONNECTED,
    (State.CONNECTING, Event.ENDED): State.CLOSED,
    (State.CONNECTED, Event.LINKED): State.CONNECTED,
    (State.CONNECTED, Event.LOST): State.SUSPENDED,
    (State.CONNECTED, Event.ENDED): State.CLOSED,
    (State.SUSPENDED, Event.LINKED): State.CONNECTED,
    (State.SUSPENDED, Event.ENDED): State.CLOSED,
}


class PipeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A pipe at one moment.

    Args:
        state: `connecting` (no link yet), `connected`, `suspended` (the link is lost) or `closed`.
        sequence: Bytes accepted for sending.
        acknowledged: How many of them the peer has.
        in_ring: Bytes held until it has them.
        received: Bytes that came from the peer, each counted once.
        unread: How many of them wait to be received.
        generation: Number of the latest dial that got a link.
        links: How many links were made.
        last_error: Why the latest link or dial failed; None if none did.
        round_trip: Seconds, as last measured on the present link; None before.
    """

    state: str
    sequence: int
    acknowledged: int
    in_ring: int
    received: int
    unread: int
    generation: int
    links: int
    last_error: Exception | None
    round_trip: float | None


class Session:
    """The state of one end. Not safe for threads; no method waits.

    Args:
        capacity: Bytes, in each direction: accepted and not acknowledged; arrived and not taken.
        heartbeat: Seconds between signs of life.

    Raises:
        ValueError: if one of them is not positive, or the capacity above `MAX_CAPACITY`.
    """

    def __init__(self, capacity: int, heartbeat: float) -> None:
        if not 0 < capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity is 1 to {MAX_CAPACITY} bytes, not {capacity}")
        if not heartbeat > 0:
            raise ValueError(f"heartbeat is a positive time in seconds, not {heartbeat}")
        self.writer: BackedWriter = BackedWriter(capacity)
        self.reader: BackedReader = BackedReader(capacity)
        self.state: State = State.CONNECTING
        self.generation: int = 0
        self.links: int = 0
        self.last_error: Exception | None = None
        self.ended_by: Exception | None = None  # set once, with CLOSED; None there if all was said
        self._heartbeat = heartbeat
        self.liveness: Liveness = Liveness(heartbeat, 0.0)
        self._answered = 0  # links, before the present one, on which a PONG came
        self._ping: int | None = None  # only the latest one waits, if the peer does not read
        self._pong: int | None = None  # only the latest PING is answered: a flood of them costs nothing
        self._close: Close | None = None
        self._ack_now = False
        self._has_control = False  # Invariant: set if any of the four above is

    def _move(self, event: Event) -> None:
        try:
            self.state = TABLE[self.state, event]
        except KeyError:
            raise RuntimeError(f"a {self.state.value} pipe cannot be {event.value}") from None

    @property
    def progress(self) -> tuple[int, int, int]:
        """What changes only while a link works: the bytes that passed either way, and the answered heartbeats."""
        return self.reader.position, self.writer.acknowledged, self._answered + self.liveness.answered

    @property
    def is_closed(self) -> bool:
        """Whether the pipe is over."""
        return self.state is State.CLOSED

    @property
    def finished(self) -> bool:
        """Whether both ends have said all, and each has all that the other said."""
        return self.writer.finished and self.writer.settled and self.reader.ended

    def link_up(self, generation: int, peer: Ack, now: float) -> None:
        """A link was made, and the peer told what it has."""
        self._move(Event.LINKED)
        self.generation = generation
        self.links += 1
        self.writer.resume(peer.position, peer.limit)
        self._answered += self.liveness.answered
        self.liveness = Liveness(self._heartbeat, now)
        self._ping = self._pong = None
        self._ack_now = False
        self._has_control = self._close is not None

    def link_lost(self, error: Exception | None) -> None:
        """The present link has ended."""
        self.last_error = error or self.last_error
        if self.state is State.CONNECTED:
            self._move(Event.LOST)

    def end(self, error: Exception | None) -> None:
        """The pipe is over, for the first reason that is given: lets go of its bytes. Its link is to be stopped."""
        if self.is_closed:
            return
        self._move(Event.ENDED)
        self.ended_by = error
        self.writer.abandon()

    def end_anew(self) -> Exception | None:
        """`ended_by`, as a copy: one error that is raised in two tasks would mix their tracebacks."""
        error = self.ended_by
        if error is None:
            return None
        copy = type(error).__new__(type(error), *error.args)
        copy.__dict__.update(error.__dict__)
        copy.args = error.args
        copy.__cause__ = error.__cause__
        return copy

    def close(self, code: CloseCode) -> None:
        """Makes a CLOSE the last thing that is sent: after all that the peer has room for."""
        self._close = Close(code)
        self._has_control = True

    def apply(self, frames: Iterable[Frame], clock: Callable[[], float]) -> None:
        """Takes in what the present link brought. The clock is looked at only if a PONG came.

        Raises:
            BadFrame: if a frame cannot come here.
        """
        self.liveness.heard = True
        for frame in frames:
            match frame:
                case Data():
                    self.reader.feed(frame.sequence, frame.payload)
                case Ack():
                    self.writer.acknowledge(frame.position, frame.limit)
                case Fin():
                    self.reader.finish(frame.position)
                case Ping():
                    self._pong = frame.number
                    self._has_control = True
                case Pong():
                    self.liveness.pong(frame.number, clock())
                case Close():
                    self._closed_by_peer(frame)
                    return
                case _:
                    raise BadFrame(f"{type(frame).__name__} after the handshake")

    def _closed_by_peer(self, frame: Close) -> None:
        clean = self.reader.ended and self.writer.settled
        self.end(None if clean and frame.code == "finished" else PipeClosed(frame.code, frame.detail))

    def ping(self, now: float) -> None:
        """Asks for a sign of life."""
        self._ping = self.liveness.ping(now)
        self._has_control = True

    def ack_soon(self) -> None:
        """What the peer is owed by way of acknowledgement goes with the next output."""
        self._ack_now = self.reader.owes_ack
        self._has_control |= self._ack_now

    @property
    def has_output(self) -> bool:
        """Whether the link has something to send."""
        return self._has_control or self.writer.has_output or self.reader.ack_is_urgent

    def pass_on(self, data: bytes) -> bytes | None:
        """Accepts a message that comes alone, and gives the bytes for the link; None if something goes before it."""
        return None if self._has_control or self.reader.ack_is_urgent else self.writer.pass_on(data)

    def next_output(self) -> bytes:
        """The next bytes for the link; control frames first, so that they never wait behind a backlog."""
        output: list[Piece] = []
        if self._has_control or self.reader.ack_is_urgent:
            output += self._next_control()
        output += self.writer.next_output(FLUSH)
        if self._close is not None and not self.writer.has_output:
            output.append(encode(self._close))
            self._close = None
            self._has_control = False
        return b"".join(output)

    def _next_control(self) -> list[bytes]:
        output: list[bytes] = []
        if self._ping is not None:
            output.append(encode(Ping(self._ping)))
            self._ping = None
        if self._pong is not None:
            output.append(encode(Pong(self._pong)))
            self._pong = None
        if self._ack_now or self.reader.ack_is_urgent:
            output.append(encode(self.reader.tell()))
            self._ack_now = False
        self._has_control = self._close is not None
        return output

    def statistics(self) -> PipeStatistics:
        """How it stands."""
        return PipeStatistics(
            state=self.state.value,
            sequence=self.writer.sequence,
            acknowledged=self.writer.acknowledged,
            in_ring=self.writer.ring.size,
            received=self.reader.position,
            unread=self.reader.unread,
            generation=self.generation,
            links=self.links,
            last_error=self.last_error,
            round_trip=self.liveness.round_trip,
        )

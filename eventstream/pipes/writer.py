"""The backed writer: what one end says, kept until the other end has it.

Two bounds act on it. `capacity` (ours) limits what is accepted and not yet acknowledged: `accept` refuses more, so the
caller waits. `limit` (the peer's) is the position up to which it has room: bytes beyond it wait in the ring.

The end of the stream is a position of its own: a FIN stands at `sequence`, and its acknowledgement is one more.
"""

from __future__ import annotations

from ..errors import BadFrame, ResumeRefused
from .frames import MAX_PAYLOAD, Fin, encode, encode_data
from .pieces import Piece
from .ring import RingBuffer

__all__ = ("BackedWriter",)


class BackedWriter:
    """The sending half of a session. Pure: no clock, no link; the session feeds it and asks what to send.

    Args:
        capacity: The most bytes accepted and not yet acknowledged.
    """

    __slots__ = ("_fin_acknowledged", "_fin_sent", "_limit", "_lost", "_reached", "finished", "ring")

    def __init__(self, capacity: int) -> None:
        self.ring: RingBuffer = RingBuffer(capacity)
        self._limit = 0
        self._reached = 0  # the highest position ever sent, on any link; with the FIN, one more than `sequence`
        self.finished: bool = False  # whether `finish` was called
        self._fin_sent = False  # on the present link
        self._fin_acknowledged = False
        self._lost = 0  # bytes given up with the pipe: accepted, and never acknowledged

    @property
    def sequence(self) -> int:
        """The sequence number: how many bytes were accepted."""
        return self.ring.end

    @property
    def acknowledged(self) -> int:
        """How many of them the peer has."""
        return self.ring.start - self._lost

    @property
    def settled(self) -> bool:
        """Whether the peer has everything: all bytes and, if there is to be one, the FIN."""
        return not self.ring.size and not self._lost and (self._fin_acknowledged or not self.finished)

    @property
    def has_output(self) -> bool:
        """Whether something can be sent now."""
        ring = self.ring
        if ring.sent < ring.end:
            return ring.sent < self._limit
        return self.finished and not self._fin_sent and not self._fin_acknowledged

    def accept(self, data: bytes) -> bool:
        """Takes `data` whole, or returns False if it does not fit now."""
        return self.ring.offer(data)

    def pass_on(self, data: bytes) -> bytes | None:
        """As `accept` and `next_output` for what comes alone: the frame to be sent now, which carries all of `data`.

        None: nothing was accepted, since something goes before it, or it is not for one frame, or there is no room.
        """
        ring = self.ring
        sequence, size = ring.sent, len(data)
        if self.finished or not 0 < size <= min(MAX_PAYLOAD, self._limit - sequence) or not ring.pass_on(data):
            return None
        self._reached = ring.sent
        return encode_data(sequence, size) + data

    def finish(self) -> None:
        """There will be no more bytes."""
        self.finished = True

    def next_output(self, budget: int) -> list[Piece]:
        """Headers and payloads to be sent now, about `budget` bytes of them."""
        output: list[Piece] = []
        ring = self.ring
        while budget > 0 and ring.sent < ring.end and (room := self._limit - ring.sent) > 0:
            sequence = ring.sent
            pieces = self._next_pieces(min(room, budget, MAX_PAYLOAD))
            length = ring.sent - sequence
            output.append(encode_data(sequence, length))
            output += pieces
            budget -= length
        if ring.sent > self._reached:
            self._reached = ring.sent
        if self.finished and ring.sent == ring.end and not self._fin_sent and not self._fin_acknowledged:
            self._fin_sent = True
            self._reached = ring.end + 1
            output.append(encode(Fin(ring.end)))
        return output

    def _next_pieces(self, limit: int) -> list[Piece]:
        """What one DATA frame carries: as much as may go, as each frame is a step of its own for the peer."""
        ring = self.ring
        pieces = [ring.next_piece(limit)]
        while (limit := limit - len(pieces[-1])) > 0 and ring.sent < ring.end:
            pieces.append(ring.next_piece(limit))
        return pieces

    def acknowledge(self, position: int, limit: int) -> None:
        """The peer has all bytes before `position`, and room up to `limit`. Older news than we have changes nothing.

        Raises:
            BadFrame: if that much was never sent.
        """
        if position > self.ring.sent + (self._fin_sent or self._fin_acknowledged):
            raise BadFrame(f"ACK of {position}, but only {self.ring.sent} was sent")
        self._limit = max(self._limit, limit)
        if position > self.ring.end:
            self._fin_acknowledged = True
            position -= 1
        self.ring.acknowledge(position)

    def check_resume(self, position: int) -> None:
        """Whether a new link can go on from `position`.

        Raises:
            ResumeRefused: if the peer claims to have what was never sent, or to lack what it has acknowledged.
        """
        oldest = self.ring.start + self._fin_acknowledged
        if not oldest <= position <= self._reached:
            raise ResumeRefused("position", f"it has {position}; {oldest} to {self._reached} can be resumed")

    def resume(self, position: int, limit: int) -> None:
        """Begins a new link: goes on from `position`, which `check_resume` has allowed."""
        self._fin_sent = False
        self._limit = limit
        if position > self.ring.end:
            self._fin_acknowledged = True
            position -= 1
        self.ring.rewind(position)

    def abandon(self) -> None:
        """The pipe has ended: lets go of everything. What the peer did not acknowledge counts as never acknowledged."""
        self._lost += self.ring.size
        self.ring.clear()

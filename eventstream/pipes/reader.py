"""The backed reader: what the other end says, each byte once, in order, until the caller has taken it.

`position` counts the bytes that arrived in order, `consumed` those that were taken. What arrives a second time is
dropped, so a peer that repeats too much does no harm; what would leave a gap is refused, and so is what exceeds the
room that we promised. Until the caller takes bytes no more room is promised: that is the flow control.
"""

from __future__ import annotations

from ..errors import BadFrame
from .frames import Ack
from .pieces import Piece, Pieces

__all__ = ("BackedReader",)


class BackedReader:
    """The receiving half of a session. Pure, like `BackedWriter`.

    Args:
        capacity: The most bytes that wait here for the caller.
    """

    __slots__ = (
        "_capacity",
        "_discarding",
        "_end",
        "_pieces",
        "_told",
        "_told_limit",
        "_urgent_consumed",
        "_urgent_position",
        "position",
    )

    def __init__(self, capacity: int) -> None:
        self.position: int = 0
        self._capacity = capacity
        self._pieces = Pieces()
        self._end: int | None = None  # where the peer's FIN stands
        self._told = 0  # what our last ACK said
        self._told_limit = 0
        self._urgent_position = 0  # an ACK is urgent when `position` or `consumed` has come so far
        self._urgent_consumed = 0
        self._discarding = False

    @property
    def consumed(self) -> int:
        """How many bytes the caller has taken."""
        return self.position - self._pieces.size

    @property
    def unread(self) -> int:
        """How many bytes wait for the caller."""
        return self._pieces.size

    @property
    def ended(self) -> bool:
        """Whether the peer's FIN has arrived, and so all of its bytes."""
        return self._end is not None

    @property
    def acknowledgement(self) -> Ack:
        """What an ACK would say now."""
        return Ack(self.position + (self._end is not None), self.consumed + self._capacity)

    @property
    def owes_ack(self) -> bool:
        """Whether the peer does not know all yet that an ACK would say."""
        return (
            self._told != self.position + (self._end is not None) or self._told_limit != self.consumed + self._capacity
        )

    @property
    def ack_is_urgent(self) -> bool:
        """Whether the peer may soon have to wait for an ACK: a quarter of our room is news to it, or its FIN is."""
        return self.position >= self._urgent_position or self.position - self._pieces.size >= self._urgent_consumed

    def tell(self) -> Ack:
        """The acknowledgement, which counts as told from now on."""
        ack = self.acknowledgement
        self._told, self._told_limit = ack.position, ack.limit
        quarter = max(1, self._capacity // 4)
        self._urgent_position = self.position + quarter
        self._urgent_consumed = self.consumed + quarter
        return ack

    def feed(self, sequence: int, payload: Piece) -> None:
        """Takes in what arrived.

        Raises:
            BadFrame: if bytes are missing before it, it is more than we have room for, or it stands after the FIN.
        """
        end = sequence + len(payload)
        if sequence > self.position:
            raise BadFrame(f"DATA at {sequence}, but {self.position} was to come")
        if end <= self.position:
            return
        if end > self._told_limit:
            raise BadFrame(f"DATA up to {end}, but there was room up to {self._told_limit}")
        if self._end is not None:
            raise BadFrame(f"DATA up to {end} after the FIN at {self._end}")
        if sequence < self.position:
            payload = payload[self.position - sequence :]
        self.position = end
        if not self._discarding:
            self._pieces.append(payload)

    def finish(self, position: int) -> None:
        """The peer's bytes end here.

        Raises:
            BadFrame: if bytes are missing before it, or it stood elsewhere before.
        """
        if position != self.position:
            raise BadFrame(f"FIN at {position}, but {self.position} was to come")
        if self._end is None:
            self._end = position
            self._urgent_position = 0

    def take(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; empty if there are none."""
        if not self._pieces.size:
            return b""
        piece = self._pieces.take(limit)
        return piece if type(piece) is bytes else bytes(piece)

    def discard(self) -> None:
        """Nobody will take what is here or comes: it is acknowledged and dropped."""
        self._discarding = True
        self._pieces.clear()

"""The ring buffer: every byte that was accepted for sending and that the peer has not acknowledged.

            start              sent                end
              ├── in flight ────┤── waiting ────────┤          end - start <= capacity, always
    trimmed ──┘ acknowledge     └ next_piece        └ append          (`pass_on`: both at once)

Bytes are never evicted: only an acknowledgement lets go of them, and `append` refuses what does not fit. So a resume
from any position between `start` and `end` is possible at any time; that is the promise of a backed pipe.

The bytes are kept by reference, and memory is used as it is needed (rejected: a block of `capacity` bytes for each
pipe, which thousands of idle ones would pay for too).
"""

from __future__ import annotations

from .pieces import Piece, Pieces

__all__ = ("RingBuffer",)


class RingBuffer:
    """Bytes sent and not yet acknowledged, then bytes to be sent. Written and read by its `BackedWriter` alone.

    Positions count bytes from the beginning of the stream.

    Args:
        capacity: The most bytes that it holds.

    Raises:
        ValueError: if `capacity` is not positive.
    """

    __slots__ = ("_in_flight", "_waiting", "capacity", "end", "free", "sent", "start")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a ring buffer holds at least one byte, not {capacity}")
        self.capacity: int = capacity
        # Plain numbers, as each message looks at them. Invariants: start <= sent <= end; end - start + free is the
        # capacity; the two queues hold sent - start and end - sent bytes.
        self.start: int = 0  # where the bytes begin that are held
        self.sent: int = 0  # where those begin that are not sent on the present link
        self.end: int = 0  # where the next byte will stand
        self.free: int = capacity
        self._in_flight = Pieces()
        self._waiting = Pieces()

    @property
    def size(self) -> int:
        """Bytes held."""
        return self.end - self.start

    def append(self, data: bytes) -> None:
        """Takes `data` in, by reference.

        Raises:
            ValueError: if it does not fit.
        """
        if not self.offer(data):
            raise ValueError(f"{len(data)} bytes do not fit into a ring with {self.free} free")

    def offer(self, data: bytes) -> bool:
        """As `append`; returns False if it does not fit."""
        size = len(data)
        if size > self.free:
            return False
        self._waiting.append(data)
        self.end += size
        self.free -= size
        return True

    def pass_on(self, data: bytes) -> bool:
        """Takes `data` in as sent already; returns False if something waits before it, or it does not fit."""
        size = len(data)
        if self.sent < self.end or size > self.free:
            return False
        self._in_flight.append(data)
        self.sent = self.end = self.end + size
        self.free -= size
        return True

    def next_piece(self, limit: int) -> Piece:
        """At most `limit` of the waiting bytes, which count as sent from now on; empty if there are none."""
        if self.sent == self.end or limit < 1:
            return b""
        piece = self._waiting.take(limit)
        self._in_flight.append(piece)
        self.sent += len(piece)
        return piece

    def acknowledge(self, position: int) -> None:
        """Lets go of all bytes before `position`, which must have been sent.

        Raises:
            ValueError: if they were not.
        """
        if position > self.sent:
            raise ValueError(f"{position} acknowledged, but only {self.sent} sent")
        if position > self.start:
            self._in_flight.drop(position - self.start)
            self._let_go(position)

    def rewind(self, position: int) -> None:
        """Lets go of all bytes before `position`, and makes those from there on wait to be sent, again or at first.

        Raises:
            ValueError: if `position` is not between `start` and `end`.
        """
        if not self.start <= position <= self.end:
            raise ValueError(f"cannot send from {position}: there is {self.start} to {self.end}")
        both = Pieces()
        for pieces in (self._in_flight, self._waiting):
            while pieces.size:
                both.append(pieces.take(pieces.size))
        both.drop(position - self.start)
        self._in_flight, self._waiting = Pieces(), both
        self.sent = position
        self._let_go(position)

    def clear(self) -> None:
        """Lets go of everything: for a pipe that has ended."""
        self._in_flight.clear()
        self._waiting.clear()
        self.sent = self.end
        self._let_go(self.end)

    def _let_go(self, position: int) -> None:
        self.free += position - self.start
        self.start = position

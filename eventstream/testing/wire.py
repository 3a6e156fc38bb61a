"""One direction of a simulated link: bytes under way, bytes that have arrived, and how it ends.

Time and randomness come as arguments; nothing here waits. A wire moves what is due when somebody looks (`settle`), so
no task delivers anything, and a wire that nobody looks at costs nothing.

    put ─▶ flight: pieces with their time of arrival ─▶ ready: what `take` gives
           the end of the bytes travels behind them  ─▶ eof, gone, reset

Who writes: `Link` alone. Who reads: `NetworkStream`, and tests (the counters).

A wire is *stalled* while nothing passes and it may go on later, *dead* when it swallows everything for ever: what had
arrived before can still be read in both cases. Bytes count against the buffer until they are read, and swallowed ones
for ever: a sender to a dead wire sees no error until the buffer is full, and then waits, as with TCP.
"""

from __future__ import annotations

import math
from collections import deque
from random import Random
from typing import Final

from .faults import Faults, draw_delay, draw_part, draw_sizes
from .signal import Signal

__all__ = ("Wire",)

RESOLUTION: Final = 1e-6
"""Seconds. What is due within it is due now: loops wake a rounding error early, and would spin until it has passed."""


class Wire:
    """One direction. All times are those of the loop's clock.

    Attributes:
        sent: Bytes that senders have put in.
        received: Bytes that readers have got. Invariant: `sent == received + lost + unread`.
        lost: Bytes that will never be received.
        eof: Whether the reader may know that no more bytes come.
        gone: Whether the reader may know that the writing end is closed altogether.
        reset: Whether it ended with a reset instead of a clean end.
    """

    __slots__ = (
        "_blocked_until",
        "_dead",
        "_eof_at",
        "_flight",
        "_gone_at",
        "_held",
        "_last",
        "_reader_gone",
        "_ready",
        "_resets",
        "capacity",
        "eof",
        "gone",
        "lost",
        "readable",
        "received",
        "reset",
        "sent",
        "writable",
    )

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity
        self.readable: Signal = Signal()
        self.writable: Signal = Signal()
        self.sent: int = 0
        self.received: int = 0
        self.lost: int = 0
        self.eof: bool = False
        self.gone: bool = False
        self.reset: bool = False
        self._flight: deque[tuple[float, bytes]] = deque()  # Invariant: the times never go down
        self._ready: deque[bytes] = deque()
        self._held = 0  # Invariant: 0 <= held <= capacity
        self._last = -math.inf  # Invariant: nothing in flight arrives later than this
        self._blocked_until = -math.inf  # inf: until `resume`
        self._dead = False
        self._reader_gone = False
        self._eof_at = math.inf
        self._gone_at = math.inf
        self._resets = False

    @property
    def room(self) -> int:
        """Bytes that can be put in before the buffer is full."""
        return self.capacity - self._held

    @property
    def unread(self) -> int:
        """Bytes that are under way, or arrived and were not read."""
        return sum(map(len, self._ready)) + sum(len(piece) for _, piece in self._flight)

    # The writing end.

    def put(self, data: bytes, now: float, faults: Faults, random: Random) -> None:
        """Lets bytes in. The caller has seen to it that there is room."""
        self.sent += len(data)
        if self._dead:
            self.lost += len(data)
            self._held += len(data)
        elif self._reader_gone:
            self.lost += len(data)
        else:
            self._held += len(data)
            start = 0
            for size in draw_sizes(len(data), faults, random):
                self._last = max(self._last, now + draw_delay(faults, random))
                self._flight.append((self._last, data[start : start + size]))
                start += size
            self.readable.notify()
        assert 0 <= self._held <= self.capacity

    def finish(self, now: float, delay: float, *, gone: bool = True, reset: bool = False) -> None:
        """The writing end sends no more; `gone`: and reads no more; `reset`: and says so rudely.

        The word travels behind the bytes that are under way. A dead wire swallows it.
        """
        if self._dead:
            return
        at = self._last = max(self._last, now + delay)
        self._eof_at = min(self._eof_at, at)
        if gone:
            self._gone_at = min(self._gone_at, at)
            self._resets = self._resets or reset
        self.readable.notify()

    # The reading end.

    def settle(self, now: float) -> None:
        """Moves what is due: after this, all that arrived up to now can be seen."""
        due = now + RESOLUTION
        if self._dead or due < self._blocked_until:
            return
        while self._flight and self._flight[0][0] <= due:
            self._ready.append(self._flight.popleft()[1])
        if not self._flight:
            self.eof = self.eof or self._eof_at <= due
            if self._gone_at <= due:
                self.gone = True
                self.reset = self._resets

    def take(self, max_bytes: int, now: float, faults: Faults, random: Random) -> bytes:
        """What has arrived, at most `max_bytes`; `b""` if nothing has."""
        self.settle(now)
        if not self._ready:
            return b""
        if faults.fragment and random.random() < faults.fragment:
            max_bytes = min(max_bytes, draw_part(len(self._ready[0]), random))
        taken = []
        left = max_bytes
        while self._ready and left:
            piece = self._ready.popleft()
            if len(piece) > left:
                self._ready.appendleft(piece[left:])
                piece = piece[:left]
            taken.append(piece)
            left -= len(piece)
        size = max_bytes - left
        self._held -= size
        self.received += size
        self.writable.notify()
        return b"".join(taken)

    def ended(self) -> bool:
        """Whether the reader has got all that it will ever get. Call `settle` before."""
        return (self.eof or self.gone) and not self._ready

    def next_time(self) -> float:
        """When something more arrives by itself; inf: never. After `settle(now)` this is later than `now`."""
        if self._dead:
            return math.inf
        if self._flight:
            at = self._flight[0][0]
        else:
            at = min(math.inf if self.eof else self._eof_at, math.inf if self.gone else self._gone_at)
        return max(at, self._blocked_until)

    def abandon(self) -> None:
        """The reading end is closed: what is here and what comes is lost, and takes no room."""
        self._reader_gone = True
        self._lose_all(keep_room=self._dead)

    # Faults.

    def stall(self, now: float, until: float = math.inf) -> None:
        """Nothing passes until then. A longer stall that is in force stays."""
        self.settle(now)
        self._blocked_until = max(self._blocked_until, until)

    def resume(self) -> None:
        """Ends a stall. What waited passes now."""
        self._blocked_until = -math.inf
        self.readable.notify()
        self.writable.notify()

    def die(self, now: float) -> None:
        """Swallows what is under way and all that comes, for ever, without an error."""
        self.settle(now)
        self.lost += sum(len(piece) for _, piece in self._flight)
        self._flight.clear()  # their room stays taken: the sender never learns that they are gone
        self._dead = True

    def sever(self, now: float, *, reset: bool, lose: bool) -> None:
        """The network itself ends this wire, now. A stall ends, and so does a dead wire's silence.

        Args:
            now: The time.
            reset: Whether the reader gets an error at the end, or a clean end.
            lose: Whether what was not yet received is lost. Otherwise it arrives as if nothing had happened.
        """
        if lose:
            self._lose_all(keep_room=False)
        if self._dead or not self._flight:
            self._last = now
        self._dead = False
        self._blocked_until = -math.inf
        self._eof_at = self._gone_at = max(self._last, now)
        self._resets = reset
        self.eof = self.gone = self.reset = False  # it had ended? then the network has the last word
        self.settle(now)
        self.readable.notify()
        self.writable.notify()

    def _lose_all(self, *, keep_room: bool) -> None:
        self.lost += self.unread
        self._ready.clear()
        self._flight.clear()
        if not keep_room:
            self._held = 0
        self.writable.notify()

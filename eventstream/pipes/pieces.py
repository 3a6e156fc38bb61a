"""A queue of bytes in pieces, kept by reference: what the ring and the reader are made of.

Large pieces stay the objects that they were; a memoryview stands for a part of one. Small ones are joined when there
are many, so that a million one-byte writes cost about the bytes that they carry, not a million objects.

Rejected: one growing bytearray (every byte is copied twice, and trimming moves the rest).
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

__all__ = ("Piece", "Pieces")

Piece: TypeAlias = bytes | memoryview
SMALL: Final = 4096  # bytes: below it, what a piece costs as an object is worth a copy
MANY: Final = 256  # small pieces, joined as soon as there are so many in a row


class Pieces:
    """Bytes added at the end and taken from the front, in any portions. Not for more than one task at a time.

    Invariant: `size` is the length of all pieces together, and no piece is empty.
    """

    __slots__ = ("_queue", "_run", "size")

    def __init__(self) -> None:
        self.size: int = 0
        self._queue: deque[Piece] = deque()
        self._run = 0  # small pieces at the end that are not joined yet

    def append(self, piece: Piece) -> None:
        """Adds a piece, by reference."""
        length = len(piece)
        if not length:
            return
        self.size += length
        self._queue.append(piece)
        if length >= SMALL:
            self._run = 0
            return
        self._run += 1
        if self._run == MANY:
            self._join_run()

    def take(self, limit: int) -> Piece:
        """The next bytes, at least one and at most `limit`; small pieces come joined, a large one alone, as it is."""
        queue = self._queue
        first = queue.popleft()
        length = len(first)
        if length > limit:
            view = memoryview(first)
            queue.appendleft(view[limit:])
            first, length = view[:limit], limit
        elif length < SMALL and queue:
            first = self._joined(first, limit)
            length = len(first)
        self.size -= length
        if self._run > len(queue):
            self._run = len(queue)
        return first

    def drop(self, count: int) -> None:
        """Forgets `count` bytes at the front."""
        self.size -= count
        queue = self._queue
        while count:
            first = queue.popleft()
            if len(first) > count:
                queue.appendleft(memoryview(first)[count:])
                break
            count -= len(first)
        self._run = min(self._run, len(queue))

    def clear(self) -> None:
        """Forgets all."""
        self._queue.clear()
        self.size = self._run = 0

    def _joined(self, first: Piece, limit: int) -> Piece:
        """`first` with the small pieces that follow it."""
        queue, room = self._queue, limit - len(first)
        parts = [first]
        while queue and len(queue[0]) < SMALL and len(queue[0]) <= room:
            room -= len(queue[0])
            parts.append(queue.popleft())
        return b"".join(parts) if len(parts) > 1 else first

    def _join_run(self) -> None:
        run = [self._queue.pop() for _ in range(self._run)]
        run.reverse()
        self._queue.append(b"".join(run))
        self._run = 0

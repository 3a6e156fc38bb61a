"""A buffer, those who read it, and who of them is behind."""

from __future__ import annotations

from .buffer import AnyEvent, Buffer
from .laggards import Laggards
from .parking import Lot, Waker

__all__ = ("Channel",)


class Channel:
    """What a reader follows: all events of a topic, or those of one key.

    Attributes:
        buffer: Its events.
        laggards: The readers and snapshots that pin its events. Written under the topic's lock.
        readers: How many subscriptions follow it.
    """

    __slots__ = ("buffer", "laggards", "readers")

    def __init__(self, waker: Waker, readers: int = 0) -> None:
        self.buffer: Buffer = Buffer(Lot(waker))
        self.laggards: Laggards = Laggards()
        self.readers: int = readers

    def append(self, events: list[AnyEvent]) -> None:
        """Adds one batch, lets laggards go and wakes the readers that wait. Under the topic's lock."""
        self.buffer.append(events)
        self.follow_up()

    def follow_up(self) -> None:
        """What has to be done after each append to the buffer."""
        buffer = self.buffer
        if buffer.count > self.laggards.due:
            self.laggards.check(buffer.count)
        lot = buffer.lot
        if lot.parked and not lot.scheduled:
            lot.waker.wake(lot)

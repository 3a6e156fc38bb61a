"""When to ask whether the peer is there, and when to stop believing it.

A tick comes each `interval` seconds. Each sends a PING, which also measures the round trip; anything that is heard
counts as a sign of life. The second tick in a row before which nothing was heard ends the link: a half-open one is
noticed two to three intervals after its last byte.

A tick that comes much too late says that *we* were away (a suspended laptop, a blocked loop): the peer gets the chance
to answer first.
"""

from __future__ import annotations

from enum import Enum, auto

__all__ = ("Liveness", "Verdict")


class Verdict(Enum):
    """What a tick decides."""

    PING = auto()
    DEAD = auto()


class Liveness:
    """The heartbeat of one link. Pure: the time comes as an argument.

    Args:
        interval: Seconds between ticks.
        now: When the link began, in seconds of any clock that only goes forward.
    """

    __slots__ = ("_asked_at", "_due", "_number", "_silent", "answered", "heard", "interval", "round_trip")

    def __init__(self, interval: float, now: float) -> None:
        self.interval: float = interval
        self.heard: bool = True  # set by whoever hears the peer: a flag costs less than a look at a clock
        self.answered: bool = False  # whether any PONG has come
        self.round_trip: float | None = None  # seconds, as last measured
        self._silent = 0  # ticks in a row with nothing heard
        self._due = now
        self._number = 0
        self._asked_at: float | None = None  # when the PING went out that is not answered yet

    def tick(self, now: float) -> Verdict:
        """What to do now; to be called again after `interval`."""
        late = now - self._due > self.interval
        self._due = now + self.interval
        self._silent = 0 if self.heard else 1 if late else self._silent + 1
        self.heard = False
        return Verdict.DEAD if self._silent > 1 else Verdict.PING

    def ping(self, now: float) -> int:
        """The number of the PING that is sent now."""
        self._number += 1
        self._asked_at = now
        return self._number

    def pong(self, number: int, now: float) -> None:
        """A PONG has come. One for an earlier PING, or a second one, says only that the peer lives."""
        self.answered = True
        if number == self._number and self._asked_at is not None:
            self.round_trip = now - self._asked_at
            self._asked_at = None

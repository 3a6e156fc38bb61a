"""What becomes of dials: refused, slow, hanging, let go again in another order.

`Dials` decides, from what a test ordered and what the seed draws; it is pure. `HungDials` holds those that hang. Only
`Network` uses both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

import msgspec
from anyio import Event

from .faults import Faults
from .stream import NetworkStream

__all__ = ("Dials", "HungDials", "Plan")

ALWAYS = float("inf")


class Plan(msgspec.Struct, frozen=True):
    """What becomes of one dial."""

    refuse: bool
    hang: bool
    seconds: float


class Dials:
    """Decides what becomes of the next dials. What a test ordered goes before what is drawn.

    Attributes:
        refusing: How many dials are to be refused.
        hanging: How many dials are to hang, after those.
    """

    def __init__(self, random: Random) -> None:
        self.refusing: float = 0
        self.hanging: float = 0
        self._delays: deque[float] = deque()
        self._random = random

    def delay(self, *seconds: float) -> None:
        """The next dials take so long, one after the other."""
        self._delays.extend(seconds)

    def heal(self) -> None:
        """Forgets what was ordered."""
        self.refusing = self.hanging = 0
        self._delays.clear()

    def next(self, faults: Faults) -> Plan:
        """What becomes of a dial that begins now.

        All is drawn at once, before the dial waits for anything: so dials at the same time do not change each other's
        fate, and an order does not change what is drawn for later ones.
        """
        refuse = self._random.random() < faults.refuse
        hang = self._random.random() < faults.hang
        seconds = self._random.random() * faults.dial_seconds
        if self.refusing:
            self.refusing -= 1
            refuse = True
        elif self.hanging:
            self.hanging -= 1
            hang, refuse = True, False
        if self._delays:
            seconds = self._delays.popleft()
        return Plan(refuse, hang, seconds)


class _Hung:
    """A dial that waits."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.released = Event()
        self.outcome: NetworkStream | OSError | None = None  # Invariant: set before `released` is


class HungDials:
    """The dials that hang.

    Who lets them go connects them, in its own turn of the loop: the order in which their tasks run then, which a loop
    may shuffle, does not change the order in which the listener sees them.
    """

    def __init__(self) -> None:
        self._hung: list[_Hung] = []

    async def wait(self, address: str) -> NetworkStream:
        """Hangs until it is released.

        Raises:
            OSError: if it could not be connected then.
        """
        hung = _Hung(address)
        self._hung.append(hung)
        try:
            await hung.released.wait()
        except BaseException:
            self._abandon(hung)
            raise
        if isinstance(hung.outcome, NetworkStream):
            return hung.outcome
        assert hung.outcome is not None
        raise hung.outcome

    def release(self, connect: Callable[[str], NetworkStream], *, newest_first: bool) -> None:
        """Connects all that hang, and lets their tasks go on."""
        hung, self._hung = self._hung, []
        for each in reversed(hung) if newest_first else hung:
            try:
                each.outcome = connect(each.address)
            except OSError as error:
                each.outcome = error
            each.released.set()

    def _abandon(self, hung: _Hung) -> None:
        """The dial was cancelled, maybe in the turn in which it was released: then nobody will ever hold its end."""
        if hung in self._hung:
            self._hung.remove(hung)
        if isinstance(hung.outcome, NetworkStream):
            hung.outcome.link.cut()
            hung.outcome.close_nowait()

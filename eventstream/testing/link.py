"""A simulated connection: two wires, what was ordered to happen to it, and the hand with which a test harms it.

Everything that a fault changes is changed here, in plain functions without an await, so a fault is never half done.
Who calls: `NetworkStream` (bytes go in and out), `Network` (makes links, heals), and tests (`cut`, `stall`, ...).

Faults are scripted (a method of `Link`) or drawn from the seed when the link is made (`Fate`); a drawn one only calls
the method. Each link has its own random source, made of the network's seed and the link's number: what happens on one
link does not depend on how much another was used.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Final, Literal, TypeAlias

from anyio import current_time

from .conditions import Conditions
from .faults import Direction, Fate, draw_delay
from .orders import Action, Orders
from .wire import Wire

__all__ = ("Link",)

RECORDED: Final = 65_536  # bytes of each link that a duplicate can carry: a whole buffer of the usual size

Severed: TypeAlias = Literal["cut", "closed"]


class Link:
    """One connection of a simulated network. Made by `Network.dial`; found in `Network.links`.

    Not for other threads: every method belongs to the event loop that uses the link.

    Attributes:
        number: 1 for the network's first link.
        address: What was dialled.
        up: The wire from who dialled to who listens; its counters `sent`, `received`, `lost` may be read.
        down: The wire back.
        severed: `"cut"` or `"closed"` if the network has ended the link, else None.
        original: The link that this one is a duplicate of, if it is one.
    """

    def __init__(
        self,
        number: int,
        address: str,
        conditions: Conditions,
        random: Random,
        buffer: int,
        original: Link | None = None,
    ) -> None:
        self.number = number
        self.address = address
        self.up: Wire = Wire(buffer)
        self.down: Wire = Wire(buffer)
        self.severed: Severed | None = None
        self.original = original
        self._conditions = conditions
        self._random = random
        self._orders = Orders(self._passed)
        self._open_ends = 2
        self._recorded = bytearray()  # the first bytes that were sent up
        self._mirrored = 0  # of a duplicate: how many of its original's recorded bytes it has sent
        self._duplicates: list[Link] = []
        conditions.counters.links += 1

    def __repr__(self) -> str:
        state = self.severed or ("live" if self.live else "closed by its ends")
        return f"<Link {self.number} to {self.address!r}: {state}, {self.up.sent} bytes up, {self.down.sent} down>"

    @property
    def live(self) -> bool:
        """Whether the network has not ended it, and at least one of its ends is open."""
        return self._open_ends > 0 and not self.severed

    # What tests do.

    def cut(self, *, lose: bool = False) -> None:
        """Ends the link with a reset, now. Stalls and silence end too. Does nothing to a link that was ended before.

        Both ends get `anyio.BrokenResourceError`: from `send` at once, from `receive` after the bytes under way.

        Args:
            lose: Whether what was sent and not yet received is lost.
        """
        self._sever("cut", lose=lose)

    def close(self) -> None:
        """Ends the link cleanly, now: as `cut`, but `receive` ends with `anyio.EndOfStream`."""
        self._sever("closed", lose=False)

    def after(self, count: int, action: Action, *, direction: Direction | None = None) -> None:
        """Does something when `count` more bytes have been let in, before the next one is.

        The bytes may still be under way then. A send that crosses the point is split there, so
        `link.after(10, link.stall)` lets exactly ten bytes pass.

        Args:
            count: How many bytes from now on; 0: at once.
            action: What to do, such as `link.cut`; called without an await in between.
            direction: Whose bytes count. None: those of both directions together.

        Raises:
            ValueError: if `count` is negative.
        """
        if count < 0:
            raise ValueError(f"a number of bytes cannot be negative: {count}")
        if self.severed:
            return
        if count == 0:
            action()
        else:
            self._orders.add(count, direction, action)

    def cut_after(self, count: int, *, direction: Direction | None = None, lose: bool = False) -> None:
        """Cuts the link when `count` more bytes have been let in. See `after` and `cut`.

        The send that the cut falls into gets `anyio.BrokenResourceError` if bytes of it stand behind the cut.
        """
        self.after(count, partial(self.cut, lose=lose), direction=direction)

    def stall(self, seconds: float | None = None, *, direction: Direction | None = None) -> None:
        """Lets nothing arrive for a while: bytes, ends, resets wait, in order. What has arrived can be read.

        Args:
            seconds: How long. None: until `resume`.
            direction: What stalls. None: both.
        """
        now = current_time()
        self._conditions.counters.stalls += 1
        self._conditions.note(f"{self._name} stalls {direction or 'both ways'}")
        for wire in self._wires(direction):
            if seconds is None:
                wire.stall(now)
            else:
                wire.stall(now, now + seconds)

    def resume(self) -> None:
        """Ends the stalls of both directions. What waited arrives now."""
        self.up.resume()
        self.down.resume()

    def half_open(self, direction: Direction | None = None) -> None:
        """Swallows what is under way and whatever is sent from now on, for ever: bytes, ends and resets.

        No end gets an error. Sends succeed until the buffer is full, and then wait. Only `cut` and `close` end it.

        Args:
            direction: What is swallowed. None: both.
        """
        if self.severed:
            return
        self._conditions.counters.half_opens += 1
        self._conditions.note(f"{self._name} is half-open {direction or 'both ways'}")
        now = current_time()
        for wire in self._wires(direction):
            wire.die(now)

    # What streams do.

    def enter(self, wire: Wire, data: bytes | memoryview) -> int:
        """Not for users: lets bytes in, up to the buffer's room and the next order, which is then carried out.

        Returns:
            How many got in. The link may have been cut or anything behind them.
        """
        direction: Direction = "up" if wire is self.up else "down"
        size = int(min(len(data), wire.room, self._orders.room(direction)))
        if not size:
            return 0
        data = bytes(data[:size])
        faults = self._conditions.faults
        wire.put(data, current_time(), faults, self._random)
        if faults.stall and self._random.random() < faults.stall:
            self.stall(self._random.expovariate(1) * faults.stall_seconds, direction=direction)
        if direction == "up":
            self._record(data)
        while action := self._orders.pop_due():
            action()
        return size

    def take(self, wire: Wire, max_bytes: int) -> bytes:
        """Not for users: what has arrived."""
        data = wire.take(max_bytes, current_time(), self._conditions.faults, self._random)
        if data and self.original is not None and wire is self.up:
            self.catch_up()
        return data

    def finish(self, outbound: Wire) -> None:
        """Not for users: one end sends no more, and reads on."""
        if not self.severed:
            outbound.finish(current_time(), self._delay(), gone=False)
            self._conditions.note(f"{self._name} {'dialler' if outbound is self.up else 'listener'} sends no more")

    def leave(self, outbound: Wire, inbound: Wire) -> None:
        """Not for users: one end is closed. As with TCP, the other gets a reset if bytes were left unread."""
        self._conditions.note(f"{self._name} {'dialler' if outbound is self.up else 'listener'} closes")
        if not self.severed:
            outbound.finish(current_time(), self._delay(), reset=inbound.unread > 0)
        inbound.abandon()
        self._open_ends -= 1
        if not self.live:
            self._conditions.ended(self.number)
        self._wake()
        if outbound is self.up:
            self._end_duplicates()

    # What the network does.

    def meet(self, fate: Fate) -> None:
        """Not for users: orders what was drawn for this link."""
        act: dict[str, Action] = {
            "cut": partial(self.cut, lose=fate.lose),
            "close": self.close,
            "half_open": partial(self.half_open, fate.direction),
        }
        self.after(fate.after, act[fate.kind], direction=fate.direction)

    def heal(self) -> None:
        """Not for users: forgets what was ordered, and ends stalls."""
        self._orders.clear()
        self.resume()

    def mirror_to(self, duplicate: Link) -> None:
        """Not for users: sends another link the first bytes of this one: those that were sent, and those to come."""
        self._duplicates.append(duplicate)
        duplicate.catch_up()

    def catch_up(self) -> None:
        """Not for users: a duplicate sends what its original has sent, as far as there is room."""
        assert self.original is not None
        recorded = self.original._recorded
        while self._mirrored < len(recorded) and not self.severed:
            size = self.enter(self.up, bytes(recorded[self._mirrored :]))
            if not size:
                return
            self._mirrored += size

    def _record(self, data: bytes) -> None:
        data = data[: RECORDED - len(self._recorded)]
        if data:
            self._recorded += data
            for duplicate in self._duplicates:
                duplicate.catch_up()

    def _end_duplicates(self) -> None:
        for duplicate in self._duplicates:
            duplicate.cut()
        self._duplicates.clear()

    def _sever(self, how: Severed, *, lose: bool) -> None:
        if self.severed:
            return
        self.severed = how
        if how == "cut":
            self._conditions.counters.cuts += 1
        else:
            self._conditions.counters.closes += 1
        self._conditions.note(f"{self._name} {how}{', bytes lost' if lose else ''}")
        self._conditions.ended(self.number)
        self._orders.clear()
        now = current_time()
        for wire in (self.up, self.down):
            wire.sever(now, reset=how == "cut", lose=lose)
        self._end_duplicates()

    def _delay(self) -> float:
        return draw_delay(self._conditions.faults, self._random)

    def _passed(self, direction: Direction | None) -> int:
        return sum(wire.sent for wire in self._wires(direction))

    def _wires(self, direction: Direction | None) -> tuple[Wire, ...]:
        return (self.up, self.down) if direction is None else (self._wire(direction),)

    def _wire(self, direction: Direction) -> Wire:
        return self.up if direction == "up" else self.down

    def _wake(self) -> None:
        """Everybody who waits looks again: a sender, too, has to learn that the other end is gone."""
        for wire in (self.up, self.down):
            wire.readable.notify()
            wire.writable.notify()

    @property
    def _name(self) -> str:
        return f"link {self.number}"

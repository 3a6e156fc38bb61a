"""A network in memory: addresses, listeners, dials, and everything that can go wrong with them, from a seed.

`network.dial` is what a reconnector calls, `network.listen` what a server serves; between them are links (`Link`), each
of which can be cut, stalled, half-opened by a test or by the seed. Time is that of the running loop, so under
`run_simulated` hours pass at once. There are no tasks: bytes that are under way have a time of arrival, and who waits
for them waits until then.

Who calls: tests, and the code under test through the streams. Everything belongs to one event loop.

Rejected: a proxy in front of real sockets (`CuttingProxy` is one; the kernel's timing makes its runs differ),
patching `anyio.connect_tcp` (hides from the reader which code runs over the fake).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import msgspec
from anyio import sleep
from anyio.lowlevel import checkpoint

from .conditions import Conditions, NetworkStatistics, Trace
from .dials import ALWAYS, Dials, HungDials
from .faults import Faults, draw_fate, seeded
from .link import Link
from .listener import NetworkListener
from .stream import NetworkStream

__all__ = ("Network",)

BUFFER: Final = 65_536  # bytes a direction: what a socket usually holds


class Network:
    """A simulated network.

    Args:
        seed: Decides all that is random.
        faults: What goes wrong by itself. Default: nothing.
        buffer: Bytes of a direction that may be under way or unread before `send` waits. Default 65,536.
        trace: Is called with a line for everything that happens to dials and links.

    Attributes:
        seed: As given.
        on_link: If set, it is called with each new link before any byte passes: the place for scripts such as
            `lambda link: link.cut_after(10)`.

    Raises:
        ValueError: if `buffer` is not positive.
    """

    def __init__(
        self,
        seed: int = 0,
        faults: Faults | None = None,
        *,
        buffer: int = BUFFER,
        trace: Trace | None = None,
    ) -> None:
        if buffer < 1:
            raise ValueError(f"a buffer has at least one byte, not {buffer}")
        self.seed: Final = seed
        self.on_link: Callable[[Link], object] | None = None
        self._buffer = buffer
        self._conditions = Conditions(faults or Faults(), trace, self._forget_link)
        self._dials = Dials(seeded(f"{seed} dials"))
        self._hung = HungDials()
        self._links: dict[int, Link] = {}  # the live ones, by number
        self._listeners: dict[str, NetworkListener] = {}
        self._open: dict[NetworkStream, None] = {}

    def __repr__(self) -> str:
        return f"<Network seed={self.seed}, {len(self.links)} links, {sorted(self._listeners)}>"

    @property
    def faults(self) -> Faults:
        """What goes wrong by itself. May be set: it holds for what is dialled and sent from then on."""
        return self._conditions.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._conditions.faults = faults

    @property
    def links(self) -> list[Link]:
        """The live links, newest last. A link lives until the network ends it or both of its ends are closed."""
        return list(self._links.values())

    @property
    def open_streams(self) -> list[NetworkStream]:
        """The streams that were handed out by `dial` and `accept` and are not closed: empty where nothing leaks."""
        return list(self._open)

    def statistics(self) -> NetworkStatistics:
        """What happened up to now."""
        return NetworkStatistics(open_streams=len(self._open), **msgspec.structs.asdict(self._conditions.counters))

    # What code under test does.

    def listen(self, address: str = "server") -> NetworkListener:
        """Listens at an address, until the listener is closed.

        Raises:
            OSError: if somebody listens there already (`EADDRINUSE`).
        """
        if address in self._listeners:
            raise OSError(errno.EADDRINUSE, f"somebody listens at {address!r} already")
        listener = NetworkListener(address, accepted=self._handed_out, closed=self._forget_listener)
        self._listeners[address] = listener
        return listener

    async def dial(self, address: str = "server") -> NetworkStream:
        """Connects. As with TCP it returns before the listener has accepted.

        Returns:
            The dialling end, which is yours to close.

        Raises:
            ConnectionRefusedError: if nobody listens there, 128 connections wait to be accepted, or the dial was
                refused by a fault.

        Cancelling it leaves nothing behind, unless the listener got the connection already: then that is reset.
        """
        await checkpoint()
        self._conditions.counters.dials += 1
        plan = self._dials.next(self._conditions.faults)
        if plan.refuse:
            raise self._refusal(address, "by a fault")
        if plan.seconds:
            await sleep(plan.seconds)
        if plan.hang:
            self._conditions.counters.hung += 1
            self._conditions.note(f"a dial to {address!r} hangs")
            stream = await self._hung.wait(address)
        else:
            stream = self._connect(address)
        self._handed_out(stream)
        return stream

    # What tests do.

    def refuse_dials(self, count: int | None = None) -> None:
        """Refuses the next `count` dials, at once. None: all until `heal`. 0: none from now on."""
        self._dials.refusing = ALWAYS if count is None else count

    def hang_dials(self, count: int | None = None) -> None:
        """Lets the next `count` dials hang until `release_dials` or `heal`. None: all until then. 0: none."""
        self._dials.hanging = ALWAYS if count is None else count

    def delay_dials(self, *seconds: float) -> None:
        """Lets the next dials take so long, one after the other. So `delay_dials(2, 1)` makes the second overtake."""
        self._dials.delay(*seconds)

    def release_dials(self, *, newest_first: bool = False) -> None:
        """Lets the dials that hang go on, now and in this order; new ones hang no more."""
        self._dials.hanging = 0
        self._hung.release(self._connect, newest_first=newest_first)

    def duplicate(self, link: Link) -> Link:
        """Connects once more to where `link` leads, with a copy of the first bytes that were or will be sent there.

        At most 65,536 of them. What the listener answers fills the duplicate's buffer and is never read. It is cut when
        `link` is cut, closed, or closed by who dialled; a duplicate of a link that has ended so lasts until you cut it.

        Raises:
            ConnectionRefusedError: if nobody listens there any more.
        """
        duplicate = self._new_duplicate(link)
        self._arrive(duplicate)
        return duplicate

    def heal(self) -> None:
        """From now on nothing goes wrong: `faults` are none, what was ordered is forgotten, stalls end, dials go on.

        Links that are half-open stay so: what they swallowed cannot come back.
        """
        self._conditions.faults = Faults()
        self._conditions.note("healed")
        self._dials.heal()
        for link in self.links:
            link.heal()
        self.release_dials()

    def _connect(self, address: str) -> NetworkStream:
        """Makes a link, lets its other end wait to be accepted, and returns this end."""
        faults = self._conditions.faults
        link = self._new_link(address)
        random = seeded(f"{self.seed} fate of link {link.number}")
        fate = draw_fate(faults, random)
        arriving = [link]
        if random.random() < faults.duplicate and self._listeners[address].room > 1:
            arriving.insert(random.randrange(2), self._new_duplicate(link))
        for each in arriving:
            self._arrive(each)
        self._conditions.note(f"link {link.number} to {address!r}")
        if self.on_link is not None:
            self.on_link(link)
        if fate is not None:
            link.meet(fate)
        return NetworkStream(link, dialled=True, closed=self._forget_stream)

    def _new_link(self, address: str, original: Link | None = None) -> Link:
        listener = self._listeners.get(address)
        if listener is None:
            raise self._refusal(address, "nobody listens there")
        if not listener.room:
            raise self._refusal(address, "too many connections wait there")
        number = self._conditions.counters.links + 1
        random = seeded(f"{self.seed} link {number}")
        link = Link(number, address, self._conditions, random, self._buffer, original)
        self._links[number] = link
        return link

    def _new_duplicate(self, link: Link) -> Link:
        duplicate = self._new_link(link.address, original=link)
        self._conditions.counters.duplicates += 1
        self._conditions.note(f"link {duplicate.number} repeats link {link.number}")
        link.mirror_to(duplicate)
        return duplicate

    def _arrive(self, link: Link) -> None:
        self._listeners[link.address].arrive(NetworkStream(link, dialled=False, closed=self._forget_stream))

    def _refusal(self, address: str, why: str) -> ConnectionRefusedError:
        self._conditions.counters.refused += 1
        self._conditions.note(f"a dial to {address!r} is refused: {why}")
        return ConnectionRefusedError(errno.ECONNREFUSED, f"a dial to {address!r} is refused: {why}")

    def _handed_out(self, stream: NetworkStream) -> None:
        self._open[stream] = None

    def _forget_link(self, number: int) -> None:
        self._links.pop(number, None)

    def _forget_stream(self, stream: NetworkStream) -> None:
        self._open.pop(stream, None)

    def _forget_listener(self, listener: NetworkListener) -> None:
        del self._listeners[listener.address]

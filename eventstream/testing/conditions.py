"""What all links of a simulated network share: the faults in force, the counting, and the telling of what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec
from anyio import current_time

from .faults import Faults

__all__ = ("Conditions", "Counters", "NetworkStatistics", "Trace")

Trace: TypeAlias = Callable[[str], object]
"""Is called with a line for everything that happens: the time, and what."""


class Counters(msgspec.Struct):
    """What happened up to now. See `NetworkStatistics`, which is this at one moment."""

    dials: int = 0
    refused: int = 0
    hung: int = 0
    links: int = 0
    cuts: int = 0
    closes: int = 0
    half_opens: int = 0
    stalls: int = 0
    duplicates: int = 0


class NetworkStatistics(msgspec.Struct, frozen=True):
    """What happened in a network up to now.

    Attributes:
        dials: Calls of `dial`.
        refused: Dials that were refused, for whatever reason.
        hung: Dials that were made to hang.
        links: Links made, duplicates among them.
        cuts: Links cut, by a test or the seed.
        closes: Links closed cleanly by the network.
        half_opens: Times that a link began to swallow bytes.
        stalls: Times that a link began to stall.
        duplicates: Links that repeat the first bytes of another.
        open_streams: Streams that were handed out and not closed.
    """

    dials: int
    refused: int
    hung: int
    links: int
    cuts: int
    closes: int
    half_opens: int
    stalls: int
    duplicates: int
    open_streams: int


class Conditions:
    """What all links of a network share.

    Attributes:
        faults: The faults in force; `Network` changes them.
        counters: What happened; whoever does it counts it.
        trace: Is told of everything, if not None.
        ended: Is told the number of a link that lives no more.
    """

    def __init__(self, faults: Faults, trace: Trace | None, ended: Callable[[int], object]) -> None:
        self.faults = faults
        self.counters: Counters = Counters()
        self.trace = trace
        self.ended = ended

    def note(self, text: str) -> None:
        """Tells the trace what happens now."""
        if self.trace is not None:
            self.trace(f"{current_time():.6f} {text}")

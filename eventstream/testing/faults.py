"""What a simulated network does wrong: how likely, how long, how much; and the drawing of it.

Pure: chances in, decisions out. Randomness comes as an argument, so that a seed decides everything. The wires and links
ask here; `Network` holds the `Faults` in force.

Rejected: one big "badness" knob (a failing seed would not say what failed); times of death in seconds (an idle link
would need a task of the kit to kill it, and the interesting places to die are between bytes, not between seconds).
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final, Literal, TypeAlias

import msgspec

__all__ = ("Direction", "Faults", "Fate", "draw_delay", "draw_fate", "draw_part", "draw_sizes", "seeded")

Direction: TypeAlias = Literal["up", "down"]
"""`"up"`: from who dialled to who listens. `"down"`: back."""

PIECES: Final = 8  # at most so many pieces of one send: enough to split every frame, too few to slow a run down


def seeded(name: str) -> Random:
    """A random source of its own for one purpose: what is drawn from it does not depend on any other's use."""
    return Random(name)  # noqa: S311  # runs have to be repeatable, not secret


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How a network misbehaves by itself. All chances are 0 by default: a perfect network.

    Attributes:
        latency: Seconds that bytes, ends and resets travel.
        jitter: Seconds at most that are added to each piece's latency. The order stays.
        fragment: Chance that a send is split into pieces that travel singly, and that a receive gets a part only.
        stall: Chance of a send that nothing passes for a while after it, in its direction.
        stall_seconds: Mean length of such a while.
        cut: Share of the links that are cut: both ends get `anyio.BrokenResourceError`.
        lossy: Share of the cuts that take with them what was sent and not yet received.
        close: Share of the links that the network closes cleanly: both ends get `anyio.EndOfStream`.
        half_open: Share of the links that begin to swallow what is sent, in one direction or both, without an error.
        life_bytes: Mean number of bytes that pass before a link is cut, closed or half-open.
        refuse: Chance that a dial fails with `ConnectionRefusedError`.
        hang: Chance that a dial never returns.
        dial_seconds: A dial takes a time between 0 and this, so later dials can overtake earlier ones.
        duplicate: Chance that the listener gets a second connection with the same first bytes, which nobody reads.

    Raises:
        ValueError: if a chance is not within 0 to 1, the shares of links add up to more than 1, or a time or size is
            negative or not finite.
    """

    latency: float = 0.0
    jitter: float = 0.0
    fragment: float = 0.0
    stall: float = 0.0
    stall_seconds: float = 1.0
    cut: float = 0.0
    lossy: float = 0.0
    close: float = 0.0
    half_open: float = 0.0
    life_bytes: int = 4096
    refuse: float = 0.0
    hang: float = 0.0
    dial_seconds: float = 0.0
    duplicate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fragment", "stall", "cut", "lossy", "close", "half_open", "refuse", "hang", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance between 0 and 1, not {getattr(self, name)!r}")
        for name in ("latency", "jitter", "stall_seconds", "life_bytes", "dial_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)!r}")
        shares = self.cut + self.close + self.half_open
        if shares > 1 + 1e-9:
            raise ValueError(f"cut, close and half_open are shares of all links: together at most 1, not {shares:g}")

    @classmethod
    def draw(cls, seed: int) -> Faults:
        """A mixture of faults that depends on the seed only: each seed leaves some kinds out altogether.

        Runs that have every fault at once hide what needs one fault to be absent, so a simulation over many seeds finds
        more with this than with one fixed mixture. Every dial and link still has a chance to live.
        """
        random = seeded(f"faults {seed}")

        def chance(most: float) -> float:
            return round(random.uniform(0.1, 1.0) * most, 3) if random.random() < 0.5 else 0.0

        return cls(
            latency=chance(0.2),
            jitter=chance(0.2),
            fragment=chance(0.8),
            stall=chance(0.05),
            stall_seconds=random.choice((0.5, 5.0)),
            cut=chance(0.6),
            lossy=chance(1.0),
            close=chance(0.2),
            half_open=chance(0.15),
            life_bytes=random.choice((20, 200, 2000, 20000)),
            refuse=chance(0.3),
            hang=chance(0.1),
            dial_seconds=chance(2.0),
            duplicate=chance(0.2),
        )


class Fate(msgspec.Struct, frozen=True):
    """What a link will come to.

    Attributes:
        kind: What happens.
        after: Bytes of `direction` (None: of both together) that pass before.
        direction: Whose bytes count; of a half-open link also the direction that swallows (None: both).
        lose: Whether a cut takes with it what is under way.
    """

    kind: Literal["cut", "close", "half_open"]
    after: int
    direction: Direction | None
    lose: bool


def draw_fate(faults: Faults, random: Random) -> Fate | None:
    """What a new link will come to; None: nothing."""
    point = random.random()
    after = int(random.expovariate(1 / faults.life_bytes)) if faults.life_bytes else 0
    direction: Direction | None = random.choice(("up", "down", None))
    lose = random.random() < faults.lossy
    if point < faults.cut:
        return Fate("cut", after, direction, lose)
    if point < faults.cut + faults.close:
        return Fate("close", after, direction, False)
    if point < faults.cut + faults.close + faults.half_open:
        return Fate("half_open", after, direction, False)
    return None


def draw_delay(faults: Faults, random: Random) -> float:
    """Seconds until a piece arrives."""
    return faults.latency + random.random() * faults.jitter if faults.jitter else faults.latency


def draw_sizes(size: int, faults: Faults, random: Random) -> Iterator[int]:
    """The sizes of the pieces that a send of `size` bytes is split into."""
    if faults.fragment and random.random() < faults.fragment:
        for _ in range(PIECES - 1):
            if size < 2:
                break
            piece = draw_part(size, random)
            yield piece
            size -= piece
    if size:
        yield size


def draw_part(size: int, random: Random) -> int:
    """A part of `size` bytes, at least one: mostly small, since splits near the front hit headers."""
    return 1 + int(random.random() ** 3 * (size - 1))

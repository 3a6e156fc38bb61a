"""How long to wait before the next dial, and when to give up.

Exponential backoff with full jitter: a random part of a bound that doubles, so that a thousand clients of one
restarted server spread out. The first dial after a working link is made at once.
"""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

__all__ = ("Retry",)

DOUBLINGS: Final = 32  # beyond it the bound is at its cap in any case, and a power would grow without end


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule of dials.

    Args:
        first: Bound of the first wait, in seconds.
        cap: Bound of every later one, in seconds.
        give_up_after: Seconds without a link after which the pipe fails for good; None: never.
    """

    first: float = 0.1
    cap: float = 15.0
    give_up_after: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.cap < inf:
            raise ValueError(f"0 < first <= cap, both finite, not {self.first} and {self.cap}")
        if self.give_up_after is not None and not self.give_up_after >= 0:
            raise ValueError(f"give_up_after is a time in seconds or None, not {self.give_up_after}")

    def delay(self, failures: int, roll: float) -> float:
        """Seconds to wait after so many dials failed in a row; `roll` is a random number in [0, 1)."""
        if not failures:
            return 0.0
        return roll * min(self.cap, self.first * 2.0 ** min(failures - 1, DOUBLINGS))

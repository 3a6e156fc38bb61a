"""`check_log`: the conformance suite that any log must pass, ours and yours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..logs import Log
from .log_checks import CheckFailed, Rig, checks

__all__ = ("CheckFailed", "check_log")


async def check_log(make: Callable[[], Awaitable[Log]], *, durable: bool = True, trims: bool = False) -> list[str]:
    """Checks a log through the bus, as users see it: order, resume, batches, given indexes, expect, ids, compaction,
    keys, concurrent publishers, epochs, the floor, retention, restart.

    Args:
        make: Gives a new log on the same events each time it is awaited: after a bus was left, what a restart is. The
            topics that are used have new names, so it may be a log with events in it.
        durable: Whether events outlive the bus.
        trims: Whether the log was given a bound, of at most some hundred events for each topic, that it has to hold.

    Returns:
        The names of the checks, all of which passed.

    Raises:
        CheckFailed: at the first promise that is broken.
    """  # the list is the point
    passed: list[str] = []
    for check in checks(durable=durable, trims=trims):
        await check(Rig(check.__name__, make))
        passed.append(check.__name__)
    return passed

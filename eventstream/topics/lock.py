"""A topic's lock: held for microseconds, never across an await, and never twice by one thread.

No user code of ours runs under it, but the interpreter may run some at any moment: a finalizer that the garbage
collector calls, or a signal handler. If that publishes to the very topic that is being published to, a plain lock would
hang for ever and a re-entrant one would let it tear the buffer. This one refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock

from ..errors import Reentered

__all__ = ("TopicLock",)


class TopicLock:
    """Use it with `with`; a publish, which is in a hurry, does the same by hand.

    Attributes:
        acquire, release: Those of a re-entrant lock, which lets the same thread in again, to find `held` set.
        held: Whether somebody is inside.
        dropped: What was let go of inside: freed outside, since a payload's finalizer is user code.
    """

    __slots__ = ("_topic", "acquire", "dropped", "held", "release")

    def __init__(self, topic: str) -> None:
        lock = RLock()
        self._topic = topic
        self.acquire: Callable[[], bool] = lock.acquire
        self.release: Callable[[], None] = lock.release
        self.held: bool = False
        self.dropped: list[object] = []

    def __enter__(self) -> None:
        self.acquire()
        if self.held:
            self.refuse()
        self.held = True

    def __exit__(self, *_: object) -> None:
        dropped, self.dropped = self.dropped, []
        self.held = False
        self.release()
        del dropped

    def refuse(self) -> None:
        """For who has acquired it and found it held.

        Raises:
            Reentered: always.
        """
        self.release()
        raise Reentered(self._topic)

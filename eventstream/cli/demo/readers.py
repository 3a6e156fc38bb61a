"""The subscribers of the demo: each reads by `frames()`, writes down every frame, and now and then behaves badly.

What a reader writes down is all that the count believes; what it shows of itself while it plays is for the eye alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec
from anyio.abc import TaskStatus

from ...events import Event, Frame, ResetReason, Resumed, SnapshotEnd, SnapshotStart, Topic
from ...topics import Subscription
from ..running import counted
from .cutting import WINDOW, Cutter
from .flights import Flight
from .stage import Stage

__all__ = ("Part", "Pause", "Reader", "State")

State: TypeAlias = Literal["waiting", "reading", "away", "stuck", "done"]


class Pause(msgspec.Struct, frozen=True):
    """A stretch of the play in which a subscriber does not read.

    Attributes:
        how: `away`: it closes its subscription, keeps the position as text, and comes back with that. `stuck`: it
            keeps the subscription open and does not read from it.
        start: The part of the flights after which it begins.
        end: The part of the flights after which it ends.
    """

    how: Literal["away", "stuck"]
    start: float
    end: float


class Part(msgspec.Struct, frozen=True):
    """What a subscriber is to do.

    Attributes:
        name: What it is called.
        topic: What it follows.
        key: The one key that it follows, or None.
        joins: The part of the flights after which it first subscribes.
        pauses: When it does not read, in order.
        window: Bytes that may wait for it here, unread.
    """

    name: str
    topic: Topic[Flight]
    key: str | None = None
    joins: float = 0.0
    pauses: tuple[Pause, ...] = ()
    window: int = WINDOW


class Reader:
    """Plays one part.

    Attributes:
        part: What it is to do.
        frames: Everything that it received, in order.
        events: How many of those were events.
        resets: How many told it to forget what it knew.
        state: What it is doing.
        saved: The position that it left with, as text.
        subscription: While it has one.
    """

    def __init__(self, part: Part, stage: Stage, tell: Callable[[str], None]) -> None:
        self.part = part
        self.frames: list[Frame[Flight]] = []
        self.events: int = 0
        self.resets: int = 0
        self.state: State = "waiting"
        self.saved: str | None = None
        self.subscription: Subscription[Flight] | None = None
        self._stage = stage
        self._tell = tell
        self._pauses = deque(part.pauses)
        self._reason: ResetReason = "new"
        self._before = 0  # events before the snapshot

    async def run(self, cutter: Cutter, *, task_status: TaskStatus[None]) -> None:
        """Until it has had everything after the play is over. Has started when it has begun, or waits to join."""
        started = task_status.started
        if self.part.joins:
            started()
            await self._stage.reached(self.part.joins)
        async with cutter.connect(self.part.window) as bus:
            while self.state != "done":
                async with bus.subscribe(self.part.topic, key=self.part.key, after=self.saved) as subscription:
                    self.subscription = subscription
                    pause = await self._read(subscription, started if not self.frames else None)
                    self.saved = str(subscription.position)
                self.subscription = None
                if pause is not None:
                    await self._sit_out(pause)

    def behind(self, head: int) -> int:
        """How many events it has not had, if it follows them all; else how many of those that came here wait for it."""
        if self.subscription is None:
            return 0
        if self.part.key is not None:
            return self.subscription.lag
        return max(head - self.subscription.position.index, 0)

    def hurry(self) -> None:
        """The play is over: asks for a frame that tells its position, for nothing else may come."""
        if self.subscription is not None:
            self.subscription.request_bookmark()

    async def _read(self, subscription: Subscription[Flight], begun: Callable[[], None] | None) -> Pause | None:
        """Reads until it is time to leave, or all is over."""
        self.state = "reading"
        async for frame in subscription.frames():
            self._note(frame)
            if begun is not None and not self.part.joins:
                begun()
                begun = None
            if self._stage.over:
                if subscription.position.index >= self._stage.heads.get(self.part.topic.name, 0):
                    break
            elif self._pauses and self._stage.passed(self._pauses[0].start):
                pause = self._pauses.popleft()
                if pause.how == "away":
                    return pause
                await self._sit_out(pause)
        self.state = "done"
        return None

    async def _sit_out(self, pause: Pause) -> None:
        self.state = pause.how
        name = self.part.name
        if pause.how == "away":
            self._tell(f"{name} leaves, and keeps its position")
        else:
            self._tell(f"{name} stops reading")
        await self._stage.reached(pause.end)
        if pause.how == "stuck":
            self._tell(f"{name} reads on")
            self.state = "reading"

    def _note(self, frame: Frame[Flight]) -> None:
        self.frames.append(frame)
        name = self.part.name
        if isinstance(frame, Event):
            self.events += 1
        elif isinstance(frame, SnapshotStart):
            self._reason, self._before = frame.reason, self.events
            self.resets += frame.reason != "new"
        elif isinstance(frame, SnapshotEnd) and frame.position.index:
            told = f"a snapshot of {counted(self.events - self._before, 'event')} speaks for {frame.position.index:,}"
            how = "joins" if self._reason == "new" else f"is reset ({self._reason})"
            self._tell(f"{name} {how}: {told}")
        elif isinstance(frame, Resumed):
            self._tell(f"{name} is back, and goes on after {frame.position.index:,}")

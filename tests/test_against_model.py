"""Any order of publishing, reading, resuming, refreshing, lagging and closing, against a model of the promise.

Every reader is judged by what its frames say, with no look inside: after `Resumed` or `SnapshotEnd` its events must be
exactly those of its key or prefix that follow that position, in order and once; a snapshot must be the state at the
position of its end; and it may be reset only for a reason that is true.

The loop is turned by the test's own thread (see `stepping`), so a run depends on what is drawn and on nothing else. By
a portal to a thread, each of thousands of calls waited for the machine's scheduler, twice: the test took three seconds
or half a minute, and twice more than its minute, with nothing to tell that from a hang.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from stepping import Stepped, SteppedAsyncio, SteppedTrio

from eventstream import (
    Append,
    Bookmark,
    Event,
    EventBus,
    EventStreamError,
    MemoryLog,
    Position,
    PositionLost,
    Resumed,
    SlowSubscriber,
    SnapshotEnd,
    SnapshotFailed,
    SnapshotOptions,
    SnapshotStart,
    Subscription,
    SubscriptionClosed,
    Topic,
)
from eventstream.logs import Entries, Terms
from eventstream.topics import LiveTopic
from support import settle

KEYS = ["a", "ab", "b"]
SOURCE_TIMEOUT = 30.0
Payload = tuple[str, int]
Change = tuple[int, str, int | None]  # index, key, value (None: tombstone)


class Model:
    """What was published, and what a reader may therefore be told."""

    def __init__(self, retain: int, max_lag: int) -> None:
        self.retain, self.max_lag = retain, max_lag
        self.epoch = ""
        self.changes: list[Change] = []
        self.past_epochs: set[str] = set()

    def begin(self, epoch: str) -> None:
        self.past_epochs.add(self.epoch)
        self.epoch, self.changes = epoch, []

    @property
    def head(self) -> int:
        return self.changes[-1][0] if self.changes else 0

    @property
    def floor(self) -> int:
        trimmed = len(self.changes) - self.retain
        return self.changes[trimmed - 1][0] if trimmed > 0 else 0

    def state(self, index: int, key: str | None, prefix: str | None) -> dict[str, int]:
        state: dict[str, int] = {}
        for at, name, value in self.changes:
            if at <= index and (key is None or name == key) and (prefix is None or name.startswith(prefix)):
                if value is None:
                    state.pop(name, None)
                else:
                    state[name] = value
        return state

    def after(self, index: int, key: str | None, prefix: str | None) -> list[Change]:
        return [
            (at, name, value)
            for at, name, value in self.changes
            if at > index and (key is None or name == key) and (prefix is None or name.startswith(prefix))
        ]


class ToldLog(MemoryLog):
    """Tells the model of each commit in the moment when it is made, before any reader can see it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def append_nowait(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        position = super().append_nowait(live, entries, terms)
        self.machine.published(position, entries)
        return position

    async def refresh(self, live: LiveTopic) -> Position:
        position = await super().refresh(live)
        self.machine.model.begin(position.epoch)
        for reader in self.machine.all:
            reader.refreshed = True
        return position


class Reader:
    """Reads frames, as many as it is allowed to, and holds each against the model."""

    def __init__(
        self,
        model: Model,
        subscription: Subscription[Any],
        after: Position | None,
        filters: tuple[str | None, str | None],
        has_snapshot: bool,
    ) -> None:
        self.model, self.subscription, self.after = model, subscription, after
        self.key, self.prefix = filters
        self.allowed = 0
        self.unlimited = False
        self.position: Position | None = None
        self.collected: dict[str, int] | None = None
        self.unread = 0  # at most so many events were published since it last was known to be current
        self.worst = 0
        self.refreshed = False
        self.error: EventStreamError | None = None
        self.can_resume = after is not None and (
            after.epoch == model.epoch
            and model.floor <= after.index <= model.head
            and (after.index > 0 or not has_snapshot)
        )
        self.frames = 0

    async def run(self) -> None:
        try:
            async for frame in self.subscription.frames():
                self.judge(frame)
                self.frames += 1
                while not self.allowed and not self.unlimited:
                    await checkpoint()
                self.allowed -= 1
        except EventStreamError as error:
            self.error = error

    def judge(self, frame: Any) -> None:
        match frame:
            case Resumed(position):
                assert not self.frames, "only the first frame can be Resumed"
                if self.after is not None:
                    assert self.can_resume
                    assert position == self.after
                self.position = position
            case SnapshotStart(position, reason):
                assert position == Position(self.model.epoch, 0)
                self.check_reason(reason)
                self.position, self.collected = position, {}
            case SnapshotEnd(position):
                assert self.collected is not None
                if position.epoch == self.model.epoch:
                    assert self.collected == self.model.state(position.index, self.key, self.prefix)
                self.position, self.collected = position, None
                if position.epoch == self.model.epoch:
                    self.worst = self.unread = len(self.model.after(position.index, None, None))
            case Bookmark(position):
                self.check_nothing_until(position)
                self.position = position
            case Event():
                self.check_event(frame)
            case _:
                raise AssertionError(frame)

    def check_reason(self, reason: str) -> None:
        match reason:
            case "new":
                assert not self.frames
                assert self.after is None
            case "expired" | "epoch":
                assert not self.frames
                assert self.after is not None
                assert not self.can_resume
            case "lagged":
                assert self.worst > self.model.max_lag, f"reset as a laggard though it was never {self.worst} behind"
            case "refreshed":
                assert self.refreshed
        # A shared snapshot may be a little old, and the live events behind it count for the lag: unknown until its end.
        self.worst = self.unread = len(self.model.changes)

    def check_event(self, event: Event[Any]) -> None:
        assert self.position is not None, "an event came before the first frame"
        value: Any = None if event.tombstone else event.payload[1]
        if self.collected is not None:
            assert event.key not in self.collected, "a snapshot tells a key once"
            self.collected[event.key] = value
            return
        self.unread -= 1
        if self.position.epoch == self.model.epoch:
            expected = self.model.after(self.position.index, self.key, self.prefix)
            batch = [change for change in expected if change[0] == expected[0][0]] if expected else []
            assert (event.index, event.key, value) in batch, f"{event} came, {batch} was to come after {self.position}"
            standing = self.subscription.position
            if (event.index, event.key, value) == batch[-1]:
                assert standing == Position(self.model.epoch, event.index)
                self.position = standing
            else:
                assert standing.index == event.index - 1, "a position never points into a batch"

    def check_nothing_until(self, position: Position) -> None:
        assert self.position is not None
        if position.epoch == self.model.epoch:
            passed = self.model.after(self.position.index, self.key, self.prefix)
            assert not [change for change in passed if change[0] <= position.index]


class Machine(RuleBasedStateMachine):
    """One bus with one topic, whose state comes from nowhere, from compaction or from a source."""

    kinds = ("plain", "compacted", "source")
    readers = Bundle("readers")
    positions = Bundle("positions")

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.begin_loop()
        self.call = self.loop.call
        self.tasks: list[Future[None]] = []
        self.all: list[Reader] = []
        self.serial = 0

    def begin_loop(self) -> Stepped:
        raise NotImplementedError

    @initialize(
        kind=st.sampled_from(kinds),
        retain=st.sampled_from([0, 3, 200]),
        max_lag=st.sampled_from([2, 150]),
        ttl=st.sampled_from([0.0, 60.0]),
    )
    def open(self, kind: str, retain: int, max_lag: int, ttl: float) -> None:
        self.kind = kind
        self.model = Model(retain, max_lag)
        self.topic: Topic[Any] = Topic(
            "t", tuple, key=lambda payload: payload[0], compacted=kind == "compacted", retain=retain, max_lag=max_lag
        )
        self.gate = False
        self.failing = False
        self.longest = 0.0  # of the times that passed at once
        self.bus = EventBus(ToldLog(self), snapshots=SnapshotOptions(ttl=ttl, timeout=SOURCE_TIMEOUT))
        self.running = True
        self.tasks.append(self.loop.start(self.run))
        self.call(settle, 2)
        if kind == "source":
            self.bus.snapshot(self.topic)(self.source)
        self.model.begin(self.call(self.bus.publish_many, self.topic, []).epoch)

    async def run(self) -> None:
        async with self.bus:
            while self.running:
                await checkpoint()

    async def source(self, key: str | None, append: Append) -> int:
        index, state = self.model.head, self.model.state(self.model.head, key, None)
        for name in sorted(state):
            append((name, state[name]))
            while self.gate:
                await checkpoint()
        if self.failing:
            raise ValueError("the source is away")
        return index

    def payload(self, key: str) -> Payload:
        self.serial += 1
        return key, self.serial

    @rule(key=st.sampled_from(KEYS), times=st.sampled_from([1, 1, 1, 5, 140]))
    def publish(self, key: str, times: int) -> None:
        for _ in range(times):
            self.call(lambda: self.bus.publish_nowait(self.topic, self.payload(key)))

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
    def publish_batch(self, keys: list[str]) -> None:
        self.call(self.bus.publish_many, self.topic, [self.payload(key) for key in keys])

    @rule(key=st.sampled_from(KEYS), gap=st.integers(1, 3))
    def publish_at(self, key: str, gap: int) -> None:
        index = self.model.head + gap
        position = self.call(lambda: self.bus.publish_nowait(self.topic, self.payload(key), index=index))
        assert position.index == index

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: str) -> None:
        if self.kind == "compacted":
            self.call(self.bus.delete, self.topic, key)

    def published(self, position: Position, entries: Entries) -> None:
        assert position.epoch == self.model.epoch
        assert position.index > self.model.head
        self.model.changes += [(position.index, key, None if value is None else value[1]) for key, value in entries]
        for reader in self.all:
            reader.unread += len(entries)
            reader.worst = max(reader.worst, reader.unread)

    @rule(
        target=readers,
        filters=st.sampled_from([(None, None), ("a", None), ("b", None), (None, "a")]),
        after=st.none() | positions,
    )
    def subscribe(self, filters: tuple[str | None, str | None], after: Position | None) -> Reader:
        key, prefix = filters
        subscription = self.call(lambda: self.bus.subscribe(self.topic, key=key, prefix=prefix, after=after))
        reader = Reader(self.model, subscription, after, filters, self.kind != "plain")
        # What stands in the snapshot it will share, or in the history it resumes from, counts for its lag too.
        reader.unread = reader.worst = len(self.model.changes)
        self.all.append(reader)
        self.tasks.append(self.loop.start(reader.run))
        return reader

    @rule(reader=readers, frames=st.sampled_from([1, 2, 10, 200]))
    def read(self, reader: Reader, frames: int) -> None:
        reader.allowed += frames
        self.call(settle, 5)

    @rule(target=positions, reader=readers)
    def note_position(self, reader: Reader) -> Any:
        return self.call(lambda: reader.subscription.position)

    @rule(target=positions, index=st.integers(0, 30))
    def invent_position(self, index: int) -> Position:
        return Position(self.model.epoch, index)

    @rule(reader=consumes(readers))
    def close(self, reader: Reader) -> None:
        if reader in self.all:
            self.all.remove(reader)
            self.call(reader.subscription.close)
            reader.unlimited = True
            self.call(settle, 5)
            assert reader.error is None or not isinstance(reader.error, SubscriptionClosed)

    @rule()
    def refresh(self) -> None:
        assert self.call(self.bus.refresh, self.topic).index == 0

    @rule(gate=st.booleans())
    def hold_source(self, gate: bool) -> None:
        self.gate = gate
        self.call(settle, 5)

    @rule(seconds=st.sampled_from([0.5, 100]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.pass_time(seconds)
        self.longest = max(self.longest, seconds)
        self.call(settle, 5)

    @rule(failing=st.booleans())
    def break_source(self, failing: bool) -> None:
        self.failing = failing

    @rule()
    def let_all_read(self) -> None:
        """With nothing in their way, all readers that have not ended for a good reason stand at the head."""
        self.gate = False
        for reader in self.all:
            reader.unlimited = True
        self.call(settle, 60)
        for reader in list(self.all):
            if reader.error is not None:
                self.check_end(reader)
                self.all.remove(reader)
            else:
                assert reader.position is not None
                assert reader.collected is None
                head = Position(self.model.epoch, self.model.head)
                statistics = self.call(reader.subscription.statistics)
                assert (statistics.position, statistics.lag) == (head, 0)
                reader.check_nothing_until(head)
                reader.unread = reader.worst = 0
                reader.unlimited = False
                reader.allowed = 0

    def check_end(self, reader: Reader) -> None:
        match reader.error:
            case SlowSubscriber():
                assert self.kind == "plain"
                assert reader.worst > self.model.max_lag
            case PositionLost():
                assert self.kind == "plain"
                assert reader.refreshed or (not reader.frames and not reader.can_resume)
            case SnapshotFailed(why=why):
                assert self.kind == "source"
                assert why in ("raised", "lagged", "index") or (why == "timeout" and self.longest >= SOURCE_TIMEOUT)
            case _:
                raise AssertionError(reader.error)

    @invariant()
    def tasks_are_alive_or_ended_well(self) -> None:
        for task in self.tasks:
            if task.done():
                task.result()

    def teardown(self) -> None:
        self.gate = self.running = False
        for reader in self.all:
            reader.unlimited = True
        try:
            for task in self.tasks:
                self.loop.wait_for(task)
        finally:
            self.loop.close()


class AsyncioMachine(Machine):
    def begin_loop(self) -> Stepped:
        return SteppedAsyncio()


class TrioMachine(Machine):
    def begin_loop(self) -> Stepped:
        return SteppedTrio()


pytestmark = pytest.mark.timeout(600)  # a failure is found in seconds, and made small in minutes

TestOnAsyncio = AsyncioMachine.TestCase
TestOnAsyncio.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestOnTrio = TrioMachine.TestCase
TestOnTrio.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

"""The outbox under any failures: nothing acknowledged is lost, doubled, or out of its order."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outbox_support import CallingBus, FailingBus, InlineWriter, at, notes

from eventstream.errors import NotStored
from eventstream.outbox import Outbox, Sending
from eventstream.pipes import Retry
from eventstream.testing import run_simulated

pytestmark = pytest.mark.may_block

KEYS = "abc"
FAULTS = ["ok", "unreachable", "refused", "busy", "unsure", "silent", "lost", "forgotten"]
Step = tuple[str, Any]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.tuples(st.sampled_from(KEYS), st.sampled_from([None, None, None, 0, 1]))),
        st.tuples(st.just("bus"), st.lists(st.sampled_from(FAULTS), min_size=1, max_size=6)),
        st.tuples(st.just("pass"), st.sampled_from([0.0, 0.005, 0.5, 5.0, 50.0, 130.0])),
        st.tuples(st.just("leave"), st.sampled_from([0.0, 100.0, 300.0])),
        st.tuples(st.just("kill"), st.sampled_from([0.0, 100.0, 300.0])),
        st.tuples(st.just("disk"), st.integers(0, 3)),
        st.tuples(st.just("retry"), st.integers(0, 3)),
        st.tuples(st.just("discard"), st.integers(0, 3)),
    ),
    max_size=40,
)


class Disk:
    """Refuses so many of the next commits."""

    def __init__(self) -> None:
        self.failures = 0

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if disk.failures and sql == "COMMIT":
                    disk.failures -= 1
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(sql, *rest)

        return sqlite3.connect(*args, factory=Connection, **options)


class Story:
    """Plays the steps, and remembers what was promised."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.bus = FailingBus()
        self.disk = Disk()
        self.random = Random(seed)
        self.kept: list[tuple[str, int, str]] = []  # key, n and id of what was acknowledged, in order
        self.maybe: set[str] = set()  # ids whose publish failed: they are kept or not
        self.given_up: set[str] = set()  # by a person: discarded, or repeated in spite of a doubt
        self.sending = Sending(retry=Retry(first=0.5, cap=4.0), in_flight=4)
        self.n = 0

    async def play(self, steps: list[Step], calls_back: bool) -> None:
        async with anyio.create_task_group() as tasks:
            if calls_back:
                self.bus = CallingBus(tasks)
            await self._play(steps)
            tasks.cancel_scope.cancel()

    async def _play(self, steps: list[Step]) -> None:
        rest = [*steps, ("leave", 0.0)]
        while rest:
            async with self._open() as outbox:
                pause = await self._one_life(outbox, rest)
            await anyio.sleep(pause)
        self.bus.plan.clear()
        self.disk.failures = 0
        async with self._open() as outbox:
            await outbox.retry()
            await outbox.flush(1000.0)
            self._check(outbox)

    def _open(self) -> Outbox:
        return at(self.path, self.bus, sending=self.sending, random=self.random, connect=self.disk.connect)

    async def _one_life(self, outbox: Outbox, rest: list[Step]) -> float:
        while True:
            what, how = rest.pop(0)
            match what:
                case "publish":
                    await self._publish(outbox, *how)
                case "bus":
                    self.bus.plan.extend(how)
                case "pass":
                    await anyio.sleep(how)
                case "disk":
                    self.disk.failures = how
                case "retry" | "discard":
                    await self._decide(outbox, what, how)
                case _:
                    self.disk.failures = 0
                    outbox._writer.dead = what == "kill"  # type: ignore[attr-defined]
                    return float(how)

    async def _publish(self, outbox: Outbox, key: str, expect: int | None) -> None:
        self.n += 1
        id = f"id-{self.n}"
        try:
            await outbox.publish(notes, {"n": self.n}, key=key, expect=expect, id=id)
        except NotStored:
            self.maybe.add(id)
        else:
            self.kept.append((key, self.n, id))

    async def _decide(self, outbox: Outbox, what: str, which: int) -> None:
        stuck = [entry for entry in outbox.entries() if entry.state in ("conflict", "unknown")]
        if which >= len(stuck):
            return
        try:
            if what == "discard":
                await outbox.discard(stuck[which].id)
                self.given_up.add(stuck[which].id)
            else:
                if stuck[which].state == "unknown":
                    self.given_up.add(stuck[which].id)
                await outbox.retry(stuck[which].id, expect="any")
        except NotStored:
            return

    def _check(self, outbox: Outbox) -> None:
        arrived = [id for _, _, id in self.bus.events]
        certain = [id for id in arrived if id not in self.given_up]
        assert len(certain) == len(set(certain)), "doubled"
        here = {entry.id: entry for entry in outbox.entries()}
        for _, _, id in self.kept:
            if id in self.given_up:
                continue
            assert id in arrived or id in here, f"{id} is lost"
            if id in arrived and id in here:
                assert here[id].state in ("unknown", "conflict"), f"{id} arrived and is {here[id].state}"
        for key in KEYS:
            order = [n for name, n, id in self.kept if name == key and id not in self.given_up]
            got = [payload["n"] for payload in self.bus.of(key)]
            once = [n for n in order if n in got]
            assert [n for n in got if n in set(once)] == once, f"{key} is out of order"
            blocked = False
            for entry in (one for one in here.values() if one.key == key):
                assert blocked or entry.state in ("unknown", "conflict"), f"{entry} waits for nothing"
                assert not blocked or entry.id not in arrived or entry.state in ("unknown", "conflict")
                blocked = True


@contextmanager
def inline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eventstream.outbox.outbox.Writer", InlineWriter)
        yield


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("calls_back", [False, True])
@settings(max_examples=40)
@given(steps=steps, seed=st.integers(0, 2**16))
def test_any_failures(loop: Any, calls_back: bool, steps: list[Step], seed: int) -> None:
    """Of a bus that each entry is published to by a task, and of one that calls back."""
    with TemporaryDirectory() as folder, inline():
        story = Story(Path(folder, "box"), seed)
        run_simulated(story.play, steps, calls_back, backend=loop, seed=seed, limit=1e6)


def test_the_check_notices_what_must_not_be() -> None:
    """A model that cannot fail proves nothing."""
    spoil: list[Callable[[Story], object]] = [
        lambda story: story.bus.events.pop(),
        lambda story: story.bus.events.append(story.bus.events[0]),
        lambda story: story.bus.events.reverse(),
    ]

    async def play(story: Story, harm: Callable[[Story], object]) -> None:
        async with story._open() as outbox:
            for _ in range(3):
                await story._publish(outbox, "a", None)
            await outbox.flush()
            story._check(outbox)
            harm(story)
            with pytest.raises(AssertionError):
                story._check(outbox)

    for harm in spoil:
        with TemporaryDirectory() as folder, inline():
            run_simulated(play, Story(Path(folder, "box"), 0), harm)

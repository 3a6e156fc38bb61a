"""The outbox in simulated time: backoff, restarts, what was sent and not answered, age."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from anyio import current_time
from outbox_support import FailingBus, InlineWriter, at, notes, wall
from remote_support import simulated

from eventstream.errors import BusClosed, NotAccepted, NotAuthorized
from eventstream.outbox import Entry, Outbox, OutboxLimits, Sending
from eventstream.pipes import Retry

pytestmark = pytest.mark.may_block


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstream.outbox.outbox.Writer", InlineWriter)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box"


class Rolls(Random):
    """The middle of every wait."""

    def random(self) -> float:
        return 0.5


QUICK = Sending(retry=Retry(first=1.0, cap=8.0))


@simulated
async def test_an_unreachable_bus_is_left_alone_for_longer_and_longer(path: Path) -> None:
    """One entry asks for all, at the times that the schedule gives."""
    bus = FailingBus(delay=0.0)
    bus.always = "unreachable"
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        for n in range(50):
            await outbox.publish(notes, {"n": n}, key=f"k{n}")
        await anyio.sleep(12.0)
        tried = len([time for time in bus.times if time == 0.0])
        assert 1 <= tried <= 16
        assert bus.times[tried:] == pytest.approx([0.5, 1.5, 3.5, 7.5, 11.5])
        bus.always = "ok"
        assert await outbox.flush() == 0
        assert bus.times[tried + 5] == pytest.approx(15.5)
        assert len(bus.asked) == 50 + 5 + tried
        assert outbox.statistics().trouble == ""


@simulated
async def test_a_failing_key_backs_off_alone(path: Path) -> None:
    bus = FailingBus(delay=0.0)
    bus.plan.extend(["busy", "busy", "busy"])
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        first = await outbox.publish(notes, {"n": 1}, key="a")
        await anyio.sleep(0.1)
        bus.plan.appendleft("ok")
        await outbox.publish(notes, {"n": 2}, key="b")
        await anyio.sleep(0.1)
        assert bus.of("b") == [{"n": 2}]
        [entry] = outbox.entries()
        assert (entry.id, entry.state, entry.attempts) == (first, "pending", 1)
        assert entry.reason == "the server failed: see its log"
        assert await outbox.flush() == 0
        assert [time for time, (key, _) in zip(bus.times, bus.asked, strict=True) if key == "a"] == pytest.approx(
            [0.0, 0.5, 1.5, 3.5]
        )


@simulated
async def test_the_backoff_outlives_the_process(path: Path) -> None:
    """That of an entry, and that of the bus."""
    bus = FailingBus(delay=0.0)
    bus.plan.extend(["busy", "busy", "busy", "busy"])
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        await outbox.publish(notes, {}, key="a")
        await anyio.sleep(3.6)
    assert len(bus.asked) == 4
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        began = current_time()
        assert outbox.entries()[0].attempts == 4
        assert await outbox.flush() == 0
        assert 3.0 < current_time() - began <= 4.0
    bus.always = "unreachable"
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        await outbox.publish(notes, {}, key="a")
        await anyio.sleep(3.6)
    asked = len(bus.asked)
    bus.always = "ok"
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        assert outbox.statistics().paused == pytest.approx(3.9, abs=0.2)
        await anyio.sleep(1.0)
        assert len(bus.asked) == asked
        assert await outbox.flush() == 0


@simulated
async def test_a_wall_clock_that_is_set_stalls_nothing(tmp_path: Path) -> None:
    """Neither set back by a year between two processes, nor while one runs; of an entry's wait, and of the bus's."""
    await with_a_clock_that_is_set(tmp_path / "entry", ["unreachable", "busy"])
    await with_a_clock_that_is_set(tmp_path / "bus", ["busy", "unreachable"])


async def with_a_clock_that_is_set(path: Path, plan: list[str]) -> None:
    bus = FailingBus(delay=0.0)
    bus.plan.extend(plan)
    shift = 0.0
    clock = lambda: wall() + shift  # noqa: E731
    async with at(path, bus, sending=QUICK, random=Rolls(), clock=clock) as outbox:
        await outbox.publish(notes, {"n": 1}, key="a")
        await anyio.sleep(0.1)
        shift = -31e6
        await anyio.sleep(0.5)
        await outbox.publish(notes, {"n": 2}, key="a")
    shift -= 31e6
    bus.always = "ok"
    sending = Sending(retry=QUICK.retry, repeat_unknown=True)
    async with at(path, bus, sending=sending, random=Rolls(), clock=clock) as outbox:
        assert await outbox.flush(10.0) == 0
    assert [payload["n"] for payload in bus.of("a")] == [1, 2]


@simulated
async def test_a_lost_answer_gives_no_second_event(path: Path) -> None:
    bus = FailingBus()
    bus.plan.extend(["lost", "lost"])
    async with at(path, bus, sending=QUICK) as outbox:
        id = await outbox.publish(notes, {}, key="a")
        position = await outbox.wait(id)
        assert position.index == 1
    assert len(bus.asked) == 3
    assert len(bus.events) == 1


@simulated
async def test_what_nobody_can_know_any_more_is_neither_doubled_nor_dropped(path: Path) -> None:
    """It was sent, and for longer than the bus remembers ids there was no answer. Others go on."""
    bus = FailingBus()
    bus.plan.append("forgotten")
    bus.always = "silent"
    told: list[Entry] = []
    async with at(path, bus, sending=QUICK, on_change=told.append) as outbox:
        first = await outbox.publish(notes, {"n": 1}, key="a")
        second = await outbox.publish(notes, {"n": 2}, key="a")
        with pytest.raises(NotAccepted) as raised:
            await outbox.wait(first)
        assert raised.value.state == "unknown"
        assert 120.0 <= current_time() < 130.0
        bus.always = "ok"
        other = await outbox.publish(notes, {"n": 3}, key="b")
        await outbox.wait(other)
        assert [(entry.id, entry.state) for entry in outbox.entries()] == [(first, "unknown"), (second, "pending")]
        assert told[-2].state == "unknown" or told[-1].state == "accepted"
        assert await outbox.flush() == 2
    assert bus.of("a") == [{"n": 1}]
    async with at(path, bus, sending=QUICK) as outbox:
        assert [entry.state for entry in outbox.entries()] == ["unknown", "pending"]
        await outbox.discard(first)
        assert await outbox.flush() == 0
    assert bus.of("a") == [{"n": 1}, {"n": 2}]


@simulated
async def test_sleep_counts_though_the_loop_does_not_see_it(path: Path) -> None:
    """The lid was closed for an hour after an answer was lost: the bus has forgotten the id. It was sent again."""
    bus = FailingBus()
    bus.plan.append("lost")
    slept = 0.0
    async with at(path, bus, sending=QUICK, random=Rolls(), clock=lambda: wall() + slept) as outbox:
        id = await outbox.publish(notes, {"n": 1}, key="a")
        await anyio.sleep(0.1)
        slept = 3600.0
        bus._ids.clear()
        with pytest.raises(NotAccepted) as raised:
            await outbox.wait(id)
        assert raised.value.state == "unknown"
    assert bus.of("a") == [{"n": 1}]


@simulated
async def test_a_process_that_died_while_it_sent_does_not_guess_later(tmp_path: Path) -> None:
    """Within the window it sends again; after it, it says that it cannot know."""
    for path, pause, state in ((tmp_path / "a", 60.0, None), (tmp_path / "b", 200.0, "unknown")):
        bus = FailingBus()
        bus.plan.append("silent")
        async with at(path, bus, sending=QUICK) as outbox:
            await outbox.publish(notes, {}, key="a")
            await anyio.sleep(1.0)
            outbox._writer.dead = True  # type: ignore[attr-defined]
        await anyio.sleep(pause)
        async with at(path, bus, sending=QUICK) as outbox:
            assert await outbox.flush(30.0) == (1 if state else 0)
            assert [entry.state for entry in outbox.entries()] == ([state] if state else [])
        assert len(bus.events) == (0 if state else 1)


@simulated
async def test_with_expect_a_doubt_is_resolved_by_the_bus(path: Path) -> None:
    """A second event would conflict with the first, so it is sent again however long ago that was."""
    bus = FailingBus()
    bus.plan.extend(["silent", "ok", "silent"])
    async with at(path, bus, sending=QUICK) as outbox:
        id = await outbox.publish(notes, {"n": 1}, key="a", expect=0)
        await anyio.sleep(1.0)
        await outbox.wait(await outbox.publish(notes, {"n": 2}, key="b"))
        assert current_time() < 2.0
        await outbox.wait(id)
        assert current_time() > 120.0
        await outbox.flush()
        bus.plan.extend(["forgotten", "silent"])
        id = await outbox.publish(notes, {"n": 3}, key="c", expect=0)
        with pytest.raises(NotAccepted, match="or it is this entry itself") as raised:
            await outbox.wait(id)
        assert raised.value.state == "conflict"
    assert [len(bus.of(key)) for key in "abc"] == [1, 1, 1]


@simulated
async def test_an_attempt_without_an_answer_is_repeated_while_the_bus_remembers_its_id(path: Path) -> None:
    """So a doubt is mostly resolved before it becomes one."""
    bus = FailingBus()
    bus.plan.append("forgotten")
    async with at(path, bus, sending=QUICK) as outbox:
        await outbox.publish(notes, {"n": 1}, key="a")
        assert await outbox.flush() == 0
        assert current_time() < 120.0
    assert len(bus.of("a")) == 1


@simulated
async def test_a_bus_that_cannot_tell_any_more_is_believed(path: Path) -> None:
    """With `expect` the entry is sent again all the same."""
    bus = FailingBus()
    bus.plan.append("unsure")
    async with at(path, bus, sending=QUICK) as outbox:
        first = await outbox.publish(notes, {"n": 1}, key="a")
        await outbox.publish(notes, {"n": 2}, key="a")
        assert await outbox.flush() == 2
        assert [entry.state for entry in outbox.entries()] == ["unknown", "pending"]
        await outbox.retry(first)
        assert await outbox.flush() == 0
        bus.plan.append("unsure")
        await outbox.publish(notes, {"n": 3}, key="a", expect=2)
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in bus.of("a")] == [1, 2, 3]


@simulated
async def test_who_prefers_twice_to_never_may_say_so(path: Path) -> None:
    bus = FailingBus()
    bus.plan.extend(["forgotten", "silent"])
    sending = Sending(retry=QUICK.retry, repeat_unknown=True)
    async with at(path, bus, sending=sending) as outbox:
        await outbox.publish(notes, {}, key="a")
        assert await outbox.flush() == 0
    assert len(bus.of("a")) == 2


@simulated
async def test_a_refusal_after_a_lost_answer_does_not_end_the_doubt(path: Path) -> None:
    """The refused attempt committed nothing; the one before it did."""
    bus = FailingBus(delay=0.0)
    bus.plan.extend(["lost", "refused"])
    async with at(path, bus, sending=Sending(retry=Retry(first=1.0, cap=500.0)), random=Rolls()) as outbox:
        await outbox.publish(notes, {}, key="a")
        await anyio.sleep(1.0)
        assert outbox.entries("held")
        await anyio.sleep(400.0)
        assert [entry.state for entry in outbox.entries()] == ["unknown"]
    assert len(bus.of("a")) == 1


@simulated
async def test_held_entries_wait_for_rights_and_lose_nothing(path: Path) -> None:
    bus = FailingBus()
    bus.plan.extend(["refused"] * 3)
    async with at(path, bus, sending=QUICK, random=Rolls()) as outbox:
        for n in range(3):
            await outbox.publish(notes, {"n": n}, key="a")
        await anyio.sleep(9.5)
        assert [entry.state for entry in outbox.entries()] == ["held", "pending", "pending"]
        assert "not authorized" in outbox.entries()[0].reason
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in bus.of("a")] == [0, 1, 2]


@simulated
async def test_retry_without_an_id_is_a_wake_up(path: Path) -> None:
    bus = FailingBus(delay=0.0)
    bus.plan.extend(["refused", "unreachable"])
    async with at(path, bus, sending=Sending(retry=Retry(first=500.0, cap=1000.0)), random=Rolls()) as outbox:
        await outbox.publish(notes, {}, key="a")
        await anyio.sleep(1.0)
        await outbox.publish(notes, {}, key="b")
        await anyio.sleep(1.0)
        assert outbox.statistics().held == 1
        assert outbox.statistics().paused > 200
        await outbox.retry()
        assert await outbox.flush() == 0
        assert current_time() < 3.0


class Away(FailingBus):
    """Knows whether it can be reached."""

    def __init__(self) -> None:
        super().__init__()
        self.back = anyio.Event()
        self.error: Exception | None = None

    async def wait_connected(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        await self.back.wait()


@simulated
async def test_nothing_is_given_to_a_bus_that_cannot_be_reached(path: Path) -> None:
    """So nothing is in doubt after an outage of any length, and it goes on as soon as the bus returns."""
    bus = Away()
    async with at(path, bus, sending=QUICK) as outbox:
        for n in range(10):
            await outbox.publish(notes, {"n": n}, key="a")
        await anyio.sleep(3000.0)
        assert not bus.asked
        bus.back.set()
        assert await outbox.flush() == 0
        assert current_time() < 3001.0
    assert [payload["n"] for payload in bus.of("a")] == [*range(10)]


@simulated
async def test_credentials_that_are_refused_hold_everything_until_another_bus_comes(path: Path) -> None:
    bus, told = Away(), list[Entry]()
    bus.error = NotAuthorized(None, "connect")
    async with at(path, bus, sending=QUICK, on_change=told.append, random=Rolls()) as outbox:
        for n in range(3):
            await outbox.publish(notes, {"n": n}, key=f"k{n}")
        await anyio.sleep(1.0)
        assert told[0].state == "held"
        assert "not authorized to connect" in outbox.statistics().trouble
        assert outbox.statistics().paused > 0
        better = FailingBus()
        outbox.use(better)
        assert await outbox.flush(1.0) == 0
    assert len(better.events) == 3
    assert not bus.asked


@simulated
async def test_without_a_bus_everything_is_kept(path: Path) -> None:
    async with at(path, None) as outbox:
        await outbox.publish(notes, {}, key="a")
        assert await outbox.flush(100.0) == 1
        bus = FailingBus()
        outbox.use(bus)
        assert await outbox.flush() == 0
        outbox.use(None)
        await outbox.publish(notes, {}, key="a")
        assert await outbox.flush(100.0) == 1


@simulated
async def test_what_is_too_old_is_dead_and_not_gone(path: Path) -> None:
    """It can be retried; what waits for a person is not touched."""
    bus = FailingBus()
    bus.always = "unreachable"
    limits = OutboxLimits(age=600.0)
    async with at(path, bus, limits=limits, sending=QUICK) as outbox:
        old = await outbox.publish(notes, {"n": 1}, key="a")
        await anyio.sleep(500.0)
        young = await outbox.publish(notes, {"n": 2}, key="b")
        with pytest.raises(NotAccepted, match="expired"):
            await outbox.wait(old)
        assert 600.0 <= current_time() <= 700.0
        assert [(entry.id, entry.state) for entry in outbox.entries()] == [(old, "dead"), (young, "pending")]
    await anyio.sleep(1000.0)
    async with at(path, None, limits=limits) as outbox:
        await anyio.sleep(1.0)
        assert len(outbox.entries("dead")) == 2
        outbox.use(FailingBus())
        await outbox.retry(old)
        assert await outbox.flush() == 1
        assert outbox.statistics().accepted == 1


@simulated
async def test_leaving_waits_for_answers_but_not_for_ever(path: Path) -> None:
    bus = FailingBus(delay=1.0)
    async with at(path, bus, sending=QUICK) as outbox:
        await outbox.publish(notes, {}, key="a")
        await anyio.sleep(0.1)
    assert current_time() == pytest.approx(1.0)
    bus.always = "silent"
    async with at(path, bus, sending=QUICK) as outbox:
        assert not outbox.entries()
        await outbox.publish(notes, {}, key="a")
        await anyio.sleep(0.5)
    assert current_time() == pytest.approx(3.5)
    async with at(path, None) as outbox:
        assert len(outbox.entries()) == 1


@simulated
async def test_a_bus_that_is_closed_is_waited_for(path: Path) -> None:
    class Closed(FailingBus):
        async def publish(self, *args: Any, **terms: Any) -> Any:
            raise BusClosed("closed")

    async with at(path, Closed(), sending=QUICK) as outbox:
        await outbox.publish(notes, {}, key="a")
        assert await outbox.flush(20.0) == 1
        assert outbox.statistics().trouble == "the bus is closed"
        assert outbox.entries()[0].state == "pending"


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in (
        lambda: OutboxLimits(entries=0),
        lambda: OutboxLimits(bytes=0),
        lambda: OutboxLimits(age=0.0),
        lambda: Sending(in_flight=0),
        lambda: Sending(per_key=0),
        lambda: Sending(dedupe_seconds=0.0),
    ):
        with pytest.raises(ValueError, match=r"must be|is a time"):
            wrong()
    with pytest.raises(TypeError, match="must be a Topic"):
        Outbox("nowhere", topics=["notes"])  # type: ignore[list-item]

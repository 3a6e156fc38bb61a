"""What the outbox does for its user, with its real thread and real buses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from outbox_support import FailingBus, notes

from eventstream import EARLIEST, EventBus, InvalidName, PayloadTypeError, Topic, TopicConflict
from eventstream.errors import (
    InvalidPayload,
    NotAccepted,
    NotCompacted,
    OutboxClosed,
    OutboxFull,
    UnknownEntry,
)
from eventstream.outbox import Content, Entry, Outbox, OutboxLimits, Sending
from support import Price, take

prices = Topic("prices", Price, key="symbol", compacted=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box"


async def received(bus: EventBus, topic: Topic[Any], count: int) -> list[Any]:
    async with bus.subscribe(topic, after=EARLIEST) as subscription:
        return await take(subscription, count)


async def test_what_is_published_arrives_once_in_order(bus: EventBus, path: Path) -> None:
    """With its headers and its id; the file is empty then."""
    async with Outbox(path, bus) as outbox:
        ids = [await outbox.publish(notes, {"n": n}, key="a", headers={"h": str(n)}) for n in range(300)]
        assert len(set(ids)) == 300
        assert await outbox.flush() == 0
        assert outbox.statistics().accepted == 300
        assert outbox.statistics().entries == 0
        assert outbox.statistics().bytes == 0
        assert (await outbox.wait(ids[-1])).index == 300
    async with bus.subscribe(notes, after=EARLIEST) as subscription:
        events = [await subscription.receive() for _ in range(300)]
    assert [(event.payload["n"], event.headers["h"], event.key) for event in events] == [
        (n, str(n), "a") for n in range(300)
    ]


async def test_without_a_bus_it_is_safe_and_comes_later(bus: EventBus, path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.publish(prices, Price("X", 1.0))
        await outbox.publish(prices, Price("X", 2.0), id="mine")
        await outbox.delete(prices, "Y")
    async with Outbox(path, bus, topics=[prices]) as outbox:
        assert await outbox.flush() == 0
    async with bus.subscribe(prices, after=EARLIEST) as subscription:
        events = [await subscription.receive() for _ in range(3)]
    assert [(event.key, event.payload) for event in sorted(events, key=lambda event: event.key)] == [
        ("X", Price("X", 1.0)),
        ("X", Price("X", 2.0)),
        ("Y", None),
    ]
    assert (await bus.publish(prices, Price("X", 9.0), id="mine")).index <= 3  # the id is the publish's on the bus, too


async def test_publishes_at_the_same_time_keep_the_order_of_their_calls(bus: EventBus, path: Path) -> None:
    async with Outbox(path, bus) as outbox, anyio.create_task_group() as tasks:
        started = list[int]()

        async def publish(n: int) -> None:
            started.append(n)
            await outbox.publish(notes, {"n": n})

        for n in range(200):
            tasks.start_soon(publish, n)
    async with Outbox(path, bus, topics=[notes]) as outbox:
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in await received(bus, notes, 200)] == [*started]


async def test_one_key_is_never_overtaken_by_itself(path: Path) -> None:
    """Others overtake it."""
    bus = FailingBus(delay=0.0)
    bus.plan.append("busy")
    async with Outbox(path, None, sending=Sending()) as outbox:
        for n in range(10):
            await outbox.publish(notes, {"n": n}, key="a")
        for n in range(10):
            await outbox.publish(notes, {"n": n}, key="b")
        outbox.use(bus)
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in bus.of("a")] == [*range(10)]
    assert [payload["n"] for payload in bus.of("b")] == [*range(10)]
    assert [key for key, _ in bus.asked].index("b") < 10


async def test_many_of_a_key_under_way_if_one_wants_it_but_expect_goes_alone(path: Path) -> None:
    most = 0
    now = 0

    class Counting(FailingBus):
        async def publish(self, *args: Any, **terms: Any) -> Any:
            nonlocal most, now
            now += 1
            most = max(most, now)
            if terms["expect"] is not None:
                assert now == 1
            position = self._commit(args[0], "a", args[1], terms["expect"], terms["id"])  # in the order of the calls
            await checkpoint()
            now -= 1
            return position

    bus = Counting(delay=0.0)
    async with Outbox(path, None, sending=Sending(per_key=5)) as outbox:
        for n in range(30):
            await outbox.publish(notes, {"n": n}, key="a", expect=15 if n == 15 else None)
        outbox.use(bus)
        assert await outbox.flush() == 0
    assert most == 5
    assert [payload["n"] for payload in bus.of("a")] == [*range(30)]


async def test_a_conflict_waits_for_a_person_and_its_key_with_it(bus: EventBus, path: Path) -> None:
    told: list[Entry] = []
    await bus.publish(notes, {"n": 0}, key="a")
    async with Outbox(path, bus, on_change=told.append) as outbox:
        bad = await outbox.publish(notes, {"n": 1}, key="a", expect=0)
        behind = await outbox.publish(notes, {"n": 2}, key="a")
        with pytest.raises(NotAccepted, match="is at index 1, not 0") as raised:
            await outbox.wait(bad)
        assert (raised.value.id, raised.value.state) == (bad, "conflict")
        with pytest.raises(NotAccepted):
            await outbox.wait(bad)
        await outbox.wait(await outbox.publish(notes, {"n": 3}, key="b"))
        assert [(entry.id, entry.state) for entry in outbox.entries()] == [(bad, "conflict"), (behind, "pending")]
        assert [entry.id for entry in outbox.entries("conflict")] == [bad]
        assert await outbox.flush() == 2
        assert await outbox.content(bad) == Content({"n": 1}, {})
        assert next((entry.id, entry.state, entry.expect) for entry in told) == (bad, "conflict", 0)
    async with Outbox(path, bus, topics=[notes]) as outbox:
        assert outbox.statistics().conflict == 1
        await outbox.retry()
        assert await outbox.flush() == 2
        await outbox.retry(bad, expect=1)
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in await received(bus, notes, 4)] == [0, 3, 1, 2]


async def test_a_discarded_conflict_lets_its_key_go_on(bus: EventBus, path: Path) -> None:
    await bus.publish(notes, {"n": 0}, key="a")
    async with Outbox(path, bus) as outbox:
        bad = await outbox.publish(notes, {"n": 1}, key="a", expect=0)
        await outbox.publish(notes, {"n": 2}, key="a")
        await outbox.flush()
        await outbox.discard(bad)
        assert await outbox.flush() == 0
        for call in (outbox.discard, outbox.retry, outbox.wait, outbox.content):
            with pytest.raises(UnknownEntry):
                await call(bad)
    assert [payload["n"] for payload in await received(bus, notes, 2)] == [0, 2]


async def test_a_waiter_is_told_of_a_discard(path: Path) -> None:
    async with Outbox(path) as outbox, anyio.create_task_group() as tasks:
        id = await outbox.publish(notes, {})

        async def wait() -> None:
            with pytest.raises(NotAccepted, match="discarded"):
                await outbox.wait(id)

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await outbox.discard(id)


async def test_a_waiter_is_told_that_the_outbox_was_left(path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        async with Outbox(path) as outbox:
            id = await outbox.publish(notes, {})

            async def wait() -> None:
                with pytest.raises(NotAccepted, match="closed"):
                    await outbox.wait(id)

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()


async def test_a_flush_is_told_that_the_outbox_was_left(path: Path) -> None:
    """It waited for ever."""
    async with anyio.create_task_group() as tasks:
        async with Outbox(path) as outbox:
            await outbox.publish(notes, {})

            async def flush() -> None:
                with pytest.raises(OutboxClosed):
                    await outbox.flush()

            tasks.start_soon(flush)
            await anyio.wait_all_tasks_blocked()


async def test_what_can_never_be_accepted_is_kept_and_its_key_goes_on(bus: EventBus, path: Path) -> None:
    """It can come back, at its place."""
    was: Topic[Any] = Topic("notes", Any)
    async with Outbox(path) as outbox:
        bad = await outbox.publish(was, "no dict", key="a")
        await outbox.publish(was, {"n": 2}, key="a")
    async with Outbox(path, bus, topics=[notes]) as outbox:
        assert await outbox.flush() == 1
        [entry] = outbox.entries()
        assert (entry.id, entry.state) == (bad, "dead")
        assert "does not fit its type" in entry.reason
        with pytest.raises(InvalidPayload):
            await outbox.content(bad)
        await outbox.retry(bad)
        assert await outbox.flush() == 1
        assert outbox.entries("dead")
        await outbox.discard(bad)
        assert not outbox.entries()
    assert await received(bus, notes, 1) == [{"n": 2}]


async def test_a_dead_entry_that_is_retried_goes_before_those_behind_it(path: Path) -> None:
    async with Outbox(path) as outbox:
        ids = [await outbox.publish(notes, {"n": n}, key="a") for n in range(4)]
    async with Outbox(path, topics=[notes]) as outbox:
        outbox._lanes.set_aside(outbox._lanes.records[ids[1]], "dead")
        await outbox.retry(ids[1])
        outbox.use(bus := FailingBus(delay=0.0))
        assert await outbox.flush() == 0
    assert [payload["n"] for payload in bus.of("a")] == [0, 1, 2, 3]


async def test_a_key_that_a_new_declaration_finds_elsewhere_is_not_published(bus: EventBus, path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.publish(Topic("t", dict, key="a"), {"a": "x", "b": "y"})
    async with Outbox(path, bus, topics=[Topic("t", dict, key="b")]) as outbox:
        await outbox.flush()
        [entry] = outbox.entries("dead")
        assert "its key was 'x'" in entry.reason


async def test_entries_of_topics_that_are_not_declared_are_held_until_they_are(bus: EventBus, path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.publish(notes, {"n": 1})
        await outbox.publish(prices, Price("X", 1.0))
    async with Outbox(path, bus, topics=[prices]) as outbox:
        assert await outbox.flush() == 1
        [entry] = outbox.entries("held")
        assert "declare it" in entry.reason
        assert (await outbox.content(entry.id)).payload == {"n": 1}
        await outbox.retry(entry.id)
        await outbox.retry()
        assert outbox.entries("held")
        outbox.declare(notes)
        assert await outbox.flush() == 0


async def test_passing_entries_on_without_their_types(bus: EventBus, path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.publish(prices, Price("X", 1.0))
        await outbox.delete(prices, "Y")
        await outbox.publish(notes, {"n": 1}, key="k")
    async with Outbox(path, bus) as outbox:
        outbox.declare(*outbox.untyped())
        assert await outbox.flush() == 0
        assert {topic.name for topic in outbox.untyped()} == {"prices", "notes"}
    topics = bus.statistics().topics
    assert (topics["prices"].head.index, topics["notes"].head.index) == (2, 1)


async def test_the_same_id_again_keeps_nothing(bus: EventBus, path: Path) -> None:
    """Also at the same time."""
    async with Outbox(path) as outbox:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(lambda: outbox.publish(notes, {"n": 1}, id="one"))
        assert await outbox.publish(notes, {"n": 2}, id="one") == "one"
        with pytest.raises(InvalidName, match="another topic or key"):
            await outbox.publish(notes, {"n": 2}, id="one", key="other")
        assert len(outbox.entries()) == 1
        outbox.use(bus)
        await outbox.flush()
        await outbox.publish(notes, {"n": 3}, id="one")  # the bus remembers it
        await outbox.flush()
    assert await received(bus, notes, 1) == [{"n": 1}]
    assert (await bus.head(notes)).index == 1


async def test_quotas_refuse_what_is_new_and_give_up_nothing(path: Path) -> None:
    async with Outbox(path, limits=OutboxLimits(entries=3)) as outbox:
        ids = [await outbox.publish(notes, {"n": n}) for n in range(3)]
        with pytest.raises(OutboxFull, match="3 entries") as raised:
            await outbox.publish(notes, {})
        assert (raised.value.limit, raised.value.bound) == ("entries", 3)
        assert await outbox.publish(notes, {}, id=ids[0]) == ids[0]
        await outbox.discard(ids[0])
        await outbox.publish(notes, {})
    async with Outbox(path, limits=OutboxLimits(bytes=2500)) as outbox:
        with pytest.raises(OutboxFull, match="2500 bytes"):
            await outbox.publish(notes, {"n": "x" * 2000})
        assert len(outbox.entries()) == 3
    async with Outbox(path, limits=OutboxLimits(entries=5)) as outbox:
        async with anyio.create_task_group() as tasks:
            refused = []

            async def publish() -> None:
                try:
                    await outbox.publish(notes, {})
                except OutboxFull as error:
                    refused.append(error)

            for _ in range(4):
                tasks.start_soon(publish)
        assert len(refused) == 2
        assert len(outbox.entries()) == 5


async def test_what_is_wrong_is_refused_before_it_is_kept(path: Path) -> None:
    async with Outbox(path, topics=[notes]) as outbox:
        with pytest.raises(PayloadTypeError):
            await outbox.publish(notes, [])
        with pytest.raises(InvalidPayload):
            await outbox.publish(notes, {"n": object()})
        with pytest.raises(InvalidPayload, match="headers"):
            await outbox.publish(notes, {}, id="again", headers={"name": "\ud800"})
        with anyio.fail_after(5):  # it was taken for one that is on its way to the disk, and waited for
            await outbox.discard(await outbox.publish(notes, {}, id="again"))
        with pytest.raises(TopicConflict):
            await outbox.publish(Topic("notes", list), [])
        with pytest.raises(InvalidName):
            await outbox.publish(notes, {}, id="")
        with pytest.raises(InvalidName):
            await outbox.publish(notes, {}, headers={"": ""})
        with pytest.raises(NotCompacted):
            await outbox.delete(notes, "a")
        with pytest.raises(ValueError, match="expect must be"):
            await outbox.publish(notes, {}, expect=-1)
        with pytest.raises(TypeError, match="must be a Topic"):
            await outbox.publish("notes", {})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="state must be one of"):
            outbox.entries("accepted")
        assert not outbox.entries()


async def test_it_is_used_once_and_inside(path: Path) -> None:
    outbox = Outbox(path)
    with pytest.raises(OutboxClosed, match="was not opened"):
        await outbox.publish(notes, {})
    async with outbox:
        with pytest.raises(RuntimeError, match="already been entered"):
            async with outbox:
                pass
    for call in (lambda: outbox.publish(notes, {}), outbox.flush, outbox.retry, lambda: outbox.discard("x")):
        with pytest.raises(OutboxClosed, match="is in its file"):
            await call()
    with pytest.raises(OutboxClosed):
        outbox.statistics()
    with pytest.raises(OutboxClosed):
        async with outbox:
            pass


async def test_an_exception_comes_out_as_it_is_and_nothing_is_lost(path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Outbox(path) as outbox:
            await outbox.publish(notes, {})
            raise KeyError("mine")
    with anyio.CancelScope() as scope:
        async with Outbox(path) as outbox:
            await outbox.publish(notes, {})
            scope.cancel()
            await anyio.sleep_forever()
    async with Outbox(path) as outbox:
        assert len(outbox.entries()) == 2


async def test_a_cancelled_publish_is_kept_or_not_and_known_in_either_case(path: Path) -> None:
    async with Outbox(path) as outbox:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await outbox.publish(notes, {}, id="maybe")
        await outbox.publish(notes, {}, id="next")
        assert [entry.id for entry in outbox.entries()] == ["maybe", "next"]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await outbox.discard("maybe")
        await outbox.publish(notes, {}, id="last")
        assert [entry.id for entry in outbox.entries()] == ["next", "last"]


async def test_a_callback_that_fails_fails_nobody_else(
    bus: EventBus, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told(entry: Entry) -> None:
        raise RuntimeError("in on_change")

    async with Outbox(path, bus, on_change=told) as outbox:
        await outbox.publish(notes, {})
        assert await outbox.flush() == 0
    assert "on_change failed" in caplog.text

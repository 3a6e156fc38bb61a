"""The outbox before a client of a server: entries are submitted, and the client calls back."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest
from anyio import current_time
from outbox_support import InlineWriter, wall
from remote_support import Town, settle, simulated

from eventstream import EARLIEST, Event, EventBus, Topic
from eventstream.errors import NotCompacted
from eventstream.outbox import Entry, Outbox, OutboxStatistics, Sending
from eventstream.pipes import Retry
from eventstream.remote import RemoteBus, ServerLimits, requests

pytestmark = pytest.mark.may_block

KEPT = 1_000_000
notes: Topic[Any] = Topic("notes", dict, retain=KEPT, max_lag=KEPT)


class Price(msgspec.Struct, frozen=True):
    symbol: str
    bid: float


prices = Topic("prices", Price, key="symbol", compacted=True)
QUICK = Sending(retry=Retry(first=0.5, cap=4.0))


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstream.outbox.outbox.Writer", InlineWriter)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box"


def town() -> Town:
    made = Town(notes, prices, limits=ServerLimits(message_bytes=100_000))
    made.clock = wall
    return made


def at(path: Path, bus: RemoteBus | None, **options: Any) -> Outbox:
    return Outbox(path, bus, **{"topics": [notes, prices], "clock": wall, "sending": QUICK, **options})


async def events(bus: EventBus, topic: Topic[Any] = notes) -> list[Event[Any]]:
    """All that the bus has."""
    head = (await bus.head(topic)).index
    async with bus.subscribe(topic, after=EARLIEST) as subscription:
        return [await subscription.receive() for _ in range(head)]


async def numbers(bus: EventBus, key: str | None = None) -> list[int]:
    """What was published, in order."""
    return [event.payload["n"] for event in await events(bus) if key in (None, event.key)]


@simulated
async def test_what_is_kept_arrives_once_as_it_was_published(path: Path) -> None:
    """Payloads, keys, headers, tombstones, and what is expected; a position comes back."""
    async with town().open() as here, here.client() as bus, at(path, bus) as outbox:
        first = await outbox.publish(prices, Price("X", 1.0), headers={"by": "me"}, expect=0)
        await outbox.publish(prices, Price("Y", 2.0))
        await outbox.delete(prices, "X")
        last = await outbox.publish(notes, {"n": 1}, key="a")
        assert (await outbox.wait(first)).index == 1
        assert (await outbox.wait(last)).index == 1
        assert await outbox.flush() == 0
        got = await events(here.bus, prices)
        by_key = {key: [event.payload for event in got if event.key == key] for key in "XY"}
        assert by_key == {"X": [Price("X", 1.0), None], "Y": [Price("Y", 2.0)]}
        assert dict(got[0].headers) == {"by": "me"}
        assert (await here.bus.head(notes)) == await outbox.wait(last)


@simulated
async def test_each_answer_has_its_outcome(path: Path) -> None:
    """A conflict waits for a person; what is no longer of the topic's type is dead; others go on."""
    async with town().open() as here, here.client() as bus:
        await here.bus.publish(notes, {"n": 0}, key="a")
        async with at(path, None) as outbox:
            conflict = await outbox.publish(notes, {"n": 1}, key="a", expect=0)
            wrong = await outbox.publish(prices, Price("X", "no number"))  # type: ignore[arg-type]
            large = await outbox.publish(notes, {"n": "x" * 200_000}, key="b")
            after = await outbox.publish(notes, {"n": 2}, key="b")
        async with at(path, bus) as outbox:
            await outbox.wait(after)
            assert await outbox.flush() == 3
            states = {entry.id: (entry.state, entry.reason) for entry in outbox.entries()}
            assert states[conflict] == (
                "conflict",
                "key 'a' of topic 'notes' is at index 1, not 0; nothing was published",
            )
            assert states[wrong][0] == "dead"
            assert "Expected `float`" in states[wrong][1]
            assert states[large][0] == "dead"
            assert states[large][1].startswith("the server allows at most 100000 message bytes: use less, or raise")
            await outbox.retry(conflict, expect=1)
            await outbox.wait(conflict)
        assert await numbers(here.bus, "a") == [0, 1]
        assert await numbers(here.bus, "b") == [2]


@simulated
async def test_what_the_file_holds_is_checked_here_before_it_is_sent(path: Path) -> None:
    """By the type and the key of the present declaration: a server that passes bytes on does not look into them."""
    other = Topic("prices", Price, key=lambda price: price.symbol.lower(), compacted=True)
    async with town().open() as here, here.client() as bus:
        async with at(path, None) as outbox:
            id = await outbox.publish(prices, Price("X", 1.0))
        async with at(path, bus, topics=[other]) as outbox:
            assert await outbox.flush() == 1
            [entry] = outbox.entries("dead")
            assert entry.id == id
            assert "its key was 'X', and is another by the present declaration" in entry.reason
            assert len(bus._conversation.requests) == 0
        assert await events(here.bus, prices) == []


@simulated
async def test_a_tombstone_is_submitted_to_a_compacted_topic_alone(path: Path) -> None:
    """As `delete` refuses it, before anything is said."""
    async with town().open() as here, here.client() as bus:
        with pytest.raises(NotCompacted):
            bus.submit(notes, "a", None, (None, "id", {}), None, lambda answered: None)
        assert len(bus._conversation.requests) == 0


@simulated
async def test_it_is_said_again_on_each_connection_and_arrives_once(path: Path) -> None:
    """While entries are under way links are cut, and the server's process is replaced before the same bus."""
    async with town().open() as here, here.client() as bus, at(path, bus) as outbox:
        for n in range(400):
            await outbox.publish(notes, {"n": n}, key=f"k{n % 7}")
            if n % 50 == 25:
                await settle(1)
                here.cut()
            if n % 100 == 75:
                await here.serve()
        assert await outbox.flush() == 0
        for key in range(7):
            assert await numbers(here.bus, f"k{key}") == [*range(key, 400, 7)]


@simulated
async def test_several_of_a_key_under_way_keep_their_order(path: Path) -> None:
    """A client says what is submitted in that order, on each connection anew."""
    sending = Sending(retry=QUICK.retry, per_key=5, in_flight=7)
    async with town().open() as here, here.client() as bus, at(path, None, sending=sending) as outbox:
        for n in range(120):
            await outbox.publish(notes, {"n": n}, key=f"k{n % 2}")
        outbox.use(bus)
        await settle()
        here.cut()
        assert await outbox.flush() == 0
        for key in range(2):
            assert await numbers(here.bus, f"k{key}") == [*range(key, 120, 2)]


@simulated
async def test_leaving_takes_back_what_has_no_answer(path: Path) -> None:
    """The client lives on, and says it no more; the next outbox does."""
    async with town().open() as here, here.client() as bus:
        await bus.wait_connected()
        async with at(path, bus) as outbox:
            await outbox.publish(notes, {"n": 0}, key="a")
            assert await outbox.flush() == 0
            here.network.links[-1].half_open("up")
            for n in (1, 2):
                await outbox.publish(notes, {"n": n}, key=f"k{n}")
            await settle()
            assert outbox.statistics().in_flight == 2
            assert len(bus._conversation.requests) == 2
            began = current_time()
        assert current_time() - began == pytest.approx(2.0)
        assert len(bus._conversation.requests) == 0
        await here.serve()
        await anyio.sleep(60.0)
        assert await numbers(here.bus) == [0]
        async with at(path, bus) as outbox:
            assert len(outbox.entries()) == 2
            assert await outbox.flush() == 0
        assert await numbers(here.bus) == [0, 1, 2]


@simulated
async def test_what_finds_no_room_waits_its_turn_and_can_be_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MOST", 5)
    async with town().open() as here, here.client() as bus:
        told: list[Any] = []

        def tell(answered: Any) -> None:
            told.append(answered.about)

        def others(answered: Any) -> None:
            told.append(-answered.about)

        for n in range(1, 41):
            payload = msgspec.msgpack.encode({"n": n})
            bus.submit(notes, "a", payload, (None, f"id-{n}", {}), n, others if n % 2 else tell)
        assert len(bus._conversation.requests) == 5
        bus.forget(others)
        await settle()
        assert told == [*range(2, 41, 2)]
        assert await numbers(here.bus) == [*range(2, 41, 2)]
        async with at(path, bus) as outbox:
            for n in range(100):
                await outbox.publish(notes, {"n": n}, key=f"k{n}")
            assert await outbox.flush() == 0
        assert len(await events(here.bus)) == 120


@simulated
async def test_a_client_that_has_ended_is_told_of_and_another_goes_on(path: Path) -> None:
    """Also if it ends while entries are under way."""
    async with town().open() as here:
        async with here.client() as bus:
            pass
        async with at(path, bus) as outbox:
            await outbox.publish(notes, {"n": 1}, key="a")
            assert await outbox.flush(20.0) == 1
            assert outbox.statistics().trouble == "the bus is closed"
            async with here.client() as second:
                await second.wait_connected()
                here.network.links[-1].half_open("up")
                outbox.use(second)
                await settle()
                assert outbox.statistics().in_flight == 1
            await settle()
            now: OutboxStatistics = outbox.statistics()
            assert (now.in_flight, now.pending, now.trouble) == (0, 1, "the bus is closed")
            async with here.client() as third:
                outbox.use(third)
                assert await outbox.flush() == 0
        assert await numbers(here.bus) == [1]


@simulated
async def test_a_discarded_entry_whose_answer_comes_later_disturbs_nobody(path: Path) -> None:
    """Nor does it pass for that of another entry of the same id."""
    told: list[Entry] = []
    async with town().open() as here, here.client() as bus, at(path, bus, on_change=told.append) as outbox:
        await bus.wait_connected()
        await outbox.publish(notes, {"n": 0}, key="a")
        await outbox.flush()
        here.network.links[-1].stall(5.0)
        id = await outbox.publish(notes, {"n": 1}, key="a", id="one")
        await settle()
        await outbox.discard(id)
        await outbox.publish(notes, {"n": 2}, key="a", id="one")
        assert await outbox.flush() == 0
        assert outbox.statistics().in_flight == 0
    assert [entry.state for entry in told] == ["accepted", "discarded", "accepted"]


@pytest.mark.parametrize("seed", range(12))
@simulated
async def test_any_order_of_losses(path: Path, seed: int) -> None:
    """Outboxes are left and killed, links are cut, half open or gone, servers replaced: once, in the key's order."""
    random = Random(seed)
    sent = 0
    async with town().open() as here, here.client() as bus:
        while sent < 300:
            async with at(path, bus, random=random) as outbox:
                for _ in range(random.randint(1, 8)):
                    for _ in range(random.randint(0, 30)):
                        await outbox.publish(notes, {"n": sent}, key=f"k{sent % 5}")
                        sent += 1
                    match random.choice(["cut", "serve", "half", "pass", "turn", "turn"]):
                        case "cut":
                            here.cut()
                        case "serve":
                            await here.serve()
                        case "half" if here.network.links:
                            here.network.links[-1].half_open(random.choice(["up", "down"]))
                        case "pass":
                            await anyio.sleep(random.choice([0.01, 1.0, 5.0]))
                        case _:
                            await settle(random.randint(0, 2))
                outbox._writer.dead = random.random() < 0.5  # type: ignore[attr-defined]
        here.cut()
        async with at(path, bus, random=random) as outbox:
            assert await outbox.flush() == 0
        for key in range(5):
            assert await numbers(here.bus, f"k{key}") == [*range(key, sent, 5)]

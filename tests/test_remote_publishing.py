"""Publishing over the network: in which order, what a cancellation leaves, and what is said when nobody can tell."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from remote_support import Town, drain, settle, simulated, stranger

from eventstream import EARLIEST, EventBus, MemoryLog, Topic
from eventstream.errors import InvalidPayload, LimitReached, OutcomeUnknown
from eventstream.logs import memory
from eventstream.remote import Grant, RemoteBus, ServerLimits, requests
from eventstream.remote.messages import Goodbye, OpenTopic, Publish

words = Topic("words", str, retain=100_000)
numbers = Topic("numbers", int, retain=100_000)


def on_the_loops_clock(*topics: Topic[Any], **options: Any) -> Town:
    """A town whose buses forget in simulated time."""
    town = Town(*topics, **options)
    town.clock = anyio.current_time
    return town


async def history(town: Town, topic: Topic[Any]) -> list[Any]:
    return await drain(town.bus.subscribe(topic, after=EARLIEST))


class Calls:
    """Publishes from tasks of their own, and remembers in which order they called."""

    def __init__(self, bus: RemoteBus, topic: Topic[int]) -> None:
        self.bus = bus
        self.topic = topic
        self.made: list[int] = []
        self.failed: list[int] = []

    async def publish(self, number: int) -> None:
        self.made.append(number)
        try:
            await self.bus.publish(self.topic, number)
        except LimitReached:
            self.failed.append(number)


class Test_the_order_of_calls:
    @simulated
    async def test_is_the_order_of_events_whichever_task_calls(self) -> None:
        """trio runs tasks that are ready together in any order; what counts is who called first."""
        async with Town(numbers).open() as town, town.client() as bus:
            await bus.wait_connected()
            calls = Calls(bus, numbers)
            async with anyio.create_task_group() as tasks:
                for number in range(500):
                    tasks.start_soon(calls.publish, number)
            assert await history(town, numbers) == calls.made

    @simulated
    async def test_holds_before_the_first_connection(self) -> None:
        """And over a lost session, when all is said again."""
        async with Town(numbers).open() as town:
            town.network.refuse_dials()
            async with town.client() as bus, anyio.create_task_group() as tasks:
                calls = Calls(bus, numbers)
                for number in range(100):
                    tasks.start_soon(calls.publish, number)
                await settle()
                town.network.heal()
                await bus.wait_connected()
                for number in range(100, 200):
                    tasks.start_soon(calls.publish, number)
                await town.serve()
                for number in range(200, 300):
                    tasks.start_soon(calls.publish, number)
            assert await history(town, numbers) == calls.made

    @simulated
    async def test_holds_for_those_who_wait_for_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who comes later does not pass them; whoever leaves the line does not hold it up."""
        monkeypatch.setattr(requests, "MOST", 7)
        async with Town(numbers).open() as town, town.client() as bus:
            await bus.wait_connected()
            calls = Calls(bus, numbers)
            async with anyio.create_task_group() as tasks:
                for number in range(300):
                    tasks.start_soon(calls.publish, number)
                    if number % 10 == 0:
                        await settle(1)
                assert len(bus._conversation.requests) <= 7
            assert await history(town, numbers) == calls.made

    @simulated
    async def test_holds_when_all_is_said_again_while_others_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the next server does not take makes room for those in line: they come after what was said before."""
        monkeypatch.setattr(requests, "MOST", 3)
        small, large = "x", "x" * 3000
        async with Town(words).open() as town, town.client() as bus, anyio.create_task_group() as tasks:
            town.network.refuse_dials()
            errors: list[LimitReached] = []

            async def publish(word: str) -> None:
                try:
                    await bus.publish(words, word)
                except LimitReached as error:
                    errors.append(error)

            for word in (f"0{large}", f"1{small}", f"2{large}", f"3{small}", f"4{large}", f"5{small}"):
                tasks.start_soon(publish, word)
                await settle(1)
            await town.serve(limits=ServerLimits(message_bytes=1000))
            town.network.heal()
            await anyio.sleep(60)
            assert await history(town, words) == ["1x", "3x", "5x"]
            assert len(errors) == 3

    @simulated
    async def test_a_subscription_comes_before_later_publishes(self) -> None:
        """It has them, also when both are called before there is a connection."""
        async with Town(words).open() as town:
            town.network.refuse_dials()
            async with town.client() as bus, anyio.create_task_group() as tasks:
                subscription = bus.subscribe(words)
                tasks.start_soon(bus.publish, words, "later")
                await settle()
                town.network.heal()
                with anyio.fail_after(60):
                    assert (await subscription.receive()).payload == "later"


class Test_a_cancelled_publish:
    @simulated
    async def test_was_not_made_if_it_was_cancelled_before(self) -> None:
        """Nothing happened."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await bus.publish(words, "never")
            assert scope.cancelled_caught
            await bus.publish(words, "a")
            assert await history(town, words) == ["a"]

    @simulated
    async def test_was_not_made_if_it_still_waited_for_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing happened, and the others go on."""
        monkeypatch.setattr(requests, "MOST", 1)
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            town.network.links[0].half_open()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bus.publish, words, "a")
                await settle()
                with anyio.move_on_after(1) as patience:
                    await bus.publish(words, "never")
                assert patience.cancelled_caught
            await bus.publish(words, "b")
            assert await history(town, words) == ["a", "b"]


@simulated
async def test_headers_that_cannot_be_said_are_refused_by_name() -> None:
    async with Town(words).open() as town, town.client() as bus:
        with pytest.raises(InvalidPayload, match="headers: "):
            await bus.publish(words, "a", headers={"name": "\ud800"})
        await bus.publish(words, "b")
        assert await history(town, words) == ["b"]


class Test_an_answer_that_stays_out:
    """The server has the publish, and the answer is lost with the connection."""

    async def lose(self, town: Town, bus: RemoteBus, seconds: float, **server: Any) -> None:
        """Cuts the way of the answers, and replaces the server after some time."""
        await bus.wait_connected()
        town.network.links[0].half_open("down")
        await anyio.sleep(0.5)
        town.network.refuse_dials()
        town.cut()
        await town.stop()
        await anyio.sleep(seconds)
        await town.serve(**server)
        town.network.heal()

    @simulated
    async def test_for_longer_than_ids_are_remembered_is_said_to_be_unknown(self) -> None:
        """Not published again: it stands there once, and the caller knows what he does not know."""
        async with on_the_loops_clock(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.lose, town, bus, 121.0)
                await settle(1)
                with pytest.raises(OutcomeUnknown) as caught:
                    await bus.publish(words, "once", id="my id")
            assert await history(town, words) == ["once"]
            error = caught.value
            assert (error.topic, error.id) == ("words", "my id")
            assert 121 <= error.seconds <= 130
            assert not error.temporary
            assert "read the topic back" in str(error)
            await bus.publish(words, "more")  # the bus goes on
            assert await history(town, words) == ["once", "more"]

    @simulated
    async def test_sleep_counts_though_the_loop_does_not_see_it(self) -> None:
        """The lid was closed for an hour while the publish had no answer: the server has long forgotten its id."""
        slept = 0.0

        async def sleep_in_between(town: Town, bus: RemoteBus) -> None:
            nonlocal slept
            await self.lose(town, bus, 5.0)
            slept = 3600.0
            await town.bus.publish(words, "an hour later")

        async with on_the_loops_clock(words).open() as town:
            town.clock = lambda: anyio.current_time() + slept
            async with town.client(clock=lambda: 1e9 + anyio.current_time() + slept) as bus:
                await bus.wait_connected()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(sleep_in_between, town, bus)
                    await settle(1)
                    with pytest.raises(OutcomeUnknown) as caught:
                        await bus.publish(words, "once")
                assert 3600 <= caught.value.seconds <= 3620
                assert (await history(town, words)).count("once") == 1

    @simulated
    async def test_for_less_is_given_again(self) -> None:
        """By its id."""
        async with on_the_loops_clock(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.lose, town, bus, 100.0)
                await settle(1)
                position = await bus.publish(words, "once")
            assert await history(town, words) == ["once"]
            assert position == await town.bus.head(words)

    @simulated
    async def test_the_way_to_the_server_counts_too(self) -> None:
        """Said again in time, and delivered by a pipe that was cut at that moment, a minute later."""
        async with on_the_loops_clock(words, grace=600.0).open() as town, town.client() as bus:
            await bus.wait_connected()

            def authenticate(_: object) -> Grant:
                town.network.links[-1].half_open("up")  # the greeting came, what follows does not
                return Grant("anybody")

            async def trouble() -> None:
                await self.lose(town, bus, 100.0, authenticate=authenticate)
                await bus.wait_connected()
                await settle()
                town.network.refuse_dials()
                town.cut()
                await anyio.sleep(60.0)
                town.network.heal()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(trouble)
                await settle(1)
                with pytest.raises(OutcomeUnknown):
                    await bus.publish(words, "once")
            assert await history(town, words) == ["once"]

    @simulated
    async def test_ids_that_came_too_fast_are_forgotten_sooner(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Others have published so much that there was no room for this one's id: it is not appended twice."""
        monkeypatch.setattr(memory, "DEDUPE_IDS", 10)
        async with on_the_loops_clock(words).open() as town, town.client() as bus:
            await bus.wait_connected()

            async def others() -> None:
                await anyio.sleep(1)
                for number in range(20):
                    await town.bus.publish(words, f"other {number}", id=f"{number}")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.lose, town, bus, 5.0)
                tasks.start_soon(others)
                await settle(1)
                with pytest.raises(OutcomeUnknown):
                    await bus.publish(words, "once")
            assert (await history(town, words)).count("once") == 1

    @simulated
    async def test_who_never_said_it_says_it_later(self) -> None:
        """A publish that waited for a server for an hour is just published; questions may be asked twice."""
        async with on_the_loops_clock(words).open() as town:
            town.network.refuse_dials()
            async with town.client() as bus, anyio.create_task_group() as tasks:
                tasks.start_soon(bus.publish, words, "late")
                await anyio.sleep(1800)
                town.network.heal()
                await bus.wait_connected()
                await settle()
                tasks.start_soon(self.lose, town, bus, 200.0)
                await settle(1)
                assert await bus.head(words) == await town.bus.head(words)
            assert await history(town, words) == ["late"]

    @simulated
    async def test_an_age_below_zero_is_no_age(self) -> None:
        """Who says so does not keep to the protocol."""
        async with Town(words).open() as town, stranger(town) as other:
            await other.say(OpenTopic(1, "words", False, 1, 1))
            await other.say(Publish(1, 1, [(None, b"\xa1a")], "id", age=-1))  # type: ignore[list-item]
            assert (await other.hear(Goodbye)).fault is not None


class Test_how_far_back_ids_are_known:
    @simulated
    async def test_is_told_by_the_bus(self) -> None:
        """The window of its log."""
        async with EventBus(clock=anyio.current_time) as bus:
            assert bus.dedupe_seconds(words) == 120.0
            await bus.publish(words, "a", id="1")
            assert bus.dedupe_seconds(words) == 120.0
        async with EventBus(MemoryLog(dedupe_seconds=5.0)) as bus:
            assert bus.dedupe_seconds(words) == 5.0

    @simulated
    async def test_is_less_where_there_was_no_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only as far back as all are known; a new epoch has forgotten nothing."""
        monkeypatch.setattr(memory, "DEDUPE_IDS", 2)
        async with EventBus(clock=anyio.current_time) as bus:
            for number in range(4):
                await bus.publish(words, "a", id=f"{number}")
                await anyio.sleep(10)
            assert bus.dedupe_seconds(words) == pytest.approx(30.0)
            await bus.refresh(words)
            assert bus.dedupe_seconds(words) == 120.0

"""What a client tells of its connection: whether there is one, and each time when that changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from remote_support import Town, settle, simulated, take

from eventstream import BusClosed, NotAuthorized, Topic
from eventstream.remote import RemoteBus, conversation
from support import Price

words = Topic("words", str)


@asynccontextmanager
async def watching(bus: RemoteBus) -> AsyncIterator[list[bool]]:
    """What is told to a task that always looks."""
    told: list[bool] = []

    async def watch() -> None:
        async for connected in bus.connection_changes():
            told.append(connected)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await settle()
        yield told
        tasks.cancel_scope.cancel()


class Test_a_connection:
    @simulated
    async def test_is_there_when_the_server_has_accepted_the_client(self) -> None:
        """Not when a link is there: who is not known yet is not connected."""
        knows = anyio.Event()

        async def authenticate(_: object) -> object:
            from eventstream.remote import Grant

            await knows.wait()
            return Grant("anybody")

        async with Town(words, authenticate=authenticate).open() as town, town.client() as bus:
            async with watching(bus) as told:
                assert town.network.links
                assert (told, bus.connected) == ([False], False)
                knows.set()
                await bus.wait_connected()
                await settle()
                assert (told, bus.connected) == ([False, True], True)

    @simulated
    async def test_a_lost_link_is_told_though_nobody_else_notices(self) -> None:
        """And its return; the pipe goes on, so the server has not to accept the client again."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            async with watching(bus) as told:
                town.network.refuse_dials()
                town.cut()
                await settle()
                assert not bus.connected
                with anyio.move_on_after(5) as patience:
                    await bus.wait_connected()
                assert patience.cancelled_caught
                town.network.heal()
                await bus.wait_connected()
                await settle()
                assert told == [True, False, True]

    @simulated
    async def test_a_lost_session_is_told(self) -> None:
        """The server was replaced."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            async with watching(bus) as told:
                await town.serve()
                await anyio.sleep(5)
                assert told[:2] == [True, False]
                assert told[-1]

    @simulated
    async def test_a_silent_death_is_told_after_some_heartbeats(self) -> None:
        """Two to three."""
        async with Town(words).open() as town, town.client(heartbeat=2.0) as bus:
            await bus.wait_connected()
            async with watching(bus) as told:
                town.network.links[0].half_open()
                await anyio.sleep(3.9)
                assert told == [True]
                await anyio.sleep(4)
                assert told == [True, False, True]

    @simulated
    async def test_a_loss_that_nobody_saw_is_told_all_the_same(self) -> None:
        """Two of them are told as one."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            changes = bus.connection_changes()
            assert await anext(changes)
            for _ in range(2):
                town.cut()
                await settle()
                await bus.wait_connected()
            assert [await anext(changes) for _ in range(2)] == [False, True]
            with anyio.move_on_after(60) as patience:
                await anext(changes)
            assert patience.cancelled_caught

    @simulated
    async def test_who_looks_again_begins_with_what_is(self) -> None:
        """Losses of former times are not told."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            town.cut()
            await anyio.sleep(5)
            assert await anext(bus.connection_changes())

    @simulated
    async def test_its_end_is_told_with_the_reason(self) -> None:
        """To who waits, and to who asks later."""
        async with Town(words, authenticate=lambda _: None).open() as town:
            async with town.client() as bus:
                changes = bus.connection_changes()
                with pytest.raises(NotAuthorized):
                    while True:
                        await anext(changes)
                assert not bus.connected
            async with town.client() as bus:
                pass
            with pytest.raises(BusClosed):
                await anext(bus.connection_changes())


class Test_leaving:
    @simulated
    async def test_is_at_once_if_there_was_never_a_server(self) -> None:
        """There is nobody to say goodbye to."""
        async with Town(words).open() as town:
            town.network.refuse_dials()
            async with town.client() as bus:
                for _ in range(5000):  # more than a pipe takes
                    bus.subscribe(words, prefix="x" * 250)
                await anyio.sleep(7)
                began = anyio.current_time()
            assert anyio.current_time() == began

    @simulated
    async def test_is_at_once_if_the_server_is_gone_for_good(self) -> None:
        """The last pipe has ended, and no other was accepted."""
        async with Town(words).open() as town:
            async with town.client() as bus:
                await bus.wait_connected()
                await town.serve()
                town.network.refuse_dials()
                town.cut()
                await anyio.sleep(60)
                await town.stop()
                town.network.heal()
                await anyio.sleep(60)
                began = anyio.current_time()
            assert anyio.current_time() - began <= 2.0

    @simulated
    async def test_says_goodbye_to_a_server_that_has_not_answered_yet(self) -> None:
        """So that it keeps nothing for somebody who is gone."""
        knows = anyio.Event()

        async def authenticate(_: object) -> object:
            await knows.wait()
            return None

        async with Town(words, authenticate=authenticate).open() as town:
            async with town.client():
                await settle()
                assert town.server.statistics().pipes.pipes == 1
            await settle()
            assert town.server.statistics().pipes.pipes == 0


class Test_what_is_not_said_yet:
    @simulated
    async def test_is_bounded_whatever_is_opened_and_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a pipe that takes nothing: it is given up, and the next one is told only what is still true."""
        monkeypatch.setattr(conversation, "MOST_UNSAID", 200_000)
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            stays = bus.subscribe(words)
            await bus.publish(words, "before")
            town.network.links[0].half_open()
            most = 0
            for _ in range(20):
                for _ in range(1000):
                    bus.subscribe(words, prefix="x" * 100).close()
                outgoing = bus._caller._outgoing
                most = max(most, outgoing.size if outgoing is not None else 0)
                await anyio.lowlevel.checkpoint()
            assert 100_000 < most < 201_000
            await anyio.sleep(120)
            await bus.publish(words, "after")
            assert await take(stays, 2) == ["before", "after"]
            assert town.bus.statistics().subscribers == 1

    @simulated
    async def test_may_be_much_if_all_of_it_is_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """More subscriptions than a pipe and the bound take together: they are not given up again and again."""
        monkeypatch.setattr(conversation, "MOST_UNSAID", 10_000)
        async with Town(words).open() as town:
            town.network.refuse_dials()
            async with town.client() as bus:
                readers = [bus.subscribe(words, prefix="x" * 250) for _ in range(4500)]  # 1.3 MB
                last = bus.subscribe(words)
                await anyio.sleep(10)
                town.network.heal()
                with anyio.fail_after(60):
                    await bus.publish(words, "heard")
                    assert await take(last, 1) == ["heard"]
                assert town.bus.statistics().subscribers == len(readers) + 1


class Test_a_view:
    @simulated
    async def test_says_how_long_nobody_could_have_told_it_of_changes(self) -> None:
        """It serves its last state while the server is away, and does not call it current."""
        prices = Topic("prices", Price, key="symbol", compacted=True)
        async with Town(prices).open() as town, town.client() as bus, bus.view(prices) as view:
            await view.ready()
            assert view.age == 0
            town.network.refuse_dials()
            town.cut()
            await anyio.sleep(60)
            assert 59 < view.age <= 60
            assert view.statistics().age == view.age
            town.network.heal()
            await bus.publish(prices, Price("X", 1.0))
            assert view.age == 0

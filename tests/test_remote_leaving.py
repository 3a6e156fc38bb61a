"""How servers stop and clients leave, a bus before and after it runs, cancellation, bounds on requests, addresses."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from remote_support import Town, drain, settle, simulated, stranger, take

from eventstream import EARLIEST, BusClosed, EventBus, NowaitUnsupported, Topic
from eventstream.errors import ReconnectFailed, ServerOnly
from eventstream.pipes import Retry
from eventstream.remote import RemoteBus, Server, open_bus, requests
from eventstream.remote.messages import Bookmarked, Goodbye, encode
from support import Price

prices = Topic("prices", Price, key="symbol", compacted=True)
words = Topic("words", str, retain=100_000)


class Test_a_server_that_stops:
    @simulated
    async def test_tells_its_clients_and_they_go_on_with_the_next_one(self) -> None:
        """No event and no publish is lost or doubled, and no reader is reset."""
        async with Town(words).open() as town, town.client() as bus:
            subscription = bus.subscribe(words)
            await bus.head(words)
            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(bus.publish, words, str(number))
                    if number % 20 == 10:
                        await settle(number // 20)
                        await town.server.aclose()
                        await town.serve()
            assert sorted(await take(subscription, 60), key=int) == [str(number) for number in range(60)]
            assert await drain(subscription) == []

    @simulated
    async def test_says_goodbye_and_what_it_owes(self) -> None:
        """Events that were published before are sent before."""
        async with Town(words).open() as town, town.client() as bus, stranger(town) as other:
            subscription = bus.subscribe(words)
            await bus.head(words)
            town.bus.publish_nowait(words, "last")
            await settle(1)
            await town.server.aclose()
            assert (await other.hear(Goodbye)) == Goodbye()
            assert await take(subscription, 1) == ["last"]
            assert town.server.statistics().connections == 0

    @simulated
    async def test_does_not_wait_for_a_client_that_is_not_there(self) -> None:
        """For `linger` seconds at most, whatever its links do."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            [link] = town.network.links
            link.half_open()
            began = anyio.current_time()
            await town.server.aclose(linger=3.0)
            assert anyio.current_time() - began <= 3.1
            assert town.server.statistics().pipes.pipes == 0

    @simulated
    async def test_lets_nobody_in_meanwhile(self) -> None:
        """Who comes while it stops is told to come again."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            [link] = town.network.links
            link.half_open("down")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(town.server.aclose)
                await settle(1)
                async with stranger(town, greet=False) as other:
                    assert (await other.hear(Goodbye)) == Goodbye()

    @simulated
    async def test_may_be_stopped_twice_and_with_nobody_there(self) -> None:
        """Or before it ever served."""
        async with Town(words).open() as town:
            await town.server.aclose()
            await town.server.aclose()
            await Server(town.bus).aclose()

    @simulated
    async def test_a_server_may_go_for_good(self) -> None:
        """Where the client gives up, all its calls and readers learn it, with the cause."""
        retry = Retry(first=0.1, cap=0.5, give_up_after=5.0)
        async with Town(words).open() as town, town.client(retry=retry) as bus:
            subscription = bus.subscribe(words)
            await bus.wait_connected()
            await town.stop()
            await anyio.sleep(10)
            for call in (bus.wait_connected, lambda: bus.publish(words, "a"), subscription.receive):
                with pytest.raises(ReconnectFailed):
                    await call()


class Test_a_client_that_leaves:
    @simulated
    async def test_is_forgotten_at_once(self) -> None:
        """With its subscriptions and views, not when its grace time is over."""
        async with Town(words, prices).open() as town:
            async with town.client() as bus, bus.view(prices) as view:
                await view.ready()
                bus.subscribe(words)
                await bus.head(words)
                assert town.server.statistics().connections == 1
            began = anyio.current_time()
            await settle()
            assert anyio.current_time() == began
            statistics = town.server.statistics()
            assert (statistics.connections, statistics.pipes.pipes) == (0, 0)
            assert town.bus.statistics().subscribers == 0
            assert town.network.open_streams == []

    @pytest.mark.parametrize("silent", [True, False])
    @simulated
    async def test_does_not_wait_for_a_server_that_is_not_there(self, silent: bool) -> None:
        """Two seconds at most."""
        async with Town(words).open() as town:
            async with town.client() as bus:
                await bus.wait_connected()
                if silent:
                    town.network.links[0].half_open()
                else:
                    town.network.refuse_dials()
                    town.cut()
                began = anyio.current_time()
            assert anyio.current_time() - began <= 2.1

    @simulated
    async def test_ends_all_who_wait(self) -> None:
        """Calls and readers in other tasks get BusClosed."""
        ended: list[str] = []

        async def until_closed(wait: Any) -> None:
            with pytest.raises(BusClosed):
                await wait()
            ended.append("one")

        async with Town(words).open() as town, anyio.create_task_group() as tasks:
            async with town.client() as bus:
                await bus.wait_connected()
                town.network.links[0].half_open()
                tasks.start_soon(until_closed, lambda: bus.publish(words, "a"))
                tasks.start_soon(until_closed, bus.subscribe(words).receive)
                await settle()
            assert ended == ["one", "one"]

    @pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ExceptionGroup("g", [ValueError()])])
    @simulated
    async def test_an_exception_of_the_body_comes_out_as_it_is(self, error: BaseException) -> None:
        """Not in a group, and not replaced."""
        async with Town(words).open() as town:
            with pytest.raises(type(error)) as caught:
                async with town.client() as bus:
                    await bus.wait_connected()
                    raise error
            assert caught.value is error
            await settle()
            assert town.network.open_streams == []

    @simulated
    async def test_cancelling_the_body_ends_it_at_once(self) -> None:
        """Without a word."""
        async with Town(words).open() as town:
            began = anyio.current_time()
            with anyio.move_on_after(1):
                async with town.client() as bus:
                    await bus.wait_connected()
                    town.network.links[0].half_open()
                    await anyio.sleep_forever()
            assert anyio.current_time() - began <= 1.1


class Test_before_and_after:
    @simulated
    async def test_a_bus_that_does_not_run_says_so(self) -> None:
        """As an EventBus does."""
        async with Town(words, prices).open() as town:
            bus = town.client()

            async def every_call_says(state: str) -> None:
                calls: list[Callable[[], Awaitable[Any]]] = [
                    lambda: bus.publish(words, "a"),
                    lambda: bus.publish_many(words, ["a"]),
                    lambda: bus.delete(prices, "X"),
                    lambda: bus.refresh(words),
                    lambda: bus.head(words),
                    bus.topics,
                    bus.wait_connected,
                ]
                for call in calls:
                    with pytest.raises(BusClosed) as caught:
                        await call()
                    assert caught.value.state == state
                for plain in (bus.subscribe, bus.view):
                    with pytest.raises(BusClosed):
                        plain(prices)

            await every_call_says("new")
            assert repr(bus) == "<RemoteBus connecting with 0 topics>"
            async with bus:
                await bus.head(words)
                assert repr(bus) == "<RemoteBus connected with 1 topics>"
            await every_call_says("closed")
            assert repr(bus) == "<RemoteBus closed with 1 topics>"
            with pytest.raises(BusClosed):
                bus.on(words)
            with pytest.raises(BusClosed):
                async with bus:
                    pass

    @simulated
    async def test_what_only_a_server_can_do(self) -> None:
        """Each says where it belongs."""
        async with Town(words).open() as town, town.client() as bus:
            with pytest.raises(NowaitUnsupported):
                bus.publish_nowait(words, "a")
            calls: list[Callable[[], Any]] = [
                lambda: bus.snapshot(words),
                lambda: bus.revoke("alice"),
                lambda: bus.subscribe(words, principal="alice"),
                lambda: bus.subscribe(words, authorize=lambda _: True),
            ]
            for call in calls:
                with pytest.raises(ServerOnly):
                    call()


class Test_publishing:
    @simulated
    async def test_calls_wait_for_the_first_connection(self) -> None:
        """And are done in their order."""
        async with Town(words).open() as town:
            town.network.refuse_dials()
            async with town.client() as bus, anyio.create_task_group() as tasks:
                subscription = bus.subscribe(words)
                for number in range(5):
                    tasks.start_soon(bus.publish, words, str(number))
                    await settle(1)
                await anyio.sleep(3)
                town.network.heal()
                assert await take(subscription, 5) == [str(number) for number in range(5)]

    @simulated
    async def test_a_cancelled_publish_leaves_nothing_behind(self) -> None:
        """It may have happened; the same id again does not do it twice."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            town.network.links[0].half_open("down")
            with anyio.move_on_after(1):
                await bus.publish(words, "a", id="one")
            assert len(bus._conversation.requests) == 0
            await town.serve()
            await bus.publish(words, "a", id="one")
            assert await drain(bus.subscribe(words, after=EARLIEST)) == ["a"]

    @simulated
    async def test_thousands_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than may be under way: the others wait their turn."""
        monkeypatch.setattr(requests, "MOST", 100)
        monkeypatch.setattr(requests, "MOST_BYTES", 2_000)
        most = 0
        async with Town(words).open() as town, town.client() as bus:
            subscription = bus.subscribe(words)
            async with anyio.create_task_group() as tasks:
                for number in range(2000):
                    tasks.start_soon(bus.publish, words, str(number))
                while (await town.bus.head(words)).index != 2000:
                    most = max(most, len(bus._conversation.requests))
                    await settle(1)
            assert 1 < most <= 100
            assert sorted(await take(subscription, 2000), key=int) == [str(number) for number in range(2000)]

    @simulated
    async def test_an_answer_that_comes_twice_counts_once(self) -> None:
        """As one whose question was forgotten does not count."""
        async with Town(words).open() as town, town.client() as bus:
            await bus.wait_connected()
            open_requests = bus._conversation.requests
            answers: list[Any] = []

            async def ask() -> None:
                answers.append(await open_requests.answer(requests.Request(77, encode(Bookmarked(1)))))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await settle()
                open_requests.succeed(77, "first")
                open_requests.fail(77, BusClosed("closed"))
                open_requests.succeed(77, "second")
                open_requests.succeed(78, "nobody's")
            assert answers == ["first"]


class Test_addresses:
    @pytest.mark.parametrize(
        "url",
        [
            "memory://host",
            "tcp://host",
            "tcp://:1",
            "tcp://host:none",
            "tcp://host:0",
            "tcp://host:1/path",
            "tcp://user:secret@host:1",
            "tcp://host:1?a=b",
            "unix://path",
            "unix:path",
            "unix:///a%00b",
            "sqlite:///a%00b",
            "sqlite:path",
            "sqlite://path",
            "http://host:1",
            "host:1",
        ],
    )
    def test_a_wrong_one_is_refused_without_showing_secrets(self, url: str) -> None:
        with pytest.raises(ValueError) as caught:
            open_bus(url)
        assert "secret" not in str(caught.value)

    def test_what_is_no_address_is_told_apart(self) -> None:
        for url in (5, None, b"tcp://host:1"):
            with pytest.raises(TypeError, match="url must be text such as"):
                open_bus(url)  # type: ignore[arg-type]

    def test_who_gives_a_context_means_to_encrypt(self) -> None:
        """So without TLS it is refused, and never sent in clear."""
        for url in ("tcp://host:1", "unix:///path", "memory://"):
            with pytest.raises(ValueError, match="nothing is encrypted there"):
                open_bus(url, ssl_context=ssl.create_default_context())

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"window": 0}, "window is a number of bytes"),
            ({"heartbeat": 0}, "heartbeat is a positive time"),
            ({"token": 7}, "token must be text or a callable"),
            ({"tokn": "x"}, "unexpected keyword argument 'tokn'"),
        ],
    )
    def test_a_wrong_option_is_refused_at_once(self, options: Any, why: str) -> None:
        """Not in a task, much later."""
        with pytest.raises((TypeError, ValueError), match=why):
            open_bus("tcp://host:1", **options)

    def test_an_address_is_no_reconnector(self) -> None:
        with pytest.raises(TypeError, match="use open_bus"):
            RemoteBus("tcp://host:1")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("bus", "topics", "why"),
        [
            ([words], [], "bus must be the EventBus itself"),
            (EventBus(), words, r"write \[words\]"),
            (EventBus(), ["words"], "'words' is none"),
            (EventBus(), [words, Topic("words", bytes)], "declared twice with different type"),
        ],
    )
    def test_a_server_is_told_what_to_serve(self, bus: Any, topics: Any, why: str) -> None:
        with pytest.raises((TypeError, ValueError), match=why):
            Server(bus, topics)

    async def test_memory_is_a_bus_in_this_process(self) -> None:
        async with open_bus("memory://") as bus:
            assert isinstance(bus, EventBus)

    async def test_tcp_and_unix_sockets(self, tmp_path: Path) -> None:
        """The same methods behind each."""
        path = tmp_path / "what? 100% #1"
        tcp = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        unix = await anyio.create_unix_listener(path)
        port = tcp.extra(anyio.abc.SocketAttribute.local_port)
        async with EventBus() as served, anyio.create_task_group() as tasks:
            server = Server(served, [words])
            await tasks.start(server.serve, tcp)
            await tasks.start(server.serve, unix)
            for url in (f"tcp://127.0.0.1:{port}", f"unix://{quote(str(path))}"):
                async with open_bus(url) as bus:
                    assert isinstance(bus, RemoteBus)
                    with anyio.fail_after(10):
                        subscription = bus.subscribe(words)
                        await bus.publish(words, url)
                        assert await take(subscription, 1) == [url]
            with anyio.fail_after(10):
                await server.aclose()

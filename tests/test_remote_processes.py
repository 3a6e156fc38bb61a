"""Real processes: servers that are killed, clients that are stopped for too long, many subscribers for some time.

Modest sizes here; large ones by `EVENTSTREAM_LONG=1` and by `python -m benchmarks.endurance`. Each process is stopped
by its own id. Nothing sleeps to let something happen: what has to happen is waited for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import SocketAttribute
from cli_support import COMMAND, PATIENCE, Process, running

from eventstream import EARLIEST, Event, EventBus, PositionLost, SnapshotStart, Topic
from eventstream.codec import Keyed
from eventstream.pipes import Retry
from eventstream.remote import RemoteBus, Server, open_bus
from eventstream.testing import CuttingProxy

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(120)]  # processes are waited for

LONG = bool(os.environ.get("EVENTSTREAM_LONG"))
HERE = Path(__file__).parent
ROOT = HERE.parent
words = Topic("words", dict[str, int], retain=100_000)
state = Topic("state", Keyed, key="key", compacted=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what another process does."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  nobody here can tell when
            await anyio.sleep(0.01)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: that of a Unix socket must fit into 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="es") as folder:
        yield Path(folder)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RemoteBus]:
    bus = open_bus(url, retry=Retry(first=0.05, cap=0.5))
    assert isinstance(bus, RemoteBus)
    async with bus:
        with anyio.fail_after(PATIENCE):
            await bus.wait_connected()
        yield bus


class Killed:
    """A server that is killed, and started again at the same address."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        socket = folder / "bus"
        self.url = f"unix://{socket}"
        self._command = (sys.executable, str(HERE / "serve_log.py")) if durable else COMMAND
        self._arguments = (str(folder / "log"), str(socket)) if durable else ("serve", "--listen", self.url)
        self.process: Process

    def __enter__(self) -> Killed:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()

    def start(self) -> None:
        self.process = Process(*self._arguments, command=self._command)
        self.process.out.wait_for("^listening at")

    def kill(self) -> None:
        self.process.stop(signal.SIGKILL)
        self.process.close()


class Test_a_server_that_is_killed:
    """SIGKILL: no goodbye, no flush; whatever was under way is gone."""

    async def test_and_has_lost_its_history_says_so_to_every_reader(self, place: Path) -> None:
        """A new epoch: a snapshot where there is one, else PositionLost. The bus goes on."""
        with Killed(place) as server:
            async with connected(server.url) as bus, bus.subscribe(state) as reader, bus.subscribe(words) as plain:
                frames = reader.frames()
                with anyio.fail_after(PATIENCE):
                    await bus.publish(state, Keyed("a", msgspec.Raw(b"\x01")))
                    await bus.publish(words, {"number": 1})
                    assert (await plain.receive()).payload == {"number": 1}
                    while not isinstance(await anext(frames), Event):
                        pass
                old = reader.position.epoch
                server.kill()
                server.start()
                with anyio.fail_after(PATIENCE):
                    await bus.publish(state, Keyed("b", msgspec.Raw(b"\x02")))
                    start = await anext(frames)
                    assert isinstance(start, SnapshotStart)
                    assert (start.reason, start.position.epoch == old) == ("epoch", False)
                    while not isinstance(event := await anext(frames), Event):
                        pass
                    assert event.key == "b"
                    with pytest.raises(PositionLost):
                        await plain.receive()
                    position = await bus.publish(words, {"number": 2})
                    async with bus.subscribe(words, after=EARLIEST) as again:
                        word = await again.receive()
                        assert (word.index, word.payload) == (position.index, {"number": 2})

    async def test_again_and_again_doubles_no_publish(self, place: Path) -> None:
        """Each of those in flight is answered; in each life of the history it stands once at most."""
        lives: dict[str, list[int]] = {}
        answers: dict[int, Any] = {}

        async def publish(bus: RemoteBus, first: int) -> None:
            for number in range(first, 10_000, 10):
                answers[number] = await bus.publish(words, {"number": number})

        async def watch(bus: RemoteBus) -> None:
            while True:
                try:
                    async with bus.subscribe(words, after=EARLIEST) as subscription:
                        async for event in subscription:
                            lives.setdefault(subscription.position.epoch, []).append(event.payload["number"])
                except PositionLost:
                    pass

        with Killed(place) as server:
            async with connected(server.url) as bus, anyio.create_task_group() as tasks:
                tasks.start_soon(watch, bus)
                for first in range(10):
                    tasks.start_soon(publish, bus, first)
                for _ in range(3):
                    answered = len(answers)
                    await until(lambda answered=answered: len(answers) > answered + 200)  # type: ignore[misc]
                    server.kill()
                    server.start()
                await until(lambda: len(lives) >= 3)
                answered = len(answers)
                await until(lambda: len(answers) > answered + 200)
                tasks.cancel_scope.cancel()
        for numbers in lives.values():
            assert len(numbers) == len(set(numbers))
        last = list(lives)[-1]
        here = [number for number, position in answers.items() if position.epoch == last]
        assert set(here) - set(lives[last]) <= set(here[-20:])  # what the reader had not yet when it was cancelled


class Test_a_server_that_is_killed_and_has_its_history:
    """SIGKILL with a log in a file: every answered publish is there, and nobody notices more than a delay."""

    async def test_again_and_again_loses_and_doubles_nothing(self, place: Path) -> None:
        """Subscriptions go on by index, publishes in flight are said again; each stands once, where it was answered."""
        answers: dict[int, Any] = {}
        heard: list[tuple[int, int]] = []  # number, index
        marks: list[Any] = []

        async def publish(bus: RemoteBus, first: int) -> None:
            for number in range(first, 600, 10):
                answers[number] = await bus.publish(words, {"number": number})

        async def watch(bus: RemoteBus) -> None:
            async with bus.subscribe(words, after=EARLIEST) as subscription:
                async for frame in subscription.frames():
                    if isinstance(frame, Event):
                        heard.append((frame.payload["number"], frame.index))
                    else:
                        marks.append(frame)

        with Killed(place, durable=True) as server:
            async with connected(server.url) as bus, anyio.create_task_group() as tasks:
                tasks.start_soon(watch, bus)
                async with anyio.create_task_group() as publishers:
                    for first in range(10):
                        publishers.start_soon(publish, bus, first)
                    for answered in (100, 250, 400):
                        await until(lambda answered=answered: len(answers) > answered)  # type: ignore[misc]
                        server.kill()
                        server.start()
                await until(lambda: len(heard) >= 600)
                async with bus.subscribe(words, after=EARLIEST) as again:
                    with anyio.fail_after(PATIENCE):
                        kept = [
                            (event.payload["number"], event.index) for event in [await again.receive() for _ in heard]
                        ]
                tasks.cancel_scope.cancel()
        assert heard == kept
        assert [index for _, index in heard] == list(range(1, 601))
        assert dict(heard) == {number: position.index for number, position in answers.items()}
        assert len({position.epoch for position in answers.values()}) == 1
        assert len(marks) == 1  # the first frame: no reader was reset

    async def test_a_view_is_as_it_was(self, place: Path) -> None:
        """The state of a compacted topic is in the file; the view goes on, and is not reset."""
        with Killed(place, durable=True) as server:
            async with connected(server.url) as bus, bus.view(state) as view:
                with anyio.fail_after(PATIENCE):
                    await bus.publish(state, Keyed("a", msgspec.Raw(b"\x01")))
                    await view.ready()
                    server.kill()
                    server.start()
                    await view.reached(await bus.publish(state, Keyed("b", msgspec.Raw(b"\x02"))))
                    assert set(view) == {"a", "b"}
                    assert view.statistics().resets == 0


class Test_a_client_that_is_stopped:
    """SIGSTOP for longer than the grace time: to the server it is gone; then it goes on as if nothing had been."""

    @asynccontextmanager
    async def tail(self, retain: int, grace: float) -> AsyncIterator[tuple[EventBus, Server, CuttingProxy, Process]]:
        topic = Topic("words", dict[str, int], retain=retain)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with EventBus() as bus, anyio.create_task_group() as tasks:
            server = Server(bus, [topic], grace=grace)
            await tasks.start(server.serve, listener)
            await bus.head(topic)
            async with CuttingProxy(listener.extra(SocketAttribute.local_port)) as proxy:
                with running("tail", f"tcp://127.0.0.1:{proxy.port}", "words", "--json") as tail:
                    await anyio.to_thread.run_sync(tail.err.wait_for, "goes on after")
                    yield bus, server, proxy, tail
                    tail.send(signal.SIGCONT)
                    tail.stop(signal.SIGINT)
            tasks.cancel_scope.cancel()

    async def stop(self, server: Server, proxy: CuttingProxy, tail: Process) -> None:
        """The connection breaks while the client stands still, and the server forgets it."""
        tail.send(signal.SIGSTOP)
        proxy.cut()
        await until(lambda: not server.statistics().pipes.pipes)

    async def numbers(self, tail: Process, last: int) -> list[int]:
        await anyio.to_thread.run_sync(tail.out.wait_for, f'"number":{last}}}')
        return [json.loads(line)["payload"]["number"] for line in tail.out.lines]

    async def test_goes_on_by_index(self) -> None:
        """All that came meanwhile comes then, once, in order; it is told that nothing was missed."""
        async with self.tail(retain=1000, grace=0.2) as (bus, server, proxy, tail):
            topic = Topic("words", dict[str, int], retain=1000)
            for number in range(100):
                bus.publish_nowait(topic, {"number": number})
            assert await self.numbers(tail, 99) == list(range(100))
            await self.stop(server, proxy, tail)
            for number in range(100, 500):
                bus.publish_nowait(topic, {"number": number})
            tail.send(signal.SIGCONT)
            assert await self.numbers(tail, 499) == list(range(500))
            await anyio.to_thread.run_sync(tail.err.wait_for, "resumed after .*: nothing was missed")

    async def test_is_told_if_what_it_missed_is_gone(self) -> None:
        """An explicit reset, then all that is kept."""
        async with self.tail(retain=50, grace=0.2) as (bus, server, proxy, tail):
            topic = Topic("words", dict[str, int], retain=50)
            bus.publish_nowait(topic, {"number": 0})
            assert await self.numbers(tail, 0) == [0]
            await self.stop(server, proxy, tail)
            for number in range(1, 1000):
                bus.publish_nowait(topic, {"number": number})
            tail.send(signal.SIGCONT)
            await anyio.to_thread.run_sync(tail.err.wait_for, r"reset \(expired\)")
            seen = await self.numbers(tail, 999)
            assert seen[1:] == list(range(seen[1], 1000))
            assert 900 < seen[1] <= 950

    @pytest.mark.skipif(not LONG, reason="takes a minute: EVENTSTREAM_LONG=1")
    async def test_is_missed_by_its_heartbeats_alone(self) -> None:
        """Nothing is cut: the system keeps the connection open, and only silence tells."""
        async with self.tail(retain=1000, grace=1.0) as (bus, server, _, tail):
            topic = Topic("words", dict[str, int], retain=1000)
            bus.publish_nowait(topic, {"number": 0})
            assert await self.numbers(tail, 0) == [0]
            tail.send(signal.SIGSTOP)
            with anyio.fail_after(90):
                while server.statistics().pipes.pipes:  # noqa: ASYNC110
                    await anyio.sleep(0.1)
            for number in range(1, 200):
                bus.publish_nowait(topic, {"number": number})
            tail.send(signal.SIGCONT)
            assert await self.numbers(tail, 199) == list(range(200))


@pytest.mark.unmeasured
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [(), ("--cut", "0.5")], ids=["quiet", "cut"])
def test_many_subscribers_for_some_time_lose_nothing(options: tuple[str, ...]) -> None:
    """Thirty for three seconds here, over connections of their own; nothing is lost, doubled or reset."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.endurance",
        "--clients",
        "30",
        "--seconds",
        "3",
        "--rate",
        "30",
        *options,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert "expected 2,700, got 2,700, lost 0, doubled 0, resets 0" in done.stdout, done.stdout + done.stderr

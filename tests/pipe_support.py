"""What the tests of pipes share: places to dial and listen, both loops, and the check that nothing is left over."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

import anyio
import pytest
import trio
import trustme
from anyio import ClosedResourceError, EndOfStream
from anyio.abc import ByteReceiveStream, ByteStream, Listener, SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSListener
from sniffio import current_async_library

from eventstream.pipes import BackedPipe, Pipe, PipeServer, Retry
from eventstream.pipes.frames import Ack, Decoder, Frame, Hello, Welcome, encode
from eventstream.pipes.handshake import make_hello
from eventstream.pipes.tcp import connect_tcp
from eventstream.testing import Faults, Network, run_simulated

Backend = Literal["asyncio", "trio"]
BACKENDS: Final = ("asyncio", "trio")
FAULTS: Final = Faults(
    latency=0.01, jitter=0.05, fragment=0.5, stall=0.02, cut=0.7, lossy=0.5, close=0.1, half_open=0.1,
    life_bytes=12_000, refuse=0.2, dial_seconds=0.2,
)  # fmt: skip
QUICK: Final = Retry(first=0.01, cap=0.1)


class Place:
    """Where servers listen and pipes dial. `dial` leads to the newest listener."""

    simulated = False
    faulty = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._dialled: list[ByteStream] = []
        self.dials = 0

    async def listen(self) -> Listener[Any]:
        raise NotImplementedError

    async def connect(self) -> ByteStream:
        raise NotImplementedError

    async def dial(self) -> ByteStream:
        self.dials += 1
        stream = await self.connect()
        self._dialled.append(stream)
        return stream

    def cut(self) -> None:
        """Ends the newest connection, under the feet of both ends."""
        with suppress(OSError, ClosedResourceError):  # it is gone already
            self._dialled[-1].extra(SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)

    def pipe(self, **options: Any) -> BackedPipe:
        return BackedPipe(self.dial, **{"retry": QUICK, "heartbeat": 1.0, "linger": 0.2, **options})

    @asynccontextmanager
    async def serving(self, handler: Callable[[Pipe], Awaitable[Any]], **options: Any) -> AsyncGenerator[PipeServer]:
        """A server that serves here as long as the block runs."""
        server = PipeServer(handler, **{"heartbeat": 1.0, "linger": 1.0, **options})
        async with serving(server, await self.listen()):
            yield server

    @asynccontextmanager
    async def pair(self, **options: Any) -> AsyncGenerator[tuple[BackedPipe, Pipe]]:
        """Both ends of a new pipe."""
        meeting = Meeting()
        shared = {name: value for name, value in options.items() if name in ("capacity", "heartbeat", "linger")}
        async with self.serving(meeting, **shared), self.pipe(**options) as client:
            served = await meeting.pipe()
            await client.wait_connected()
            yield client, served


class Memory(Place):
    """The clean network in memory, in simulated time."""

    simulated = True
    faults = Faults()

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.network = Network(11, self.faults)
        self._listeners = 0

    async def listen(self) -> Listener[Any]:
        self._listeners += 1
        return self.network.listen(f"server {self._listeners}")

    async def connect(self) -> ByteStream:
        return await self.network.dial(f"server {self._listeners}")

    def cut(self) -> None:
        for link in self.network.links:
            link.cut()


class Faulty(Memory):
    """The network in memory that cuts, delays and tears, in simulated time."""

    faulty = True
    faults = FAULTS


class Tcp(Place):
    """Real sockets on the loopback."""

    async def listen(self) -> Listener[Any]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port: int = listener.extra(SocketAttribute.local_port)
        return listener

    async def connect(self) -> ByteStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)


class Kept(Tcp):
    """Real sockets on the loopback, dialed by our own stream where that is another than anyio's."""

    async def connect(self) -> ByteStream:
        return await connect_tcp("127.0.0.1", self.port)


class Tls(Tcp):
    """TLS over real sockets."""

    async def listen(self) -> Listener[Any]:
        return TLSListener(await super().listen(), contexts()[0])

    async def connect(self) -> ByteStream:
        return await anyio.connect_tcp("127.0.0.1", self.port, ssl_context=contexts()[1], tls_hostname="localhost")


class Unix(Place):
    """Unix sockets."""

    async def listen(self) -> Listener[Any]:
        self._path = self._path.with_name(self._path.name + "s")
        return await anyio.create_unix_listener(self._path)

    async def connect(self) -> ByteStream:
        return await anyio.connect_unix(self._path)


PLACES: Final = {"memory": Memory, "faulty": Faulty, "tcp": Tcp, "kept": Kept, "tls": Tls, "unix": Unix}


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of a client that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


# Running.


def everywhere(
    *, faulty: bool = True, real: bool = True, names: Sequence[str] = tuple(PLACES)
) -> Callable[[Callable[[Any], Awaitable[None]]], Any]:
    """Makes a test of a behaviour: on every transport and both loops, and nothing may be left over."""
    names = [name for name in names if (faulty or not PLACES[name].faulty) and (real or PLACES[name].simulated)]

    def decorate(behaviour: Callable[[Any], Awaitable[None]]) -> Any:
        @pytest.mark.parametrize("transport", names)
        @pytest.mark.parametrize("backend", BACKENDS)
        def test(backend: Backend, transport: str, tmp_path: Path) -> None:
            run_at(PLACES[transport](tmp_path / "s"), behaviour, backend)

        test.__name__, test.__doc__, test.__module__ = behaviour.__name__, behaviour.__doc__, behaviour.__module__
        return test

    return decorate


def simulated(behaviour: Callable[[Any], Awaitable[None]]) -> Any:
    """Makes a test over the clean network in simulated time, on both loops; nothing may be left over."""

    @pytest.mark.parametrize("backend", BACKENDS)
    def test(backend: Backend, tmp_path: Path) -> None:
        run_at(Memory(tmp_path), behaviour, backend)

    test.__name__, test.__doc__, test.__module__ = behaviour.__name__, behaviour.__doc__, behaviour.__module__
    return test


def run_at(place: Place, behaviour: Callable[[Any], Awaitable[None]], backend: Backend, limit: float = 20.0) -> None:
    """Runs a behaviour, then looks for tasks, streams and file descriptors that it left."""
    if not place.simulated:
        contexts()
    before = descriptors()

    async def main() -> None:
        tasks = living_tasks()
        with anyio.fail_after(None if place.simulated else limit):
            await behaviour(place)
        for _ in range(20):
            await checkpoint()
        assert living_tasks() == tasks, "tasks are left over"
        if isinstance(place, Memory):
            assert place.network.open_streams == [], "streams are left open"

    if place.simulated:
        run_simulated(main, backend=backend)
    else:
        anyio.run(main, backend=backend)
    assert descriptors() == before, "file descriptors are left open"


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def living_tasks() -> int:
    """How many tasks the running loop has."""
    if current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@asynccontextmanager
async def serving(server: PipeServer, *listeners: Listener[Any]) -> AsyncIterator[PipeServer]:
    """A server that serves as long as the block runs."""
    async with anyio.create_task_group() as tasks:
        for listener in listeners:
            await tasks.start(server.serve, listener)
        try:
            yield server
        finally:
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def background(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> AsyncIterator[None]:
    """Runs a function beside the block, and cancels what is left of it at the end."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(function, *args)
        await settle()
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


class Meeting:
    """A handler that gives the server's ends of pipes to the test, and holds them until `release`."""

    def __init__(self) -> None:
        self.pipes: list[Pipe] = []
        self.released = anyio.Event()
        self._arrived = anyio.Event()

    async def __call__(self, pipe: Pipe) -> None:
        self.pipes.append(pipe)
        self._arrived.set()
        await self.released.wait()

    async def pipe(self) -> Pipe:
        """The newest."""
        await self._arrived.wait()
        return self.pipes[-1]


async def echo(pipe: Pipe) -> None:
    """A handler that says again what it hears, then ends."""
    async for chunk in pipe:
        await pipe.send(chunk)
    await pipe.send_eof()
    await pipe.drain()


# Bytes.


def noise(seed: object, size: int) -> bytes:
    """Bytes that follow a seed."""
    return Random(str(seed)).randbytes(size)


def cuttings(data: bytes, seed: object, most: int) -> Iterator[bytes]:
    """The same bytes in portions of 1 to `most`."""
    random, at = Random(str(seed)), 0
    while at < len(data):
        size = random.randint(1, most)
        yield data[at : at + size]
        at += size


async def say(pipe: Pipe, data: bytes, seed: object, most: int) -> None:
    """Sends all of `data` in portions, and its end."""
    for portion in cuttings(data, seed, most):
        await pipe.send(portion)
    await pipe.send_eof()


async def hear(stream: ByteReceiveStream, count: int) -> bytes:
    """The next `count` bytes."""
    heard = b""
    while len(heard) < count:
        heard += await stream.receive(count - len(heard))
    return heard


async def hear_all(stream: ByteReceiveStream) -> bytes:
    """All bytes up to the end."""
    parts = []
    try:
        while True:
            parts.append(await stream.receive())
    except EndOfStream:
        return b"".join(parts)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Frames by hand: what a stranger, or a peer with bad manners, sends.


class Rude:
    """A client that speaks frames as it likes."""

    def __init__(self, stream: ByteStream, pipe: bytes = b"rude" * 4, token: bytes = b"t" * 32) -> None:
        self.stream, self.id, self.token = stream, pipe, token
        self.decoder = Decoder()
        self.frames: list[Frame] = []
        self.epoch = b""

    def hello(self, generation: int = 1, have: Ack | None = None, epoch: bytes | None = None) -> Hello:
        """A HELLO with a good proof."""
        known = self.epoch if epoch is None else epoch
        return make_hello(self.id, self.token, known, generation, have or Ack(0, 1 << 20))

    async def say(self, frame: Any) -> None:
        await self.stream.send(encode(frame))

    async def hear(self) -> Frame:
        """The next frame."""
        while not self.frames:
            self.frames = self.decoder.feed(await self.stream.receive())
        frame = self.frames.pop(0)
        if isinstance(frame, Welcome):
            self.epoch = frame.epoch
        return frame

    async def hear_until(self, kind: type[Frame]) -> Frame:
        """The next frame of a kind."""
        while not isinstance(frame := await self.hear(), kind):
            pass
        return frame

    async def aclose(self) -> None:
        await self.stream.aclose()


async def hung_up(stream: ByteReceiveStream) -> bool:
    """Whether the peer ends the connection, by whatever means, after what it may still say."""
    try:
        while True:
            await stream.receive()
    except (EndOfStream, anyio.BrokenResourceError, ClosedResourceError):
        return True


@contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """What the pipes log meanwhile."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, keep = logging.getLogger("eventstream.pipes"), Keep()
    before = logger.level, logger.propagate
    logger.addHandler(keep)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(keep)
        logger.setLevel(before[0])
        logger.propagate = before[1]


async def settle(turns: int = 20) -> None:
    """Lets all tasks run that can."""
    for _ in range(turns):
        await checkpoint()


async def until(condition: Callable[[], object]) -> None:
    """Looks again and again until it is so. Where time is simulated, this takes none."""
    pause = 0.001
    while not condition():
        await anyio.sleep(pause)
        pause = min(0.05, pause * 1.1)

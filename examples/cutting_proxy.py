"""A backed pipe over connections that are cut: 8 MiB go each way, through a proxy that ends every connection.

    client  ── BackedPipe ──▶  proxy, cuts each connection after 100,000 to 500,000 bytes  ──▶  server  ── PipeServer

The cuts come at any byte, in the middle of frames, and what is under way then is lost. Neither program notices: each
gets every byte once, in order, and then the end of the stream. Only this computer is contacted; it takes a few seconds.
"""

from __future__ import annotations

from hashlib import sha256
from random import Random

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.stapled import MultiListener

from eventstream.pipes import BackedPipe, Pipe, PipeServer, Retry

HOST = "127.0.0.1"
SIZE = 8 * 1024 * 1024
PART = 50_000

random = Random(2013)
UP = random.randbytes(SIZE)
DOWN = random.randbytes(SIZE)


class CuttingProxy:
    """Hands bytes on between a client and a server, and cuts each connection when it has carried enough of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.cuts = 0
        self.carried = 0

    async def serve(self, client: ByteStream) -> None:
        self.connections += 1
        left = random.randrange(100_000, 500_000)

        async def pump(source: ByteStream, target: ByteStream, tasks: TaskGroup) -> None:
            nonlocal left
            try:
                while left:
                    part = (await source.receive())[:left]
                    left -= len(part)
                    self.carried += len(part)
                    await target.send(part)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # one of the two hung up first
            tasks.cancel_scope.cancel()

        async with client, await anyio.connect_tcp(HOST, self.port) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(pump, client, server, tasks)
            tasks.start_soon(pump, server, client, tasks)
        self.cuts += not left


async def exchange(pipe: Pipe, say: bytes) -> bytes:
    """Says all of `say` while it hears what the peer says, until both have said all and have it."""
    heard = bytearray()

    async def speak() -> None:
        for start in range(0, len(say), PART):
            await pipe.send(say[start : start + PART])
        await pipe.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(speak)
        async for chunk in pipe:
            heard += chunk
    await pipe.drain()  # the peer's end has everything, and knows that nothing follows
    return bytes(heard)


def port_of(listener: MultiListener[SocketStream]) -> int:
    return listener.extra(SocketAttribute.local_port)


def report(way: str, heard: bytes, said: bytes) -> None:
    equal = sha256(heard).digest() == sha256(said).digest()
    print(f"{way} {len(heard):,} bytes arrived, sha256 {'equal' if equal else 'DIFFERENT'}")


async def main() -> None:
    heard_by_server: list[bytes] = []
    served = anyio.Event()

    async def handle(pipe: Pipe) -> None:
        heard_by_server.append(await exchange(pipe, DOWN))
        served.set()

    inner = await anyio.create_tcp_listener(local_host=HOST)
    outer = await anyio.create_tcp_listener(local_host=HOST)
    server = PipeServer(handle)
    proxy = CuttingProxy(port_of(inner))

    async with outer, anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, inner)
        tasks.start_soon(outer.serve, proxy.serve)

        async with BackedPipe(
            lambda: anyio.connect_tcp(HOST, port_of(outer)),
            retry=Retry(first=0.01, cap=0.1),  # for a network this bad; the defaults are kinder to a server
        ) as pipe:
            heard_by_client = await exchange(pipe, UP)
        links = pipe.statistics().links
        await served.wait()
        tasks.cancel_scope.cancel()

    (heard,) = heard_by_server  # one pipe, so its handler was called once, however many connections there were
    report("up:  ", heard, UP)
    report("down:", heard_by_client, DOWN)
    print(f"proxy: {proxy.connections} connections, {proxy.cuts} cut, {proxy.carried:,} bytes carried")
    print(f"pipe:  {links} links, {2 * SIZE:,} bytes delivered")


if __name__ == "__main__":
    anyio.run(main)

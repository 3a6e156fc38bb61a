"""Backed pipes over real TCP, through a proxy that cuts connections at random bytes, or holds them without a word.

`EVENTSTREAM_MEGABYTES=100` transfers that much each way, with more than 200 cuts; by default it is less.
"""

from __future__ import annotations

import os
import resource
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from random import Random
from typing import Any, Final

import anyio
import pytest
from anyio import EndOfStream
from pipe_support import QUICK, Backend, Meeting, Tcp, background, digest, hear, hear_all, run_at, serving, until

from eventstream.errors import LinkSilent
from eventstream.pipes import BackedPipe, Pipe, PipeServer
from eventstream.testing.proxy import CuttingProxy

MEGABYTES: Final = int(os.environ.get("EVENTSTREAM_MEGABYTES", "20"))
SIZE: Final = MEGABYTES * 1_000_000
CUTS: Final = max(40, 2 * MEGABYTES)
CAPACITY: Final = 512 * 1024
BLOCK: Final = 100_000


@asynccontextmanager
async def proxied(
    place: Tcp, proxy_options: dict[str, Any], **options: Any
) -> AsyncIterator[tuple[BackedPipe, Pipe, CuttingProxy]]:
    """Both ends of a pipe with a proxy between them."""
    meeting = Meeting()
    async with (
        serving(PipeServer(meeting, **options), await place.listen()),
        CuttingProxy(place.port, **proxy_options) as proxy,
        BackedPipe(partial(anyio.connect_tcp, "127.0.0.1", proxy.port), retry=QUICK, **options) as client,
    ):
        yield client, await meeting.pipe(), proxy


async def say_noise(pipe: Pipe, seed: str, hashes: dict[str, str]) -> None:
    """Says SIZE bytes that follow a seed, and their end, without ever holding all of them."""
    random, said = Random(seed), sha256()
    for _ in range(SIZE // BLOCK):
        block = random.randbytes(BLOCK)
        said.update(block)
        await pipe.send(block)
    await pipe.send_eof()
    hashes[f"{seed} said"] = said.hexdigest()


async def hear_noise(pipe: Pipe, seed: str, hashes: dict[str, str]) -> None:
    """Hears all, without keeping it, and looks at the bounds of memory meanwhile."""
    heard = sha256()
    try:
        while True:
            heard.update(await pipe.receive())
            statistics = pipe.statistics()
            assert statistics.in_ring <= CAPACITY
            assert statistics.unread <= CAPACITY
    except EndOfStream:
        hashes[f"{seed} heard"] = heard.hexdigest()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_much_each_way_through_many_cuts(backend: Backend, tmp_path: Any) -> None:
    """All arrives in both directions, however often the connection is cut; memory is bounded by the capacities."""
    hashes: dict[str, str] = {}

    async def main(place: Tcp) -> None:
        faults = {"seed": 7, "cuts": 4 * CUTS, "mean_bytes": SIZE / CUTS}
        async with proxied(place, faults, capacity=CAPACITY) as (client, served, proxy):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(say_noise, client, "up", hashes)
                tasks.start_soon(say_noise, served, "down", hashes)
                tasks.start_soon(hear_noise, client, "down", hashes)
                tasks.start_soon(hear_noise, served, "up", hashes)
            await client.drain()
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            assert proxy.connections > CUTS  # each but the last was cut
            assert client.statistics().links > CUTS // 2  # some do not live through their handshake
            assert grown < 4 * 2 * CAPACITY + 32_000_000

    run_at(Tcp(tmp_path), main, backend, limit=500.0)
    assert hashes["up said"] == hashes["up heard"]
    assert hashes["down said"] == hashes["down heard"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_memory_while_nobody_receives(backend: Backend, tmp_path: Any) -> None:
    """Two ends that only send, over connections that are cut: what Python holds is about what the rings may hold."""

    async def main(place: Tcp) -> None:
        faults = {"seed": 3, "cuts": 20, "mean_bytes": 50_000}
        async with proxied(place, faults, capacity=CAPACITY, linger=0.1) as (client, served, _):
            data = bytes(8 * CAPACITY)
            tracemalloc.start()
            async with background(client.send, data), background(served.send, data):
                for end in (client, served):
                    await until(lambda: end.statistics().unread == CAPACITY)  # noqa: B023
                    await until(lambda: end.statistics().in_ring == CAPACITY)  # noqa: B023
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            # Two rings, two readers, as much again under way, and the buffers of the event loop and of the proxy.
            assert peak < 2 * 4 * CAPACITY + 4_000_000

    run_at(Tcp(tmp_path), main, backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_held_connection_is_noticed(backend: Backend, tmp_path: Any) -> None:
    """Half-open over real TCP: nothing comes, no error either; both ends give the link up within three heartbeats."""

    async def main(place: Tcp) -> None:
        async with proxied(place, {}, heartbeat=0.3, linger=0.1) as (client, served, proxy):
            await client.send(b"before")
            assert await hear(served, 6) == b"before"
            began = anyio.current_time()
            proxy.hold()
            for end in (client, served):
                await until(lambda: end.statistics().state == "suspended")  # noqa: B023
            assert anyio.current_time() - began < 3 * 0.3 + 2
            assert isinstance(client.statistics().last_error, LinkSilent)
            proxy.release()
            await client.send(b"after")
            assert await hear(served, 5) == b"after"

    run_at(Tcp(tmp_path), main, backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_resets_in_every_turn(backend: Backend, tmp_path: Any) -> None:
    """A connection that is reset again and again while both ends talk: nothing is lost, doubled or left open."""

    async def main(place: Tcp) -> None:
        async with proxied(place, {}) as (client, served, proxy):
            data = Random("resets").randbytes(2_000_000)
            heard: list[bytes] = []

            async def listen() -> None:
                heard.append(await hear_all(served))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                for start in range(0, len(data), 100_000):
                    await client.send(data[start : start + 100_000])
                    proxy.cut()
                await client.send_eof()
            assert digest(heard[0]) == digest(data)
            assert client.statistics().links > 3

    run_at(Tcp(tmp_path), main, backend)

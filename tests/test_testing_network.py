"""The simulated network: dials, scripted faults, drawn faults."""

from __future__ import annotations

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream

from eventstream.testing import Faults, Network, NetworkStream


async def pair(network: Network) -> tuple[NetworkStream, NetworkStream]:
    """Both ends of a new link."""
    listener = network.listen()
    dialled = await network.dial()
    accepted = await listener.accept()
    await listener.aclose()
    return dialled, accepted


class Test_a_link:
    async def test_bytes_pass_both_ways(self) -> None:
        client, server = await pair(Network())
        await client.send(b"ping")
        assert await server.receive() == b"ping"
        await server.send(b"pong")
        assert await client.receive() == b"pong"

    async def test_cut_after_splits_a_send(self) -> None:
        client, server = await pair(Network())
        client.link.cut_after(3)
        with pytest.raises(BrokenResourceError):
            await client.send(b"ping")
        assert await server.receive() == b"pin"
        with pytest.raises(BrokenResourceError):
            await server.receive()

    async def test_close_is_a_clean_end(self) -> None:
        client, server = await pair(Network())
        await client.send(b"ping")
        client.link.close()
        assert await server.receive() == b"ping"
        with pytest.raises(EndOfStream):
            await server.receive()

    async def test_a_refused_dial(self) -> None:
        network = Network(faults=Faults(refuse=1.0))
        network.listen()
        with pytest.raises(ConnectionRefusedError):
            await network.dial()

    async def test_half_open_swallows(self) -> None:
        client, server = await pair(Network(buffer=10))
        client.link.half_open("up")
        await client.send(b"0123456789")
        with anyio.move_on_after(0) as scope:
            await client.send(b"x")
        assert scope.cancelled_caught
        await server.send(b"still")
        assert await client.receive() == b"still"

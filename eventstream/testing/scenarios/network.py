"""The kit checks itself: whatever a network does, what arrives on a link is a prefix of what was sent on it.

Clients dial a few times each and talk with a server in both directions at once, over a network whose faults are drawn
from the seed, while a third party harms links by hand. In the end the network heals, and a last exchange has to be
complete. Checked: every byte that is received; that what was counted adds up; that nothing is left open.

The bytes of a direction are a function of the link's number, so either end can tell what it should have got. The bytes
of a duplicate are those of its original.
"""

from __future__ import annotations

from random import Random
from typing import Final

import anyio
from anyio import BrokenResourceError, EndOfStream

from ..faults import Direction, Faults, seeded
from ..link import Link
from ..network import Network
from ..stream import NetworkStream
from .harm import harm_links
from .scenario import Note, Scenario

__all__ = ("scenario",)

CLIENTS = 3
DIALS = 4  # each client's
TALK = 5_000  # bytes of a direction of a link: several buffers
BUFFER = 1_000
HARMS = 8  # by hand, at most
PATIENCE = 30.0  # virtual seconds that anybody waits for a link that may be half-open


async def play(seed: int, note: Note) -> None:
    """One run."""
    faults = Faults.draw(seed)
    note(f"{faults}")
    network = Network(seed, faults, buffer=BUFFER, trace=note)
    links: list[Link] = []
    network.on_link = links.append
    async with network.listen() as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, _Talk("down", seed).serve)
        async with anyio.create_task_group() as clients:
            for number in range(CLIENTS):
                clients.start_soon(_client, network, seeded(f"{seed} client {number}"), _Talk("up", seed))
            clients.start_soon(harm_links, network, seeded(f"{seed} harm"), HARMS)
        network.heal()
        await _last_exchange(network, seed)
        await anyio.sleep(2 * PATIENCE)
        tasks.cancel_scope.cancel()
    if network.open_streams:
        raise AssertionError(f"streams were not closed: {network.open_streams}")
    for wire in (wire for link in links for wire in (link.up, link.down)):
        if wire.sent != wire.received + wire.lost + wire.unread:
            raise AssertionError(
                f"{wire.sent} bytes sent, {wire.received} received, {wire.lost} lost, {wire.unread} left"
            )


scenario: Final = Scenario("network", play)


class _Talk:
    """Sends its own bytes on a stream, and checks those that come."""

    def __init__(self, own: Direction, seed: int) -> None:
        self._own: Direction = own
        self._other: Direction = "down" if own == "up" else "up"
        self._seed = seed

    async def serve(self, stream: NetworkStream) -> None:
        """Both at once, until the end or until patience is lost."""
        async with stream:
            with anyio.move_on_after(PATIENCE):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.send, stream)
                    await self.receive(stream)

    async def send(self, stream: NetworkStream) -> None:
        """All bytes, in pieces of random sizes, and the end."""
        data = _bytes(self._seed, stream.link, self._own)
        random = seeded(f"{self._seed} pieces of {stream.link.number} {self._own}")
        try:
            while data:
                size = random.choice((1, 10, 500, 2 * BUFFER))
                await stream.send(data[:size])
                data = data[size:]
            await stream.send_eof()
        except BrokenResourceError:
            pass  # whether that is right is for the receiving ends to check

    async def receive(self, stream: NetworkStream) -> int:
        """Reads to the end. Returns how many bytes came.

        Raises:
            AssertionError: if a byte is wrong, or the end is clean and early though the network did not close the link.
        """
        expected = _bytes(self._seed, stream.link, self._other)
        random = seeded(f"{self._seed} reads of {stream.link.number} {self._other}")
        got = 0
        try:
            while True:
                data = await stream.receive(random.choice((1, 50, 65_536, 65_536)))
                if data != expected[got : got + len(data)]:
                    raise AssertionError(f"{stream!r} got wrong bytes at {got}: {data[:20]!r}")
                got += len(data)
        except BrokenResourceError:
            return got
        except EndOfStream:
            sent = stream.link.up.sent if self._other == "up" else stream.link.down.sent
            if stream.link.severed is None and got != sent:
                raise AssertionError(f"{stream!r} got a clean end after {got} of {sent} bytes") from None
            return got


async def _client(network: Network, random: Random, talk: _Talk) -> None:
    for _ in range(DIALS):
        await anyio.sleep(random.random())
        stream: NetworkStream | None = None
        with anyio.move_on_after(PATIENCE):
            try:
                stream = await network.dial()
            except ConnectionRefusedError:
                continue
        if stream is not None:
            await talk.serve(stream)


async def _last_exchange(network: Network, seed: int) -> None:
    """After healing everything arrives."""
    stream = await network.dial()
    async with stream:
        await _exchange(stream, _Talk("up", seed))


async def _exchange(stream: NetworkStream, talk: _Talk) -> None:
    got = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talk.send, stream)
        got = await talk.receive(stream)
    if got != TALK:
        raise AssertionError(f"only {got} of {TALK} bytes came back over a healed network: {stream!r}")


def _bytes(seed: int, link: Link, direction: Direction) -> bytes:
    """What is sent in a direction of a link."""
    while link.original is not None and direction == "up":
        link = link.original
    return seeded(f"{seed} {link.number} {direction}").randbytes(TALK)

"""Backed pipes over a network that does what it likes: every byte arrives, once, in order, in both directions.

Clients and a server talk at the same time, each sending bytes that are a function of the seed and the client's number.
For a while links are harmed, by chance and by hand; then the network heals, and both ends have to come to a clean end
with all bytes. Checked as well: no connection is left open.
"""

from __future__ import annotations

import anyio
from anyio import EndOfStream

from ...pipes import BackedPipe, Pipe, PipeServer, Retry
from ..faults import Direction, Faults, seeded
from ..network import Network
from .harm import harm_links
from .scenario import Note, Scenario

__all__ = ("scenario",)

CLIENTS = 2
TALK = 12_000  # bytes of a direction of a pipe: several times what it may hold
CAPACITY = 3_000  # bytes that a pipe holds
BUFFER = 1_000  # bytes that a link holds
HEARTBEAT = 2.0  # seconds
HARMS = 20  # by hand, at most
ILLNESS = 120.0  # virtual seconds until the network heals
RECOVERY = 600.0  # virtual seconds after that, for everything to arrive
PATIENCE = ILLNESS + RECOVERY  # nobody gives up before: what is to be seen is whether bytes are lost


async def play(seed: int, note: Note) -> None:
    """One run."""
    faults = Faults.draw(seed)
    note(f"{faults}")
    network = Network(seed, faults, buffer=BUFFER, trace=note)
    ends = _Ends(seed, note)
    server = PipeServer(
        ends.serve,
        capacity=CAPACITY,
        heartbeat=HEARTBEAT,
        linger=PATIENCE,
        grace=PATIENCE,
        random=seeded(f"{seed} server"),
    )
    async with network.listen() as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, listener)
        async with anyio.create_task_group() as clients:
            for number in range(CLIENTS):
                clients.start_soon(_client, network, ends, number)
            clients.start_soon(harm_links, network, seeded(f"{seed} harm"), HARMS)
            clients.start_soon(_heal, network)
        await server.aclose()
        tasks.cancel_scope.cancel()
    ends.check_all_served()
    if network.open_streams:
        raise AssertionError(f"connections were not closed: {network.open_streams}")


scenario = Scenario("pipes", play, limit=PATIENCE)


async def _heal(network: Network) -> None:
    await anyio.sleep(ILLNESS)
    network.heal()


async def _client(network: Network, ends: _Ends, number: int) -> None:
    random = seeded(f"{network.seed} client {number}")
    pipe = BackedPipe(
        network.dial,
        capacity=CAPACITY,
        heartbeat=HEARTBEAT,
        linger=PATIENCE,
        retry=Retry(first=0.05, cap=2.0),
        random=random,
    )
    async with pipe:
        await pipe.send(bytes([number]))
        await ends.talk(pipe, number, "up")


class _Ends:
    """What both ends do, once they know which client it is."""

    def __init__(self, seed: int, note: Note) -> None:
        self._seed = seed
        self._note = note
        self._served: list[int] = []

    async def serve(self, pipe: Pipe) -> None:
        """The server's end. It says its end only when it has everything: so a client that hears it knows."""
        (number,) = await pipe.receive(1)
        await self.talk(pipe, number, "down")
        self._served.append(number)
        await pipe.send_eof()
        await pipe.drain()  # closing alone delivers only what the present link still takes

    async def talk(self, pipe: Pipe, number: int, own: Direction) -> None:
        """Sends all of one's own bytes, and checks that all of the other's come."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, pipe, number, own)
            tasks.start_soon(self._receive, pipe, number, "down" if own == "up" else "up")
        self._note(f"{anyio.current_time():.6f} {own} end of pipe {number} has everything")

    def check_all_served(self) -> None:
        """A handler that fails is logged by the server, and would go unnoticed."""
        if sorted(self._served) != list(range(CLIENTS)):
            raise AssertionError(f"the server has talked to the end with {self._served} of {CLIENTS} clients")

    async def _send(self, pipe: Pipe, number: int, own: Direction) -> None:
        data = self._bytes(number, own)
        random = seeded(f"{self._seed} pieces {number} {own}")
        while data:
            size = random.choice((1, 100, 1000, 2 * CAPACITY))
            await pipe.send(data[:size])
            data = data[size:]
            await anyio.sleep(random.expovariate(1))
        if own == "up":
            await pipe.send_eof()

    async def _receive(self, pipe: Pipe, number: int, other: Direction) -> None:
        expected = self._bytes(number, other)
        got = 0
        while True:
            try:
                data = await pipe.receive()
            except EndOfStream:
                break
            if data != expected[got : got + len(data)]:
                raise AssertionError(f"pipe {number} gave wrong bytes {other}, at {got}: {data[:20]!r}")
            got += len(data)
        if got != TALK:
            raise AssertionError(f"pipe {number} gave a clean end after {got} of {TALK} bytes {other}")

    def _bytes(self, number: int, direction: Direction) -> bytes:
        return seeded(f"{self._seed} bytes {number} {direction}").randbytes(TALK)

"""Two ends of a backed pipe over a bad network: what one end hears is what the other said, byte for byte.

One client and one server talk in both directions at once, in portions and with pauses that the seed chooses. Meanwhile
links are cut, stalled, half-opened and doubled, dials hang, are refused and overtake each other, and either end asks
for another link. Some seeds restart the server, or give it a grace time that can pass. Then the network heals, both
ends say that they have said all, and drain.

Checked at every step: what was heard is a prefix of what was said, and neither end holds more than its capacity. At the
end: all was heard, or the pipe ended with an error that the script allows (`epoch` if the server was restarted,
`expired` if the grace time is short); one handler ran for the pipe in each life of the server; no connection is left.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Final

import anyio
import msgspec
from anyio import ClosedResourceError, EndOfStream

from ...errors import PipeBroken
from ...pipes import BackedPipe, Pipe, PipeServer, Retry
from ..faults import Faults, seeded
from ..network import Network
from .harm import harm_links
from .scenario import Note, Scenario

__all__ = ("scenario",)

MOST = 2_000  # bytes of a direction
PORTIONS = 6  # at most so many sends of a direction
HARMS = 8  # by hand, one after another, before a pause
LONG = 100_000.0  # virtual seconds: a grace time that cannot pass
SHORT = 10.0  # one that can


class Script(msgspec.Struct, frozen=True):
    """What the seed has in store.

    Attributes:
        capacities: Of the client and the server.
        heartbeat: Of both.
        retry: The client's schedule.
        dial_timeout: The client's patience with one dial.
        grace: The server's patience.
        restarts: How often the server loses its memory.
        seconds: How long the network is bad.
        up: What the client says.
        down: What the server says.
    """

    capacities: tuple[int, int]
    heartbeat: float
    retry: Retry
    dial_timeout: float
    grace: float
    restarts: int
    seconds: float
    up: bytes
    down: bytes

    @classmethod
    def draw(cls, random: Random) -> Script:
        """What a seed has in store."""
        capacities = (random.choice((16, 100, 1000, 5000)), random.choice((16, 100, 1000, 5000)))
        most = min(MOST, 12 * min(capacities))
        return cls(
            capacities=capacities,
            heartbeat=random.choice((1.0, 3.0, 10.0)),
            retry=Retry(first=random.choice((0.05, 0.5)), cap=random.choice((1.0, 5.0))),
            dial_timeout=random.choice((1.5, 5.0)),
            grace=random.choice((LONG, LONG, LONG, SHORT)),
            restarts=random.choice((0, 0, 0, 0, 0, 0, 0, 1)),
            seconds=random.choice((2.0, 5.0, 12.0)),
            up=random.randbytes(random.randrange(most)),
            down=random.randbytes(random.randrange(most)),
        )

    def allows(self, error: PipeBroken) -> bool:
        """Whether the pipe may end so."""
        reason = getattr(error, "reason", "")
        return (reason in ("epoch", "going-away") and self.restarts > 0) or (
            reason == "expired" and self.grace == SHORT
        )


class _End:
    """One end of the pipe: says and hears at random paces, and checks what it hears."""

    def __init__(self, name: str, seed: int, says: bytes, hears: bytes, capacity: int) -> None:
        self.name = name
        self.heard_all = anyio.Event()
        self._random = seeded(f"{seed} {name}")
        self._says = says
        self._hears = hears
        self._heard = 0
        self._capacity = capacity

    async def talk(self, pipe: Pipe, healed: anyio.Event) -> None:
        """Both directions at once, then the end of both."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._say, pipe, healed)
            await self._hear(pipe)
        await pipe.drain()

    async def _say(self, pipe: Pipe, healed: anyio.Event) -> None:
        largest = max(1, len(self._says) // PORTIONS, self._random.choice((1, self._capacity, 3 * self._capacity)))
        at = 0
        while at < len(self._says):
            size = self._random.randint(max(1, largest // 4), largest)
            await pipe.send(self._says[at : at + size])
            at += size
            self.check_bounds(pipe)
            await self._pause()
        await healed.wait()
        await pipe.send_eof()

    async def _hear(self, pipe: Pipe) -> None:
        while True:
            try:
                data = await pipe.receive(self._random.choice((1 + self._capacity // 10, self._capacity, 65_536)))
            except EndOfStream:
                break
            if data != self._hears[self._heard : self._heard + len(data)]:
                raise AssertionError(f"{self.name} heard wrong bytes at {self._heard}: {data[:20]!r}")
            self._heard += len(data)
            self.check_bounds(pipe)
            await self._pause()
        if self._heard != len(self._hears):
            raise AssertionError(f"{self.name} heard {self._heard} of {len(self._hears)} bytes, and then the end")
        self.heard_all.set()

    async def _pause(self) -> None:
        if self._random.random() < 0.3:
            await anyio.sleep(self._random.expovariate(1))

    def check_bounds(self, pipe: Pipe) -> None:
        """Raises AssertionError: if the pipe holds more than its capacity."""
        statistics = pipe.statistics()
        if max(statistics.in_ring, statistics.unread) > self._capacity:
            raise AssertionError(f"{self.name} holds more than {self._capacity} bytes: {statistics}")


class _Run:
    """One run: the network, the script, and who has ended how."""

    def __init__(self, seed: int, note: Note) -> None:
        self.seed = seed
        self.note = note
        self.faults = Faults.draw(seed)
        self.script = Script.draw(seeded(f"{seed} script"))
        self.network = Network(
            seed, self.faults, buffer=seeded(f"{seed} buffer").choice((200, 2000, 65_536)), trace=note
        )
        self.healed = anyio.Event()
        self.broken = False
        self.ends: list[Pipe] = []
        self.server_end = self._new_server_end()

    def _new_server_end(self) -> _End:
        return _End("server", self.seed, self.script.down, self.script.up, self.script.capacities[1])

    async def client(self) -> None:
        """The client, from its first dial to its end."""
        script = self.script
        end = _End("client", self.seed, script.up, script.down, script.capacities[0])
        async with BackedPipe(
            self.network.dial,
            capacity=script.capacities[0],
            heartbeat=script.heartbeat,
            retry=script.retry,
            dial_timeout=script.dial_timeout,
            random=seeded(f"{self.seed} pipe"),
        ) as pipe:
            self.ends.append(pipe)
            await self._until_broken(end, pipe)
            if not self.broken:
                await self.server_end.heard_all.wait()

    async def _until_broken(self, end: _End, pipe: Pipe) -> None:
        try:
            await end.talk(pipe, self.healed)
        except* PipeBroken as group:
            error = _first(group)
            self.note(f"{end.name}: {error!r}")
            # The server may miss the client's last acknowledgement: then it waits in vain, but it has heard all.
            if not self.script.allows(error) and not end.heard_all.is_set():
                raise
            self.broken = self.broken or not end.heard_all.is_set()

    async def servers(self) -> None:
        """The server's lives, one after another. Cancelled when the client is done."""
        random = seeded(f"{self.seed} lives")
        for life in range(self.script.restarts + 1):
            with anyio.CancelScope() as scope:
                if life < self.script.restarts:
                    scope.deadline = anyio.current_time() + random.random() * self.script.seconds
                self.server_end = self._new_server_end()
                await self._live(life)
            await anyio.sleep(random.random())

    async def _live(self, life: int) -> None:
        """One life of the server. What its handlers raise comes out; the server would only log it."""
        self.note(f"the server begins its life {life}")
        failed = anyio.Event()
        errors: list[Exception] = []
        handled: list[Pipe] = []

        async def handle(pipe: Pipe) -> None:
            handled.append(pipe)
            self.ends.append(pipe)
            try:
                if len(handled) > 1:
                    raise AssertionError("a second handler was started for the pipe")
                await self._until_broken(self.server_end, pipe)
            except Exception as error:
                errors.append(error)
                failed.set()

        server = PipeServer(
            handle,
            capacity=self.script.capacities[1],
            heartbeat=self.script.heartbeat,
            grace=self.script.grace,
            random=seeded(f"{self.seed} life {life}"),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, self.network.listen())
            await failed.wait()
            raise errors[0]

    async def harm(self) -> None:
        """What goes wrong, and who wants another link, until the network heals."""
        random = seeded(f"{self.seed} harm")
        with anyio.move_on_after(self.script.seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._force, seeded(f"{self.seed} force"))
                while True:
                    with suppress(ConnectionRefusedError):  # nobody listens: the server is between two lives
                        await harm_links(self.network, random, HARMS)
                    await anyio.sleep(random.random())
        self.network.heal()
        self.healed.set()

    async def _force(self, random: Random) -> None:
        """One of the ends wants another link, now and then, and does not wait long for it."""
        while True:
            await anyio.sleep(random.expovariate(0.5))
            with anyio.move_on_after(random.choice((0.0, 0.1, 1.0))), suppress(PipeBroken, ClosedResourceError):
                if self.ends:
                    await random.choice(self.ends).force_reconnect()


async def play(seed: int, note: Note) -> None:
    """One run."""
    run = _Run(seed, note)
    note(f"{run.faults}")
    note(f"{run.script}")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.servers)
        tasks.start_soon(run.harm)
        await run.client()
        tasks.cancel_scope.cancel()
    if run.network.open_streams:
        raise AssertionError(f"streams were not closed: {run.network.open_streams}")


def _first(group: BaseExceptionGroup[PipeBroken]) -> PipeBroken:
    """The error in the group; those of two tasks are the same one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, PipeBroken)
    return error


scenario: Final = Scenario("pipes", play)

"""The second process of a measurement: opens a peer, and publishes as it is told.

    python -m benchmarks.network.far PEER LOOP

It says its port; then each line that it reads is an order, which it answers with a line of JSON: when it began, in
nanoseconds, and the processor time of the server until now, in seconds. It ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from time import perf_counter, perf_counter_ns
from types import TracebackType
from typing import Any, Final, Self

import anyio

from ..stage import Stage, perform
from .bare import Bare
from .nats import Nats
from .ours import Ours
from .peer import Peer, Sample
from .redis import Redis

__all__ = ("PEERS", "Far", "missing")

PEERS: Final[dict[str, type[Peer]]] = {peer.name: peer for peer in (Ours, Bare, Nats, Redis)}
BURST: Final = 64  # events of a flood that are published without a turn for others


def missing() -> list[str]:
    """What is not installed of what the peers need."""
    return [name for peer in PEERS.values() for name in peer.missing()]


class Far:
    """The second process, as the first one sees it."""

    def __init__(self, peer: str, loop: str) -> None:
        self._command = [sys.executable, "-m", __name__, peer, loop]
        self.port = 0

    async def __aenter__(self) -> Self:
        self._process = await anyio.open_process(self._command, stdout=subprocess.PIPE, stderr=None)
        self._heard = b""
        self.port = json.loads(await self._line())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            assert self._process.stdin is not None
            await self._process.stdin.aclose()
            await self._process.wait()

    async def order(self, *words: object) -> None:
        """Gives an order: `publish COUNT RATE` (0: as fast as it can), `keep COUNT`, `fill KEYS`, or `look`."""
        assert self._process.stdin is not None
        await self._process.stdin.send(" ".join(map(str, words)).encode() + b"\n")

    async def answer(self) -> dict[str, float]:
        """Its answer: `began`, `cpu`."""
        answer: dict[str, float] = json.loads(await self._line())
        return answer

    async def ask(self, *words: object) -> dict[str, float]:
        """Both."""
        await self.order(*words)
        return await self.answer()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            self._heard += await self._process.stdout.receive()
        line, _, self._heard = self._heard.partition(b"\n")
        return line


async def _obey(peer: Peer) -> None:
    print(peer.port, flush=True)
    while line := await anyio.to_thread.run_sync(sys.stdin.readline):
        order, *numbers = line.split()
        began = perf_counter_ns()
        match order:
            case "publish":
                await _publish(peer, *map(int, numbers))
            case "keep":
                await peer.keep(int(numbers[0]))
            case "fill":
                await peer.fill(int(numbers[0]))
        print(json.dumps({"began": began, "cpu": peer.cpu()}), flush=True)


async def _publish(peer: Peer, count: int, rate: int) -> None:
    if not rate:
        for first in range(0, count, BURST):
            await peer.publish([Sample.make(number) for number in range(first, min(first + BURST, count))])
        return
    start = perf_counter()
    for number in range(count):
        wait = start + number / rate - perf_counter()
        if wait > 0:
            await anyio.sleep(wait)
        await peer.publish([Sample.make(number)])


async def _run(kind: str, _: Stage) -> Any:
    async with AsyncExitStack() as stack:
        peer = PEERS[kind]()
        await peer.open(stack)
        await _obey(peer)


if __name__ == "__main__":
    name, loop = sys.argv[1:]
    perform(partial(_run, name), loop)

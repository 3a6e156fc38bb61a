"""What a bus over the network has to do here, on both of its ends, and what passes over it.

The far end runs in a process of its own, with the server (or beside it, where the server is no Python), and
publishes. The near end is one connection of a client, by the library's own Python client; whatever it hands out is
decoded to a `Sample`, by msgspec where the library gives bytes.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter_ns
from typing import Final, TypeAlias

import msgspec

__all__ = (
    "HOST",
    "TOPIC",
    "Client",
    "Peer",
    "Sample",
    "Sink",
    "as_bytes",
    "from_bytes",
    "process_cpu",
    "server_process",
)

HOST: Final = "127.0.0.1"
TOPIC: Final = "samples"


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What is published: about 200 bytes as MessagePack."""

    sensor: str
    number: int
    sent: int  # nanoseconds; the clock is the same in all processes of a machine
    value: float
    unit: str
    good: bool
    note: str

    @staticmethod
    def make(number: int, sensor: str = "boiler-1") -> Sample:
        """The one with this number, sent now."""
        return Sample(sensor, number, perf_counter_ns(), 21.5, "celsius", True, NOTE)


NOTE: Final = "n" * 94
Sink: TypeAlias = Callable[[Sample], None]

as_bytes: Final = msgspec.msgpack.Encoder().encode
from_bytes: Final = msgspec.msgpack.Decoder(Sample).decode


class Client(ABC):
    """The near end: one connection."""

    @abstractmethod
    async def follow(self, started: Callable[[], None], sink: Sink) -> None:
        """Gives every event to `sink`; calls `started` when it will miss none any more. Until it is cancelled."""

    @abstractmethod
    async def replay(self, count: int, sink: Sink) -> None:
        """Gives the first `count` events that are kept to `sink`."""

    @abstractmethod
    async def mirror(self, complete: Callable[[int], None]) -> None:
        """Keeps a mapping of key to `Sample` current; calls `complete` with its size as soon as it has all of the
        state. Until it is cancelled."""


class Peer(ABC):
    """The far end.

    Attributes:
        name: Its row.
        needs: Packages that have to be installed.
        program: Another program that has to be.
        port: Where the server listens, once it is open.
    """

    name: str
    needs: tuple[str, ...] = ()
    program: str | None = None
    port: int = 0

    @classmethod
    def missing(cls) -> list[str]:
        """What is not installed."""
        absent = [name for name in cls.needs if find_spec(name) is None]
        return absent + ([cls.program] if cls.program is not None and find_program(cls.program) is None else [])

    @abstractmethod
    async def open(self, stack: AsyncExitStack) -> None:
        """Starts serving, until the stack is closed."""

    @abstractmethod
    async def publish(self, samples: list[Sample]) -> None:
        """Publishes a burst. Returns when it is on its way."""

    @abstractmethod
    async def keep(self, count: int) -> None:
        """Publishes so many events that stay for those who come later."""

    @abstractmethod
    async def fill(self, keys: int) -> None:
        """Makes a state of so many keys."""

    @abstractmethod
    def cpu(self) -> float:
        """Seconds of processor time that the server has used."""

    @classmethod
    @abstractmethod
    def client(cls, port: int) -> AbstractAsyncContextManager[Client]:
        """A connection to a server of this kind."""


def find_program(name: str) -> str | None:
    """Where it is: beside the interpreter or on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@contextmanager
def server_process(name: str, arguments: Callable[[int, str], list[str]]) -> Iterator[tuple[int, int]]:
    """Runs a server on a free port with a folder of its own; gives its process id and the port."""
    program = find_program(name)
    assert program is not None, "peers that miss something are left out"
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=False) as folder:
        silent = subprocess.DEVNULL
        process = subprocess.Popen([program, *arguments(port, folder)], stdout=silent, stderr=silent)
        try:
            _await_port(name, process, port)
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _await_port(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(500):
        with suppress(OSError), socket.create_connection((HOST, port), 0.2):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"{name} did not start")


def process_cpu(pid: int) -> float:
    """Seconds of processor time that another process has used, to the nanosecond: of all its threads."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9

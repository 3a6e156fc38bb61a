"""Commands as real processes: started, waited for line by line, stopped by their own process id."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "eventstream.cli")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
PATIENCE = 30.0  # seconds: a command starts in less than one, on a computer that has nothing else to do


def free_port() -> int:
    """A port of this machine that nobody has just now, for who must know it before the process that listens does."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Stream:
    """What a process prints, line by line, as it comes."""

    def __init__(self, source: IO[str]) -> None:
        self.lines: list[str] = []
        self._seen = 0  # lines that were waited for
        self._ended = False
        self._changed = threading.Condition()
        self._source = source
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._source:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line that matches, after the one that was waited for before."""
        with self._changed:
            while True:
                for at in range(self._seen, len(self.lines)):
                    if match := re.search(pattern, self.lines[at]):
                        self._seen = at + 1
                        return match
                assert not self._ended, f"ended without {pattern!r}: {self.lines}"
                assert self._changed.wait(PATIENCE), f"no {pattern!r} came: {self.lines}"

    def all(self) -> list[str]:
        """Everything, when it has ended."""
        self._thread.join(PATIENCE)
        assert self._ended
        return self.lines


class Process:
    """One running command."""

    def __init__(self, *arguments: str, stdin: int = subprocess.PIPE, command: tuple[str, ...] = COMMAND) -> None:
        self.popen = subprocess.Popen(
            [*command, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.out = Stream(self.popen.stdout)
        self.err = Stream(self.popen.stderr)

    def write(self, text: str) -> None:
        """Types it."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(text)
        self.popen.stdin.flush()

    def end_input(self) -> None:
        """Types no more."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def send(self, number: int) -> None:
        """Sends it a signal."""
        self.popen.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.popen.wait(PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signals it, and waits for its end."""
        self.send(number)
        return self.wait()

    def close(self) -> None:
        """Leaves nothing behind. Asks politely, because what is killed does not tell what it has covered."""
        if self.popen.poll() is None:
            self.send(signal.SIGINT)
            try:
                self.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(PATIENCE)
        self.out.all()
        self.err.all()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def running(*arguments: str) -> Iterator[Process]:
    """A command, and its end."""
    process = Process(*arguments)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def server(*arguments: str, listen: str = "tcp://127.0.0.1:0") -> Iterator[tuple[str, Process]]:
    """`eventstream serve`, when it is ready: its address, and the process."""
    with running("serve", "--listen", listen, *arguments) as process:
        yield process.out.wait_for(r"^listening at (\S+)$")[1], process

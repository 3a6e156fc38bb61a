"""Processes that play seeds side by side, for `simulate`.

Each process is given one seed at a time, so a failing one is heard of at once, and a process that dies (a crash of the
interpreter is what a seed may find) is known by the seed that it had. Processes are spawned, not forked: a fork would
take over whatever state this one has, and a seed's run would depend on it.

Rejected: `multiprocessing.Pool` (a worker that dies is replaced, its seed forgotten, and the caller waits for ever),
`concurrent.futures` (cannot stop what has begun, so an interrupt waits for the slowest seed).
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final, TypeAlias

import msgspec

__all__ = ("Outcome", "play_in_processes")

PATIENCE: Final = 5.0  # seconds for a process to end by itself


class Outcome(msgspec.Struct, frozen=True):
    """How one seed went.

    Attributes:
        seed: Which.
        error: The traceback, if it failed.
        trace: What was noted, if that was asked for.
    """

    seed: int
    error: str | None
    trace: list[str]


Play: TypeAlias = Callable[[int], Outcome]


def play_in_processes(play: Play, seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Plays seeds in so many processes; gives the outcomes as they come.

    Args:
        play: Plays one seed; importable, since it is sent to the processes.
        seeds: Which.
        jobs: How many processes.

    Closing the iterator ends the processes, whatever they do.
    """
    left = iter(seeds)
    busy: dict[Connection, tuple[BaseProcess, int]] = {}
    try:
        for seed in (seed for _, seed in zip(range(jobs), left, strict=False)):
            _assign(*_start(play), seed, busy)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                process, seed = busy.pop(connection)
                outcome = _outcome(connection, process, seed)
                following = next(left, None)
                if following is None:
                    _dismiss(connection, process)
                elif process.is_alive():
                    _assign(connection, process, following, busy)
                else:
                    _assign(*_start(play), following, busy)
                yield outcome
    finally:
        for connection, (process, _) in busy.items():
            process.terminate()
            _dismiss(connection, process)


def _start(play: Play) -> tuple[Connection, BaseProcess]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, play), daemon=True)
    process.start()
    theirs.close()  # else its end would stay open when the process dies, and nobody would notice
    return ours, process


def _assign(
    connection: Connection, process: BaseProcess, seed: int, busy: dict[Connection, tuple[BaseProcess, int]]
) -> None:
    connection.send(seed)
    busy[connection] = process, seed


def _outcome(connection: Connection, process: BaseProcess, seed: int) -> Outcome:
    try:
        outcome: Outcome = connection.recv()
    except (EOFError, OSError):
        process.join()
        connection.close()
        return Outcome(seed, f"the process that played it died, with exit code {process.exitcode}", [])
    return outcome


def _dismiss(connection: Connection, process: BaseProcess) -> None:
    """Ends a process that waits for a seed, or was told to end already."""
    connection.close()
    process.join(PATIENCE)
    process.kill()  # nothing, if it has ended; else a scenario has left threads behind
    process.join()


def _work(connection: Connection, play: Play) -> None:
    """What a process does until its connection is closed. An interrupt is for the one who started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        connection.send(play(seed))

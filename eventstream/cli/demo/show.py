"""Shows the play: a live board on a terminal, plain lines elsewhere; then the table, and an exit code."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, Protocol

import anyio
import msgspec
from rich.console import Console
from rich.live import Live

from ...errors import PipeBroken
from ..running import first
from .board import board, line, summary
from .cutting import cutting
from .flights import FlightsError, default_file, read_flights
from .play import Play
from .server import ServerFailed, serving

__all__ = ("Options", "run")

CLEAN: Final = 0
BROKEN: Final = 1
UNUSABLE: Final = 2  # what was given cannot be played
INTERRUPTED: Final = 130  # as shells say it of SIGINT

TOLD: Final = 16  # lines of the story that are kept: more than the board shows


class Options(msgspec.Struct, frozen=True):
    """How to run; see the command's help."""

    seconds: float = 20.0
    speed: float | None = None
    file: Path | None = None
    plain: bool = False
    backend: Literal["asyncio", "trio"] = "asyncio"


class Screen(Protocol):
    """Where the play is shown.

    Attributes:
        interval: Seconds between two looks.
        gone: Whether nobody looks any more.
    """

    interval: float
    gone: bool

    def tell(self, text: str) -> None:
        """Something happened."""

    def refresh(self, play: Play) -> None:
        """Shows how it stands."""


class PlainScreen:
    """Lines of text, for pipes and files."""

    interval: float = 1.0
    gone: bool = False

    def tell(self, text: str) -> None:
        """Prints it at once."""
        self._print(f"  {text}")

    def refresh(self, play: Play) -> None:
        """Prints one line."""
        self._print(line(play))

    def _print(self, text: str) -> None:
        if self.gone:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # `| head` has had enough
            self.gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end


class LiveScreen:
    """A board that is drawn again and again at one place, and is gone at the end."""

    interval: float = 0.125  # often enough to look alive, seldom enough to read
    gone = False

    def __init__(self, live: Live) -> None:
        self._live = live
        self._story: deque[str] = deque(maxlen=TOLD)

    def tell(self, text: str) -> None:
        """Shows it at the next look."""
        self._story.append(text)

    def refresh(self, play: Play) -> None:
        """Draws the board."""
        width, height = self._live.console.size
        self._live.update(board(play, self._story, width, height - 1), refresh=True)  # one is the cursor's own line


def run(options: Options) -> int:
    """Plays, shows, prints what was counted; returns the exit code."""
    if importlib.util.find_spec(options.backend) is None:
        return _refuse(f"{options.backend} is not installed: pip install {options.backend}")
    try:
        flights = read_flights(options.file or default_file())
    except FlightsError as error:
        return _refuse(str(error))
    plain = options.plain or not sys.stdout.isatty()
    console = Console(highlight=False, color_system=None if plain else "auto")
    span = (flights[-1].time - flights[0].time).total_seconds()
    speed = options.speed or max(span / options.seconds, 1.0)
    with _screen(console, plain) as screen:
        play = Play(flights, speed, screen.tell)
        try:
            elapsed = anyio.run(_show, play, screen, backend=options.backend)
        except Exception as raised:
            if not isinstance(first(raised), ServerFailed | PipeBroken):
                raise
            return _refuse(str(first(raised)))
    result = play.result()
    console.print(summary(result, elapsed))
    if result.interrupted:
        return INTERRUPTED
    return CLEAN if result.clean else BROKEN


@contextmanager
def _screen(console: Console, plain: bool) -> Iterator[Screen]:
    if plain or console.is_dumb_terminal:
        yield PlainScreen()
        return
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield LiveScreen(live)


async def _show(play: Play, screen: Screen) -> float:
    """Returns how long it took, in seconds."""
    elapsed = 0.0
    async with anyio.create_task_group() as audience:
        audience.start_soon(_watch_interrupt, play)
        async with serving() as port, cutting(port) as cutter:
            begin = time.perf_counter()
            audience.start_soon(_look, play, screen)
            await play.run(cutter)
            elapsed = time.perf_counter() - begin
        audience.cancel_scope.cancel()
    return elapsed


async def _look(play: Play, screen: Screen) -> None:
    while True:
        screen.refresh(play)
        if screen.gone:
            play.interrupt()
        await anyio.sleep(screen.interval)


async def _watch_interrupt(play: Play) -> None:
    """The first Ctrl-C ends the play in good order; the next one is the interpreter's own."""
    with suppress(NotImplementedError), anyio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            play.interrupt()
            return


def _refuse(why: str) -> int:
    print(f"eventstream demo: {why}", file=sys.stderr)
    return UNUSABLE

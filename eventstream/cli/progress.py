"""The bar that shows how far a command has come: on a terminal, beside the output. Elsewhere there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ("Reached", "progress")

SHOWN_EVERY: Final = 0.1  # seconds


class Reached(msgspec.Struct, frozen=True):
    """How far it has come.

    Attributes:
        done: In the unit of the bar's total.
        events: How many there were, for the rate.
        text: The same for eyes.
    """

    done: int
    events: int
    text: str


@contextmanager
def progress(total: int | None, look: Callable[[], Reached]) -> Iterator[Callable[[], None] | None]:
    """Gives what is to be called after each event, however many there are; None where nobody watches.

    Args:
        total: Of `Reached.done` at the end; None if nobody knows.
        look: Says how far it has come. It is called a few times a second.
    """
    if not sys.stderr.isatty():
        yield None
        return
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.fields[shown]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, shown="")
        begin = due = time.monotonic()

        def show() -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due:
                due = now + SHOWN_EVERY
                reached = look()
                rate = reached.events / max(now - begin, SHOWN_EVERY)
                bar.update(task, completed=reached.done, shown=f"{reached.text}, {rate:,.0f}/s")

        yield show

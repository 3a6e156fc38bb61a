"""What can be typed: the commands, their options and their help. What they do stands in a package of their own."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from .demo import Options, run

__all__ = ("app",)

Positive = Annotated[float, Parameter(validator=Number(gt=0, lt=1e9))]

app: App = App(
    name="eventstream",
    help="An embeddable event bus with history, resume and snapshots.",
    version=lambda: importlib.metadata.version("eventstream"),
)


@app.command
def demo(
    *,
    seconds: Positive = 20.0,
    speed: Positive | None = None,
    file: Path | None = None,
    plain: Annotated[bool, Parameter(negative=())] = False,
    backend: Literal["asyncio", "trio"] = "asyncio",
) -> int:
    """Play a week of New York's flights through a bus, and count what each subscriber got.

    Some subscribers leave and come back, one gets stuck, two join late. The table at the end is counted from what was
    published and what was received. The exit code is 0 if nobody lost anything or got it twice, else 1; 2 if the
    flights cannot be read, 130 after Ctrl-C.

    Parameters
    ----------
    seconds:
        How long the week takes.
    speed:
        Seconds of the week that pass in a second, in place of --seconds.
    file:
        Flights to play, one JSON object a line, as in examples/flights-2013-01-week1.ndjson.gz.
    plain:
        Print plain lines also on a terminal.
    backend:
        The event loop to run on.
    """
    return run(Options(seconds=seconds, speed=speed, file=file, plain=plain, backend=backend))

"""The demo's input: flights, one JSON object a line, in the order in which they left.

All lines are read and checked before anything is played, so a bad file ends the demo before it begins.
"""

from __future__ import annotations

import gzip
import zlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

__all__ = ("Flight", "FlightsError", "default_file", "read_flights")

NAME: Final = "flights-2013-01-week1.ndjson.gz"
GZIP: Final = b"\x1f\x8b"
MOST: Final = 2_000_000  # flights; about 1 GB of memory, and six years of New York

Airport: TypeAlias = Annotated[str, Meta(pattern="^[A-Z0-9]{3,4}$")]
Text: TypeAlias = Annotated[str, Meta(pattern="^[ -~]{1,32}$")]


class FlightsError(Exception):
    """The flights cannot be read; the text says which file, which line, and why."""


class Flight(msgspec.Struct, frozen=True):
    """One departure, or one that should have been.

    Attributes:
        at: When it left (or should have), local to New York, in ISO 8601 to the minute.
        flight: Airline and number.
        tail: The aircraft, if known.
        origin: The airport that it left.
        dest: Where it went.
        status: Whether it left at all.
        delay_min: Minutes after its schedule; negative if it left early, None if it did not leave.
    """

    at: str
    flight: Text
    origin: Airport
    dest: Airport
    status: Literal["departed", "cancelled"]
    tail: Text | None = None
    delay_min: int | None = None

    def __post_init__(self) -> None:
        self.time  # noqa: B018  # raises ValueError, which msgspec tells of with the line's other faults

    @property
    def time(self) -> datetime:
        """`at` as a time without a zone."""
        return datetime.fromisoformat(self.at).replace(tzinfo=None)


def default_file() -> Path:
    """Where the flights stand in the repository. A wheel does not hold them."""
    return Path(__file__).parents[3] / "examples" / NAME


def read_flights(path: Path) -> list[Flight]:
    """Reads lines, gzipped or not.

    Raises:
        FlightsError: if the file cannot be read, a line is no flight, or there is none or too many.
    """
    decoder = msgspec.json.Decoder(Flight)
    flights = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            flights.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FlightsError(f"{path}, line {number}: {error}") from error
        if len(flights) > MOST:
            raise FlightsError(f"{path}: more than {MOST} flights")
    if not flights:
        raise FlightsError(f"{path}: no flights in it")
    return flights


def _text(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except FileNotFoundError as error:
        raise FlightsError(f"{path}: no such file. {_advice(path)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise FlightsError(f"{path}: cannot be read: {error}") from error


def _advice(path: Path) -> str:
    if path == default_file():
        return f"The flights come with the repository, not with the package: give --file with a copy of {NAME}"
    return "Check what was given as --file"

"""What the demo looks like: the board while it plays, one plain line, and the table at the end. Draws, and no more.

Everything has a fixed place and width, so that on the live board only digits change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .counting import Tally
from .flights import Flight
from .play import AIRCRAFT, DEPARTURES, SHOWN, Play, Result
from .readers import Part, Reader

__all__ = ("board", "line", "summary")

TOPICS: Final = (DEPARTURES, AIRCRAFT)
AIRPORTS: Final = 3  # side by side
STORY: Final = 6  # lines of what happened
WIDE: Final = 80  # columns
NUMBER: Final = 9  # the width of a column of numbers, so that a table does not move when they grow
STYLES: Final = {"waiting": "dim", "reading": "green", "away": "yellow", "stuck": "red", "done": "dim"}
COLUMNS: Final = ("published", "delivered", "by snapshot", "lost", "duplicated", "astray", "resets")
FAULTS: Final = frozenset({"lost", "duplicated", "astray"})


def board(play: Play, story: Sequence[str], width: int, height: int) -> RenderableType:
    """Everything at one moment, in at most `height` lines if there are 23 of them; best from 80 columns on."""
    wide = width >= WIDE
    least = NUMBER if wide else 0
    fixed = 9 + len(TOPICS) + len(play.readers) + (0 if wide else 2)  # two heads that fold
    room = max(height - fixed, 1)
    flights = min(SHOWN, (room + 1) // 2)
    happened = min(STORY, room - flights)
    parts = [_head(play), _topics(play, least), _departures(play, flights), _readers(play, least)]
    if happened:
        parts.append(_story(story, happened))
    return Padding(Group(*(Padding(part, (0, 0, 1, 0)) for part in parts[:-1]), parts[-1]), (0, 1))


def line(play: Play) -> str:
    """The same in one line of plain text."""
    heads = play.stage.heads
    lag = max(_behind(play, reader) for reader in play.readers)
    absent = [f"{reader.part.name} {reader.state}" for reader in play.readers if reader.state in ("away", "stuck")]
    cells = [
        f"{play.now.time:%a %d %b %H:%M}",
        f"{play.stage.progress:3}%",
        *(f"{topic.name} {heads.get(topic.name, 0):,}" for topic in TOPICS),
        f"slowest {lag:,} behind",
        f"cut {play.cuts}",
        *absent,
    ]
    return "  ".join(cells)


def summary(result: Result, elapsed: float) -> RenderableType:
    """What was counted."""
    table = _table(("subscriber", "left"), ("follows", "left"), *((name, "right") for name in COLUMNS))
    for topic in TOPICS:
        table.add_row(Text(topic.name, style="cyan"))
        for row in result.rows:
            if row.part.topic is topic:
                table.add_row(f"  {row.part.name}", row.part.key or "all", *_tally(row.tally))
    published = " and ".join(f"{result.published[topic.name]:,} in {topic.name}" for topic in TOPICS)
    verdict = (
        Text("Nothing lost, nothing duplicated, nothing astray.", style="green")
        if result.clean
        else Text("The promise was broken: see lost, duplicated, astray and the view.", style="bold red")
    )
    return Group(
        Text(f"{'Interrupted. ' if result.interrupted else ''}Published {published}, in {elapsed:.1f} s."),
        Text(f"{result.cuts} connections were cut on the way."),
        Text(),
        table,
        Text(),
        Text(f"The view shows {result.mirrored} of {result.keys} airports as they were published last."),
        verdict,
    )


def _head(play: Play) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", min_width=4, no_wrap=True)
    bar = ProgressBar(total=play.stage.total, completed=play.stage.played, complete_style="cyan", finished_style="cyan")
    grid.add_row(Text(f"New York, {play.now.time:%a %d %b %Y %H:%M}", style="bold"), bar, f"{play.stage.progress}%")
    return grid


def _topics(play: Play, least: int) -> RenderableType:
    names = ("head", "retained", "subscribers", "lag", "lagged")
    shown = ("head", "retained", "readers", "slowest", "resets")
    table = _table(("topic", "left"), *((name, "right") for name in shown), least=least)
    for topic in TOPICS:
        numbers = play.numbers.get(topic.name, {})
        table.add_row(Text(topic.name, style="cyan"), *(f"{numbers.get(name, 0):,}" for name in names))
    return Group(table, Text(f"connections cut: {play.cuts}", style="dim", no_wrap=True))


def _departures(play: Play, rows: int) -> RenderableType:
    grid = Table.grid(padding=(0, 3, 0, 0), expand=True)
    airports = sorted(play.latest)[:AIRPORTS]
    for _ in range(AIRPORTS):
        grid.add_column(ratio=1, no_wrap=True)
    grid.add_row(*(Text(airport, style="bold") for airport in airports))
    for at in range(rows):
        latest = (play.latest[airport] for airport in airports)
        grid.add_row(*(_flight(flights[at]) if at < len(flights) else "" for flights in latest))
    return grid


def _flight(flight: Flight) -> Text:
    text = Text(f"{flight.time:%H:%M} {flight.flight:<7}{flight.dest} ", no_wrap=True)
    delay = flight.delay_min
    if flight.status == "cancelled" or delay is None:
        return text.append("off", style="red")
    return text.append(f"{delay:+d}", style="yellow" if delay > 15 else "dim")  # from 15 minutes on it counts as late


def _readers(play: Play, least: int) -> RenderableType:
    numbers = ("position", "behind", "received", "resets")
    table = _table(
        ("subscriber", "left"), ("follows", "left"), ("", "left"), *((name, "right") for name in numbers), least=least
    )
    for reader in play.readers:
        position = None if reader.subscription is None else reader.subscription.position
        table.add_row(
            reader.part.name,
            Text(_follows(reader.part), style="cyan"),
            Text(reader.state, style=STYLES[reader.state]),
            "-" if position is None else f"{position.index:,}",
            "-" if position is None else f"{_behind(play, reader):,}",
            f"{reader.events:,}",
            Text(str(reader.resets), style="yellow" if reader.resets else "dim"),
        )
    return table


def _story(story: Sequence[str], rows: int) -> RenderableType:
    told = list(story)[-rows:]
    return Text("\n".join(told + [""] * (rows - len(told))), style="dim", no_wrap=True, overflow="ellipsis")


def _tally(tally: Tally) -> list[Text]:
    cells = []
    for name in COLUMNS:
        number = getattr(tally, name.replace(" ", "_"))
        style = "dim" if not number else "bold red" if name in FAULTS else ""
        cells.append(Text(f"{number:,}", style=style))
    return cells


def _table(*columns: tuple[str, str], least: int = 0) -> Table:
    """Columns of (name, "left" or "right"); numbers have at least that width."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name, side in columns:
        # Numbers fold where there is no room for them: a digit that is not shown would be a lie.
        if side == "right":
            table.add_column(name, justify="right", min_width=least or None, overflow="fold")
        else:
            table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _follows(part: Part) -> str:
    return part.topic.name if part.key is None else f"{part.topic.name} {part.key}"


def _behind(play: Play, reader: Reader) -> int:
    return reader.behind(play.stage.heads.get(reader.part.topic.name, 0))

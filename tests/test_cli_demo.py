"""The demo: that its table cannot lie, that its input is checked, and that a run ends as it should."""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eventstream import Bookmark, Event, EventBus, Frame, Position, ResetReason, Resumed, SnapshotEnd, SnapshotStart
from eventstream.cli import main
from eventstream.cli.demo import Options, run
from eventstream.cli.demo.board import board, line, summary
from eventstream.cli.demo.counting import Published, Tally, count
from eventstream.cli.demo.cutting import Cutter, cutting
from eventstream.cli.demo.flights import Flight, FlightsError, default_file, read_flights
from eventstream.cli.demo.play import DEPARTURES, PARTS, Play, Result, Row
from eventstream.cli.demo.readers import Reader
from eventstream.cli.demo.server import ServerFailed, serving
from eventstream.cli.demo.show import LiveScreen, PlainScreen, _screen
from eventstream.pipes import Retry
from eventstream.remote import Server

ROOT = Path(__file__).parents[1]

# Counting: pure, with hand-made records.

FIVE: list[Published] = [(1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "a")]


def event(index: int, key: str) -> Event[Any]:
    return Event("t", key, index, None, 0.0)


def events(*published: Published) -> list[Frame[Any]]:
    return [event(index, key) for index, key in published]


def resumed(index: int) -> Resumed:
    return Resumed(Position("e", index))


def snapshot(end: int, *told: Published, reason: ResetReason = "new") -> list[Frame[Any]]:
    return [SnapshotStart(Position("e", 0), reason), *events(*told), SnapshotEnd(Position("e", end))]


def test_count_everything_came_is_clean() -> None:
    """An empty snapshot, then every event."""
    tally = count(FIVE, [*snapshot(0), *events(*FIVE)])
    assert tally == Tally(published=5, delivered=5)
    assert tally.clean


def test_count_an_event_is_missing_is_lost() -> None:
    """A hole is found although all after it came."""
    tally = count(FIVE, [*snapshot(0), *events(*FIVE[:2], *FIVE[3:])])
    assert tally == Tally(published=5, delivered=4, lost=1)
    assert not tally.clean


def test_count_the_last_event_is_missing_is_lost() -> None:
    """What was published at the very end is owed as well."""
    assert count(FIVE, [*snapshot(0), *events(*FIVE[:4])]).lost == 1


def test_count_an_event_came_twice_is_duplicated() -> None:
    """Also if the second time is much later."""
    tally = count(FIVE, [*snapshot(0), *events(*FIVE, FIVE[1])])
    assert tally == Tally(published=5, delivered=5, duplicated=1)
    assert not tally.clean


def test_count_resume_repeats_an_event_is_duplicated() -> None:
    """Coming back begins no new life: what was had before is not owed again, whatever position the frame names."""
    assert count(FIVE, [*snapshot(0), *events(*FIVE[:3]), resumed(2), *events(*FIVE[2:])]).duplicated == 1


def test_count_resume_skips_an_event_is_lost() -> None:
    """Nor is a hole excused by the position that the frame names."""
    assert count(FIVE, [*snapshot(0), *events(*FIVE[:2]), resumed(3), *events(*FIVE[3:])]).lost == 1


def test_count_first_resumed_owes_only_what_follows() -> None:
    """Who begins after a position is owed nothing before it."""
    assert count(FIVE, [resumed(3), *events(*FIVE[3:])]) == Tally(published=2, delivered=2)
    assert count(FIVE, [resumed(3), *events(*FIVE[2:])]).duplicated == 1


def test_count_late_joiner_is_told_by_the_snapshot() -> None:
    """The newest of each key speaks for all before it."""
    tally = count(FIVE, [*snapshot(4, (3, "a"), (4, "b")), *events(FIVE[4])])
    assert tally == Tally(published=5, delivered=1, by_snapshot=4)


def test_count_snapshot_without_a_key_loses_that_keys_events() -> None:
    """A snapshot that forgets a key speaks for none of its events."""
    tally = count(FIVE, [*snapshot(4, (3, "a")), *events(FIVE[4])])
    assert tally == Tally(published=5, delivered=1, by_snapshot=2, lost=2)


def test_count_snapshot_with_an_old_event_loses_the_newer() -> None:
    """Nor does one whose state is older than it says."""
    assert count(FIVE, [*snapshot(4, (1, "a"), (4, "b")), *events(FIVE[4])]).lost == 2


def test_count_snapshot_tells_a_key_twice_is_duplicated() -> None:
    """A snapshot has each key once."""
    assert count(FIVE, [*snapshot(4, (1, "a"), (4, "b"), (3, "a")), *events(FIVE[4])]).duplicated == 1


def test_count_event_that_the_snapshot_spoke_for_is_duplicated() -> None:
    """The splice must not repeat what is in the snapshot."""
    assert count(FIVE, [*snapshot(4, (3, "a"), (4, "b")), *events(*FIVE[3:])]).duplicated == 1


def test_count_event_between_snapshot_and_live_is_lost() -> None:
    """Nor may it leave one out."""
    assert count(FIVE, [*snapshot(3, (3, "a"), (2, "b")), *events(FIVE[4])]).lost == 1


def test_count_reset_covers_what_was_not_delivered() -> None:
    """What a lagging reader missed is neither lost nor delivered."""
    frames = [*snapshot(0), *events(*FIVE[:2]), *snapshot(4, (3, "a"), (4, "b"), reason="lagged"), *events(FIVE[4])]
    assert count(FIVE, frames) == Tally(published=5, delivered=3, by_snapshot=2, resets=1)


def test_count_reset_does_not_excuse_an_earlier_hole() -> None:
    """An event that was passed over before the reset stays lost, although the snapshot speaks for its key."""
    frames = [*snapshot(0), *events(FIVE[0], FIVE[2]), *snapshot(4, (3, "a"), (4, "b"), reason="lagged")]
    assert count(FIVE[:4], frames) == Tally(published=4, delivered=2, by_snapshot=1, lost=1, resets=1)


def test_count_reset_to_a_wrong_state_loses_what_was_delivered() -> None:
    """It was told to forget, so what the snapshot leaves out is not known any more."""
    frames = [*snapshot(0), *events(*FIVE[:2]), *snapshot(2, (1, "a"), reason="lagged"), *events(*FIVE[2:])]
    assert count(FIVE, frames) == Tally(published=5, delivered=4, lost=1, resets=1)


def test_count_unfinished_snapshot_speaks_for_nothing() -> None:
    """Without its end nobody may trust it."""
    assert count(FIVE, snapshot(5, (5, "a"), (4, "b"))[:-1]) == Tally(published=5, lost=5)


def test_count_resume_out_of_an_unfinished_snapshot_loses_it() -> None:
    """Who left in the middle of a snapshot has to be given it again."""
    frames = [*snapshot(4, (3, "a"))[:-1], resumed(4), *events(FIVE[4])]
    assert count(FIVE, frames) == Tally(published=5, delivered=1, lost=4)
    again = [*snapshot(4, (3, "a"))[:-1], *snapshot(4, (3, "a"), (4, "b"), reason="expired"), *events(FIVE[4])]
    assert count(FIVE, again) == Tally(published=5, delivered=1, by_snapshot=4, resets=1)


def test_count_events_that_nobody_owes_are_astray() -> None:
    """Of another key, never published, under a wrong key, out of order, before any first frame."""
    assert count(FIVE, [*snapshot(0), *events(*FIVE[:3:2], FIVE[3], FIVE[4])], "a").astray == 1
    assert count(FIVE, [*snapshot(0), *events(*FIVE, (6, "a"))]).astray == 1
    assert count(FIVE, [*snapshot(0), *events(*FIVE[:4], (5, "b"))]) == Tally(5, 4, lost=1, astray=1)
    assert count(FIVE, [*snapshot(0), *events(FIVE[1], FIVE[0], *FIVE[2:])]) == Tally(5, 5, astray=1)
    assert count(FIVE, events(FIVE[0])) == Tally(astray=1)


def test_count_one_key_owes_that_key_alone() -> None:
    """And bookmarks say nothing about events."""
    frames = [*snapshot(0), *events((1, "a"), (3, "a")), Bookmark(Position("e", 4)), *events((5, "a"))]
    assert count(FIVE, frames, "a") == Tally(published=3, delivered=3)


def test_count_who_never_began_is_owed_nothing() -> None:
    """A late joiner of a play that was cut short before it joined."""
    assert count(FIVE, []) == Tally()
    assert count([], [*snapshot(0)]) == Tally()


def newest(published: Sequence[Published], until: int) -> list[Published]:
    return sorted((index, key) for key, index in {key: index for index, key in published if index <= until}.items())


@st.composite
def honest(draw: st.DrawFn) -> tuple[list[Published], list[Frame[Any]]]:
    """What was published, and the record of a reader who leaves, comes back and is reset as the contract allows."""
    keys = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
    published = list(enumerate(keys, 1))
    at, frames = 0, snapshot(0)
    while at < len(published):
        ahead = draw(st.integers(1, len(published) - at))
        step = draw(st.sampled_from(("read", "leave", "reset")))
        if step == "reset":
            frames += snapshot(at + ahead, *newest(published, at + ahead), reason="lagged")
        else:
            frames += [resumed(at)] if step == "leave" else []
            frames += events(*published[at : at + ahead])
        at += ahead
    return published, frames


@given(honest())
def test_count_any_honest_record_is_clean(record: tuple[list[Published], list[Frame[Any]]]) -> None:
    """And all that was published is accounted for."""
    tally = count(*record)
    assert tally.clean
    assert tally.published == len(record[0]) == tally.delivered + tally.by_snapshot


@given(honest(), st.data())
def test_count_any_missing_or_doubled_event_is_found(
    record: tuple[list[Published], list[Frame[Any]]], data: st.DataObject
) -> None:
    """Wherever it is: in a snapshot or live, before or after a reset."""
    published, frames = record
    places = [place for place, frame in enumerate(frames) if isinstance(frame, Event)]
    place = data.draw(st.sampled_from(places))
    doubled = count(published, [*frames[: place + 1], *frames[place:]])
    assert doubled.duplicated == 1
    # The last event of a life that a snapshot ends may be missing: the snapshot speaks for it. Every other may not.
    following = frames[place + 1] if place + 1 < len(frames) else None
    missing = count(published, [*frames[:place], *frames[place + 1 :]])
    assert missing.lost or isinstance(following, SnapshotStart)
    assert missing.published == missing.delivered + missing.by_snapshot + missing.lost


# The input.

FLIGHT = (
    '{"at":"2013-01-01T05:17","flight":"UA1545","origin":"EWR","dest":"IAH",'
    '"status":"departed","tail":"N1","delay_min":2}'
)


def flights_file(directory: Path, *lines: str) -> Path:
    path = directory / "flights.ndjson"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def week() -> list[Flight]:
    return read_flights(default_file())


def test_read_flights_of_the_repository_are_all_there(week: list[Flight]) -> None:
    """A whole week."""
    assert len(week) == 6099
    assert {flight.origin for flight in week} == {"EWR", "JFK", "LGA"}


def test_read_flights_plain_or_gzipped_are_the_same(tmp_path: Path) -> None:
    """Empty lines count for nothing."""
    path = flights_file(tmp_path, FLIGHT, "", FLIGHT)
    plain = read_flights(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_flights(path) == plain
    assert len(plain) == 2


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        (FLIGHT.replace("UA", "\udcff"), "UTF-8|utf-8"),
        (FLIGHT.replace("EWR", ""), r"\$\.origin"),
        (FLIGHT.replace("2013-01-01T05:17", "tomorrow"), "tomorrow"),
        (FLIGHT.replace("departed", "lost"), r"\$\.status"),
    ],
)
def test_read_flights_bad_line_is_told_with_its_number(tmp_path: Path, bad: str, why: str) -> None:
    """Line 2 of two."""
    path = tmp_path / "flights.ndjson"
    path.write_bytes(f"{FLIGHT}\n{bad}".encode(errors="surrogateescape"))
    with pytest.raises(FlightsError, match=rf"flights\.ndjson, line 2: .*{why}"):
        read_flights(path)


def test_read_flights_unusable_files_are_refused(tmp_path: Path) -> None:
    """Missing, empty, a directory, a torn gzip."""
    with pytest.raises(FlightsError, match=r"no such file\. Check what was given as --file"):
        read_flights(tmp_path / "none")
    with pytest.raises(FlightsError, match="no flights in it"):
        read_flights(flights_file(tmp_path, ""))
    with pytest.raises(FlightsError, match="cannot be read"):
        read_flights(tmp_path)
    torn = tmp_path / "torn.gz"
    torn.write_bytes(gzip.compress(FLIGHT.encode())[:-12])
    with pytest.raises(FlightsError, match="cannot be read"):
        read_flights(torn)


def test_read_flights_too_many_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them are held in memory, so there is a bound."""
    monkeypatch.setattr("eventstream.cli.demo.flights.MOST", 1)
    with pytest.raises(FlightsError, match="more than 1 flights"):
        read_flights(flights_file(tmp_path, FLIGHT, FLIGHT))


def test_demo_without_the_repository_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wheel has no examples."""
    for module in ("flights", "show"):
        monkeypatch.setattr(f"eventstream.cli.demo.{module}.default_file", lambda: tmp_path / "examples" / "flights.gz")
    assert run(Options()) == 2
    assert "not with the package: give --file" in capsys.readouterr().err


# The run.

DAYS = 1950  # flights of the first days: enough for all that is to happen


@pytest.fixture(scope="module")
def days(week: list[Flight]) -> list[Flight]:
    return week[:DAYS]


@pytest.fixture(scope="module")
def days_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with gzip.open(default_file(), "rt") as week:
        return flights_file(tmp_path_factory.mktemp("flights"), *map(str.strip, islice(week, DAYS)))


@asynccontextmanager
async def theatre() -> AsyncIterator[Cutter]:
    """A real server, in this process, behind what cuts its connections."""
    async with EventBus() as bus, anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        await tasks.start(Server(bus, create=True).serve, listener)
        async with cutting(listener.extra(SocketAttribute.local_port)) as cutter:
            yield cutter
        tasks.cancel_scope.cancel()


async def test_play_goes_by_its_script_and_is_clean(days: list[Flight]) -> None:
    """Nobody but the two who earn it is reset; all else is resumed, event by event, however often it was cut off."""
    told: list[str] = []
    play = Play(days, 1e9, told.append)
    async with theatre() as cutter:
        await play.run(cutter)
    result = play.result()
    assert result.clean
    assert not result.interrupted
    assert result.cuts > 50
    assert result.published["departures"] == len(days)
    rows = {row.part.name: row.tally for row in result.rows}
    assert {name for name, tally in rows.items() if tally.resets} == {"overdue", "stuck"}
    assert rows["overdue"].resets == 1
    assert [name for name, tally in rows.items() if tally.by_snapshot] == ["overdue", "stuck", "late", "late, too"]
    assert all(tally.published == tally.delivered + tally.by_snapshot for tally in rows.values())
    assert any(text.startswith("stuck is reset (lagged): a snapshot of 3 events") for text in told)
    assert any(text.startswith("overdue is reset (expired)") for text in told)
    assert sum("is back, and goes on after" in text for text in told) == 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_demo_without_a_terminal_prints_plain_lines_and_the_table(
    backend: Any, days_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No escape sequences; the code says that all is well."""
    assert run(Options(seconds=0.2, file=days_file, backend=backend)) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.startswith("Tue 01 Jan 05:17    0%  departures 0")
    assert re.search(r"^ +stuck +all +1,950 +[\d,]+ +[\d,]+ +0 +0 +0 +[1-9]$", out, re.MULTILINE)
    assert re.search(r"^[1-9]\d+ connections were cut on the way\.$", out, re.MULTILINE)
    assert "The view shows 3 of 3 airports" in out
    assert out.endswith("Nothing lost, nothing duplicated, nothing astray.\n")


def test_demo_with_a_loss_and_a_duplicate_says_so(
    monkeypatch: pytest.MonkeyPatch, days_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is not painted on: break one reader and it shows."""
    note = Reader._note

    def careless(reader: Reader, frame: Frame[Flight]) -> None:
        if reader.part.name != "steady" or not isinstance(frame, Event) or frame.index != 100:
            note(reader, frame)
        if reader.part.name == "newark" and len(reader.frames) == 50:
            note(reader, frame)

    monkeypatch.setattr(Reader, "_note", careless)
    assert run(Options(seconds=0.1, file=days_file, plain=True)) == 1
    out = capsys.readouterr().out
    assert re.search(r"^ +steady +all +1,950 +1,949 +0 +1 +0 +0 +0$", out, re.MULTILINE)
    assert re.search(r"^ +newark +EWR +([\d,]+) +\1 +0 +0 +1 +0 +0$", out, re.MULTILINE)
    assert "The promise was broken" in out


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_demo_interrupted_counts_what_was_so_far(
    backend: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is away or stuck comes back at once, and nobody has lost anything."""
    tell = PlainScreen.tell

    def tell_and_interrupt(screen: PlainScreen, text: str) -> None:
        tell(screen, text)
        if text == "stuck stops reading":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(PlainScreen, "tell", tell_and_interrupt)
    assert run(Options(seconds=1, backend=backend)) == 130
    out = capsys.readouterr().out
    assert "Interrupted. Published 1,8" in out
    assert "Nothing lost" in out


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_play_whose_subscription_is_closed_has_lost_the_rest(days: list[Flight]) -> None:
    """A reader that is cut off ends, and the count does not excuse it."""

    def cut_off(text: str) -> None:
        subscription = play.readers[0].subscription
        if text == "stuck stops reading" and subscription is not None:
            subscription.close()

    play = Play(days, 1e9, cut_off)
    async with theatre() as cutter:
        await play.run(cutter)
    steady = play.result().rows[0].tally
    assert steady.lost > 1200
    assert steady.published == steady.delivered + steady.lost
    assert not play.result().clean


async def test_play_interrupted_before_it_begins_publishes_nothing(week: list[Flight]) -> None:
    """And counts nothing but zeros."""
    play = Play(week, 1.0, lambda text: None)
    play.interrupt()
    async with theatre() as cutter:
        await play.run(cutter)
    assert set(play.result().published.values()) == {0}
    assert play.result().clean


async def test_demo_whose_server_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, and with what to try."""
    monkeypatch.setattr("eventstream.cli.demo.server.COMMAND", ("-c", "pass"))
    with pytest.raises(ServerFailed, match="try: eventstream serve"):
        async with serving():
            pass


def test_demo_whose_server_goes_away_is_unusable(
    monkeypatch: pytest.MonkeyPatch, days_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot count what nobody can tell it any more."""
    retry = Retry(first=0.01, cap=0.02, give_up_after=0.1)
    monkeypatch.setattr("eventstream.cli.demo.cutting.RETRY", retry)
    cut = Cutter.cut

    def cut_for_good(cutter: Cutter) -> None:
        cut(cutter)
        cutter._port = 1

    monkeypatch.setattr(Cutter, "cut", cut_for_good)
    assert run(Options(seconds=0.1, file=days_file)) == 2
    assert "no link after" in capsys.readouterr().err


def test_demo_with_one_flight_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No span to divide by, no aircraft, nobody gets to leave."""
    line_of_one = FLIGHT.replace('"N1"', "null").replace("departed", "cancelled")
    assert run(Options(seconds=20, file=flights_file(tmp_path, line_of_one))) == 0
    assert "Published 1 in departures and 0 in aircraft" in capsys.readouterr().out


def test_demo_whose_reader_goes_away_ends_quietly() -> None:
    """`eventstream demo | head -1`: no traceback."""
    command = [sys.executable, "-c", "from eventstream.cli import main; main()", "demo", "--seconds", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "departures 0" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 130


# The command line.


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["eventstream", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code


def test_main_demo_takes_its_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them."""
    path = flights_file(tmp_path, FLIGHT, FLIGHT.replace("05:17", "05:18"))
    assert call(monkeypatch, "demo", "--speed", "1e6", "--file", str(path), "--plain", "--backend", "trio") == 0
    assert "Published 2 in departures" in capsys.readouterr().out


def test_main_bad_line_ends_with_its_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the error stream, with a code of its own."""
    path = flights_file(tmp_path, FLIGHT, "nonsense")
    assert call(monkeypatch, "demo", "--file", str(path)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"eventstream demo: {path}, line 2: ")
    assert captured.out == ""


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_main_impossible_seconds_are_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    """Before anything is played."""
    assert call(monkeypatch, "demo", "--seconds", seconds) in (1, 2)  # cyclopts 4 and 5 differ


def test_main_backend_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trio comes with no extra of ours."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(Options(backend="trio")) == 2
    assert "pip install trio" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_main_without_the_extra_says_what_to_install(missing: str) -> None:
    """The entry point exists in every installation."""
    code = f"import sys; sys.modules[{missing!r}] = None; from eventstream.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert f"needs {missing}, which is not installed" in done.stderr
    assert "pip install 'eventstream[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_main_another_module_is_missing_is_not_blamed_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation shows its traceback."""
    monkeypatch.delitem(sys.modules, "eventstream.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, "eventstream.cli.demo", None)
    with pytest.raises(ModuleNotFoundError):
        main()


# The looks.


async def halfway(days: list[Flight]) -> tuple[Play, list[str]]:
    """A play that was cut short in the middle, with its board as it was last."""
    told: list[str] = []
    play = Play(days, 1e9, told.append)
    boards: list[str] = []

    def look(text: str) -> None:
        told.append(text)
        boards.extend(render(board(play, told, width, height), width) for width, height in SIZES)
        boards.append(line(play))
        if text.startswith("late, too"):
            play.interrupt()

    for reader in play.readers:
        reader._tell = look
    async with theatre() as cutter:
        await play.run(cutter)
    return play, boards


SIZES = [(80, 23), (120, 40), (60, 23)]


def render(what: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_board_fits_and_shows_all(days: list[Flight]) -> None:
    """Within the terminal's size; every subscriber, topic and airport, what happened, and who is stuck."""
    _, boards = await halfway(days)
    for size, text in zip(SIZES, boards[-4:-1], strict=True):
        lines = text.splitlines()
        assert len(lines) <= size[1]
        assert max(map(len, lines)) <= size[0]
        assert all(f" {part.name} " in text for part in PARTS)
        assert all(name in text for name in ("EWR", "JFK", "LGA", "aircraft", "connections cut: "))
    assert "late joins: a snapshot" in boards[-3]


async def test_board_numbers_are_those_of_the_server(week: list[Flight]) -> None:
    """What it says of a reader is what the reader has."""
    play = Play(week, 1.0, lambda text: None)
    async with theatre() as cutter, cutter.connect() as bus:
        await bus.publish(DEPARTURES, week[0])
        async with bus.subscribe(DEPARTURES) as all_of_them, bus.subscribe(DEPARTURES, key="LGA") as one_key:
            assert isinstance(await anext(all_of_them.frames()), SnapshotStart)
            assert isinstance(await anext(one_key.frames()), SnapshotStart)
            play.readers[0].subscription, play.readers[1].subscription = all_of_them, one_key
            play.stage.heads["departures"] = 1
            play.numbers = await bus.topics()
            shown = render(board(play, [], 80, 23), 80)
    assert re.search(r"departures +1 +1 +2 +\d +0", shown)
    assert re.search(r"newark +departures EWR +waiting +0 +0 +0 +0", shown)
    assert "departures 1  aircraft 0  slowest 1 behind  cut 0" in line(play)


def test_board_flight_that_did_not_leave_is_off(week: list[Flight]) -> None:
    """It has no delay to show."""
    play = Play(week, 1.0, lambda text: None)
    cancelled = next(flight for flight in week if flight.status == "cancelled")
    play.latest[cancelled.origin] = deque([cancelled])
    assert re.search(rf"{cancelled.flight} +{cancelled.dest} off", render(board(play, [], 80, 23), 80))


def test_summary_shows_every_digit_however_narrow() -> None:
    """A number that is cut off would be a lie."""
    tally = Tally(123_456, 123_401, 11, 22, 33, 44, 55)
    result = Result((Row(PARTS[0], tally),), {"departures": 1, "aircraft": 2}, 1, 2, 9, interrupted=True)
    wide = render(summary(result, 1.0), 100)
    assert re.search(r"steady +all +123,456 +123,401 +11 +22 +33 +44 +55", wide)
    assert "Interrupted" in wide
    assert "9 connections were cut" in wide
    assert "The promise was broken" in wide
    digits = "".join(re.findall(r"\d", render(summary(result, 1.0), 40)))
    assert digits.count("55") == 1


def test_result_whose_view_is_wrong_is_not_clean() -> None:
    """The view is a promise too."""
    assert not Result((), {}, mirrored=2, keys=3, cuts=0, interrupted=False).clean
    assert Result((), {}, mirrored=3, keys=3, cuts=0, interrupted=False).clean


def test_screen_is_live_on_a_terminal_alone(week: list[Flight]) -> None:
    """Not where the terminal is a dumb one, nor where plain lines were asked for."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
    with _screen(terminal, plain=False) as screen:
        assert isinstance(screen, LiveScreen)
        screen.tell("something happened")
        screen.refresh(Play(week, 1.0, lambda text: None))
    assert isinstance(terminal.file, io.StringIO)
    assert "something happened" in terminal.file.getvalue()
    with _screen(terminal, plain=True) as screen:
        assert isinstance(screen, PlainScreen)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with _screen(dumb, plain=False) as screen:
        assert isinstance(screen, PlainScreen)

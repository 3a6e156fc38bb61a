"""The documentation is true: its code runs and prints what it says, and it leaves nothing public out."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import ssl
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest
from cli_support import free_port

import eventstream
from eventstream import (
    Event,
    EventBus,
    EventStreamError,
    Log,
    MemoryLog,
    Position,
    ResetReason,
    Retention,
    SnapshotFailed,
    SnapshotOptions,
    SQLiteLog,
    Subscription,
    Topic,
    View,
    errors,
    outbox,
    pipes,
    remote,
)
from eventstream.codec import TopicCodec
from eventstream.errors import ReconnectFailed
from eventstream.outbox import Bus, Outbox, OutboxLimits, Reachable
from eventstream.pipes import (
    BackedPipe,
    BackedReader,
    BackedWriter,
    Pipe,
    PipeLimits,
    PipeServer,
    Retry,
    RingBuffer,
)
from eventstream.pipes.frames import KINDS, CloseCode, Data, Decoder, Hello, RejectCode, encode, encode_data
from eventstream.pipes.handshake import proves
from eventstream.pipes.session import TABLE, State
from eventstream.remote import Action, RemoteBus, RemoteSubscription, Server, ServerLimits, faults, messages, open_bus
from eventstream.remote.urls import SCHEMES

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
PROTOCOL = ROOT / "docs" / "pipes-protocol.md"
BUS_PROTOCOL = ROOT / "docs" / "bus-protocol.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
AT_THE_ROOT = {
    name: getattr(eventstream, name)
    for name in dir(eventstream)
    if not name.startswith("_") and not isinstance(getattr(eventstream, name), types.ModuleType)
}
PUBLIC: dict[str, Any] = {
    **{name: getattr(errors, name) for name in errors.__all__},
    **{name: getattr(pipes, name) for name in pipes.__all__},
    **{name: getattr(remote, name) for name in remote.__all__},
    **{name: getattr(outbox, name) for name in outbox.__all__},
    **AT_THE_ROOT,
}
ERRORS = [error for error in PUBLIC.values() if inspect.isclass(error) and issubclass(error, EventStreamError)]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_FOR_USERS = r"^Not for users|For its (pipes|connections) only"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text("utf-8"))


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of the third level whose name is in backticks, up to the next heading."""
    parts = re.split(r"^#{1,3} (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {title.strip("`"): text for title, text in zip(parts[1::2], parts[2::2], strict=True) if title[0] == "`"}


def undocumented(section: str, names: list[str]) -> list[str]:
    """The names that stand nowhere in code."""
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", section))))
    return [name for name in names if name not in words]


def options(callable_: Any) -> dict[str, inspect.Parameter]:
    return {name: option for name, option in inspect.signature(callable_).parameters.items() if name != "self"}


def members(class_: type) -> list[str]:
    """What a class offers. Some methods are for the library's own floors, and say so."""
    return [
        name
        for name, value in vars(class_).items()
        if not name.startswith("_")
        and not re.search(r"^Not for users|For its (pipes|connections) only", value.__doc__ or "")
    ]


# Code.

PROGRAMS = [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("page", PROGRAMS, ids=named)
def test_code_runs_and_prints_what_stands_below_it(
    page: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page are one program. `anyio.run` runs each backend in turn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(anyio, "run", partial(anyio.run, backend=backend))
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    printed = ""
    for kind, text in blocks(page):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(text, named(page), "exec"), module.__dict__)
            printed = output.getvalue()
        elif kind == "text":
            assert printed == text


def test_the_tests_that_are_shown_pass(tmp_path: Path) -> None:
    """`embed` shows how users test: what it shows runs under pytest, with none of our own settings."""
    programs = [text for kind, text in blocks(ROOT / "docs/how-to/embed.md") if kind == "python"]
    (shown,) = [text for text in programs if text.startswith("# test_")]
    (tmp_path / "test_shown.py").write_text(programs[0] + shown, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "2 passed" in ended.stdout, ended.stdout + ended.stderr


# Names.


def test_each_public_name_has_a_section() -> None:
    assert set(sections(REFERENCE)) == set(PUBLIC)


def test_what_serves_the_network_is_at_the_root_and_imported_when_it_is_asked_for() -> None:
    """A bus within one process does not pay for it; whoever asks gets the very same names."""
    assert {"RemoteBus", "Server", "open_bus"} <= set(AT_THE_ROOT)
    assert all(AT_THE_ROOT[name] is getattr(remote, name) for name in ("RemoteBus", "Server", "open_bus"))
    with pytest.raises(AttributeError, match="no attribute 'open_buss'"):
        _ = eventstream.open_buss
    code = """
import sys, eventstream
assert not {"eventstream.remote", "eventstream.pipes"} & set(sys.modules), sorted(sys.modules)
from eventstream import open_bus
assert "eventstream.remote" in sys.modules and open_bus is eventstream.remote.open_bus
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_reference_says_what_is_imported_from_where() -> None:
    """The names of `eventstream.remote` that are not at the root stand together, or say it."""
    (part,) = re.findall(r"^## Rules of a server$(.*?)^## ", REFERENCE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    there = set(re.findall(r"^### `(\w+)`", part, re.MULTILINE))
    said = {name for name, text in sections(REFERENCE).items() if text.startswith("\n\nFrom `eventstream.remote`.")}
    assert there | said == set(remote.__all__) - set(AT_THE_ROOT)
    assert not there & said


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_each_attribute_of_an_error_is_in_its_section(error: type[EventStreamError]) -> None:
    assigned = ast.walk(ast.parse(inspect.getsource(error)))
    attributes = [node.attr for node in assigned if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    section = sections(REFERENCE)[error.__name__]
    rows = re.findall(r"^\| `(\w+)` \| ", section, re.MULTILINE)
    assert rows == attributes
    for base in (TypeError, ValueError, RuntimeError):
        assert (f"Also a `{base.__name__}`" in section) == issubclass(error, base)


def test_temporary_is_said_of_the_right_errors() -> None:
    """`LinkRefused` alone decides for each error: its section has a row for it."""
    section = sections(REFERENCE)["EventStreamError"]
    named = set(re.findall(r"`(\w+)`", section.partition("can help:")[2])) - {"LinkRefused"}
    assert {error.__name__ for error in ERRORS if error.temporary} == named


def test_each_reason_of_a_reset_is_named() -> None:
    section = sections(REFERENCE)["ResetReason"]
    assert re.findall(r"^\| `\"(\w+)\"`", section, re.MULTILINE) == list(get_args(ResetReason))


def test_each_reason_of_a_failed_snapshot_is_named() -> None:
    """The reasons are texts, given where the errors are made."""
    sources = [path.read_text("utf-8") for path in (ROOT / "eventstream" / "snapshots").glob("*.py")]
    given = {
        found
        for source in sources
        for found in re.findall(r"_error\(\s*\"(\w+)\"|SnapshotFailed\([^\"]*\"(\w+)\"", source)
    }
    reasons = {first or second for first, second in given}
    assert {"raised", "timeout", "payload", "size", "index"} <= reasons
    section = sections(REFERENCE)[SnapshotFailed.__name__]
    assert [reason for reason in reasons if f'`"{reason}"`' not in section] == []


@pytest.mark.parametrize("name", [name for name in PUBLIC if hasattr(PUBLIC[name], "__struct_fields__")])
def test_each_field_of_a_value_is_in_its_section(name: str) -> None:
    fields = list(PUBLIC[name].__struct_fields__)
    assert undocumented(sections(REFERENCE)[name], fields) == []


@pytest.mark.parametrize(
    "class_",
    [
        *(Topic, EventBus, MemoryLog, Retention, SQLiteLog, SnapshotOptions, BackedPipe, Retry, PipeServer, PipeLimits),
        *(RemoteBus, Server, ServerLimits),
        *(Outbox, OutboxLimits),
    ],
    ids=lambda class_: class_.__name__,
)
def test_each_option_has_a_row_with_its_default(class_: type) -> None:
    section = sections(REFERENCE)[class_.__name__]
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)}
    for name, option in options(class_).items():
        assert name in rows
        if option.default is inspect.Parameter.empty:
            assert rows[name] == "required"
        elif isinstance(option.default, bool):
            assert rows[name] == f"`{option.default}`"
        elif isinstance(option.default, int | float):
            assert float(rows[name].replace(",", "")) == option.default


@pytest.mark.parametrize(
    "class_",
    [
        *(EventBus, Event, Log, Position, Subscription, Topic, View),
        *(BackedReader, BackedWriter, Pipe, PipeServer, Retry, RingBuffer),
        *(RemoteBus, RemoteSubscription, Server),
        *(Bus, Outbox, Reachable),
    ],
    ids=lambda class_: class_.__name__,
)
def test_each_member_is_in_its_section(class_: type) -> None:
    section = sections(REFERENCE)[class_.__name__]
    assert undocumented(section, members(class_)) == []


@pytest.mark.parametrize(
    "method", [name for name in members(EventBus) if name != "statistics" and callable(getattr(EventBus, name))]
)
def test_each_option_of_a_method_of_the_bus_is_in_its_section(method: str) -> None:
    section = sections(REFERENCE)["EventBus"]
    (signature,) = re.findall(rf"^\| `(?:await )?{method}\((.*?)\)` \|", section, re.MULTILINE)
    assert re.findall(r"\w+", signature) == list(options(getattr(EventBus, method)))
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
    assert undocumented(" ".join(rows), list(options(getattr(EventBus, method)))) == []


def test_each_option_of_open_bus_is_in_its_section() -> None:
    section = sections(REFERENCE)["open_bus"]
    assert undocumented(section, list(options(open_bus))) == []
    schemes = re.findall(r"^\| `(\w+)://", section, re.MULTILINE)
    assert tuple(schemes) == SCHEMES


def test_each_action_that_is_asked_for_is_named() -> None:
    section = sections(REFERENCE)["Action"]
    assert re.findall(r"^\| `\"(\w+)\"`", section, re.MULTILINE) == list(get_args(Action))


def test_a_bus_in_another_process_has_the_same_methods_with_the_same_options() -> None:
    """Or says why not; so the reference need not repeat them."""
    for name in members(EventBus):
        method = getattr(EventBus, name)
        if name in ("can_nowait", "dedupe_seconds", "statistics"):  # of where the bus is
            assert not hasattr(RemoteBus, name)
        elif name == "publish_nowait":
            assert list(options(getattr(RemoteBus, name))) == ["topic", "payload", "_"]
        elif callable(method):
            assert list(options(getattr(RemoteBus, name))) == list(options(method)), name


def test_each_option_of_append_is_in_its_section() -> None:
    assert undocumented(sections(REFERENCE)["Append"], list(options(eventstream.Append.__call__))) == []


# Guarantees.


def waiting(class_: type) -> Iterator[str]:
    """The rows that a class needs: what is awaited, and what is gone through by `async for`."""
    if hasattr(class_, "__aenter__"):
        yield f"async with {class_.__name__}"
    if hasattr(class_, "__aiter__"):
        yield f"async for` over a `{class_.__name__}"
    for name in members(class_):
        method = getattr(class_, name)
        returned = str(getattr(method, "__annotations__", {}).get("return"))
        if inspect.iscoroutinefunction(method) or "AsyncIterator" in returned:
            yield f"{class_.__name__}.{name}"


WAITING = [
    row
    for class_ in (EventBus, Subscription, View, RemoteBus, Server, Outbox, Pipe, PipeServer)
    for row in waiting(class_)
]


@pytest.mark.parametrize("operation", [*WAITING, "async with BackedPipe"])
def test_each_waiting_operation_has_a_row_of_guarantees(operation: str) -> None:
    rows = re.findall(rf"^\| `{operation}(?:\(\))?` \|.*$", GUARANTEES.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 1
    cells = rows[0].strip("|").split(" | ")
    assert len(cells) == 8
    assert all(cell.strip() for cell in cells)


# The pipe protocol.


def tables(page: Path, heading: str) -> list[list[str]]:
    """The cells of all rows that stand below a heading and above the next one, without the tables' heads."""
    text = re.split(rf"^#+ {heading}$", page.read_text("utf-8"), maxsplit=1, flags=re.MULTILINE)[1]
    text = re.split(r"^#+ ", BLOCK.sub("", text), maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [cell.strip().strip("`") for cell in row.strip("|").split("|")]
        for table in found
        for row in table.splitlines()[2:]
    ]


def test_the_frames_on_the_page_are_those_of_the_code() -> None:
    """Each kind has a row; the worked example is what the code reads and writes, byte by byte."""
    rows = tables(PROTOCOL, "Frames")
    assert {(int(row[0]), row[1]) for row in rows} == {(kind, type_.__name__.upper()) for type_, kind in KINDS.items()}
    (example,) = [text for kind, text in blocks(PROTOCOL) if kind == "hex"]
    pairs = re.findall(r"^ *([0-9a-f ]+?)(?:  .*)?$", example, re.MULTILINE)
    wire = bytes.fromhex("".join(pairs))
    decoded = Decoder().feed(wire)
    written = [
        encode_data(frame.sequence, len(frame.payload)) + bytes(frame.payload)
        if isinstance(frame, Data)
        else encode(frame)
        for frame in decoded
    ]
    assert b"".join(written) == wire
    assert {type(frame) for frame in decoded} == set(KINDS)


def test_the_proofs_of_the_example_are_right() -> None:
    (example,) = [text for kind, text in blocks(PROTOCOL) if kind == "hex"]
    wire = bytes.fromhex("".join(re.findall(r"^ *([0-9a-f ]+?)(?:  .*)?$", example, re.MULTILINE)))
    hellos = [frame for frame in Decoder().feed(wire) if isinstance(frame, Hello)]
    assert [proves(hellos[0].token, hello) for hello in hellos] == [True, True]


def test_each_code_has_a_row() -> None:
    assert {row[0] for row in tables(PROTOCOL, "REJECT")} == set(get_args(RejectCode))
    closing = " ".join(f"`{row[0]}`" for row in tables(PROTOCOL, "CLOSE"))
    assert undocumented(closing.replace("-", "_"), [code.replace("-", "_") for code in get_args(CloseCode)]) == []


def test_the_table_of_states_is_that_of_the_code() -> None:
    rows = [tuple(row) for row in tables(PROTOCOL, "States") if row[0] in {state.value for state in State}]
    assert rows == [(state.value, event.value, after.value) for (state, event), after in TABLE.items()]


def test_the_constants_are_those_of_the_code() -> None:
    for name, value, _ in tables(PROTOCOL, "Constants"):
        module, _, constant = name.partition(".")
        assert ast.literal_eval(value.replace(",", "")) == getattr(
            import_module(f"eventstream.pipes.{module}"), constant
        ), name


def test_the_bounds_of_a_server_are_those_of_the_code() -> None:
    limits = PipeLimits()
    shown = {row[0]: row[1].replace(",", "") for row in tables(PROTOCOL, "Bounds of a server")}
    for name in PipeLimits.__struct_fields__:
        number, unit = re.findall(r"(\d+) (MiB)?", shown[f"PipeLimits.{name}"])[0]
        assert int(number) * (1024**2 if unit else 1) == getattr(limits, name)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_tls_that_is_shown_works(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a certificate that is trusted; with one that is not the pipe fails for good."""
    trustme = pytest.importorskip("trustme")
    monkeypatch.chdir(tmp_path)
    code = [text for kind, text in blocks(ROOT / "docs/how-to/carry-a-protocol.md") if kind == "python"]
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    definitions = [text.replace("anyio.run(main)", "") for text in (code[0], *(c for c in code if "def dial_tls" in c))]
    exec(compile("".join(definitions), "carry-a-protocol.md", "exec"), module.__dict__)

    authority = trustme.CA()
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    port = free_port()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(module.serve_tls, PipeServer(module.shout), port, served)
            async with module.dial_tls("127.0.0.1", port, trusting) as pipe:
                for line in (b"one\n", b"two\n"):
                    await pipe.send(line)
                    assert await pipe.receive() == line.upper()
                    await pipe.force_reconnect()
                await pipe.send_eof()
            with pytest.raises(ReconnectFailed) as failed:
                async with module.dial_tls("127.0.0.1", port, ssl.create_default_context()) as pipe:
                    await pipe.receive()
            assert isinstance(failed.value.__cause__, ssl.SSLCertVerificationError)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


# The bus protocol.


def said(example: str) -> bytes:
    """The bytes of an example: what stands behind two spaces is a comment."""
    return bytes.fromhex("".join(re.findall(r"^ *([0-9a-f ]+?)(?:  .*)?$", example, re.MULTILINE)))


def listed(cell: str) -> tuple[str, ...]:
    """The names of a list of fields, without what is said of them."""
    return tuple(re.findall(r"(?:^|, )`?(\w+)", re.sub(r"\([^)]*\)", "", cell)))


def test_the_messages_on_the_page_are_those_of_the_code() -> None:
    """Each kind has a row with its fields; the worked examples are what the code reads and writes, byte by byte."""
    kinds = {number: kind.__name__ for kind, number in messages._KINDS.items()} | {messages.EVENTS: "Events"}
    rows = {int(row[0]): row[1:] for row in tables(BUS_PROTOCOL, "Messages") if row[0].isdigit()}
    assert {number: row[0] for number, row in rows.items()} == kinds
    for kind, number in messages._KINDS.items():
        optional = re.findall(r"(\w+)`? = ", rows[number][2])
        required = len(kind.__struct_fields__) - len(kind.__struct_defaults__)
        assert optional == list(kind.__struct_fields__[required:]), kind
        assert listed(rows[number][2]) == kind.__struct_fields__, kind
    first, second = [said(text) for mark, text in blocks(BUS_PROTOCOL) if mark == "hex"]
    sides = {"client": first, "server": second}
    found: set[str] = set()
    for side, wire in sides.items():
        decoded = list(messages.MessageDecoder().feed(wire))
        assert b"".join(messages.encode(message) for message in decoded) == wire
        for message in decoded:
            found.add(type(message).__name__)
            [by] = [row[1] for row in rows.values() if row[0] == type(message).__name__]
            assert side in by, message
    assert found == set(kinds.values())


def test_the_events_of_the_example_are_events() -> None:
    _, server = [said(text) for mark, text in blocks(BUS_PROTOCOL) if mark == "hex"]
    [events] = [each for each in messages.MessageDecoder().feed(server) if isinstance(each, messages.Events)]
    [event] = TopicCodec(Topic("prices", dict)).decode_events(events.data)
    assert (event.key, event.index, event.payload) == ("X", 7, {"s": "X", "bid": 1.5})


def test_the_faults_on_the_page_are_those_that_travel() -> None:
    rows = {row[0]: listed(row[1]) for row in tables(BUS_PROTOCOL, "Errors")}
    assert rows == {name: fields for name, (_, fields) in faults._BUILDERS.items()}


def test_the_constants_of_the_bus_protocol_are_those_of_the_code() -> None:
    for name, value, _ in tables(BUS_PROTOCOL, "Constants"):
        module, _, constant = name.partition(".")
        found = getattr(import_module(f"eventstream.remote.{module}"), constant)
        assert ast.literal_eval(value.replace(",", "")) == found, name


# The rest.


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text("utf-8"))
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_each_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    found = [ROOT / "README.md"]
    while found:
        page = found.pop()
        if page.suffix == ".md" and page.exists() and page not in seen:
            seen.add(page)
            links = [link.partition("#")[0] for link in LINK.findall(page.read_text("utf-8"))]
            found += [(page.parent / link).resolve() for link in links if link and ":" not in link]
    assert [named(page) for page in PAGES if page not in seen] == []


def test_a_list_of_contents_has_every_part_of_its_page() -> None:
    pages = {
        page: re.search(r"^Contents:(.*?)\n\n", page.read_text("utf-8"), re.MULTILINE | re.DOTALL) for page in PAGES
    }
    listed = {page: re.findall(r"\]\(#([\w-]+)\)", found[1]) for page, found in pages.items() if found}
    assert {named(page) for page in listed} >= {"docs/reference.md", "docs/how-to/testing.md"}
    for page, links in listed.items():
        parts = re.findall(r"^## (.*)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
        assert links == [part.lower().replace(" ", "-") for part in parts]


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == eventstream.__version__


@pytest.mark.parametrize("room", ["topics", "snapshots"])
def test_the_doors_at_the_root_lead_into_the_package(room: str) -> None:
    door = ROOT / room
    assert door.is_symlink()
    assert door.readlink() == Path("eventstream") / room
    assert (door / "__init__.py").samefile(ROOT / "eventstream" / room / "__init__.py")

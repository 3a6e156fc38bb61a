"""The documentation is true: its code runs and prints what it says, and it leaves nothing public out."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

import eventstream
from eventstream import (
    Event,
    EventBus,
    EventStreamError,
    Log,
    MemoryLog,
    Position,
    ResetReason,
    SnapshotFailed,
    SnapshotOptions,
    Subscription,
    Topic,
    View,
)

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
PUBLIC = [
    name
    for name, value in vars(eventstream).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
]
ERRORS = [
    error
    for error in map(vars(eventstream).get, PUBLIC)
    if inspect.isclass(error) and issubclass(error, EventStreamError)
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
        if not name.startswith("_") and not (value.__doc__ or "").startswith("Not for users")
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
    assert {error for error in ERRORS if error.temporary} == {SnapshotFailed}
    assert "for `SnapshotFailed` alone" in sections(REFERENCE)["EventStreamError"]


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


@pytest.mark.parametrize("name", [name for name in PUBLIC if hasattr(getattr(eventstream, name), "__struct_fields__")])
def test_each_field_of_a_value_is_in_its_section(name: str) -> None:
    fields = list(getattr(eventstream, name).__struct_fields__)
    assert undocumented(sections(REFERENCE)[name], fields) == []


@pytest.mark.parametrize("class_", [Topic, EventBus, MemoryLog, SnapshotOptions], ids=lambda class_: class_.__name__)
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
    "class_", [EventBus, Event, Log, Position, Subscription, Topic, View], ids=lambda class_: class_.__name__
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


def test_each_option_of_append_is_in_its_section() -> None:
    assert undocumented(sections(REFERENCE)["Append"], list(options(eventstream.Append.__call__))) == []


# Guarantees.


def waiting(class_: type) -> Iterator[str]:
    """The rows that a class needs: what is awaited, and what is gone through by `async for`."""
    if hasattr(class_, "__aenter__"):
        yield f"async with {class_.__name__}"
    if hasattr(class_, "__aiter__"):
        yield "async for"
    for name in members(class_):
        method = getattr(class_, name)
        returned = str(getattr(method, "__annotations__", {}).get("return"))
        if inspect.iscoroutinefunction(method) or "AsyncIterator" in returned:
            yield f"{class_.__name__}.{name}"


@pytest.mark.parametrize("operation", [row for class_ in (EventBus, Subscription, View) for row in waiting(class_)])
def test_each_waiting_operation_has_a_row_of_guarantees(operation: str) -> None:
    rows = re.findall(rf"^\| `{operation}(?:\(\))?`[^`|]*(?:`\w+` )?\|.*$", GUARANTEES.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 1
    cells = rows[0].strip("|").split(" | ")
    assert len(cells) == 8
    assert all(cell.strip() for cell in cells)


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


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == eventstream.__version__


@pytest.mark.parametrize("room", ["topics", "snapshots"])
def test_the_doors_at_the_root_lead_into_the_package(room: str) -> None:
    door = ROOT / room
    assert door.is_symlink()
    assert door.readlink() == Path("eventstream") / room
    assert (door / "__init__.py").samefile(ROOT / "eventstream" / room / "__init__.py")

"""The page about the kit leaves nothing out. (That its code runs is checked with all other pages.)"""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

from eventstream import testing
from eventstream.testing import CuttingProxy, Faults, Link, Network, NetworkListener, NetworkStatistics, NetworkStream
from eventstream.testing.wire import Wire

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "how-to" / "testing.md").read_text("utf-8")
PUBLIC = [
    name
    for name, value in vars(testing).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
]
WORDS = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))


def members(class_: type) -> list[str]:
    return [
        name
        for name, value in vars(class_).items()
        if not name.startswith("_")
        and name != "extra_attributes"
        and not (getattr(value, "__doc__", None) or "").startswith("Not for users")
    ]


def test_each_public_name_is_listed() -> None:
    (listed,) = re.findall(r"^## Names\n\n.*?: (.*?)\. ", PAGE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"\w+", listed) == sorted(PUBLIC, key=lambda name: (name[0].islower(), name))


@pytest.mark.parametrize("class_", [Network, Link, NetworkListener, NetworkStream, CuttingProxy])
def test_each_member_is_named(class_: type) -> None:
    assert [name for name in members(class_) if name not in WORDS | {"room"}] == []


def test_each_counter_is_named() -> None:
    assert [name for name in NetworkStatistics.__struct_fields__ if name not in WORDS] == []
    assert {"sent", "received", "lost", "unread"} <= WORDS & (set(vars(Wire)))


def test_each_fault_has_a_row_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(Faults.__struct_fields__)
    for name, default in rows:
        assert float(default.replace(",", "")) == getattr(Faults(), name)


SIGNATURES: list[tuple[str, Any]] = [
    ("Network", Network),
    ("CuttingProxy", CuttingProxy),
    ("run_simulated", testing.run_simulated),
    ("cut", Link.cut),
    ("cut_after", Link.cut_after),
    ("after", Link.after),
    ("stall", Link.stall),
    ("half_open", Link.half_open),
    ("network.refuse_dials", Network.refuse_dials),
    ("network.hang_dials", Network.hang_dials),
    ("network.release_dials", Network.release_dials),
    ("network.delay_dials", Network.delay_dials),
]


@pytest.mark.parametrize(("name", "callable_"), SIGNATURES, ids=[name for name, _ in SIGNATURES])
def test_each_signature_is_as_it_is_written(name: str, callable_: Any) -> None:
    (written,) = re.findall(rf"`{re.escape(name)}\((.*?)\)`", PAGE)[:1]
    stated: list[str] = []
    for option in inspect.signature(callable_).parameters.values():
        if option.name == "self":
            continue
        if option.kind is option.KEYWORD_ONLY and "*" not in stated and not any(s.startswith("*") for s in stated):
            stated.append("*")
        star = "*" if option.kind is option.VAR_POSITIONAL else ""
        default = "" if option.default is option.empty else f"={option.default!r}"
        stated.append(f"{star}{option.name}{default}")
    assert re.sub(r"(?<=\d)_|\.0\b", "", written).replace('"', "'") == re.sub(r"\.0\b", "", ", ".join(stated))

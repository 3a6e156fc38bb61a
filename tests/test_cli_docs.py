"""What is written of the command line is so."""

from __future__ import annotations

import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from cli_support import ROOT

from eventstream.cli.app import app, call
from eventstream.cli.serve import _Declared

REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8").partition("## Command line")[2]
HOW_TO = (ROOT / "docs" / "how-to" / "command-line.md").read_text("utf-8")
COMMANDS = ["serve", "publish", "tail", "topics", "snapshot", "bench", "demo"]
OF_LOGS = ["info", "verify", "compact", "backup", "export", "import"]
OUTBOX = [f"outbox {name}" for name in ("list", "show", "retry", "discard", "drain")]
CLIENTS = {"--token-file", "--timeout", "--tls-ca", "--tls-cert", "--tls-key"}


def options(command: str) -> set[str]:
    """What its help names."""
    found = reduce(getitem, command.split(), app).assemble_argument_collection()
    return {name for argument in found for name in argument.names if name.startswith("--")}


@pytest.mark.parametrize("command", [*COMMANDS, *OUTBOX])
def test_reference_names_each_option(command: str) -> None:
    """And no other."""
    (row,) = re.findall(rf"^\| `{command}[ `].*$", REFERENCE, re.MULTILINE)
    named = set(re.findall(r"--[\w-]+", row))
    assert named | (CLIENTS if "those of clients" in row else set()) == options(command)


def test_reference_has_all_commands_and_all_fields() -> None:
    """Of the configuration."""
    assert set(re.findall(r"^\| `(\w+)[ `].*\| .*\| [A-Z].*\. \|$", REFERENCE, re.MULTILINE)) >= {*COMMANDS}
    assert {name for name in app if not name.startswith("-")} == {*COMMANDS, "log", "outbox"}
    assert {name for name in app["log"] if not name.startswith("-")} == {*OF_LOGS}
    assert {f"outbox {name}" for name in app["outbox"] if not name.startswith("-")} == {*OUTBOX}
    assert all(f"| `{field}` |" in REFERENCE for field in _Declared.__struct_fields__)
    assert {*re.findall(r"--[\w-]+", REFERENCE)} >= CLIENTS


def test_the_how_to_uses_options_that_there_are() -> None:
    """In prose and in code."""
    known = {option for command in [*COMMANDS, *OUTBOX] for option in options(command)} | {"--help"}
    assert {*re.findall(r"(?<![\w-])--[a-z][\w-]+", HOW_TO)} <= known


@pytest.mark.may_block
def test_the_configuration_in_the_how_to_is_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is only the address that cannot be had."""
    (text,) = re.findall(r"^```toml\n(.*?)^```", HOW_TO, re.MULTILINE | re.DOTALL)
    (tmp_path / "bus.toml").write_text(text)
    assert call(["serve", "--listen", "tcp://256.0.0.1:1", "--config", str(tmp_path / "bus.toml")]) == 1
    assert "cannot listen at" in capfd.readouterr().err


@pytest.mark.parametrize("command", OF_LOGS)
def test_reference_names_each_command_for_the_file_of_a_log(command: str) -> None:
    """With its options."""
    (row,) = re.findall(rf"^\| `log {command} .*$", REFERENCE, re.MULTILINE)
    found = app["log"][command].assemble_argument_collection(parse_docstring=True)
    assert {*re.findall(r"--[\w-]+", row)} == {n for one in found for n in one.names if n.startswith("--")}
    assert [one.names for one in found if one.show and not one.parameter.help] == []


@pytest.mark.parametrize("command", [*COMMANDS, *OUTBOX])
def test_help_explains_each_option(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """None stands there without a word."""
    assert call([*command.split(), "--help"]) is None
    text = capfd.readouterr().out
    assert all(option in text for option in options(command))
    found = reduce(getitem, command.split(), app).assemble_argument_collection(parse_docstring=True)
    assert [argument.names for argument in found if argument.show and not argument.parameter.help] == []

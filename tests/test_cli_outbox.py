"""`eventstream outbox`: seeing, deciding and draining from the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from cli_support import COMMAND, ENVIRONMENT, PATIENCE, server
from outbox_support import notes

from eventstream import EventBus, Topic
from eventstream.cli.app import call
from eventstream.outbox import Outbox
from support import Price

pytestmark = pytest.mark.may_block
prices = Topic("prices", Price, key="symbol", compacted=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An outbox with a conflict, one behind it, and others."""
    file = tmp_path / "box"

    async def fill() -> None:
        async with EventBus() as bus, Outbox(file) as outbox:
            await bus.publish(notes, {}, key="a")
            await outbox.publish(notes, {"n": 1}, key="a", expect=0, id="bad", headers={"h": "v"})
            outbox.use(bus)
            await outbox.flush()
            outbox.use(None)
            await outbox.publish(notes, {"n": 2}, key="a", id="behind")
            await outbox.publish(prices, Price("X", 1.0), id="price")
            await outbox.delete(prices, "Y", id="gone")

    anyio.run(fill)
    return file


def listed(path: Path, capfd: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    capfd.readouterr()
    assert call(["outbox", "list", str(path), "--json", *options]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_list(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entries = listed(path, capfd)
    assert [(entry["id"], entry["state"]) for entry in entries] == [
        ("bad", "conflict"),
        ("behind", "pending"),
        ("price", "pending"),
        ("gone", "pending"),
    ]
    assert [entry["id"] for entry in listed(path, capfd, "--state", "conflict")] == ["bad"]
    assert call(["outbox", "list", str(path)]) == 0
    captured = capfd.readouterr()
    assert captured.out.splitlines()[0].endswith("is at index 1, not 0; nothing was published")
    assert captured.err == "4 entries\n"


def test_show(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["outbox", "show", str(path), "bad", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["payload"], shown["headers"], shown["expect"]) == ({"n": 1}, {"h": "v"}, 0)
    assert call(["outbox", "show", str(path), "price"]) == 0
    assert '"bid":1.0' in capfd.readouterr().out
    assert call(["outbox", "show", str(path), "nobody"]) == 1
    assert "there is no entry 'nobody'" in capfd.readouterr().err


def test_decide_and_drain(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with server() as (url, _):
        assert call(["outbox", "drain", str(path), url]) == 1
        assert capfd.readouterr().err == "drained 2 entries; left: 1 pending, 1 conflict\n"
        assert call(["outbox", "retry", str(path), "bad", "--expect", "any"]) == 0
        assert call(["outbox", "drain", str(path), url, "--json"]) == 0
        captured = capfd.readouterr()
        assert json.loads(captured.out)["accepted"] == 2
        assert captured.err.endswith("drained 2 entries\n")
        assert not listed(path, capfd)
        assert call(["snapshot", url, "prices", "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["state"] == {"X": {"symbol": "X", "bid": 1.0}}
        assert call(["tail", url, "notes", "--after", "earliest", "--count", "2", "--json"]) == 0
        events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [(event["key"], event["payload"]["n"]) for event in events] == [("a", 1), ("a", 2)]
        assert events[0]["headers"] == {"h": "v"}


def test_discard(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["outbox", "discard", str(path), "bad", "gone"]) == 0
    assert capfd.readouterr().err == "2 entries were discarded\n"
    assert call(["outbox", "retry", str(path), "price"]) == 0
    assert capfd.readouterr().err == "1 entry will be tried again\n"
    assert [entry["id"] for entry in listed(path, capfd)] == ["behind", "price"]


def test_what_cannot_be(tmp_path: Path, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["outbox", "list", str(tmp_path / "none")]) == 2
    assert "there is no such file" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()
    assert call(["outbox", "list", str(tmp_path)]) == 2
    assert "this is no file" in capfd.readouterr().err
    (tmp_path / "text").write_text("text\n" * 100)
    assert call(["outbox", "list", str(tmp_path / "text")]) == 1
    assert "it is not an outbox" in capfd.readouterr().err
    assert call(["outbox", "drain", str(path), "tcp://127.0.0.1:1", "--timeout", "0.2"]) == 1
    assert "nobody listens there" in capfd.readouterr().err

    async def hold() -> None:
        async with Outbox(path):
            done = await anyio.run_process([*COMMAND, "outbox", "list", str(path)], check=False, env=ENVIRONMENT)
            assert done.returncode == 1
            assert b"is in use: ask the program that has it" in done.stderr

    anyio.run(hold)


def test_a_terminal_sees_a_bar(path: Path) -> None:
    main, terminal = pty.openpty()
    with server() as (url, _):
        command = [*COMMAND, "outbox", "drain", str(path), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=ENVIRONMENT) as process:
            os.close(terminal)
            shown = b""
            while True:
                try:
                    chunk = os.read(main, 4096)
                except OSError:  # its other end is closed
                    break
                shown += chunk
            assert process.wait(PATIENCE) == 1
    os.close(main)
    assert b" of 4, " in shown
    assert b"drained 2 entries; left: 1 pending, 1 conflict" in shown

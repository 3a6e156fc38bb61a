"""`eventstream tail`: what it prints, what it survives, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from cli_support import COMMAND, ENVIRONMENT, PATIENCE, Process, Stream, running, server

from eventstream import Event, Position, Topic
from eventstream.cli.app import call
from eventstream.cli.tail import _positions
from eventstream.remote import open_bus
from eventstream.testing import CuttingProxy
from support import Price

pytestmark = pytest.mark.may_block


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as (url, _):
        yield url


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def publish(url: str, topic: str, folder: Path, *lines: str, options: tuple[str, ...] = ("--key", "k")) -> None:
    path = folder / "in"
    path.write_text("\n".join(lines))
    assert call(["publish", url, topic, str(path), *options]) == 0


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_tail_json_has_all_of_an_event(url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And its position is where the next tail goes on."""
    publish(url, topic, tmp_path, "1", '{"a": "ü"}', "3")
    capfd.readouterr()
    assert call(["tail", url, topic, "--after", "earliest", "--count", "2", "--json"]) == 0
    captured = capfd.readouterr()
    first, second = lines_of(captured.out)
    assert list(first) == ["topic", "key", "index", "position", "time", "payload", "headers"]
    assert (first["topic"], first["key"], first["index"], first["payload"]) == (topic, "k", 1, 1)
    assert second["payload"] == {"a": "ü"}
    assert re.search(r"goes on after \w+\.0$", captured.err)
    assert call(["tail", url, topic, "--after", first["position"], "--count", "2", "--json"]) == 0
    assert [line["index"] for line in lines_of(capfd.readouterr().out)] == [2, 3]


def test_tail_plain_lines_cannot_command_a_terminal(
    url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Control characters that JSON leaves alone are shown as what they are."""
    publish(url, topic, tmp_path, json.dumps("\x1b[31m\x9b31m", ensure_ascii=False).replace("\x1b", "\\u001b"))
    capfd.readouterr()
    assert call(["tail", url, topic, "--after", "earliest", "--count", "1"]) == 0
    out = capfd.readouterr().out
    assert re.fullmatch(r'\d\d:\d\d:\d\d  1  k  "\\u001b\[31m\\x9b31m"\n', out)


def test_tail_one_key_or_one_prefix(url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing of the others."""
    publish(url, topic, tmp_path, *(f'{{"k": "{k}"}}' for k in ("ab", "b", "ac", "b")), options=("--key-field", "k"))
    capfd.readouterr()
    assert call(["tail", url, topic, "--after", "earliest", "--count", "2", "--json", "--key", "b"]) == 0
    assert [line["index"] for line in lines_of(capfd.readouterr().out)] == [2, 4]
    assert call(["tail", url, topic, "--after", "earliest", "--count", "2", "--json", "--prefix", "a"]) == 0
    assert [line["index"] for line in lines_of(capfd.readouterr().out)] == [1, 3]


def test_tail_of_a_compacted_topic_begins_with_its_state(
    url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Within it, a position is one that begins the state again."""
    options = ("--key-field", "k", "--compacted")
    publish(url, topic, tmp_path, '{"k": "a", "n": 1}', '{"k": "b"}', '{"k": "a", "n": 3}', options=options)
    publish(url, topic, tmp_path, "null", options=("--key", "b"))
    capfd.readouterr()
    with running("tail", url, topic, "--json") as tail:
        tail.out.wait_for('"n":3')
        publish(url, topic, tmp_path, "null", options=("--key", "a"))
        tail.out.wait_for('"payload":null')
    state, deleted = lines_of("\n".join(tail.out.all()))
    assert state["position"].endswith(".0")
    assert deleted["position"].endswith(".5")
    assert call(["tail", url, topic, "--after", deleted["position"][:-1] + "3", "--count", "2"]) == 0
    assert [line.split()[1:] for line in capfd.readouterr().out.splitlines()[-2:]] == [
        ["4", "b", "deleted"],
        ["5", "a", "deleted"],
    ]


def test_tail_reads_what_others_published_typed(url: str, topic: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Structs, with times and bytes in them, and headers; also what JSON has no words for."""
    declared = Topic(topic, Any, key=lambda payload: "k")

    async def program() -> None:
        async with open_bus(url) as bus:
            await bus.publish(declared, Price("X", 1.5), headers={"by": "me"})
            await bus.publish(declared, {"at": msgspec.msgpack.Ext(5, b"x"), 1: b"\xff"})
            await bus.publish(declared, msgspec.Raw(b"\xa1\xff"))  # text that is no Unicode

    anyio.run(program)
    assert call(["tail", url, topic, "--after", "earliest", "--count", "3", "--json"]) == 0
    typed, odd, broken = lines_of(capfd.readouterr().out)
    assert typed["payload"] == {"symbol": "X", "bid": 1.5}
    assert typed["headers"] == {"by": "me"}
    assert odd["payload"] == {"at": {"ext": 5, "data": "eA=="}, "1": "/w=="}
    assert broken["payload"]["bytes"] == "of8="


def test_tail_a_topic_that_is_not_there_yet(url: str, topic: str, tmp_path: Path) -> None:
    """It says so, waits, makes none itself, and then misses nothing."""
    with running("tail", url, topic) as tail:
        tail.err.wait_for("has no topic .* yet; waiting for it")
        publish(url, topic, tmp_path, '{"k": "a", "n": 1}', options=("--key-field", "k", "--compacted"))
        tail.out.wait_for('a  {"k":"a","n":1}')
    with running("tail", url, f"{topic} too", "--count", "2") as tail:
        tail.err.wait_for("waiting for it")
        publish(url, f"{topic} too", tmp_path, "1", "2")
        assert tail.wait() == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--key", "a", "--prefix", "b"], "not both"),
        (["--after", "yesterday"], "--after 'yesterday' is no position: give one as --json prints it, or earliest"),
        (["--count", "0"], "Must be >= 1"),
        (["--key", "\n"], "must not hold control characters"),
    ],
)
def test_tail_wrong_use_is_told(options: list[str], why: str, url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """With code 2."""
    assert call(["tail", url, "t", *options]) == 2
    assert why in capfd.readouterr().err


def test_tail_and_snapshot_of_what_can_be_no_topic_are_refused(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody can ever make it, so it is not waited for."""
    for command in ("tail", "snapshot"):
        assert call([command, url, ""]) == 2
        assert capfd.readouterr().err == f"eventstream {command}: topic name '' must not be empty\n"


def test_tail_position_that_is_lost_is_told_and_gone_on_from(
    url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of another life of the topic, or older than what is kept."""
    publish(url, topic, tmp_path, *map(str, range(1, 1300)))
    capfd.readouterr()
    assert call(["tail", url, topic, "--after", "nonsense.7", "--count", "1", "--json"]) == 0
    captured = capfd.readouterr()
    assert "reset (epoch): the topic's history begins anew there; goes on with its oldest event" in captured.err
    (line,) = lines_of(captured.out)
    assert line["index"] > 100
    epoch = line["position"].partition(".")[0]
    assert call(["tail", url, topic, "--after", f"{epoch}.7", "--count", "1"]) == 0
    assert "reset (expired): what followed 7 is not kept any more" in capfd.readouterr().err


def restart(process: Process, url: str) -> Process:
    """The same address again."""
    assert process.stop() == 0
    again = Process("serve", "--listen", url)
    again.out.wait_for("listening at")
    return again


def test_tail_survives_a_restarted_server(tmp_path: Path) -> None:
    """Its history is a new one, which is told, and then everything is printed that is in it."""
    options = ("--key-field", "k", "--compacted")
    with server() as (url, process):
        publish(url, "state", tmp_path, '{"k": "a", "n": 1}', options=options)
        publish(url, "log", tmp_path, "0")
        with running("tail", url, "state", "--json") as state, running("tail", url, "log", "--json") as log:
            state.out.wait_for('"n":1')
            log.err.wait_for("goes on after")
            again = restart(process, url)
            try:
                publish(url, "state", tmp_path, '{"k": "a", "n": 2}', options=options)
                publish(url, "log", tmp_path, "2")
                for tail, expected in ((state, '"n":2'), (log, '"payload":2')):
                    tail.err.wait_for("the connection was lost; trying again")
                    tail.err.wait_for(r"reset \(epoch\)")
                    tail.out.wait_for(expected)
                    assert tail.stop(signal.SIGINT) == 130
                    assert len(tail.out.all()) <= 2
                assert again.stop() == 0
            finally:
                again.close()


def _proxy(url: str) -> CuttingProxy:
    return CuttingProxy(int(url.rpartition(":")[2]))


def test_tail_lost_connection_is_resumed_and_that_is_told(url: str, topic: str, tmp_path: Path) -> None:
    """A cut between the two: the server is the same."""
    publish(url, topic, tmp_path, "0")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_proxy(url)) as proxy,
        running("tail", f"tcp://127.0.0.1:{proxy.port}", topic, "--json") as tail,
    ):
        tail.err.wait_for("goes on after")
        publish(url, topic, tmp_path, "1")
        tail.out.wait_for('"payload":1')
        portal.call(proxy.cut)
        publish(url, topic, tmp_path, "2")
        tail.err.wait_for("the connection was lost; trying again")
        tail.err.wait_for(r"resumed after \w+\.[23]: nothing was missed")
        tail.out.wait_for('"payload":2')


@pytest.mark.skipif(sys.platform == "win32", reason="there Ctrl-C ends it at once")
def test_tail_interrupted_is_silent(url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C: code 130, and no traceback; the server was told, and keeps nothing for who does not come again."""
    publish(url, topic, tmp_path, "0")
    with running("tail", url, topic) as tail:
        tail.err.wait_for("goes on after")
        assert tail.stop(signal.SIGINT) == 130
        assert len(tail.err.all()) == 1
    capfd.readouterr()
    assert call(["topics", url, "--json"]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if f'"{topic}"' in line]
    assert json.loads(line)["subscribers"] == 0


def test_tail_into_head_is_silent(url: str, topic: str, tmp_path: Path) -> None:
    """`| head -1`: who reads has had enough."""
    publish(url, topic, tmp_path, *map(str, range(2000)))
    command = [*COMMAND, "tail", url, topic, "--after", "earliest"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as tail:
        head = subprocess.run(["head", "-1"], stdin=tail.stdout, capture_output=True, check=True, timeout=PATIENCE)
        assert tail.stdout is not None
        tail.stdout.close()
        if sys.platform != "linux":  # elsewhere it is noticed when there is something to write
            publish(url, topic, tmp_path, "1")
        assert tail.wait(PATIENCE) == 141
        assert tail.stderr is not None
        assert tail.stderr.read().count(b"\n") <= 1
    assert head.stdout.count(b"\n") == 1


def test_tail_whose_reader_stops_falls_behind_and_says_so(url: str, topic: str, tmp_path: Path) -> None:
    """Nobody takes what it prints: it takes no more, is passed over at its bound, and goes on with what is kept."""
    config = tmp_path / "bus.toml"
    config.write_text(f'[[topics]]\nname = "{topic}"\nmax_lag = 1000\nretain = 10\n')
    command = [*COMMAND, "tail", "URL", topic, "--json"]
    with server("--config", str(config)) as (command[-3], _):
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT) as tail:
            assert tail.stdout is not None
            assert tail.stderr is not None
            err = Stream(tail.stderr)
            err.wait_for("goes on after")
            publish(command[-3], topic, tmp_path, *[json.dumps("x" * 2000)] * 3000)
            out = Stream(tail.stdout)  # only now
            err.wait_for(r"fell \d+ events behind")
            err.wait_for(r"reset \(expired\)")
            out.wait_for('"index":3000')
            tail.send_signal(signal.SIGINT)
            assert tail.wait(PATIENCE) == 130
            got = [line["index"] for line in lines_of("\n".join(out.all()))]
    skipped = [(one, two) for one, two in pairwise(got) if two != one + 1]
    assert got[0] == 1
    assert len(skipped) == 1
    assert got[-10:] == list(range(2991, 3001))


def test_positions_in_a_batch_stand_before_it() -> None:
    """Until all of it is there."""
    events = [Event("t", "k", index, None, 0.0) for index in (3, 4, 4, 4, 9)]
    assert [position.index for position in _positions(events, Position("e", 9))] == [3, 3, 3, 4, 9]

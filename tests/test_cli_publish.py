"""`eventstream publish`: what becomes of lines, and of lines that are none."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.from_thread import start_blocking_portal
from cli_support import COMMAND, ENVIRONMENT, PATIENCE, running, server

from eventstream import EARLIEST, EventBus, Topic
from eventstream.cli.app import call
from eventstream.remote import Server, open_bus
from support import Price, take

pytestmark = pytest.mark.may_block


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as (url, _):
        yield url


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return str(request.node.name)


def events(url: str, topic: str, capfd: pytest.CaptureFixture[str], count: int) -> list[dict[str, Any]]:
    """The topic's first events."""
    capfd.readouterr()
    assert call(["tail", url, topic, "--after", "earliest", "--count", str(count), "--json"]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_publish_files_in_the_order_of_their_lines(
    url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """More than are under way at once; empty lines are none, and a last line needs no end."""
    (tmp_path / "one").write_text("".join(f'{{"n": {n}, "who": "k{n % 3}"}}\n\n' for n in range(700)))
    (tmp_path / "two").write_text("".join(f'{{"n": {n}, "who": 7}}\n' for n in range(700, 900)).rstrip())
    assert call(["publish", url, topic, str(tmp_path / "one"), str(tmp_path / "two"), "--key-field", "who"]) == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    last = re.fullmatch(rf"published 900 events to {re.escape(topic)}; last position (\S+\.900)\n", captured.err)
    assert last
    got = events(url, topic, capfd, 900)
    assert [event["payload"]["n"] for event in got] == list(range(900))
    assert [event["index"] for event in got] == list(range(1, 901))
    assert got[0]["key"] == "k0"
    assert got[-1]["key"] == "7"
    assert got[-1]["position"] == last[1]


def test_publish_any_json_is_the_same_afterwards(
    url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through MessagePack and back."""
    values = [{"a": [1, -2.5, None, True, "ü\n"], "b": {"c": {}}}, [], "text", 2**63, 0, False, ""]
    (tmp_path / "in").write_text("\n".join(json.dumps(value) for value in values))
    assert call(["publish", url, topic, str(tmp_path / "in"), "--key", "k"]) == 0
    assert [event["payload"] for event in events(url, topic, capfd, len(values))] == values


def test_publish_goes_out_as_it_is_typed(url: str, topic: str) -> None:
    """Line by line, long before the input ends."""
    with running("tail", url, topic) as tail, running("publish", url, topic, "--key", "k") as process:
        tail.err.wait_for("waiting for it")
        for word in ("first", "second"):
            process.write(f'"{word}"\n')
            tail.out.wait_for(rf'k  "{word}"')
        process.end_input()
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "this is no JSON: Input data was truncated"),
        ("{'who': 1}", "this is no JSON: "),
        ("\udcff", "this is no JSON: "),
        ('{"whose": 1}', "this object has no field 'who', which is to be the key"),
        ('{"who": true}', "the field 'who' is to be the key, so text or a whole number, not true"),
        ('{"who": 1.5}', "the field 'who' is to be the key, so text or a whole number, not 1.5"),
        ('{"who": ""}', "must not be empty"),
        ("[]", "this is no object, and so has no field 'who'"),
        ('{"who": "x", "big": 99999999999999999999999}', "can't serialize ints"),
    ],
)
def test_publish_bad_line_ends_it_there(
    bad: str, why: str, url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What stands before it was published, and nothing after it; the message says where."""
    path = tmp_path / "in"
    good = '{"who": "x"}'
    path.write_bytes(f"{good}\n{good}\n{bad}\n{good}\n".encode(errors="surrogateescape"))
    assert call(["publish", url, topic, str(path), "--key-field", "who"]) == 1
    count, error = capfd.readouterr().err.splitlines()
    assert count.startswith(f"published 2 events to {topic}; last position ")
    assert error.startswith(f"eventstream publish: {path}, line 3: ")
    assert why in error
    path.write_text("0")
    assert call(["publish", url, topic, str(path), "--key", "end"]) == 0
    assert [event["key"] for event in events(url, topic, capfd, 3)] == ["x", "x", "end"]


def test_publish_at_a_rate(url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The events' own times say how far apart they came."""
    (tmp_path / "in").write_text("1\n2\n3\n4\n5\n6\n")
    assert call(["publish", url, topic, str(tmp_path / "in"), "--key", "k", "--rate", "20"]) == 0
    got = events(url, topic, capfd, 6)
    assert got[-1]["time"] - got[0]["time"] > 0.2


def test_publish_to_a_compacted_topic(url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Made so once, it is found so again; null deletes; without a key there is nothing that it is about."""
    path = tmp_path / "in"
    path.write_text('{"who": "a", "n": 1}\n{"who": "b", "n": 2}\n{"who": "a", "n": 3}\n')
    assert call(["publish", url, topic, str(path), "--key-field", "who", "--compacted"]) == 0
    path.write_text("null\n")
    assert call(["publish", url, topic, str(path), "--key", "b"]) == 0
    capfd.readouterr()
    assert call(["snapshot", url, topic, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["state"] == {"a": {"who": "a", "n": 3}}
    assert call(["publish", url, topic, str(path)]) == 2
    assert "say with --key-field or --key" in capfd.readouterr().err


def test_publish_without_a_key(url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not every topic has keys."""
    (tmp_path / "in").write_text("1\n2\n")
    assert call(["publish", url, topic, str(tmp_path / "in")]) == 0
    assert [event["key"] for event in events(url, topic, capfd, 2)] == ["", ""]
    assert call(["publish", url, topic, str(tmp_path / "in"), "--key", "k"]) == 0
    assert [event["key"] for event in events(url, topic, capfd, 4)] == ["", "", "k", "k"]


def test_publish_to_a_topic_that_others_declared_typed(
    url: str, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What fits its type arrives as that."""
    declared = Topic(topic, Price, key="symbol")

    async def program(count: int) -> list[Price]:
        async with open_bus(url) as bus, bus.subscribe(declared, after=EARLIEST) as subscription:
            if not count:
                await bus.publish(declared, Price("A", 1.0))
            return await take(subscription, count)

    anyio.run(program, 0)
    (tmp_path / "in").write_text('{"symbol": "B", "bid": 2}')
    assert call(["publish", url, topic, str(tmp_path / "in")]) == 2
    assert "have keys: say with --key-field or --key" in capfd.readouterr().err
    assert call(["publish", url, topic, str(tmp_path / "in"), "--key-field", "symbol"]) == 0
    assert anyio.run(program, 2) == [Price("A", 1.0), Price("B", 2.0)]


@asynccontextmanager
async def application() -> AsyncIterator[str]:
    """A server inside a program, whose topic has a type."""
    async with EventBus() as bus, anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        await bus.head(prices := Topic("prices", Price, key="symbol", compacted=True))
        await tasks.start(Server(bus, [prices]).serve, listener)
        yield f"tcp://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


def test_publish_to_an_application_is_validated_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the topic's type; the line that does not fit is told, and so is a topic that it does not have."""
    path = tmp_path / "in"
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(application()) as url:
        path.write_text('{"symbol": "A", "bid": 1}\n{"symbol": "A", "bid": "high"}\n')
        assert call(["publish", url, "prices", str(path), "--key-field", "symbol"]) == 1
        count, error = capfd.readouterr().err.splitlines()
        assert count.startswith("published 1 event to prices; last position ")
        assert error.startswith(f"eventstream publish: {path}, line 2: ")
        assert "Expected `float`, got `str` - at `$.bid`" in error
        assert call(["snapshot", url, "prices"]) == 0
        assert capfd.readouterr().out == 'A  {"symbol":"A","bid":1.0}\n'
        assert call(["publish", url, "orders", str(path)]) == 1
        assert "the server has no topic 'orders'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["URL", "t", "--key", "a", "--key-field", "b"], 2, "not both"),
        (["URL", "t", "--key", ""], 2, "must not be empty"),
        (["URL", "", "--key", "k"], 2, "topic name '' must not be empty"),
        (["URL", "t", "--rate", "0"], 2, "Must be > 0"),
        (["URL", "t", "none", "--key", "k"], 2, "none: No such file"),
        (["URL"], 2, "requires an argument"),
        (["memory://", "t"], 2, "write tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH"),
        (["http://x", "t"], 2, "write tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH"),
        (["tcp://127.0.0.1", "t"], 2, "write tcp://HOST:PORT"),
        (["tcp://127.0.0.1:1", "t", "--tls-ca", "x"], 2, "need a tls:// address"),
        (["tcp://127.0.0.1:1", "t", "--timeout", "0.3"], 1, "nobody listens there: start a server"),
        (["unix:///nowhere", "t", "--timeout", "0.3"], 1, "nobody listens there: start a server"),
        (["tcp://name.invalid:1", "t", "--timeout", "0.3"], 1, "the host's name cannot be resolved"),
    ],
)
def test_publish_wrong_use_and_no_server_are_told_apart(
    arguments: list[str], code: int, why: str, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """2 and 1; no traceback."""
    assert call(["publish", *(url if word == "URL" else word for word in arguments)]) == code
    err = capfd.readouterr().err
    assert why in err
    assert "Traceback" not in err


def test_publish_where_somebody_else_listens(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """TLS towards a server that speaks none; and a server that never says a word."""
    tls = url.replace("tcp:", "tls:")
    assert call(["publish", tls, "t", "--timeout", "0.5"]) == 1
    assert "closes the connection at once" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert call(["publish", address, "t", "--timeout", "0.5"]) == 1
    assert "does not answer as an eventstream server" in capfd.readouterr().err


def test_publish_whose_server_goes_away_ends_after_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    """And says how far it came."""
    with server() as (url, process), running("publish", url, "t", "--key", "k", "--timeout", "1") as publish:
        publish.write("1\n")
        with running("tail", url, "t", "--after", "earliest", "--count", "1") as tail:
            assert tail.wait() == 0
        assert process.stop() == 0
        publish.write("2\n")
        assert publish.wait() == 1
        count, error = publish.err.all()
        assert count.startswith("published 1 event to t; last position ")
        assert error.startswith(f"eventstream publish: {url}: nobody listens there: start a server")


def test_publish_interrupted_says_how_far_it_came(url: str, topic: str) -> None:
    """Ctrl-C while it waits for input."""
    with running("publish", url, topic, "--key", "k") as process:
        process.write("1\n")
        with running("tail", url, topic, "--after", "earliest", "--count", "1") as tail:
            assert tail.wait() == 0
        assert process.stop(signal.SIGINT) == 130
        (line,) = process.err.all()
        assert line.startswith("published 1 event to ")


def test_publish_on_a_terminal_shows_a_bar(url: str, topic: str, tmp_path: Path) -> None:
    """With the rate; the last line stays."""
    (tmp_path / "in").write_text("1\n" * 300)
    ours, theirs = pty.openpty()
    command = [*COMMAND, "publish", url, topic, str(tmp_path / "in"), "--key", "k"]
    with subprocess.Popen(command, stderr=theirs, env={**ENVIRONMENT, "TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65_536)
            except OSError:  # how a terminal ends
                break
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert re.search(rb"\d events?, [\d,]+/s", shown)
    assert b"published 300 events" in shown

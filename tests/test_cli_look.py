"""`eventstream topics`, `snapshot` and `bench`: what a server has, and what it can do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from cli_support import running, server

from eventstream import __version__
from eventstream.cli.app import call

pytestmark = pytest.mark.may_block


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a topic that is compacted, and one that is not."""
    path = tmp_path_factory.mktemp("in") / "in"
    with server() as (url, _):
        path.write_text('{"k": "ab", "n": 1}\n{"k": "c", "n": 2}\n{"k": "ab", "n": 3}\n{"k": "ad", "n": 4}')
        assert call(["publish", url, "state", str(path), "--key-field", "k", "--compacted"]) == 0
        path.write_text("null\n")
        assert call(["publish", url, "state", str(path), "--key", "ad"]) == 0
        path.write_text("1\n2\n")
        assert call(["publish", url, "log", str(path), "--key", "k"]) == 0
        yield url


def test_topics_are_listed_with_their_numbers(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """For eyes and for programs."""
    capfd.readouterr()
    assert call(["topics", url]) == 0
    lines = header, log, state = capfd.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1  # in columns
    assert header.split() == ["topic", "head", "retained", "subscribers", "lag", "lagged"]
    assert log.split() == ["log", "2", "2", "0", "0", "0"]
    assert state.split() == ["state", "5", "5", "0", "0", "0"]
    assert call(["topics", url, "--json"]) == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["topic"], first["head"], second["topic"], second["head"]) == ("log", 2, "state", 5)


def test_topics_of_a_new_server_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    """Which is said."""
    with server() as (url, _):
        assert call(["topics", url]) == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "eventstream topics: the server has none yet\n"


def test_snapshot_is_the_newest_of_each_key(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Deleted keys are gone; the position is where a tail goes on."""
    capfd.readouterr()
    assert call(["snapshot", url, "state"]) == 0
    captured = capfd.readouterr()
    assert captured.out == 'c  {"k":"c","n":2}\nab  {"k":"ab","n":3}\n'
    assert re.fullmatch(r"2 keys at position \w+\.5\n", captured.err)
    assert call(["snapshot", url, "state", "--json"]) == 0
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert found["topic"] == "state"
    assert found["position"].endswith(".5")
    assert found["state"] == {"c": {"k": "c", "n": 2}, "ab": {"k": "ab", "n": 3}}
    assert captured.err == ""


@pytest.mark.parametrize(
    ("options", "keys"), [(["--key", "c"], ["c"]), (["--prefix", "a"], ["ab"]), (["--key", "none"], [])]
)
def test_snapshot_of_one_key_or_prefix(
    options: list[str], keys: list[str], url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And of no other."""
    capfd.readouterr()
    assert call(["snapshot", url, "state", "--json", *options]) == 0
    assert list(json.loads(capfd.readouterr().out)["state"]) == keys


def test_snapshot_of_what_has_none_is_told(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A topic without a state, and a name that is none; asking makes no topic."""
    assert call(["snapshot", url, "log"]) == 1
    assert "topic 'log' has no state: it is not compacted" in capfd.readouterr().err
    assert call(["snapshot", url, "stat"]) == 1
    assert "the server has no topic 'stat'; it has: " in capfd.readouterr().err
    assert call(["topics", url, "--json"]) == 0
    assert '"stat"' not in capfd.readouterr().out
    assert call(["snapshot", url, "state", "--key", "a", "--prefix", "b"]) == 2


@pytest.mark.parametrize("command", [["topics"], ["snapshot", "t"], ["tail", "t"], ["bench"]])
def test_no_server_is_one_line_and_code_1(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """In bounded time."""
    name, *topic = command
    assert call([name, "tcp://127.0.0.1:1", *topic, "--timeout", "0.2"]) == 1
    captured = capfd.readouterr()
    advice = "nobody listens there: start a server (eventstream serve), or check the address"
    assert captured.err == f"eventstream {name}: tcp://127.0.0.1:1: {advice}\n"
    assert captured.out == ""


def test_bench_measures(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """All events come to all subscribers, and a latency is a time."""
    capfd.readouterr()
    assert call(["bench", url, "--subscribers", "3", "--seconds", "0.6", "--payload", "50"]) == 0
    rows = dict(re.findall(r"^(.+?) {2,}(.+)$", capfd.readouterr().out, re.MULTILINE))
    assert list(rows) == ["subscribers", "payload", "published", "delivered", "latency p50", "latency p99"]
    assert rows["subscribers"] == "3"
    assert rows["payload"] == "50 bytes"
    published, delivered = (int(re.sub(r"\D", "", rows[name])) for name in ("published", "delivered"))
    assert delivered == pytest.approx(3 * published, abs=3)
    assert 0 < float(rows["latency p50"].split()[0]) <= float(rows["latency p99"].split()[0])


@pytest.mark.parametrize("options", [["--subscribers", "0"], ["--seconds", "0"], ["--payload", "-1"]])
def test_bench_of_nothing_is_refused(options: list[str], url: str) -> None:
    """With code 2."""
    assert call(["bench", url, *options]) == 2


def test_the_package_can_be_run() -> None:
    """`python -m eventstream.cli`."""
    with running("--help") as process:
        assert process.wait() == 0
        process.out.wait_for("serve .*until Ctrl-C")


@pytest.mark.parametrize(
    ("arguments", "command", "why"),
    [
        (["publsh"], "eventstream", 'Unknown command "publsh".'),
        (["outbox", "drian"], "eventstream outbox", 'Unknown command "drian".'),
        (["topics", "tcp://a:1", "b", "c"], "eventstream topics", "This is more than it takes: b c."),
        (["topics", "tcp://a:1", "--colour"], "eventstream topics", "Unknown option: --colour."),
        (["topics"], "eventstream topics", "parameter URL requires an argument."),
        (["tail", "tcp://a:1", "t", "--count", "x"], "eventstream tail", 'unable to convert "x" into int.'),
    ],
)
def test_wrong_use_is_one_line_that_says_where_help_is(
    arguments: list[str], command: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With code 2, as all that goes wrong: no boxes, no colours."""
    assert call(arguments) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"{command}: ")
    assert why in said
    assert said.endswith(f" See: {command} --help\n")
    assert said.count("\n") == 1


def test_version_is_that_of_the_code(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where nothing was installed."""
    assert call(["--version"]) is None
    assert capfd.readouterr().out == f"{__version__}\n"

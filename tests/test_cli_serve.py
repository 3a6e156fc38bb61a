"""`eventstream serve`: where it listens, who may come in, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import trustme
from cli_support import running, server
from joserfc import jwt
from joserfc.jwk import OctKey

from eventstream.cli.app import call

pytestmark = pytest.mark.may_block  # commands own their event loop


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with an authority, a server's and a client's certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    return tmp_path


def declared(folder: Path) -> str:
    """A configuration with one topic."""
    config = folder / "bus.toml"
    config.write_text('[[topics]]\nname = "t"')
    return str(config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_at_a_signal_with_code_0(number: int) -> None:
    """And says that it does."""
    with server() as (_, process):
        assert process.stop(number) == 0
        assert process.err.all() == ["eventstream serve: stopping; a second signal ends it at once"]


def test_serve_lets_clients_have_what_was_published_and_tells_them(tmp_path: Path) -> None:
    """What was acknowledged before the signal reaches a subscriber that is there."""
    with server("--config", declared(tmp_path)) as (url, process), running("tail", url, "t", "--json") as tail:
        tail.err.wait_for("goes on after")
        with running("publish", url, "t", "--key", "k") as publish:
            publish.write("".join(f"{number}\n" for number in range(500)))
            publish.end_input()
            assert publish.wait() == 0
        assert process.stop() == 0
        tail.err.wait_for("the connection was lost; trying again")
        tail.out.wait_for(r'"payload":499')
        assert len(tail.out.lines) == 500


def test_serve_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Also while a client does not take its leave."""
    with server("--config", declared(tmp_path)) as (url, process), running("tail", url, "t") as tail:
        tail.err.wait_for("goes on after")
        tail.send(signal.SIGSTOP)
        process.send(signal.SIGTERM)
        process.err.wait_for("stopping")
        assert process.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        tail.send(signal.SIGCONT)


def test_serve_until_eof_ends_with_its_input() -> None:
    """For a program that runs one for itself."""
    with server("--until-eof") as (_, process):
        process.write("anything\n")
        process.end_input()
        assert process.wait() == 0


def test_serve_listens_at_several_addresses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All lead to one bus. The socket is gone afterwards, and one that was left behind does not matter."""
    path = tmp_path / "bus.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with running("serve", "--listen", f"unix://{path}", "--listen", "tcp://127.0.0.1:0") as process:
        assert process.out.wait_for("listening at (.*)")[1] == f"unix://{path}"
        url = process.out.wait_for("listening at (.*)")[1]
        with running("publish", url, "t", "--key", "k") as publish:
            publish.write("1\n")
            publish.end_input()
            assert publish.wait() == 0
        assert call(["topics", f"unix://{path}", "--json"]) == 0
        assert '"topic":"t"' in capfd.readouterr().out
        assert call(["serve", "--listen", f"unix://{path}"]) == 1
        assert "another server does" in capfd.readouterr().err
        assert process.stop() == 0
    assert not path.exists()


def test_serve_an_address_that_is_taken_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert call(["serve", "--listen", url]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"eventstream serve: cannot listen at {url}: ")
    assert "in use" in err
    assert err.count("\n") == 1
    (tmp_path / "file").touch()
    assert call(["serve", "--listen", f"unix://{tmp_path}/file"]) == 1
    assert "that is a file" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--listen", "http://127.0.0.1:0"], "write tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH"),
        (["--listen", "tcp://127.0.0.1"], "write tcp://HOST:PORT"),
        (["--listen", "tcp://127.0.0.1:99999"], "out of range"),
        (["--listen", "tcp://127.0.0.1:0?x=1"], "write tcp://HOST:PORT"),
        (["--listen", "unix://relative"], "three slashes"),
        (["--listen", "tls://127.0.0.1:0"], "give --cert FILE"),
        (["--listen", "tls://127.0.0.1:0", "--cert", "none.pem"], "none.pem: No such file"),
        (["--listen", "tls://127.0.0.1:0", "--cert", __file__], "no certificate or key that can be used"),
        (["--listen", "tcp://127.0.0.1:0", "--log", "sqlite://x"], "write sqlite:///path"),
        (["--listen", "tcp://127.0.0.1:0", "--log", "redis://x"], "must be one of memory, sqlite"),
        (["--listen", "tcp://127.0.0.1:0", "--cert", __file__], "--cert, --key and --client-ca need a tls:// address"),
        (["--listen", "unix:///x", "--client-ca", __file__], "--cert, --key and --client-ca need a tls:// address"),
        (["--listen", "tcp://127.0.0.1:0", "--token-file", "none"], "none: No such file"),
        (["--listen", "tcp://127.0.0.1:0", "--token-file", "/dev/null"], "no token in it"),
        ([], "requires an argument"),
    ],
)
def test_serve_wrong_options_are_refused(arguments: list[str], why: str, capfd: pytest.CaptureFixture[str]) -> None:
    """With code 2, before anything is served."""
    assert call(["serve", *arguments]) == 2
    captured = capfd.readouterr()
    assert why in captured.err
    assert captured.out == ""


def test_serve_declares_the_topics_of_its_configuration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are listed at once, and are what they were declared as."""
    config = tmp_path / "bus.toml"
    config.write_text(
        '[[topics]]\nname = "state"\ncompacted = true\nmax_lag = 10\n[[topics]]\nname = "log"\nretain = 2\n'
    )
    with server("--config", str(config)) as (url, _):
        assert call(["topics", url]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["topic", "log", "state"]
        assert call(["snapshot", url, "state"]) == 0
        data = tmp_path / "data"
        data.write_text("1\n2\n3\n")
        assert call(["publish", url, "log", str(data), "--key", "k"]) == 0
        capfd.readouterr()
        assert call(["tail", url, "log", "--after", "earliest", "--count", "1"]) == 0
        assert re_payload(capfd.readouterr().out) == "2"


def re_payload(line: str) -> str:
    return line.split()[-1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("topics = 1", "Expected `array`"),
        ('[[topics]]\nname = "x"\nretian = 1', "unknown field `retian`"),
        ('[[topics]]\nname = ""', "must not be empty"),
        ('[[topics]]\nname = "x"\nretain = -1', "retain must be"),
        ('[[topics]]\nname = "x"\n[[topics]]\nname = "x"', "declared twice: x"),
        ("[[", ""),
        ("\udcff", ""),
    ],
)
def test_serve_a_wrong_configuration_is_refused(
    text: str, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the file's name."""
    config = tmp_path / "bus.toml"
    config.write_bytes(text.encode(errors="surrogateescape"))
    assert call(["serve", "--listen", "tcp://127.0.0.1:0", "--config", str(config)]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"eventstream serve: {config}: ")
    assert why in err


def test_serve_with_a_token_lets_in_who_has_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And tells the others what to do, at once."""
    (tmp_path / "right").write_text("secret\n")
    (tmp_path / "wrong").write_text("guess")
    with server("--token-file", str(tmp_path / "right")) as (url, _):
        assert call(["topics", url, "--token-file", str(tmp_path / "right")]) == 0
        capfd.readouterr()
        assert call(["topics", url, "--token-file", str(tmp_path / "wrong")]) == 1
        assert (
            capfd.readouterr().err == f"eventstream topics: {url}: the server does not know us: check the token in it\n"
        )
        assert call(["topics", url]) == 1
        assert "give --token-file FILE" in capfd.readouterr().err


def jwt_config(folder: Path, more: str = "") -> str:
    """A configuration that lets in who shows a token for this secret."""
    (folder / "secret").write_text("a secret of more than thirty-two bytes")
    config = folder / "bus.toml"
    rules = 'keys = "secret"\nalgorithms = ["HS256"]\nissuer = "me"\naudience = "bus"\n'
    config.write_text(f'[[topics]]\nname = "t"\n[jwt]\n{rules}{more}')
    return str(config)


def jwt_file(folder: Path, name: str, **claims: object) -> str:
    """A file with such a token."""
    fields = {"iss": "me", "aud": "bus", "sub": "alice", "exp": int(time.time()) + 600, **claims}
    key = OctKey.import_key("a secret of more than thirty-two bytes")
    (folder / name).write_text(jwt.encode({"alg": "HS256"}, fields, key))
    return str(folder / name)


def test_serve_with_jwt_lets_in_who_has_a_good_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And only as far as the token allows, if the configuration says so. The keys may change while it runs."""
    reader = jwt_file(tmp_path, "reader", scope="list:* subscribe:t")
    expired = jwt_file(tmp_path, "expired", exp=1)
    with server("--config", jwt_config(tmp_path, 'permissions = "scope"')) as (url, _):
        assert call(["topics", url, "--token-file", reader, "--json"]) == 0
        assert '"topic":"t"' in capfd.readouterr().out
        data = tmp_path / "data"
        data.write_text("1\n")
        assert call(["publish", url, "t", str(data), "--token-file", reader]) == 1
        assert "'alice' is not authorized to publish t" in capfd.readouterr().err
        assert call(["topics", url, "--token-file", expired]) == 1
        assert call(["topics", url]) == 1
        (tmp_path / "secret").write_text("another secret of more than thirty-two bytes")
        assert call(["topics", url, "--token-file", reader]) == 1
        assert "the server does not know us: check the token" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (("keys", '"none"'), "none: No such file"),
        (("keys", '"bus.toml"'), "no RSA key"),
        (("algorithms", '["none"]'), "algorithms are some of"),
        (("issuer", '""'), "not empty"),
        (("leeway", '"x"'), "Expected `int`"),
        (("secret", '"x"'), "unknown field `secret`"),
    ],
)
def test_serve_wrong_rules_for_jwt_are_refused(
    wrong: tuple[str, str], why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is served."""
    fields = {
        "keys": '"bus.toml"',
        "algorithms": '["RS256"]',
        "issuer": '"me"',
        "audience": '"bus"',
        wrong[0]: wrong[1],
    }
    config = tmp_path / "bus.toml"
    config.write_text("[jwt]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items()))
    assert call(["serve", "--listen", "tcp://127.0.0.1:0", "--config", str(config)]) == 2
    assert why in capfd.readouterr().err


def test_serve_with_two_kinds_of_tokens_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It would not be clear which one counts."""
    arguments = ["serve", "--listen", "tcp://127.0.0.1:0", "--config", jwt_config(tmp_path)]
    assert call([*arguments, "--token-file", jwt_file(tmp_path, "token")]) == 2
    assert "exclude each other" in capfd.readouterr().err


def test_serve_over_tls_wants_certificates(certificates: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of both sides, if it is told so."""
    ca, own, client = (str(certificates / f"{name}.pem") for name in ("ca", "server", "client"))
    with server("--cert", own, "--client-ca", ca, listen="tls://127.0.0.1:0") as (url, process):
        assert call(["topics", url, "--tls-ca", ca, "--tls-cert", client]) == 0
        capfd.readouterr()
        assert call(["topics", url]) == 1
        assert "its certificate is not trusted" in capfd.readouterr().err
        process.err.wait_for("a client failed its TLS handshake")
        assert call(["topics", url, "--tls-ca", ca, "--timeout", "1"]) == 1
        refused = capfd.readouterr().err
        assert "whether the server wants a certificate of ours (--tls-cert)" in refused
        assert refused.count("\n") == 1
        assert process.stop() == 0
        assert not any("Traceback" in line for line in process.err.all())


@pytest.mark.skipif(os.name == "nt", reason="there are no such sockets")
def test_serve_on_a_file_goes_on_after_it_was_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its clients' positions stay valid, and so does the state of a compacted topic."""
    url, log = f"unix://{tmp_path}/bus", f"sqlite://{tmp_path}/events.db"
    (tmp_path / "prices").write_text("".join(f'{{"s":"s{number % 3}","n":{number}}}\n' for number in range(30)))
    with running("serve", "--listen", url, "--log", log) as process:
        process.out.wait_for("listening at")
        assert call(["publish", url, "prices", f"{tmp_path}/prices", "--key-field", "s", "--compacted"]) == 0
        capfd.readouterr()
        assert call(["tail", url, "prices", "--after", "earliest", "--count", "20", "--json"]) == 0
        position = json.loads(capfd.readouterr().out.splitlines()[-1])["position"]
        process.popen.kill()
        process.popen.wait()
    Path(f"{tmp_path}/bus").unlink(missing_ok=True)
    with running("serve", "--listen", url, "--log", log) as process:
        process.out.wait_for("listening at")
        (tmp_path / "prices").write_text('{"s":"s9","n":30}\n')
        assert call(["publish", url, "prices", f"{tmp_path}/prices", "--key-field", "s", "--compacted"]) == 0
        capfd.readouterr()
        assert call(["tail", url, "prices", "--after", position, "--count", "11", "--json"]) == 0
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [line["payload"]["n"] for line in lines] == list(range(20, 31))
        assert call(["snapshot", url, "prices", "--json"]) == 0
        state = json.loads(capfd.readouterr().out)["state"]
        assert {key: value["n"] for key, value in state.items()} == {"s0": 27, "s1": 28, "s2": 29, "s9": 30}

"""How every command ends, whatever happens in it."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from cli_support import PATIENCE, ROOT

from eventstream import BusClosed, InvalidName
from eventstream.cli.links import Link, _advice, read_token
from eventstream.cli.running import Failure, Output, as_json, run

pytestmark = pytest.mark.may_block


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Failure("no luck"), 1, "eventstream try: no luck\n"),
        (Failure("like this", 2), 2, "eventstream try: like this\n"),
        (BusClosed("closed"), 1, "eventstream try: the bus is closed\n"),
        (InvalidName("key", "", "must not be empty"), 2, "eventstream try: key '' must not be empty\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (ExceptionGroup("", [ExceptionGroup("", [Failure("inside\x1b")])]), 1, "eventstream try: inside\\x1b\n"),
    ],
)
def test_an_expected_error_is_a_code_and_one_line(
    error: BaseException, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also out of the groups that task groups make; no character commands the terminal."""

    async def command() -> int:
        raise error

    assert run("try", command) == code
    assert capfd.readouterr().err == said


def test_an_error_that_nobody_expects_keeps_its_traceback() -> None:
    """It is a fault of ours."""

    async def command() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("try", command)


@pytest.mark.parametrize("target", ["/dev/null", "file"])
def test_output_goes_where_one_cannot_wait(target: str, tmp_path: Path) -> None:
    """Devices and files are always ready, and the event loop cannot watch them."""
    program = "import anyio; from eventstream.cli.running import Output; anyio.run(Output().write, b'x' * 10_000)"
    with open(tmp_path / target, "wb") as output:
        subprocess.run(
            [sys.executable, "-c", program],
            stdout=output,
            check=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    if target == "file":
        assert (tmp_path / target).stat().st_size == 10_000


PROGRAM = """
import sys
from eventstream.cli.lines import standard_input
from eventstream.cli.running import Output, run

async def write():
    await Output().write(b"x")
    return 0

async def read():
    return standard_input()

sys.exit(run("try", {"write": write, "read": read}[sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the shells there close nothing")
@pytest.mark.parametrize(
    ("what", "closing", "code", "said"),
    [
        ("write", ">&-", 1, "eventstream try: standard output is closed: give it somewhere to go\n"),
        ("read", "<&-", 1, "eventstream try: standard input is closed: give it lines, or name files\n"),
        ("read", "<&- 2>&-", 1, ""),
        ("write", ">/dev/full", 1, "eventstream try: standard output: No space left on device\n"),
    ],
)
def test_streams_that_are_closed_or_full_are_told(what: str, closing: str, code: int, said: str) -> None:
    """With standard error closed nobody is told, least of all who reads the output."""
    if "/dev/full" in closing and not os.path.exists("/dev/full"):
        pytest.skip("there is no device that is full")
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", PROGRAM, what],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", said)


def test_output_is_cut_into_pieces_that_a_pipe_takes(capfd: pytest.CaptureFixture[str]) -> None:
    """All of it arrives."""
    anyio.run(Output().write, b"x" * 50_000)
    assert len(capfd.readouterr().out) == 50_000


def test_json_of_what_has_no_words_in_it() -> None:
    """Some text, rather than an error."""
    assert as_json({"a": object}) == b'{"a":"<class \'object\'>"}'


def test_token_that_is_no_text_is_told(tmp_path: Path) -> None:
    """With the file's name."""
    (tmp_path / "token").write_bytes(b"\xff")
    with pytest.raises(Failure, match="token: no text: "):
        read_token(tmp_path / "token")


def test_every_trouble_of_a_dial_has_its_advice() -> None:
    """What is known is explained; what is not is told as it is."""
    wrapped = OSError("All connection attempts failed")
    wrapped.__cause__ = ExceptionGroup("", [TimeoutError()])
    assert "no answer within 2.5 s" in _advice(wrapped, 2.5)
    assert _advice(OSError("odd"), 1.0) == "odd"
    assert _advice(LookupError(), 1.0) == "LookupError"
    untrusted = ssl.SSLCertVerificationError()
    untrusted.verify_message = "Hostname mismatch, certificate is not valid for 'b'."
    assert _advice(untrusted, 1.0).endswith("not valid for 'b'): use the name that it is for")
    assert Link().timeout == 5.0

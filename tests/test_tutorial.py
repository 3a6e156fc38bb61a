"""The tutorial's terminals, one process each: what it types is run as it stands there, but for a port that is free."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_support import COMMAND, ENVIRONMENT, PATIENCE, ROOT, Process, free_port

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TERMINALS = BLOCK.findall(PAGE.partition("## 8. ")[2].partition("## 9. ")[0])
SERVE, LISTENING, TAIL, PUBLISH, PUBLISHED = [text for _, text in TERMINALS]
PROGRAM = "".join(text for kind, text in BLOCK.findall(PAGE) if kind == "python")
WRITTEN = "tcp://127.0.0.1:4000"

pytestmark = [
    pytest.mark.may_block,
    pytest.mark.skipif(sys.platform == "win32", reason="the page is about shells and Ctrl-C"),
]

Terminal = Callable[[str], Process]


@pytest.fixture
def url() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def terminal(url: str, tmp_path: Path) -> Iterator[Terminal]:
    """Opens a terminal, and runs in it what the page shows. All are closed at the end, the server's first."""
    opened: list[Process] = []

    def run(typed: str) -> Process:
        typed = typed.replace(WRITTEN, url)
        *before, last = re.sub("^eventstream ", f"{shlex.join(COMMAND)} ", typed, flags=re.MULTILINE).splitlines()
        lines = [f"cd {shlex.quote(str(tmp_path))}", *before, f"exec {last}"]  # its process id is the command's
        opened.append(Process("-c", "\n".join(lines), command=("sh",)))
        return opened[-1]

    with ExitStack() as closing:
        yield run
        for process in reversed(opened):
            closing.callback(process.close)


def shows(process: Process, payload: str) -> None:
    """Waits for a line with time, index, key and payload, as the page says."""
    process.out.wait_for(rf"^\d\d:\d\d:\d\d  \d+  (\w)  {re.escape(payload)}$")


def test_the_terminals_say_what_the_page_says(terminal: Terminal, url: str) -> None:
    """A server, a reader, a publisher; another reader; a restart; and all of it once more."""
    listening = re.escape(LISTENING.strip().replace(WRITTEN, url))
    published = re.sub(r"\b[0-9a-f]{16}\b", "[0-9a-f]{16}", re.escape(PUBLISHED.strip()))
    x, y = '{"symbol":"X","bid":1.0}', '{"symbol":"Y","bid":5.0}'

    serve = terminal(SERVE)
    serve.out.wait_for(f"^{listening}$")
    tail = terminal(TAIL)
    tail.err.wait_for("the server has no topic 'quotes' yet; waiting for it")
    publish = terminal(PUBLISH)
    publish.err.wait_for(f"^{published}$")
    assert publish.wait() == 0
    another = terminal(TAIL)
    for reader in (tail, another):  # the one gets events, the other the state
        shows(reader, x)
        shows(reader, y)

    assert serve.stop(signal.SIGINT) == 0
    terminal(SERVE).out.wait_for(f"^{listening}$")
    for reader in (tail, another):
        reader.err.wait_for(r"reset \(epoch\)")
    assert terminal(PUBLISH).wait() == 0
    for reader in (tail, another):
        shows(reader, x)
        shows(reader, y)


def test_the_program_reaches_the_same_server(terminal: Terminal, url: str, tmp_path: Path) -> None:
    """All blocks as one program, in a process of its own; `tail` shows what that has published."""
    terminal(SERVE).out.wait_for("^listening at")
    assert terminal(PUBLISH).wait() == 0
    tail = terminal(TAIL)
    shows(tail, '{"symbol":"Y","bid":5.0}')
    (tmp_path / "tutorial.py").write_text(PROGRAM, "utf-8")
    ran = subprocess.run(
        [sys.executable, "tutorial.py"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "BUS_URL": url},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    (printed,) = [text for kind, text in BLOCK.findall(PAGE.partition("## 9. ")[2]) if kind == "text"]
    assert ran.stdout.endswith(f"\n{printed}"), ran.stdout + ran.stderr
    for bid in ("1.0", "2.0"):
        shows(tail, f'{{"symbol":"X","bid":{bid}}}')

"""`python -m benchmarks` works: it measures in processes of their own and prints tables. No time is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("section", "row"),
    [
        ("resume", "| all events: subscribe(after=…), close()"),
        ("snapshots", "| view: live events applied"),
        ("pipes", "| **BackedPipe** "),
        ("remote", "| **eventstream** "),
        ("durable", "| eventstream, SQLiteLog: replay"),
    ],
)
def test_a_section_prints_its_tables(section: str, row: str) -> None:
    """A row for each thing measured, a number in it, and no failed measurement."""
    done = run(section, "--quick", "--scale", "0.000001", "--repeats", "1", "--silent")

    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith(row))
    assert any(character.isdigit() for character in line.rpartition("  ")[2]), line
    assert "failed" not in done.stdout
    assert done.stderr == ""


def test_a_section_that_is_not_there_is_refused_with_those_that_are() -> None:
    """The command's own errors name the choices."""
    done = run("latency")

    assert done.returncode == 2
    assert "no section latency; there are fanout" in done.stderr

"""Each example runs as its reader would run it, warns of nothing, and shows what its docstring promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

SHOWS = {
    "typed_view.py": ["my own write: 50 percent", "changed:      beta, dark-mode, new-search"],
    "sqlite_source.py": [
        "snapshot (new)",
        "  version 2: nut 80",
        "  version 3: bolt 90",
        "complete at version 3; now live",
        "  version 4: nut 70",
        "  version 5: washer 500",
        "  version 6: bolt 89",
    ],
    "embed_starlette.py": [
        "  reset    new",
        "  ready",
        '  price    {"symbol":"X","bid":1.5}',
        "  resumed",
        '  price    {"symbol":"X","bid":2.0}',
        '  price    {"symbol":"Y","bid":8.0}',
        "  reset    epoch",
    ],
    "cutting_proxy.py": [
        "up:   8,388,608 bytes arrived, sha256 equal",
        "down: 8,388,608 bytes arrived, sha256 equal",
        "proxy: ",
        "pipe:  ",
    ],
}


def run(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("name", SHOWS)
def test_example_run_as_a_script_shows_what_it_is_about(name: str) -> None:
    """It ends well, writes no warning, and prints the telling lines in their order."""
    done = run(name)
    assert (done.returncode, done.stderr) == (0, "")
    rest = iter(done.stdout.splitlines())
    for expected in SHOWS[name]:
        assert any(line.startswith(expected) for line in rest), f"{expected!r} is missing in:\n{done.stdout}"


def test_examples_all_are_tested() -> None:
    """A new example without a test would rot."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == SHOWS.keys()

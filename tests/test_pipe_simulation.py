"""The `pipes` scenario under many seeds: what a pipe promises, over networks that break it in every way they can."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from eventstream.testing.scenarios import find_scenario
from eventstream.testing.simulate import main, play_seed


def simulate(*arguments: str) -> str:
    """Runs the command; it prints the failing seed, with its trace and how to play it again."""
    command = [sys.executable, "-m", "eventstream.testing.simulate", "pipes", *arguments]
    # Not measured for coverage: that would take several times as long, and shows nothing that other tests do not.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=unmeasured)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.unmeasured
@pytest.mark.timeout(300)
@pytest.mark.may_block
@pytest.mark.parametrize(("backend", "first", "seeds"), [("trio", 0, 1000), ("asyncio", 1000, 1000)])
def test_two_thousand_seeds(backend: str, first: int, seeds: int) -> None:
    """2.9, 13: all is heard, once and in order, or the pipe ends with an error that the script allows."""
    out = simulate("--backend", backend, "--first", str(first), "--seeds", str(seeds), "--jobs", "2")
    assert "all passed" in out


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("seed", [1, 7])
def test_a_seed_replays(backend: str, seed: int) -> None:
    """The same seed plays the same run, line for line."""
    first, second = (play_seed("pipes", backend, True, seed) for _ in range(2))  # type: ignore[arg-type]
    assert first == second
    assert first.error is None
    assert any("healed" in line for line in first.trace)


def test_seeds_reach_what_they_are_for() -> None:
    """Within a hundred seeds there are resumed pipes, broken ones, and every kind of fault."""
    traces = ["\n".join(play_seed("pipes", "trio", True, seed).trace) for seed in range(60)]
    for word in ("cut", "half-open", "stalls", "closed", "refused", "hangs", "repeats", "healed", "life 1", "epoch"):
        assert any(word in trace for trace in traces), word
    assert find_scenario("pipes").limit >= 1000


def test_a_wrong_byte_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The scenario fails, and says with which seed, if a pipe forgets what was in flight when a link was lost."""
    monkeypatch.setattr("eventstream.pipes.ring.RingBuffer.rewind", lambda ring, position: None)
    assert main(["pipes", "--seeds", "60"]) == 1
    assert "again:" in capsys.readouterr().out

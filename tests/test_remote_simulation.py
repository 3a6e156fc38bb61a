"""The promise, under seeds: see `eventstream.testing.scenarios.bus`."""

from __future__ import annotations

import pytest

from eventstream.testing.simulate import main

SEEDS = 500  # of each loop; thousands by hand: python -m eventstream.testing.simulate bus --seeds 20000 --jobs 2


@pytest.mark.unmeasured
@pytest.mark.timeout(1800)
@pytest.mark.may_block  # what is simulated opens no socket; and processes are waited for
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_every_seed_keeps_the_promise(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In two processes. The first that does not is printed, with the command that plays it again."""
    code = main(["bus", "--seeds", str(SEEDS), "--jobs", "2", "--backend", loop])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert f"seeds 0 to {SEEDS - 1}" in printed

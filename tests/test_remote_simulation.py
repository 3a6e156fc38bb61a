"""The promise, under seeds: see `eventstream.testing.scenarios.bus`."""

from __future__ import annotations

from typing import Any

import pytest

from eventstream.testing import run_simulated
from eventstream.testing.scenarios.bus import play

SEEDS = 250  # of each loop; thousands by hand: python -m eventstream.testing.simulate bus --seeds 5000


@pytest.mark.timeout(300)
@pytest.mark.may_block  # what is simulated opens no socket; to watch for it would take as long again
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_every_seed_keeps_the_promise(loop: Any) -> None:
    for seed in range(SEEDS):
        try:
            run_simulated(play, seed, lambda _: None, seed=seed, backend=loop, limit=3600.0)
        except Exception as error:
            again = f"python -m eventstream.testing.simulate bus --first {seed} --seeds 1 --backend {loop}"
            error.add_note(f"seed {seed}: {again}")
            raise

"""What all tests share: both event loops, and no blocking of either."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from eventstream import EventBus

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: the programs we start would too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_blocking(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """A library call that blocks the event loop fails the test."""
    if request.node.get_closest_marker("may_block"):
        yield None
        return
    with blockbuster_ctx("eventstream") as blocker:
        # What the loop writes by itself syncs nothing: see the module `inplace` of the log.
        for name in ("Connection.execute", "Cursor.fetchone"):
            blocker.functions[f"sqlite3.{name}"].can_block_in("logs/sqlite/writer.py", "_write_here")
        # A lock of what measures coverage: it is taken wherever a file is first traced, in whichever thread.
        blocker.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
        yield blocker


@pytest.fixture(params=[pytest.param("asyncio", id="asyncio"), pytest.param("trio", id="trio")])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def bus() -> AsyncIterator[EventBus]:
    async with EventBus() as running:
        yield running

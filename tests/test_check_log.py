"""The conformance suite: our logs pass it, and a log that breaks a promise does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventstream import Event, EventBus, Log, MemoryLog, Position, Retention, SQLiteLog, SubscriptionReset
from eventstream.logs import Entries, Terms
from eventstream.testing import CheckFailed, check_log
from eventstream.testing.log_checks import Rig, checks
from eventstream.topics import LiveTopic

ALL = [check.__name__ for check in checks(durable=True, trims=True)]


async def test_the_log_in_memory_passes() -> None:
    async def make() -> Log:
        return MemoryLog()

    assert await check_log(make, durable=False, trims=True) == [*ALL[:-1], "forgetting"]


async def test_the_log_in_a_file_passes(tmp_path: Path) -> None:
    async def make() -> Log:
        return SQLiteLog(str(tmp_path / "events.db"), durability="process", retention=Retention(events=400))

    assert await check_log(make, trims=True) == ALL


class Broken(MemoryLog):
    """Breaks one promise, by what it does to each append."""

    def __init__(self, harm: Callable[[Broken, LiveTopic, Entries, Terms | None], Any]) -> None:
        super().__init__()
        self.harm = harm
        self.count = 0
        self.append_nowait = None  # type: ignore[assignment,method-assign]  # appends go by `append` alone

    async def append(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        self.count += 1
        result = self.harm(self, live, entries, terms)
        assert isinstance(result, Position)
        return result

    def rightly(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        return MemoryLog.append_nowait(self, live, entries, terms)


def loses_some(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    if log.count % 10:
        return log.rightly(live, entries, terms)
    return Position(live.epoch, live.head)


def doubles_some(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    if log.count == 7:
        log.rightly(live, entries, terms)
    return log.rightly(live, entries, terms)


def splits_batches(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    return [log.rightly(live, (entry,), terms) for entry in entries][-1]


def forgets_expectations(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    changed = terms and Terms(terms.id, None, terms.index, terms.headers)
    return log.rightly(live, entries, changed)


def forgets_ids(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    changed = terms and Terms(None, terms.expect, terms.index, terms.headers)
    return log.rightly(live, entries, changed)


def forgets_headers(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    changed = terms and Terms(terms.id, terms.expect, terms.index)
    return log.rightly(live, entries, changed)


def counts_by_itself(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    changed = terms and Terms(terms.id, terms.expect, None, terms.headers)
    return log.rightly(live, entries, changed)


def forgets_tombstones(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    if entries[0][1] is None:
        return Position(live.epoch, live.head)
    return log.rightly(live, entries, terms)


def mixes_keys(log: Broken, live: LiveTopic, entries: Entries, terms: Terms | None) -> Position:
    if log.count == 100 and entries[0][0] == "k1":
        entries = (("k2", entries[0][1]),)
    return log.rightly(live, entries, terms)


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        (loses_some, "order"),
        (doubles_some, "order"),
        (forgets_headers, "order"),
        (splits_batches, "batches"),
        (counts_by_itself, "given_indexes"),
        (forgets_expectations, "expect"),
        (forgets_ids, "ids"),
    ],
)
async def test_a_log_that_breaks_a_promise_is_found(harm: Any, check: str) -> None:
    async def make() -> Log:
        return Broken(harm)

    with pytest.raises(CheckFailed) as caught:
        await check_log(make, durable=False)
    assert caught.value.check == check


@pytest.mark.parametrize(("harm", "check"), [(forgets_tombstones, "compaction"), (mixes_keys, "keys")])
async def test_so_it_is_by_a_single_check(harm: Any, check: str) -> None:
    async def make() -> Log:
        log = Broken(harm)
        log.count = 50 if harm is mixes_keys else 0
        return log

    (one,) = [each for each in checks(durable=False, trims=False) if each.__name__ == check]
    with pytest.raises(CheckFailed):
        await one(Rig(check, make))


class Same(MemoryLog):
    """Keeps the epoch through restarts and refreshes, and no event."""

    def attach(self, live: LiveTopic) -> None:
        live.begin("same")


class Bottomless(MemoryLog):
    """Says that more can be resumed from than there is."""

    def attach(self, live: LiveTopic) -> None:
        super().attach(live)
        live.past = _Nothing()


class _Nothing:
    floor = 0
    retained = 0

    async def read(self, after: int, key: str | None) -> None: ...

    async def state(self) -> dict[str, Event[Any]]:
        return {}


@pytest.mark.parametrize(
    ("log", "check", "durable"),
    [(Same, "epochs", False), (Same, "forgetting", False), (MemoryLog, "restart", True), (Bottomless, "floor", False)],
)
async def test_a_log_that_keeps_less_than_it_says_is_found(log: type[Log], check: str, durable: bool) -> None:
    async def make() -> Log:
        return log()

    (one,) = [each for each in checks(durable=durable, trims=False) if each.__name__ == check]
    with pytest.raises((CheckFailed, SubscriptionReset, Exception)) as caught:
        await one(Rig(check, make))
    assert not isinstance(caught.value, TypeError | AttributeError)


async def test_a_bound_that_is_not_held_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def make() -> Log:
        return SQLiteLog(str(tmp_path / "events.db"), durability="process")

    monkeypatch.setattr("eventstream.testing.log_checks.PATIENCE", 200)
    with pytest.raises(CheckFailed, match="nothing was trimmed"):
        await check_log(make, trims=True)


async def test_it_is_the_bus_that_is_asked(tmp_path: Path) -> None:
    """A log may have events already."""
    path = str(tmp_path / "events.db")

    async def make() -> Log:
        return SQLiteLog(path, durability="process")

    await check_log(make)
    assert await check_log(make) == [name for name in ALL if name != "retention"]
    async with EventBus(await make()) as bus:
        assert bus.statistics().topics == {}

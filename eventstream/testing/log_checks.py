"""What any log must do, one check for each promise (see `check_log`). Each uses topics of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from uuid import uuid4

import anyio
from anyio.lowlevel import checkpoint

from ..bus import EventBus
from ..errors import Conflict, IndexOrder, PositionLost
from ..events import EARLIEST, Event, Position, Topic
from ..logs import Log

__all__ = ("Check", "CheckFailed", "Rig", "checks")

RETAINED: Final = 1000  # in memory: more than most checks publish
PATIENCE: Final = 20_000  # events published while waiting for something to be trimmed


class CheckFailed(AssertionError):
    """A log breaks a promise.

    Attributes:
        check: Which one.
        why: What was seen.
    """

    def __init__(self, check: str, why: str) -> None:
        self.check = check
        self.why = why
        super().__init__(f"{check}: {why}")


class Rig:
    """What a check is given: buses on the log that is checked, and topics that nobody has used.

    Args:
        name: The check's.
        make: Opens the log anew.
    """

    def __init__(self, name: str, make: Callable[[], Awaitable[Log]]) -> None:
        self.name: str = name
        self._make = make

    async def bus(self) -> EventBus:
        """A bus on the log, to be entered: after another was left, what a restart is."""
        return EventBus(await self._make())

    def topic(self, *, compacted: bool = False, keyed: bool = False, retain: int = RETAINED) -> Topic[Any]:
        """A new topic of dicts; "k" is the key of a keyed one."""
        key = "k" if keyed or compacted else None
        return Topic(f"check-{uuid4().hex}", dict, key=key, compacted=compacted, retain=retain)

    def equal(self, found: object, expected: object, what: str) -> None:
        """Fails the check if the two differ."""
        if found != expected:
            raise CheckFailed(self.name, f"{what}: expected {expected!r}, found {found!r}")

    async def raises(self, error: type[Exception], awaitable: Awaitable[object], what: str) -> Any:
        """Awaits what has to fail so; returns the error."""
        try:
            result = await awaitable
        except error as caught:
            return caught
        raise CheckFailed(self.name, f"{what}: expected {error.__name__}, got {result!r}")


Check: TypeAlias = Callable[[Rig], Awaitable[None]]


async def read(bus: EventBus, topic: Topic[Any], after: Any = EARLIEST, *, key: str | None = None) -> list[Event[Any]]:
    """All events after a position, up to the head, without those of other keys."""
    head = await bus.head(topic)
    found: list[Event[Any]] = []
    async with bus.subscribe(topic, after=after, key=key) as subscription:
        reading = subscription.frames()
        async for frame in reading:
            if isinstance(frame, Event):
                found.append(frame)
            else:
                subscription.request_bookmark()
            if subscription.position.index >= head.index and subscription.position.epoch == head.epoch:
                break
    return found


def numbers(events: list[Event[Any]]) -> list[Any]:
    """What the checks publish in "n"."""
    return [event.payload and event.payload["n"] for event in events]


async def order(rig: Rig) -> None:
    """Indexes grow from 1; what is published is read once, in that order, as it was, and by those who wait too."""
    topic = rig.topic()
    async with await rig.bus() as bus, bus.subscribe(topic) as live:
        positions = [await bus.publish(topic, {"n": n}, headers={"h": str(n)}) for n in range(50)]
        rig.equal([position.index for position in positions], list(range(1, 51)), "the indexes of publishes")
        rig.equal({position.epoch for position in positions}, {(await bus.head(topic)).epoch}, "their epochs")
        events = await read(bus, topic)
        rig.equal(numbers(events), list(range(50)), "what is read from the earliest")
        rig.equal([dict(event.headers) for event in events], [{"h": str(n)} for n in range(50)], "the headers")
        rig.equal([(await live.receive()).payload["n"] for _ in range(50)], list(range(50)), "what was read live")


async def resume(rig: Rig) -> None:
    """After any position come exactly the events behind it; one of another epoch, or above the head, is lost."""
    topic = rig.topic()
    async with await rig.bus() as bus:
        for n in range(20):
            await bus.publish(topic, {"n": n})
        head = await bus.head(topic)
        for index in (0, 1, 7, 19):
            rig.equal(numbers(await read(bus, topic, Position(head.epoch, index))), list(range(index, 20)), f"{index}")
        for position in (Position("anotherepoch", 5), Position(head.epoch, 21)):
            await rig.raises(PositionLost, bus.subscribe(topic, after=position).receive(), f"resume from {position}")


async def batches(rig: Rig) -> None:
    """A batch has one index and is never read in parts."""
    topic = rig.topic()
    async with await rig.bus() as bus, bus.subscribe(topic) as live:
        for size in (3, 1, 200, 2):
            await bus.publish_many(topic, [{"n": n} for n in range(size)])
        events = await read(bus, topic)
        rig.equal([[e.index for e in events].count(index) for index in range(1, 5)], [3, 1, 200, 2], "events of each")
        seen: list[int] = []
        async for batch in live.batches():
            if seen and batch[0].index == seen[-1]:
                raise CheckFailed(rig.name, f"batch {batch[0].index} was read in two parts")
            seen += [event.index for event in batch]
            if len(seen) == 206:
                break


async def given_indexes(rig: Rig) -> None:
    """An index may be given if it grows."""
    topic = rig.topic()
    async with await rig.bus() as bus:
        rig.equal((await bus.publish(topic, {"n": 0}, index=100)).index, 100, "a given index")
        await rig.raises(IndexOrder, bus.publish(topic, {"n": 1}, index=100), "the same index again")
        rig.equal((await bus.publish(topic, {"n": 1})).index, 101, "the next")


async def expect(rig: Rig) -> None:
    """`expect` is compared with the index of the key's newest event, and nothing is appended if they differ."""
    topic = rig.topic(keyed=True)
    async with await rig.bus() as bus:
        first = await bus.publish(topic, {"k": "a", "n": 0}, expect=0)
        await bus.publish(topic, {"k": "b", "n": 1}, expect=0)
        error = await rig.raises(Conflict, bus.publish(topic, {"k": "a", "n": 2}, expect=0), "an old expectation")
        rig.equal((error.expected, error.actual), (0, first.index), "what the conflict says")
        await bus.publish(topic, {"k": "a", "n": 3}, expect=first.index)
        rig.equal(numbers(await read(bus, topic)), [0, 1, 3], "what was appended")


async def ids(rig: Rig) -> None:
    """The same id again appends nothing and gives the first position, also at the same moment."""
    topic = rig.topic()
    async with await rig.bus() as bus:
        positions: list[Position] = []

        async def publish() -> None:
            positions.append(await bus.publish(topic, {"n": 0}, id="one"))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(publish)
        await bus.publish(topic, {"n": 1}, id="two")
        positions.append(await bus.publish(topic, {"n": 2}, id="one"))
        rig.equal(set(positions), {positions[0]}, "the positions of one id")
        rig.equal(numbers(await read(bus, topic)), [0, 1], "what was appended")


async def compaction(rig: Rig) -> None:
    """The state is the newest event of each key; a tombstone removes the key, and is read as an event."""
    topic = rig.topic(compacted=True)
    async with await rig.bus() as bus:
        for n in range(30):
            await bus.publish(topic, {"k": f"k{n % 4}", "n": n})
        await bus.delete(topic, "k1")
        async with bus.view(topic) as view:
            await view.reached(await bus.head(topic))
            rig.equal({key: value["n"] for key, value in view.items()}, {"k0": 28, "k2": 26, "k3": 27}, "the state")
        rig.equal(numbers(await read(bus, topic))[-1], None, "the tombstone's payload")
        await bus.publish(topic, {"k": "k1", "n": 31}, expect=(await bus.head(topic)).index)


async def keys(rig: Rig) -> None:
    """A reader of one key gets that key's events, and its position moves past the others."""
    topic = rig.topic(keyed=True)
    async with await rig.bus() as bus:
        for n in range(300):
            await bus.publish(topic, {"k": f"k{n % 3}", "n": n})
        rig.equal(numbers(await read(bus, topic, key="k1")), list(range(1, 300, 3)), "the events of one key")
        rig.equal(numbers(await read(bus, topic, key="none")), [], "the events of a key that has none")


async def concurrent_publishers(rig: Rig) -> None:
    """Many at once: each is acknowledged with an index of its own, and each publisher's events are in its order."""
    topic = rig.topic(retain=2000)
    indexes: list[int] = []

    async def publish(bus: EventBus, name: int) -> None:
        for n in range(20):
            indexes.append((await bus.publish(topic, {"n": n, "by": name})).index)
            await checkpoint()

    async with await rig.bus() as bus:
        async with anyio.create_task_group() as tasks:
            for name in range(20):
                tasks.start_soon(publish, bus, name)
        rig.equal(sorted(indexes), list(range(1, 401)), "the indexes")
        events = await read(bus, topic)
        for name in range(20):
            rig.equal([e.payload["n"] for e in events if e.payload["by"] == name], list(range(20)), f"those of {name}")


async def epochs(rig: Rig) -> None:
    """A refresh begins another epoch at index 0; nothing of the old one can be read or resumed."""
    topic = rig.topic()
    async with await rig.bus() as bus:
        old = await bus.publish(topic, {"n": 0})
        new = await bus.refresh(topic)
        rig.equal(new.index, 0, "the index after a refresh")
        if new.epoch == old.epoch:
            raise CheckFailed(rig.name, "a refresh kept the epoch")
        await bus.publish(topic, {"n": 1})
        rig.equal(numbers(await read(bus, topic)), [1], "what is read after a refresh")
        await rig.raises(PositionLost, bus.subscribe(topic, after=old).receive(), "resume from before a refresh")


async def floor(rig: Rig) -> None:
    """What the floor says is true: from there on all is read, and a position below it is lost."""
    topic = rig.topic(retain=10)
    async with await rig.bus() as bus:
        for n in range(500):
            await bus.publish(topic, {"n": n})
        await check_floor(rig, bus, topic)


async def check_floor(rig: Rig, bus: EventBus, topic: Topic[Any]) -> None:
    """The floor, as the statistics tell it, and what can be read."""
    head = await bus.head(topic)
    while True:
        lowest = bus.statistics().topics[topic.name].floor
        try:
            found = await read(bus, topic, Position(head.epoch, lowest))
        except PositionLost:
            if bus.statistics().topics[topic.name].floor == lowest:
                raise CheckFailed(rig.name, f"the floor is {lowest}, and cannot be resumed from") from None
        else:
            break  # else the floor rose meanwhile, as it may
    indexes = [event.index for event in found]
    rig.equal(indexes, list(range(lowest + 1, head.index + 1)), f"what is read from the floor, {lowest}")
    if lowest:
        below = Position(head.epoch, lowest - 1)
        error = await rig.raises(PositionLost, bus.subscribe(topic, after=below).receive(), "below the floor")
        floor = bus.statistics().topics[topic.name].floor  # it may have risen since
        named = min(max(error.oldest, lowest), floor)
        rig.equal(error.oldest, named, f"the oldest position that the error names, with a floor from {lowest}")


async def retention(rig: Rig) -> None:
    """A bound that the log was given is held: at last the floor rises, and the state of a compacted topic stays."""
    topic = rig.topic(compacted=True, retain=1)
    async with await rig.bus() as bus:
        await bus.publish(topic, {"k": "old", "n": -1})
        n = 0
        while not bus.statistics().topics[topic.name].floor:
            await bus.publish_many(topic, [{"k": f"k{n % 3}", "n": n}] * 20)
            n += 1
            if n > PATIENCE // 20:
                raise CheckFailed(rig.name, f"nothing was trimmed after {PATIENCE} events")
        async with bus.view(topic) as view:
            await view.reached(await bus.head(topic))
            rig.equal(view["old"]["n"], -1, "a key whose event is older than all that is retained")


async def restart(rig: Rig) -> None:
    """Epoch, indexes, events, ids, what is expected, and state are there after the bus was left and entered again."""
    topic, compacted = rig.topic(keyed=True, retain=5), rig.topic(compacted=True, retain=5)
    async with await rig.bus() as bus:
        first = await bus.publish(topic, {"k": "a", "n": 0}, id="one")
        for n in range(1, 200):
            await bus.publish(topic, {"k": "b", "n": n})
            await bus.publish(compacted, {"k": f"k{n % 7}", "n": n})
        await bus.delete(compacted, "k3")
        heads = await bus.head(topic), await bus.head(compacted)
    async with await rig.bus() as bus:
        rig.equal((await bus.head(topic), await bus.head(compacted)), heads, "the heads")
        saved = Position(heads[0].epoch, 150)
        rig.equal(numbers(await read(bus, topic, saved)), list(range(150, 200)), "what follows a saved position")
        rig.equal(numbers(await read(bus, topic)), list(range(200)), "what is read from the earliest")
        rig.equal(numbers(await read(bus, topic, key="a")), [0], "the events of one key")
        async with bus.view(compacted) as view:
            await view.ready()
            state = {key: value["n"] for key, value in view.items()}
            rig.equal(state, {"k0": 196, "k1": 197, "k2": 198, "k4": 193, "k5": 194, "k6": 195}, "the state")
        rig.equal(await bus.publish(topic, {"k": "a", "n": 1}, id="one"), first, "the position of an id")
        await bus.publish(topic, {"k": "a", "n": 200}, expect=first.index)
        await rig.raises(Conflict, bus.publish(compacted, {"k": "k0", "n": 0}, expect=0), "an expectation")
        rig.equal((await bus.head(topic)).index, heads[0].index + 1, "the next index")


async def forgetting(rig: Rig) -> None:
    """A log that keeps nothing begins another epoch: no position of before is taken for one of now."""
    topic = rig.topic()
    async with await rig.bus() as bus:
        old = await bus.publish(topic, {"n": 0})
    async with await rig.bus() as bus:
        if (await bus.head(topic)).epoch == old.epoch:
            raise CheckFailed(rig.name, "the epoch stayed, and the events are gone")
        await rig.raises(PositionLost, bus.subscribe(topic, after=old).receive(), "resume from before the restart")


def checks(*, durable: bool, trims: bool) -> tuple[Check, ...]:
    """Those that apply."""
    found: list[Check] = [
        *(order, resume, batches, given_indexes, expect, ids, compaction, keys, concurrent_publishers, epochs, floor)
    ]
    if trims:
        found.append(retention)
    found.append(restart if durable else forgetting)
    return tuple(found)

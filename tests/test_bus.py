"""The hub: publishing with all its terms, declarations, handlers, and what is refused."""

from __future__ import annotations

import logging
from inspect import ismodule
from typing import Any

import anyio
import pytest
from anyio import fail_after

import eventstream
from eventstream import (
    EARLIEST,
    Append,
    Conflict,
    Event,
    EventBus,
    IndexOrder,
    InvalidName,
    Log,
    MemoryLog,
    NotCompacted,
    NowaitUnsupported,
    PayloadTypeError,
    Position,
    SnapshotFailed,
    SubscriptionReset,
    Topic,
    TopicConflict,
)
from eventstream.logs import Entries, Terms
from eventstream.topics import LiveTopic
from support import Price, drain, settle

prices = Topic("prices", Price, key="symbol", compacted=True)
words = Topic("words", str)


class Test_publishing:
    async def test_the_position_is_that_of_the_event(self, bus: EventBus) -> None:
        assert [(await bus.publish(words, "a")).index, bus.publish_nowait(words, "b").index] == [1, 2]

    async def test_each_topic_has_its_own_epoch_and_order(self, bus: EventBus) -> None:
        one, two = await bus.publish(words, "a"), await bus.publish(prices, Price("X", 1.0))
        assert (one.index, two.index) == (1, 1)
        assert one.epoch != two.epoch

    async def test_two_buses_share_a_declaration_and_nothing_else(self) -> None:
        async with EventBus() as one, EventBus() as two:
            subscription = two.subscribe(words)
            await one.publish(words, "a")
            assert drain(subscription) == []

    async def test_expecting_an_index_lets_one_of_two_publishers_win(self, bus: EventBus) -> None:
        first = await bus.publish(prices, Price("X", 1.0), expect=0)
        second = await bus.publish(prices, Price("X", 2.0), expect=first.index)
        with pytest.raises(Conflict) as caught:
            await bus.publish(prices, Price("X", 3.0), expect=first.index)
        error = caught.value
        assert (error.topic, error.key, error.expected, error.actual) == ("prices", "X", 1, second.index)
        assert bus.publish_nowait(prices, Price("Y", 1.0), expect=0).index == 3

    async def test_the_same_id_again_gives_the_first_position(self, bus: EventBus) -> None:
        subscription = bus.subscribe(words)
        first = await bus.publish(words, "a", id="one")
        await bus.publish(words, "b", id="two")
        assert await bus.publish(words, "a", id="one") == first
        assert await bus.publish_many(words, ["x", "y"], id="one") == first
        assert drain(subscription) == ["a", "b"]

    async def test_a_given_index_must_grow(self, bus: EventBus) -> None:
        assert (await bus.publish(words, "a", index=10)).index == 10
        assert (await bus.publish(words, "b")).index == 11
        for index in (1, 11):
            with pytest.raises(IndexOrder) as caught:
                await bus.publish(words, "c", index=index)
            assert (caught.value.topic, caught.value.index, caught.value.head) == ("words", index, 11)
        assert drain(bus.subscribe(words, after=EARLIEST)) == ["a", "b"]

    async def test_an_empty_batch_is_nothing(self, bus: EventBus) -> None:
        head = await bus.publish(words, "a")
        assert await bus.publish_many(words, []) == head
        assert await bus.publish_many(words, iter(["b", "c"])) == Position(head.epoch, 2)

    async def test_a_batch_with_one_bad_payload_publishes_nothing(self, bus: EventBus) -> None:
        with pytest.raises(PayloadTypeError):
            await bus.publish_many(words, ["a", 7])  # type: ignore[misc]  # wrong on purpose
        assert drain(bus.subscribe(words, after=EARLIEST)) == []

    async def test_only_a_compacted_topic_can_be_deleted_from(self, bus: EventBus) -> None:
        with pytest.raises(NotCompacted, match="cannot delete from topic 'words'"):
            await bus.delete(words, "a")
        with pytest.raises(Conflict):
            await bus.delete(prices, "X", expect=3)
        await bus.delete(prices, "X", id="one")

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"payload": 7}, PayloadTypeError),
            ({"key": "\n"}, InvalidName),
            ({"key": 7}, InvalidName),
            ({"id": ""}, InvalidName),
            ({"headers": {"": "x"}}, InvalidName),
            ({"expect": -1}, ValueError),
            ({"expect": "1"}, ValueError),
            ({"expect": True}, ValueError),
            ({"index": 0}, ValueError),
            ({"index": 2**63}, ValueError),
            ({"index": 1.0}, ValueError),
        ],
    )
    async def test_bad_arguments_publish_nothing(
        self, bus: EventBus, arguments: dict[str, Any], error: type[Exception]
    ) -> None:
        arguments = {"payload": "a", **arguments}
        with pytest.raises(error):
            await bus.publish(words, **arguments)
        with pytest.raises(error):
            bus.publish_nowait(words, **arguments)
        assert bus.statistics().topics["words"].published == 0

    async def test_what_a_key_function_raises_passes(self, bus: EventBus) -> None:
        topic = Topic("bad", str, key=lambda text: {"a": "b"}[text])
        assert (await bus.publish(topic, "a")).index == 1
        with pytest.raises(KeyError):
            await bus.publish(topic, "z")

    async def test_a_key_function_may_use_the_bus(self, bus: EventBus) -> None:
        """It runs under no lock of ours."""

        def key(text: str) -> str:
            bus.publish_nowait(words, text)
            return text

        topic = Topic("curious", str, key=key)
        with fail_after(5):
            await bus.publish(topic, "a")
        assert drain(bus.subscribe(words, after=EARLIEST)) == ["a"]

    async def test_authorize_may_use_the_bus(self, bus: EventBus) -> None:
        def authorize(event: Event[str]) -> bool:
            bus.publish_nowait(prices, Price(event.payload, 1.0))
            bus.subscribe(words).close()
            return True

        subscription = bus.subscribe(words, authorize=authorize)
        await bus.publish(words, "a")
        assert drain(subscription) == ["a"]


class Test_declarations:
    async def test_one_name_declared_in_two_ways_is_refused(self, bus: EventBus) -> None:
        await bus.publish(words, "a")
        for other in (Topic("words", int), Topic("words", str, retain=5), Topic("words", str, key=lambda _: "k")):
            with pytest.raises(TopicConflict) as caught:
                bus.subscribe(other)
            assert caught.value.topic == "words"
            assert caught.value.difference == other.differs_in(words)

    async def test_two_equal_declarations_are_one_topic(self, bus: EventBus) -> None:
        subscription = bus.subscribe(Topic("words", str))
        await bus.publish(words, "a")
        assert drain(subscription) == ["a"]

    async def test_what_is_no_topic_is_refused(self, bus: EventBus) -> None:
        for wrong in ("words", None, 7):
            with pytest.raises(TypeError, match="topic must be a Topic"):
                bus.subscribe(wrong)  # type: ignore[arg-type]  # wrong on purpose

    async def test_what_is_no_position_is_not_waited_for(self, bus: EventBus) -> None:
        async with bus.view(prices) as view:
            with pytest.raises(TypeError, match=r"Position\.parse makes one of its text"):
                await view.reached(str(view.position))  # type: ignore[arg-type]  # wrong on purpose

    async def test_a_source_for_another_declaration_is_refused(self, bus: EventBus) -> None:
        @bus.snapshot(Topic("words", int))
        async def source(key: str | None, append: Append) -> int:
            return 0

        with pytest.raises(TopicConflict):
            bus.subscribe(words)

    async def test_the_bus_shows_its_state(self) -> None:
        bus = EventBus()
        assert repr(bus) == "<EventBus new with 0 topics on MemoryLog>"
        async with bus:
            await bus.publish(words, "a")
            assert repr(bus) == "<EventBus running with 1 topics on MemoryLog>"
        assert repr(bus) == "<EventBus closed with 0 topics on MemoryLog>"


class SlowLog:
    """A log that has to wait, as one with a disk does; it keeps what it commits in a `MemoryLog`."""

    def __init__(self) -> None:
        self._memory = MemoryLog()
        self.opened = self.closed = 0

    async def open(self) -> None:
        self.opened += 1

    def attach(self, live: LiveTopic) -> None:
        self._memory.attach(live)

    async def append(self, live: LiveTopic, entries: Entries, terms: Terms | None = None) -> Position:
        await anyio.lowlevel.checkpoint()
        return await self._memory.append(live, entries, terms)

    def remembers(self, live: LiveTopic) -> float:
        return self._memory.remembers(live)

    async def refresh(self, live: LiveTopic) -> Position:
        await anyio.lowlevel.checkpoint()
        return await self._memory.refresh(live)

    async def aclose(self) -> None:
        self.closed += 1


class Test_a_log_that_has_to_wait:
    async def test_serves_everything_but_publish_nowait(self) -> None:
        log = SlowLog()
        async with EventBus(log) as bus:
            async with bus.view(prices) as view:
                await view.reached(await bus.publish(prices, Price("X", 1.0)))
                await view.reached(await bus.refresh(prices))
                await view.reached(await bus.publish_many(prices, [Price("Y", 1.0)]))
                assert list(view) == ["Y"]
            with pytest.raises(NowaitUnsupported, match="this bus has SlowLog"):
                bus.publish_nowait(prices, Price("X", 1.0))
        assert (log.opened, log.closed) == (1, 1)

    def test_is_a_Log(self) -> None:
        log: Log = SlowLog()
        assert log is not None


class Test_handlers:
    async def test_each_event_comes_to_each_handler_in_order(self) -> None:
        bus = EventBus()
        early: list[str] = []
        late: list[str] = []

        @bus.on(words)
        async def before_start(event: Event[str]) -> None:
            early.append(event.payload)

        async with bus:
            bus.publish_nowait(words, "first")  # before any task of the bus could run

            @bus.on(words)
            async def after_start(event: Event[str]) -> None:
                late.append(event.payload)

            for word in "abc":
                await bus.publish(words, word)
            await settle()
        assert early == ["first", "a", "b", "c"]
        assert late == ["a", "b", "c"]

    async def test_of_a_key_or_a_prefix(self, bus: EventBus) -> None:
        seen: list[str] = []

        @bus.on(prices, key="AA")
        async def one(event: Event[Price]) -> None:
            seen.append(f"one {event.key}")

        @bus.on(prices, prefix="A")
        async def several(event: Event[Price]) -> None:
            seen.append(f"several {event.key}")

        await settle()
        for symbol in ("AA", "AB", "B"):
            await bus.publish(prices, Price(symbol, 1.0))
        await settle()
        assert sorted(seen) == ["one AA", "several AA", "several AB"]
        with pytest.raises(ValueError, match="not both"):
            bus.on(prices, key="a", prefix="b")

    async def test_one_that_raises_is_told_of_and_goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        told: list[tuple[Exception, Event[Any] | None]] = []
        seen: list[str] = []
        async with EventBus(on_error=lambda error, event: told.append((error, event))) as bus:

            @bus.on(words)
            async def handler(event: Event[str]) -> None:
                seen.append(event.payload)
                if event.payload == "secret":
                    raise LookupError("handler broke")

            await settle()
            for word in ("a", "secret", "b"):
                await bus.publish(words, word)
            await settle()
        assert seen == ["a", "secret", "b"]
        [(error, event)] = told
        assert isinstance(error, LookupError)
        assert event is not None
        assert event.payload == "secret"
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "topic 'words', key '', index 2" in record.getMessage()
        assert "secret" not in record.getMessage(), "a log never shows a payload"

    async def test_one_that_is_not_async_is_told_how_to_be(self) -> None:
        told: list[Exception] = []
        async with EventBus(on_error=lambda error, event: told.append(error)) as bus:
            bus.on(words)(lambda event: None)  # type: ignore[arg-type,return-value]  # wrong on purpose
            await settle()
            await bus.publish(words, "a")
            await settle()
        assert [str(error) for error in told] == [
            "a handler must be async: write 'async def', or let it return what can be awaited"
        ]

    async def test_on_error_that_raises_is_logged_and_harms_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        def on_error(error: Exception, event: Event[Any] | None) -> None:
            raise ValueError("on_error broke")

        seen: list[str] = []
        async with EventBus(on_error=on_error) as bus:

            @bus.on(words)
            async def handler(event: Event[str]) -> None:
                seen.append(event.payload)
                raise LookupError

            await settle()
            await bus.publish(words, "a")
            await bus.publish(words, "b")
            await settle()
        assert seen == ["a", "b"]
        assert sum("on_error failed" in record.getMessage() for record in caplog.records) == 2

    async def test_a_reset_is_told_and_the_snapshot_follows(self) -> None:
        told: list[Exception] = []
        seen: list[str] = []
        async with EventBus(on_error=lambda error, event: told.append(error)) as bus:

            @bus.on(prices)
            async def handler(event: Event[Price]) -> None:
                seen.append(event.key)

            await settle()
            await bus.publish(prices, Price("old", 1.0))
            await settle()
            await bus.refresh(prices)
            await bus.publish(prices, Price("new", 1.0))
            await settle()
        assert seen == ["old", "new"]
        assert [type(error) for error in told] == [SubscriptionReset]

    async def test_where_there_is_no_snapshot_a_laggard_goes_on_from_now(self) -> None:
        small = Topic("small", int, max_lag=5)
        told: list[Exception] = []
        seen: list[int] = []
        async with EventBus(on_error=lambda error, event: told.append(error)) as bus:

            @bus.on(small)
            async def handler(event: Event[int]) -> None:
                seen.append(event.payload)

            for number in range(20):
                bus.publish_nowait(small, number)
            await settle()
            await bus.publish(small, 99)
            await settle()
            await bus.refresh(small)
            await settle()
            await bus.publish(small, 100)
            await settle()
        assert seen == [99, 100]
        assert [type(error).__name__ for error in told] == ["SlowSubscriber", "PositionLost"]

    async def test_a_failing_snapshot_is_asked_for_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eventstream.bus.handlers.PAUSE", 0)
        told: list[Exception] = []
        seen: list[str] = []
        async with EventBus(on_error=lambda error, event: told.append(error)) as bus:

            @bus.snapshot(words)
            async def source(key: str | None, append: Append) -> int:
                if len(told) < 2:
                    raise LookupError
                append("at last")
                return 0

            @bus.on(words)
            async def handler(event: Event[str]) -> None:
                seen.append(event.payload)

            with fail_after(5):
                while not seen:
                    await anyio.lowlevel.checkpoint()
        assert seen == ["at last"]
        assert [type(error) for error in told] == [SnapshotFailed, SnapshotFailed]

    async def test_of_a_topic_declared_otherwise_it_is_refused_at_once(self) -> None:
        told: list[Exception] = []
        async with EventBus(on_error=lambda error, event: told.append(error)) as bus:
            await bus.publish(words, "a")
            with pytest.raises(TopicConflict):

                @bus.on(Topic("words", int))
                async def handler(event: Event[int]) -> None: ...

        assert told == []


class Test_the_face:
    def test_it_hands_on_what_is_documented_and_nothing_else(self) -> None:
        names = {name for name in dir(eventstream) if not name.startswith("_")}
        assert {name for name in names if not ismodule(getattr(eventstream, name))} == {
            "EARLIEST", "Append", "Bookmark", "BusClosed", "BusStatistics", "CacheStatistics", "Conflict", "Event",
            "EventBus", "EventStreamError", "Frame", "Handler", "IndexOrder", "InvalidName", "InvalidPayload",
            "InvalidPosition", "LimitReached", "Log", "LogError", "LogFailed", "LogFull", "LogInUse", "LogRefused",
            "MemoryLog", "NotAuthorized", "NotCompacted",
            "NowaitUnsupported", "OnError", "OutcomeUnknown", "PayloadTypeError", "Position", "PositionLost",
            "Reentered", "RemoteBus", "ResetReason", "Resumed", "Retention", "SQLiteLog", "Server", "ServerOnly",
            "SlowSubscriber",
            "SnapshotEnd", "SnapshotFailed", "SnapshotOptions", "SnapshotStart", "Source", "Subscription",
            "SubscriptionClosed", "SubscriptionReset", "SubscriptionStatistics", "Topic", "TopicConflict",
            "TopicStatistics", "UnknownTopic", "View", "ViewStatistics", "open_bus",
        }  # fmt: skip

    def test_all_of_each_module_is_what_its_package_hands_on(self) -> None:
        for package in (eventstream.errors, eventstream.events, eventstream.topics, eventstream.snapshots):
            assert sorted(package.__all__) == sorted(set(package.__all__))
            assert all(hasattr(package, name) for name in package.__all__)

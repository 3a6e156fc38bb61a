"""The log in memory: repeated ids, expectations against a model, given indexes, epochs, headers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream import (
    EARLIEST,
    Conflict,
    Event,
    EventBus,
    IndexOrder,
    MemoryLog,
    Position,
    Topic,
)
from eventstream.events import MAX_INDEX
from eventstream.logs import Entries, Terms, memory
from eventstream.snapshots.compaction import Compaction
from eventstream.topics import AnyEvent, Disposal, LiveTopic, Waker, walk
from support import Price, drain

words = Topic("words", str)
plain = Topic("plain", Any)
compacted: Topic[Any] = Topic("compacted", Any, key="k", compacted=True)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class NoCare:
    """Nobody has to look after these topics."""

    def begun(self) -> None: ...

    def grown(self) -> None: ...

    def unfollowed(self, key: str) -> None: ...


class NoLoop:
    """What is to be done soon is done at once."""

    def call_soon(self, function: Callable[[], object]) -> None:
        function()


def attach(log: MemoryLog, topic: Topic[Any]) -> LiveTopic:
    """A topic on this log, without a bus or a loop."""
    live = LiveTopic(topic, cast("Waker", NoLoop()), Disposal(lambda: None), NoCare())
    if topic.compacted:
        live.compaction = Compaction()
    log.attach(live)
    return live


def everything(live: LiveTopic) -> list[AnyEvent]:
    return [event for events in walk((live.history.oldest(), 0)) for event in events]


class Test_repeated_ids:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def log(self, clock: Clock) -> MemoryLog:
        return MemoryLog(clock=clock)

    def test_within_the_window_the_first_position_comes_again(self, log: MemoryLog, clock: Clock) -> None:
        live = attach(log, words)
        first = log.append_nowait(live, (("", "a"),), Terms(id="one"))
        log.append_nowait(live, (("", "b"),))
        for later in (0.0, 119.0, 120.0):
            clock.now = 1000.0 + later
            assert log.append_nowait(live, (("", "c"),), Terms(id="one")) == first
        assert [event.payload for event in everything(live)] == ["a", "b"]

    def test_after_the_window_it_is_another_publish(self, log: MemoryLog, clock: Clock) -> None:
        live = attach(log, words)
        log.append_nowait(live, (("", "a"),), Terms(id="one"))
        clock.now += 120.1
        second = log.append_nowait(live, (("", "b"),), Terms(id="one"))
        assert second.index == 2
        clock.now += 119.0
        assert log.append_nowait(live, (("", "c"),), Terms(id="one")) == second

    def test_a_repetition_does_not_make_the_window_longer(self, log: MemoryLog, clock: Clock) -> None:
        live = attach(log, words)
        log.append_nowait(live, (("", "a"),), Terms(id="one"))
        clock.now += 100
        log.append_nowait(live, (("", "a"),), Terms(id="one"))
        clock.now += 100
        assert log.append_nowait(live, (("", "a"),), Terms(id="one")).index == 2

    def test_the_window_can_be_chosen(self, clock: Clock) -> None:
        log = MemoryLog(clock=clock, dedupe_seconds=1.0)
        live = attach(log, words)
        log.append_nowait(live, (("", "a"),), Terms(id="one"))
        clock.now += 1.1
        assert log.append_nowait(live, (("", "a"),), Terms(id="one")).index == 2

    def test_a_clock_that_goes_back_forgets_nothing(self, log: MemoryLog, clock: Clock) -> None:
        live = attach(log, words)
        log.append_nowait(live, (("", "a"),), Terms(id="one"))
        clock.now -= 10_000
        assert log.append_nowait(live, (("", "a"),), Terms(id="one")).index == 1

    def test_only_so_many_are_remembered_the_oldest_go_first(
        self, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "DEDUPE_IDS", 3)
        live = attach(log, words)
        for number in range(4):
            log.append_nowait(live, (("", "a"),), Terms(id=f"id {number}"))
        again = [log.append_nowait(live, (("", "a"),), Terms(id=f"id {number}")).index for number in (1, 2, 3, 0)]
        assert again == [2, 3, 4, 5]

    def test_one_that_was_published_anew_counts_as_new(
        self, log: MemoryLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "DEDUPE_IDS", 3)
        live = attach(log, words)
        log.append_nowait(live, (("", "a"),), Terms(id="old"))
        clock.now += 121
        for id in ("one", "old", "two", "three"):
            log.append_nowait(live, (("", "a"),), Terms(id=id))
        assert log.append_nowait(live, (("", "a"),), Terms(id="old")).index == 3

    def test_an_id_names_a_publish_in_one_topic(self, log: MemoryLog) -> None:
        one, other = attach(log, words), attach(log, plain)
        log.append_nowait(one, (("", "a"),), Terms(id="one"))
        assert log.append_nowait(other, (("", "b"),), Terms(id="one")) == other.position
        assert len(everything(other)) == 1

    def test_a_batch_has_one_id(self, log: MemoryLog) -> None:
        live = attach(log, words)
        batch: Entries = (("", "a"), ("", "b"))
        first = log.append_nowait(live, batch, Terms(id="one"))
        assert log.append_nowait(live, batch, Terms(id="one")) == first
        assert log.append_nowait(live, (("", "c"),), Terms(id="one")) == first
        assert len(everything(live)) == 2

    def test_it_wins_over_what_else_is_asked_for(self, log: MemoryLog) -> None:
        """The first answer was lost on its way: the second asks the same, though the world has moved on since."""
        live = attach(log, words)
        first = log.append_nowait(live, (("", "a"),), Terms(id="one", expect=0, index=5))
        log.append_nowait(live, (("", "b"),))
        assert log.append_nowait(live, (("", "a"),), Terms(id="one", expect=0, index=5)) == first
        assert len(everything(live)) == 2

    def test_of_a_publish_that_failed_it_is_free(self, log: MemoryLog) -> None:
        live = attach(log, words)
        with pytest.raises(Conflict):
            log.append_nowait(live, (("", "a"),), Terms(id="one", expect=7))
        log.append_nowait(live, (("", "a"),))
        with pytest.raises(IndexOrder):
            log.append_nowait(live, (("", "a"),), Terms(id="one", index=1))
        assert log.append_nowait(live, (("", "b"),), Terms(id="one")).index == 2

    async def test_of_an_empty_batch_it_is_free(self, bus: EventBus) -> None:
        head = await bus.publish(words, "a")
        assert await bus.publish_many(words, [], id="one") == head
        assert (await bus.publish(words, "b", id="one")).index == 2


class Model:
    """What `expect` promises, by looking through all that was ever published."""

    def __init__(self, retain: int, compacted: bool) -> None:
        self.retain, self.compacted = retain, compacted
        self.events: list[tuple[int, str, object]] = []

    @property
    def head(self) -> int:
        return self.events[-1][0] if self.events else 0

    def newest(self, key: str) -> int:
        trimmed = self.events[: max(0, len(self.events) - self.retain)]
        floor = trimmed[-1][0] if trimmed else 0
        for index, name, payload in reversed(self.events):
            if name == key:
                return index if index > floor or (self.compacted and payload is not None) else 0
        return 0


keys = st.sampled_from("abcd")
entries = st.lists(st.tuples(keys, st.sampled_from([1, 2, None])), min_size=1, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), entries),
        st.tuples(st.just("expect"), st.tuples(keys, st.sampled_from([1, None]), st.integers(-2, 2))),
        st.tuples(st.just("jump"), st.tuples(keys, st.integers(1, 5))),
        st.tuples(st.just("zero"), keys),
    ),
    max_size=40,
)


class Test_expectations:
    @given(steps, st.integers(0, 8), st.booleans())
    def test_they_hold_exactly_when_the_model_says_so(
        self, todo: list[tuple[str, Any]], retain: int, compacted: bool
    ) -> None:
        topic: Topic[Any] = Topic("state", Any, key="k", compacted=compacted, retain=retain)
        log, model = MemoryLog(), Model(retain, compacted)
        live = attach(log, topic)

        def publish(entries: Entries, terms: Terms | None = None) -> None:
            position = log.append_nowait(live, entries, terms)
            model.events += [(position.index, key, payload) for key, payload in entries]

        def expect(key: str, payload: object, expected: int) -> None:
            actual, head = model.newest(key), live.head
            if expected == actual:
                publish(((key, payload),), Terms(expect=expected))
            else:
                with pytest.raises(Conflict) as caught:
                    publish(((key, payload),), Terms(expect=expected))
                error = caught.value
                assert (error.topic, error.key, error.expected, error.actual) == ("state", key, expected, actual)
                assert live.head == head

        for what, of in todo:
            if what == "publish":
                publish(tuple(of))
            elif what == "jump":
                publish(((of[0], 1),), Terms(index=model.head + of[1]))
            elif what == "zero":
                expect(of, 1, 0)
            else:
                key, payload, wrong = of
                expect(key, payload, max(0, model.newest(key) + wrong))

    def test_the_first_one_may_come_late(self) -> None:
        """Until then nobody keeps account of keys."""
        log = MemoryLog()
        live = attach(log, Topic("late", Any, key="k", compacted=True, retain=2))
        for number, payload in enumerate([1, 1, None, 1, None, 1], 1):
            log.append_nowait(live, ((f"k{number}", payload),))
        newest = {}
        for number in range(1, 7):
            with pytest.raises(Conflict) as caught:
                log.append_nowait(live, ((f"k{number}", 1),), Terms(expect=99))
            newest[number] = caught.value.actual
        assert newest == {1: 1, 2: 2, 3: 0, 4: 4, 5: 5, 6: 6}

    def test_the_first_one_knows_what_has_left_the_history(self) -> None:
        log = MemoryLog()
        live = attach(log, Topic("late", Any, key="k", compacted=True, retain=2))
        for index in range(1, 400):
            log.append_nowait(live, (("old" if index == 1 else "new", 1),))
        assert everything(live)[0].index > 1
        assert log.append_nowait(live, (("old", 2),), Terms(expect=1)).index == 400

    def test_of_a_batch_the_first_key_counts(self) -> None:
        log = MemoryLog()
        live = attach(log, plain)
        log.append_nowait(live, (("b", 1),))
        assert log.append_nowait(live, (("a", 1), ("b", 1)), Terms(expect=0)).index == 2
        with pytest.raises(Conflict) as caught:
            log.append_nowait(live, (("a", 1), ("c", 1)), Terms(expect=0))
        assert caught.value.key == "a"

    @pytest.mark.parametrize("topic", [plain, compacted])
    def test_a_new_life_knows_no_key(self, topic: Topic[Any]) -> None:
        log = MemoryLog()
        live = attach(log, topic)
        log.append_nowait(live, (("a", 1),), Terms(expect=0))
        log.attach(live)
        assert log.append_nowait(live, (("a", 1),), Terms(expect=0)).index == 1

    def test_of_a_plain_topic_it_forgets_keys_that_are_trimmed(self) -> None:
        log = MemoryLog()
        live = attach(log, Topic("many", Any, retain=10))
        for number in range(5000):
            log.append_nowait(live, ((f"k{number}", 1),), Terms(expect=0))
        remembered = log._memories["many"].keys
        assert remembered is not None
        assert len(remembered._newest) < 2500
        for number, actual in ((4998, 4999), (4990, 4991), (4989, 0), (0, 0)):
            with pytest.raises(Conflict) as caught:
                log.append_nowait(live, ((f"k{number}", 1),), Terms(expect=7))
            assert caught.value.actual == actual

    def test_of_a_compacted_topic_it_forgets_tombstones_that_are_trimmed(self) -> None:
        log = MemoryLog()
        live = attach(log, Topic("many", Any, key="k", compacted=True, retain=10))
        for number in range(3000):
            log.append_nowait(live, ((f"k{number}", 1),), Terms(expect=0))
            if number % 10:
                log.append_nowait(live, ((f"k{number}", None),), Terms(expect=live.head))
        remembered = log._memories["many"].keys
        assert remembered is not None
        assert len(remembered._newest) < 2000
        assert len(remembered._gone) < 2000
        for number, actual in ((0, 1), (1, 0), (10, 20), (2999, live.head)):
            with pytest.raises(Conflict) as caught:
                log.append_nowait(live, ((f"k{number}", 1),), Terms(expect=7))
            assert caught.value.actual == actual

    async def test_a_deletion_may_expect_too(self, bus: EventBus) -> None:
        topic = Topic("prices", Price, key="symbol", compacted=True)
        first = await bus.publish(topic, Price("X", 1.0), expect=0)
        with pytest.raises(Conflict):
            await bus.delete(topic, "X", expect=0)
        gone = await bus.delete(topic, "X", expect=first.index)
        assert (await bus.publish(topic, Price("X", 2.0), expect=gone.index)).index == 3


class Test_given_indexes:
    def test_they_may_leave_gaps(self) -> None:
        log = MemoryLog()
        live = attach(log, words)
        given = [log.append_nowait(live, (("", "a"),), Terms(index=index)).index for index in (1, 5, 6, 1000)]
        assert given == [event.index for event in everything(live)] == [1, 5, 6, 1000]
        assert log.append_nowait(live, (("", "a"),)).index == 1001

    @pytest.mark.parametrize("index", [1, 9, 10])
    def test_one_that_does_not_grow_is_refused_and_nothing_is_published(self, index: int) -> None:
        log = MemoryLog()
        live = attach(log, words)
        log.append_nowait(live, (("", "a"),), Terms(index=10))
        with pytest.raises(IndexOrder) as caught:
            log.append_nowait(live, (("", "b"),), Terms(index=index))
        error = caught.value
        assert (error.topic, error.index, error.head) == ("words", index, 10)
        assert [event.payload for event in everything(live)] == ["a"]
        assert live.head == 10

    @pytest.mark.parametrize("after", [0, 1, 2, 9, 10, 11, 99])
    async def test_a_reader_may_resume_from_within_a_gap(self, bus: EventBus, after: int) -> None:
        epoch = ""
        for index in (1, 10, 100):
            epoch = (await bus.publish(words, str(index), index=index)).epoch
        seen = drain(bus.subscribe(words, after=Position(epoch, after)))
        assert seen == [str(index) for index in (1, 10, 100) if index > after]

    async def test_a_batch_has_one(self, bus: EventBus) -> None:
        subscription = bus.subscribe(words)
        assert (await bus.publish_many(words, ["a", "b"], index=7)).index == 7
        assert [(await subscription.receive()).index for _ in range(2)] == [7, 7]

    async def test_the_greatest_is_a_position_like_others(self, bus: EventBus) -> None:
        position = await bus.publish(words, "a", index=MAX_INDEX)
        assert Position.parse(str(position)) == position
        assert drain(bus.subscribe(words, after=position)) == []

    async def test_with_an_expectation_both_have_to_hold(self, bus: EventBus) -> None:
        await bus.publish(words, "a", index=5, expect=0)
        with pytest.raises(Conflict):
            await bus.publish(words, "b", index=6, expect=0)
        with pytest.raises(IndexOrder):
            await bus.publish(words, "b", index=5, expect=5)
        assert (await bus.publish(words, "b", index=6, expect=5)).index == 6


class Test_epochs:
    def test_a_seed_repeats_them(self) -> None:
        def epochs(seed: int) -> list[str]:
            log = MemoryLog(random=Random(seed))
            lives = [attach(log, words), attach(log, plain), attach(log, words)]
            return [live.epoch for live in lives]

        assert epochs(7) == epochs(7)
        assert len({*epochs(7), *epochs(8)}) == 6

    async def test_that_of_a_bus_repeats_them_too(self) -> None:
        found = []
        for _ in range(2):
            async with EventBus(random=Random(7)) as bus:
                found.append([await bus.publish(words, "a"), await bus.refresh(words), await bus.publish(words, "a")])
        assert found[0] == found[1]
        assert [position.index for position in found[0]] == [1, 0, 1]
        assert found[0][0].epoch != found[0][1].epoch == found[0][2].epoch

    def test_without_a_seed_no_two_are_the_same(self) -> None:
        epochs = {attach(MemoryLog(), words).epoch for _ in range(100)}
        assert len(epochs) == 100
        assert all(Position.parse(f"{epoch}.0") == Position(epoch, 0) for epoch in epochs)


class Test_what_is_appended:
    async def test_all_of_a_batch_have_one_time_and_the_same_headers(self) -> None:
        clock = Clock()
        async with EventBus(clock=clock) as bus:
            headers = {"trace": "1"}
            await bus.publish_many(words, ["a", "b"], headers=headers)
            headers["trace"] = "changed"
            clock.now = 2000.0
            await bus.publish(words, "c")
            subscription = bus.subscribe(words, after=EARLIEST)
            events: list[Event[str]] = [await subscription.receive() for _ in range(3)]
        assert [event.time for event in events] == [1000.0, 1000.0, 2000.0]
        assert [dict(event.headers) for event in events] == [{"trace": "1"}, {"trace": "1"}, {}]
        assert events[0].headers is events[1].headers
        with pytest.raises(TypeError):
            events[0].headers["trace"] = "2"  # type: ignore[index]  # that is the point

    @pytest.mark.parametrize("wrong", ["sqlite:///events.db", "", 7, object()])
    def test_what_is_no_log_is_refused(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="a URL goes to open_bus"):
            EventBus(wrong)

    def test_a_time_below_nothing_is_refused(self) -> None:
        for wrong in (-1.0, float("nan")):
            with pytest.raises(ValueError, match="dedupe_seconds must be a number of at least 0"):
                MemoryLog(dedupe_seconds=wrong)

    async def test_a_tombstone_has_headers_too(self, bus: EventBus) -> None:
        topic = Topic("prices", Price, key="symbol", compacted=True)
        await bus.publish(topic, Price("X", 1.0))
        await bus.delete(topic, "X", headers={"why": "gone"})
        subscription = bus.subscribe(topic, after=EARLIEST)
        event = [await subscription.receive() for _ in range(2)][-1]
        assert event.tombstone
        assert event.headers == {"why": "gone"}

    def test_the_clock_is_asked_outside_of_the_lock(self) -> None:
        """It is not ours: it may publish, or wait for a thread that does."""
        threads: list[threading.Thread] = []

        def clock() -> float:
            if not threads:
                threads.append(threading.Thread(target=log.append_nowait, args=(live, (("", "thread"),)), daemon=True))
                threads[0].start()
                threads[0].join(5)
            return 1.0

        log = MemoryLog(clock=clock)
        live = attach(log, words)
        log.append_nowait(live, (("", "loop"),))
        assert [event.payload for event in everything(live)] == ["thread", "loop"]

    async def test_a_clock_that_raises_publishes_nothing_and_locks_nobody_out(self) -> None:
        broken = True

        def clock() -> float:
            if broken:
                raise OSError("no clock")
            return 1.0

        async with EventBus(MemoryLog(clock=clock)) as bus:
            with pytest.raises(OSError, match="no clock"):
                await bus.publish(words, "a")
            broken = False
            assert (await bus.publish(words, "b")).index == 1


@pytest.mark.parametrize("is_given", [True, False])
async def test_ids_are_known_though_the_system_s_clock_is_set(monkeypatch: pytest.MonkeyPatch, is_given: bool) -> None:
    """Set forward by an hour, it would have made the log forget them all at once. One that is given is believed."""
    offset, real = 0.0, time.time

    def set_clock() -> float:
        return real() + offset

    if not is_given:
        monkeypatch.setattr(time, "time", set_clock)
    async with EventBus(MemoryLog(clock=set_clock)) as bus:
        assert (await bus.publish(words, "a", id="a")).index == 1
        offset = 3600.0
        assert bus.dedupe_seconds(words) == 120.0
        assert (await bus.publish(words, "b", id="b")).index == 2
        assert (await bus.publish(words, "a", id="a")).index == (3 if is_given else 1)
        assert (await bus.publish(words, "b", id="b")).index == 2

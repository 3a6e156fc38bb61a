"""The linked buffer and what stands on it, each piece alone: splice, history, laggards, compaction, disposal."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream import Event
from eventstream.snapshots.compaction import Compaction
from eventstream.snapshots.splice import seek
from eventstream.topics import AnyEvent, Buffer, Disposal, Lot, Place, Segment, Waker, walk
from eventstream.topics import history as history_module
from eventstream.topics.buffer import SEGMENT_SIZE
from eventstream.topics.disposal import FEWEST_STEPS as STEPS
from eventstream.topics.history import History
from eventstream.topics.laggards import Laggards, Watch

sizes = st.lists(st.one_of(st.integers(1, 4), st.integers(60, 70), st.integers(126, 300)), max_size=12)
"""Of batches: such that some share a segment, some just fit, and some are longer than one."""


def make_buffer() -> Buffer:
    return Buffer(Lot(cast("Waker", None)))  # nobody waits here, so nobody has to be woken


def make_batch(index: int, size: int = 1, *, key: str = "", payload: Any = 0) -> list[AnyEvent]:
    return [Event("topic", key, index, payload, 0.0) for _ in range(size)]


def append_all(buffer: Buffer, batch_sizes: Iterable[int], *, first: int = 1, step: int = 1) -> list[AnyEvent]:
    """Appends batches with growing indexes; returns all their events, in order."""
    events = []
    for number, size in enumerate(batch_sizes):
        batch = make_batch(first + number * step, size)
        buffer.append(batch)
        events += batch
    return events


def flat(place: Place) -> list[AnyEvent]:
    return [event for events in walk(place) for event in events]


def same(some: list[AnyEvent], others: list[AnyEvent]) -> bool:
    """The same objects, not only equal ones."""
    return list(map(id, some)) == list(map(id, others))


def walk_first(place: Place) -> list[AnyEvent]:
    return next(walk(place), [])[:1]


def segments(first: Segment) -> list[Segment]:
    found: list[Segment] = []
    segment: Segment | None = first
    while segment is not None:
        found.append(segment)
        segment = segment.next
    return found


class Test_Buffer:
    @given(sizes)
    def test_whoever_walks_from_the_start_gets_all_events(self, batch_sizes: list[int]) -> None:
        buffer = make_buffer()
        start = buffer.end()
        events = append_all(buffer, batch_sizes)
        assert same(flat(start), events)
        assert buffer.count == len(events) == buffer.tail.start + len(buffer.tail.items)

    @given(sizes, sizes)
    def test_whoever_walks_from_a_former_end_gets_what_came_later(self, before: list[int], after: list[int]) -> None:
        buffer = make_buffer()
        append_all(buffer, before)
        place = buffer.end()
        later = append_all(buffer, after, first=1000)
        assert same(flat(place), later)

    @given(sizes)
    def test_whoever_walks_from_any_place_gets_the_rest(self, batch_sizes: list[int]) -> None:
        buffer = make_buffer()
        first = buffer.tail
        events = append_all(buffer, batch_sizes)
        for segment in segments(first):
            for offset in {0, 1, len(segment.items) // 2, len(segment.items)}:
                if offset <= len(segment.items):
                    assert same(flat((segment, offset)), events[segment.start + offset :])

    @given(sizes)
    def test_a_batch_never_straddles_two_segments(self, batch_sizes: list[int]) -> None:
        buffer = make_buffer()
        first = buffer.tail
        append_all(buffer, batch_sizes)
        owners: dict[int, Segment] = {}
        for segment in segments(first):
            assert len(segment.items) <= SEGMENT_SIZE or len({event.index for event in segment.items}) == 1
            for event in segment.items:
                assert owners.setdefault(event.index, segment) is segment

    @given(sizes)
    def test_append_says_which_segment_a_batch_began(self, batch_sizes: list[int]) -> None:
        buffer = make_buffer()
        first = buffer.tail
        begun = [buffer.append(make_batch(index, size)) for index, size in enumerate(batch_sizes, 1)]
        assert [segment for segment in begun if segment] == (segments(first) if batch_sizes else [])

    def test_a_segment_takes_exactly_its_size(self) -> None:
        buffer = make_buffer()
        first = buffer.tail
        append_all(buffer, [1] * SEGMENT_SIZE)
        assert buffer.tail is first
        buffer.append(make_batch(SEGMENT_SIZE + 1))
        assert buffer.tail is first.next

    def test_the_publishers_list_stays_its_own(self) -> None:
        buffer = make_buffer()
        start = buffer.end()
        for batch in ([make_batch(1)[0]], make_batch(2, 200), make_batch(3, 200)):
            buffer.append(batch)
            batch.clear()
        assert len(flat(start)) == 401


class Test_splice:
    @given(st.lists(st.integers(1, 200), max_size=3), sizes, st.data())
    def test_it_joins_at_the_first_later_event(
        self, snapshot_sizes: list[int], live_sizes: list[int], data: st.DataObject
    ) -> None:
        """Whatever was there when the place was taken, and whatever was published until it was needed."""
        live, snapshot = make_buffer(), make_buffer()
        start = snapshot.end()
        state = append_all(snapshot, snapshot_sizes)
        captured = data.draw(st.integers(0, len(live_sizes)))
        joined = data.draw(st.integers(captured, len(live_sizes)))
        index = data.draw(st.integers(captured, len(live_sizes)))
        append_all(live, live_sizes[:captured])
        place = live.end()
        events = append_all(live, live_sizes[captured:joined], first=captured + 1)
        later = [event for event in events if event.index > index]  # none if the source is ahead
        snapshot.splice(seek(place, index))
        assert same(flat(start), state + later)
        later += append_all(live, live_sizes[joined:], first=joined + 1)
        assert same(flat(start), state + later)

    @pytest.mark.parametrize("held", [1, 2, 100])
    def test_the_first_later_event_may_stand_in_the_captured_segment(self, held: int) -> None:
        """hashicorp/consul#10355: looking for it only behind the captured segment skips it."""
        live, snapshot = make_buffer(), make_buffer()
        append_all(live, [1] * held)
        place = live.end()
        start = snapshot.end()
        later = append_all(live, [1, 1], first=held + 1)
        assert seek(place, held) == (place[0], held)
        snapshot.splice(seek(place, held))
        assert same(flat(start), later)

    @pytest.mark.parametrize("held", [0, 1, SEGMENT_SIZE])
    def test_at_the_end_it_is_where_the_next_event_will_stand(self, held: int) -> None:
        live, snapshot = make_buffer(), make_buffer()
        append_all(live, [1] * held)
        start = snapshot.end()
        snapshot.splice(seek(live.end(), held))
        assert flat(start) == []
        later = append_all(live, [1, 200, 1], first=held + 1)
        assert same(flat(start), later)

    def test_it_passes_over_whole_segments(self) -> None:
        live = make_buffer()
        place = live.end()
        append_all(live, [200, 200, 200, 1])
        assert seek(place, 0) == (place[0], 0)
        assert seek(place, 1) == (place[0].next, 0)
        assert seek(place, 3) == (live.tail, 0)

    def test_it_never_goes_back_before_the_captured_place(self) -> None:
        live = make_buffer()
        append_all(live, [1] * 10)
        assert seek(live.end(), 4) == (live.tail, 10)

    def test_a_finished_buffer_takes_nothing_more(self) -> None:
        live, snapshot = make_buffer(), make_buffer()
        snapshot.splice(live.end())
        with pytest.raises(AssertionError):
            snapshot.append(make_batch(1))
        with pytest.raises(AssertionError):
            snapshot.splice(live.end())

    def test_a_snapshot_without_events_leads_on_too(self) -> None:
        live, snapshot = make_buffer(), make_buffer()
        append_all(live, [3])
        start = snapshot.end()
        snapshot.splice(live.end())
        later = append_all(live, [2], first=2)
        assert same(flat(start), later)


class Test_History:
    @given(sizes, st.integers(0, 600), st.integers(1, 3), st.integers(0, 5))
    def test_its_floor_is_the_index_of_the_newest_event_that_is_too_old(
        self, batch_sizes: list[int], retain: int, step: int, base: int
    ) -> None:
        buffer = make_buffer()
        history = History(buffer, retain, base)
        events: list[AnyEvent] = []
        for number, size in enumerate(batch_sizes):
            batch = make_batch(base + 1 + number * step, size)
            segment = buffer.append(batch)
            if segment is not None:
                history.add(segment)
            events += batch
            trimmed = events[: max(0, len(events) - retain)]
            assert history.floor == (trimmed[-1].index if trimmed else base)
            assert len(history) == min(len(events), retain)

    @given(sizes, st.integers(0, 600), st.integers(1, 3))
    def test_it_finds_what_follows_any_index_that_can_be_resumed(
        self, batch_sizes: list[int], retain: int, step: int
    ) -> None:
        buffer = make_buffer()
        history = History(buffer, retain, 0)
        events: list[AnyEvent] = []
        for number, size in enumerate(batch_sizes):
            batch = make_batch((number + 1) * step, size)
            segment = buffer.append(batch)
            if segment is not None:
                history.add(segment)
            events += batch
        head = events[-1].index if events else 0
        for index in range(history.floor, head + 2):
            assert same(flat(history.find(index)), [event for event in events if event.index > index])

    @given(st.integers(0, 500), st.integers(0, 1000))
    def test_it_refers_to_whole_segments_and_no_more_than_one_too_many(self, retain: int, published: int) -> None:
        buffer = make_buffer()
        history = History(buffer, retain, 0)
        for index in range(1, published + 1):
            segment = buffer.append(make_batch(index))
            if segment is not None:
                history.add(segment)
        held = len(flat((history.oldest(), 0)))
        assert min(retain, published) <= held <= max(retain, 1) + 2 * SEGMENT_SIZE

    @pytest.mark.parametrize("slack", [0, 2, 1024])
    @pytest.mark.parametrize("retain", [0, 1, 2, 10, 127, 128, 129, 200])
    def test_it_is_exact_at_every_event(self, retain: int, slack: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also while a segment is filled, when one has just become too old, and when what is forgotten is cut off."""
        monkeypatch.setattr(history_module, "SLACK", slack)
        buffer = make_buffer()
        history = History(buffer, retain, 0)
        for index in range(1, 900):
            segment = buffer.append(make_batch(index))
            if segment is not None:
                history.add(segment)
            assert history.floor == max(0, index - retain)
            assert [event.index for event in walk_first(history.find(history.floor))] == [history.floor + 1][:retain]

    def test_what_is_too_old_is_freed(self) -> None:
        buffer = make_buffer()
        history = History(buffer, 10, 0)
        alive: weakref.WeakSet[Payload] = weakref.WeakSet()
        for index in range(1, 2000):
            payload = Payload()
            alive.add(payload)
            segment = buffer.append(make_batch(index, payload=payload))
            if segment is not None:
                history.add(segment)
            assert len(alive) <= 10 + 2 * SEGMENT_SIZE

    def test_before_the_first_event_it_leads_to_the_end(self) -> None:
        buffer = make_buffer()
        history = History(buffer, 10, 7)
        assert history.floor == 7
        assert history.find(7) == buffer.end()
        assert history.oldest() is buffer.tail
        assert len(history) == 0


class Watched:
    """What a reader is to `Laggards`."""

    def __init__(self, bound: int, seen: int) -> None:
        self.bound, self.seen = bound, seen
        self.watch: Watch | None = None
        self.overtaken_at: int | None = None
        self.looks = 0

    def deadline(self, published: int) -> int:
        self.looks += 1
        return self.seen + self.bound

    def overtaken(self, published: int) -> None:
        assert self.watch is None
        self.overtaken_at = published


operations = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 12)),
        st.tuples(st.just("read"), st.integers(0, 7)),
        st.tuples(st.just("add"), st.integers(1, 15)),
        st.tuples(st.just("discard"), st.integers(0, 7)),
    ),
    max_size=60,
)


class Test_Laggards:
    @given(operations)
    def test_each_is_overtaken_by_the_event_that_is_one_too_many(self, todo: list[tuple[str, int]]) -> None:
        laggards = Laggards()
        count = 0
        watched: list[Watched] = []
        gone: list[Watched] = []
        for what, number in todo:
            if what == "add":
                watched.append(Watched(number, count))
                laggards.add(watched[-1], count)
            elif what == "publish":
                count += number
                if count > laggards.due:
                    laggards.check(count)
                late = [each for each in watched if count - each.seen > each.bound]
                assert all(each.overtaken_at == count for each in late)
                gone += late
                watched = [each for each in watched if each not in late]
            elif number < len(watched):
                if what == "read":
                    watched[number].seen = count
                else:
                    laggards.discard(each := watched.pop(number))
                    laggards.discard(each)
                    gone.append(each)
                    assert each.watch is None
            assert len(laggards) == len(watched)
            assert all(each.overtaken_at is None for each in watched)
            assert all(laggards.due <= each.seen + each.bound for each in watched)

    def test_a_discarded_one_is_never_overtaken_and_may_come_again(self) -> None:
        laggards, one = Laggards(), Watched(5, 0)
        laggards.add(one, 0)
        laggards.discard(one)
        laggards.check(100)
        assert one.overtaken_at is None
        one.seen = 100
        laggards.add(one, 100)
        laggards.check(105)
        assert one.overtaken_at is None
        laggards.check(106)
        assert one.overtaken_at == 106

    def test_of_many_with_one_deadline_each_is_found_again(self) -> None:
        laggards, many = Laggards(), [Watched(5, 0) for _ in range(3000)]
        for each in many:
            laggards.add(each, 0)
        for each in many[::2]:
            laggards.discard(each)
        laggards.check(6)
        assert [each.overtaken_at for each in many] == [None, 6] * 1500
        assert len(laggards) == 0

    def test_what_is_forgotten_with_its_buffer_may_be_watched_in_another(self) -> None:
        laggards, later, one = Laggards(), Laggards(), Watched(5, 0)
        laggards.add(one, 0)
        laggards.clear()
        assert len(laggards) == 0
        laggards.discard(one)
        laggards.check(100)
        assert one.overtaken_at is None
        later.add(one, 0)
        assert (laggards.due > 10**15, later.due) == (True, 5)

    def test_discarding_moves_the_next_look(self) -> None:
        laggards, near, far = Laggards(), Watched(5, 0), Watched(50, 0)
        laggards.add(near, 0)
        laggards.add(far, 0)
        assert laggards.due == 5
        laggards.discard(near)
        assert laggards.due == 50
        laggards.discard(far)
        assert laggards.due > 10**15

    def test_one_that_discards_another_while_it_is_overtaken(self) -> None:
        """A reader that is let go may take its snapshot along."""
        laggards, other = Laggards(), Watched(5, 0)

        class Leader(Watched):
            def overtaken(self, published: int) -> None:
                super().overtaken(published)
                laggards.discard(other)

        leader = Leader(5, 0)
        laggards.add(leader, 0)
        laggards.add(other, 0)
        laggards.check(6)
        assert (leader.overtaken_at, other.overtaken_at, len(laggards)) == (6, None, 0)

    @pytest.mark.parametrize("chunk", [1, 7, 100])
    def test_each_look_is_paid_for_by_what_was_read(self, chunk: int) -> None:
        """Readers that stay just within their bound are looked at most often."""
        laggards, readers, bound = Laggards(), [Watched(100, 0) for _ in range(10)], 100
        for reader in readers:
            laggards.add(reader, 0)
        for count in range(1, 3001):
            if count > laggards.due:
                laggards.check(count)
            for reader in readers:
                if count - reader.seen == bound:
                    reader.seen += chunk
        delivered = sum(reader.seen for reader in readers)
        assert all(reader.overtaken_at is None for reader in readers)
        assert sum(reader.looks for reader in readers) <= 2 * delivered // chunk + 2 * len(readers)

    def test_nobody_is_looked_at_while_all_are_within_their_bound(self) -> None:
        laggards, readers = Laggards(), [Watched(1000, 0) for _ in range(100)]
        for reader in readers:
            laggards.add(reader, 0)
        for count in range(1, 1001):
            if count > laggards.due:
                laggards.check(count)
        assert sum(reader.looks for reader in readers) == 100


changes = st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers()), min_size=1, max_size=3))


class Test_Compaction:
    @given(changes)
    def test_it_is_the_newest_event_of_each_living_key_by_index(
        self, batches: list[list[tuple[str, int | None]]]
    ) -> None:
        compaction = Compaction()
        model: dict[str, AnyEvent] = {}
        for index, batch in enumerate(batches, 1):
            events = [make_batch(index, key=key, payload=payload)[0] for key, payload in batch]
            compaction.observe(events, [])
            for event in events:
                model.pop(event.key, None)
                if event.payload is not None:
                    model[event.key] = event
        state = compaction.state(None)
        assert same(state, list(model.values()))
        assert [event.index for event in state] == sorted(event.index for event in state)
        for key in "abc":
            assert same(compaction.state(key), [model[key]] if key in model else [])
        assert len(compaction) == len(model)

    def test_cleared_it_is_empty(self) -> None:
        compaction = Compaction()
        compaction.observe(make_batch(1, key="a"), [])
        compaction.clear()
        assert compaction.state(None) == compaction.state("a") == []

    def test_a_falsy_payload_is_no_tombstone(self) -> None:
        compaction = Compaction()
        compaction.observe(make_batch(1, key="a", payload=0) + make_batch(1, key="b", payload=""), [])
        assert len(compaction) == 2


class Payload:
    """Its life can be watched."""


def build_chain(count: int, alive: list[weakref.ref[Payload]]) -> list[Segment]:
    """Segments of one event each, in a list of which the first can be popped; then the empty tail."""
    lot = make_buffer().lot
    chain = [Segment(0, lot, [])]
    segment = chain[0]
    for index in range(1, count + 1):
        payload = Payload()
        alive.append(weakref.ref(payload))
        segment.items.extend(make_batch(index, payload=payload))
        segment.next = segment = Segment(index, lot, [])
    return chain


def finish(disposal: Disposal) -> None:
    while disposal:
        disposal.step()


def count_living(alive: list[weakref.ref[Payload]]) -> int:
    return sum(reference() is not None for reference in alive)


class Test_Disposal:
    def test_a_long_chain_is_freed_in_steps(self) -> None:
        calls: list[None] = []
        disposal = Disposal(lambda: calls.append(None))
        alive: list[weakref.ref[Payload]] = []
        chain = build_chain(15 * STEPS, alive)
        disposal.drop(chain.pop())
        left = [15 * STEPS, count_living(alive)]
        while disposal:
            disposal.step()
            left.append(count_living(alive))
        assert left[-1] == 0
        assert [before - after for before, after in pairwise(left)][:4] == [0, STEPS, 2 * STEPS, 4 * STEPS]
        assert len(calls) == 1

    def test_a_tail_alone_is_nothing_to_do(self) -> None:
        """Its buffer has it too."""
        calls: list[None] = []
        disposal = Disposal(lambda: calls.append(None))
        disposal.drop(make_buffer().tail)
        assert not disposal
        assert not calls

    def test_what_others_refer_to_lives_on(self) -> None:
        disposal = Disposal(lambda: None)
        alive: list[weakref.ref[Payload]] = []
        chain = build_chain(4 * STEPS, alive)
        place = (segments(chain[0])[2 * STEPS + 7], 0)
        disposal.drop(chain.pop())
        finish(disposal)
        assert count_living(alive) == len(flat(place)) == 2 * STEPS - 7

    def test_chains_that_share_their_end_are_freed_once_both_are_dropped(self) -> None:
        disposal = Disposal(lambda: None)
        alive: list[weakref.ref[Payload]] = []
        chain = build_chain(3 * STEPS, alive)
        snapshot = make_buffer()
        chain.append(snapshot.tail)
        snapshot.splice((segments(chain[0])[STEPS], 0))
        disposal.drop(chain.pop(0))
        finish(disposal)
        assert count_living(alive) == 2 * STEPS
        disposal.drop(chain.pop())
        del snapshot
        finish(disposal)
        assert count_living(alive) == 0

    def test_several_chains_are_freed_one_after_the_other(self) -> None:
        disposal = Disposal(lambda: None)
        first: list[weakref.ref[Payload]] = []
        second: list[weakref.ref[Payload]] = []
        chains = [*build_chain(4 * STEPS, first), *build_chain(3 * STEPS, second)]
        while chains:
            disposal.drop(chains.pop(0))
        untouched = count_living(second)
        while count_living(first):
            assert count_living(second) == untouched
            disposal.step()
        finish(disposal)
        assert count_living(second) == 0

    def test_dropping_a_chain_of_300_000_segments_at_once_does_not_crash(self) -> None:
        """Nobody does it on purpose, but a program that ends does."""
        lot = make_buffer().lot
        first: Segment | None = Segment(0, lot, [])
        segment = first
        for index in range(1, 300_001):
            assert segment is not None
            segment.next = segment = Segment(index, lot, [])
        assert segment is not None
        assert segment.start == 300_000
        del first, segment

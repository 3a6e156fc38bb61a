"""The pipes that a server holds: who goes when a bound is reached, and what its peer is told."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventstream.pipes.frames import RejectCode
from eventstream.pipes.registry import REMEMBERED, Registry

GRACE, BUDGET = 10.0, 100


class Thing:
    """A pipe, as the registry sees it."""

    def __init__(self, name: str, held: int = 0) -> None:
        self.id = name.encode()
        self.held = held

    def __repr__(self) -> str:
        return f"<{self.id.decode()} {self.held}>"


class Setup:
    """A registry, and what it has ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, RejectCode]] = []
        self.registry = Registry[Thing](GRACE, BUDGET, self.evict)

    def evict(self, thing: Thing, reason: RejectCode) -> None:
        assert self.registry.pipes.get(thing.id) is not thing
        self.ended.append((thing.id.decode(), reason))
        self.registry.remove(thing, "closed")  # as a server does whose pipe ends: the first reason stays

    def suspended(self, name: str, held: int = 0, now: float = 0.0) -> Thing:
        thing = Thing(name, held)
        self.registry.add(thing)
        self.registry.suspend(thing, now)
        return thing


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_pipe_with_a_link_is_held_without_count_or_deadline(setup: Setup) -> None:
    setup.registry.add(Thing("a", held=10**9))
    assert (len(setup.registry.pipes), setup.registry.suspended, setup.registry.held) == (1, 0, 0)
    assert setup.registry.next_deadline is None


def test_the_grace_time_begins_with_the_loss_of_the_link(setup: Setup) -> None:
    setup.suspended("a", now=5)
    setup.suspended("b", now=7)
    assert setup.registry.next_deadline == 5 + GRACE
    setup.registry.expire(14.9)
    assert setup.ended == []
    setup.registry.expire(15)
    assert setup.ended == [("a", "expired")]
    assert setup.registry.next_deadline == 7 + GRACE


def test_those_that_expire_together_go_in_the_order_of_their_loss(setup: Setup) -> None:
    for name in "cab":
        setup.suspended(name)
    setup.registry.expire(GRACE)
    assert setup.ended == [("c", "expired"), ("a", "expired"), ("b", "expired")]
    assert not setup.registry.pipes


def test_a_pipe_that_came_back_has_no_deadline(setup: Setup) -> None:
    """And a new loss gives it all the grace time again, behind those that waited longer."""
    a, _ = setup.suspended("a"), setup.suspended("b", now=1)
    setup.registry.resume(a)
    assert (setup.registry.suspended, setup.registry.next_deadline) == (1, 1 + GRACE)
    setup.registry.suspend(a, 2)
    setup.registry.expire(100)
    assert [name for name, _ in setup.ended] == ["b", "a"]


def test_a_second_loss_does_not_prolong_the_grace_time(setup: Setup) -> None:
    a = setup.suspended("a", held=10)
    setup.registry.suspend(a, 9)
    assert (setup.registry.next_deadline, setup.registry.held) == (GRACE, 10)


def test_beyond_the_budget_the_longest_suspended_goes_first(setup: Setup) -> None:
    setup.suspended("a", held=40)
    setup.suspended("b", held=60)
    assert setup.ended == []
    setup.suspended("c", held=1)
    assert setup.ended == [("a", "evicted")]
    assert setup.registry.held == 61


def test_as_many_go_as_the_budget_needs_and_no_more(setup: Setup) -> None:
    for name in "abc":
        setup.suspended(name, held=30)
    setup.suspended("d", held=41)
    assert [name for name, _ in setup.ended] == ["a", "b"]
    assert setup.registry.held == 71


def test_who_holds_nothing_is_not_given_up_for_the_budget(setup: Setup) -> None:
    """It would free nothing."""
    setup.suspended("idle")
    setup.suspended("a", held=60)
    setup.suspended("b", held=60)
    assert setup.ended == [("a", "evicted")]
    assert set(setup.registry.pipes) == {b"idle", b"b"}


def test_a_pipe_larger_than_the_budget_goes_itself(setup: Setup) -> None:
    setup.suspended("a", held=BUDGET + 1)
    assert setup.ended == [("a", "evicted")]
    assert setup.registry.held == 0


def test_what_a_suspended_pipe_holds_may_grow_and_shrink(setup: Setup) -> None:
    a, b = setup.suspended("a", held=50), setup.suspended("b")
    a.held = 20
    setup.registry.count(a)
    assert setup.registry.held == 20
    b.held = 90
    setup.registry.count(b)
    assert (setup.ended, setup.registry.held) == ([("a", "evicted")], 90)


def test_a_pipe_with_a_link_is_not_counted(setup: Setup) -> None:
    a = setup.suspended("a", held=50)
    setup.registry.resume(a)
    a.held = 10**9
    setup.registry.count(a)
    setup.registry.resume(a)
    assert (setup.registry.held, setup.ended) == (0, [])


def test_for_room_the_longest_suspended_goes_whatever_it_holds(setup: Setup) -> None:
    setup.registry.add(Thing("linked"))
    setup.suspended("idle")
    setup.suspended("a", held=60)
    assert [setup.registry.evict_longest("evicted") for _ in range(3)] == [True, True, False]
    assert [name for name, _ in setup.ended] == ["idle", "a"]
    assert set(setup.registry.pipes) == {b"linked"}


def test_the_first_reason_is_remembered(setup: Setup) -> None:
    a = setup.suspended("a")
    assert setup.registry.why_ended(b"a") is None
    setup.registry.expire(GRACE)
    setup.registry.remove(a, "finished")
    assert setup.registry.why_ended(b"a") == "expired"
    assert setup.registry.why_ended(b"never seen") is None


def test_reasons_are_bounded_and_the_oldest_is_forgotten_first(setup: Setup) -> None:
    for number in range(REMEMBERED + 2):
        thing = Thing(f"{number}")
        setup.registry.add(thing)
        setup.registry.remove(thing, "finished")
    reasons = [setup.registry.why_ended(str(number).encode()) for number in range(REMEMBERED + 2)]
    assert reasons == [None, None, *["finished"] * REMEMBERED]
    assert len(setup.registry._ended) == REMEMBERED


def test_a_pipe_that_has_ended_cannot_touch_its_successor(setup: Setup) -> None:
    """Its handler may run on, and let it count, lose links and end, when its id is in use again."""
    old = setup.suspended("a", held=10)
    setup.registry.remove(old, "closed")
    new = setup.suspended("a", held=20)
    old.held = 1000
    setup.registry.count(old)
    setup.registry.resume(old)
    setup.registry.remove(old, "finished")
    setup.registry.resume(new)
    setup.registry.suspend(old, 0)
    assert (setup.registry.pipes[b"a"], setup.registry.held, setup.registry.suspended) == (new, 0, 0)


class Machine(RuleBasedStateMachine):
    """Against a list of those without a link, in the order of their loss."""

    @initialize()
    def begin(self) -> None:
        self.setup = Setup()
        self.registry = self.setup.registry
        self.now = 0.0
        self.things: dict[str, Thing] = {}
        self.waiting: list[tuple[str, float, int]] = []  # name, deadline, bytes counted
        self.expected: list[tuple[str, RejectCode]] = []
        self.made = 0

    def give_up(self, index: int, reason: RejectCode) -> None:
        name = self.waiting.pop(index)[0]
        del self.things[name]
        self.expected.append((name, reason))

    def keep_budget(self) -> None:
        while sum(held for _, _, held in self.waiting) > BUDGET:
            self.give_up(next(index for index, (_, _, held) in enumerate(self.waiting) if held), "evicted")

    def draw(self, data: st.DataObject) -> Thing:
        return self.things[data.draw(st.sampled_from(sorted(self.things)))]

    @rule(held=st.integers(0, 60))
    def add(self, held: int) -> None:
        self.made += 1
        name = f"{self.made:03}"
        self.things[name] = Thing(name, held)
        self.registry.add(self.things[name])

    @precondition(lambda self: self.things)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        thing = self.draw(data)
        name = thing.id.decode()
        if all(name != other for other, _, _ in self.waiting):
            self.waiting.append((name, self.now + GRACE, thing.held))
        self.keep_budget()
        self.registry.suspend(thing, self.now)

    @precondition(lambda self: self.things)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        thing = self.draw(data)
        self.forget(thing.id.decode())
        self.registry.resume(thing)

    def forget(self, name: str) -> None:
        self.waiting = [entry for entry in self.waiting if entry[0] != name]

    @precondition(lambda self: self.things)
    @rule(data=st.data(), held=st.integers(0, 120))
    def change(self, data: st.DataObject, held: int) -> None:
        thing = self.draw(data)
        thing.held = held
        name = thing.id.decode()
        self.waiting = [(one, due, held if one == name else size) for one, due, size in self.waiting]
        self.keep_budget()
        self.registry.count(thing)

    @precondition(lambda self: self.things)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        thing = self.draw(data)
        self.forget(thing.id.decode())
        del self.things[thing.id.decode()]
        self.registry.remove(thing, "finished")
        assert self.registry.why_ended(thing.id) == "finished"

    @rule(seconds=st.floats(0, 12))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        while self.waiting and self.waiting[0][1] <= self.now:
            self.give_up(0, "expired")
        self.registry.expire(self.now)

    @rule()
    def need_room(self) -> None:
        was_there = bool(self.waiting)
        if was_there:
            self.give_up(0, "evicted")
        assert self.registry.evict_longest("evicted") == was_there

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        registry = self.registry
        assert registry.held == sum(held for _, _, held in self.waiting) <= BUDGET
        assert registry.held == sum(counted for _, counted in registry._suspended.values())
        assert list(registry._suspended) == [name.encode() for name, _, _ in self.waiting]
        assert registry.next_deadline == (self.waiting[0][1] if self.waiting else None)
        assert set(registry.pipes) == {name.encode() for name in self.things}
        assert self.setup.ended == self.expected
        assert all(registry.why_ended(name.encode()) == reason for name, reason in self.expected)


TestRegistry = Machine.TestCase
TestRegistry.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)

"""The ring buffer: never evicts, lets go of what is acknowledged, and can go back to any byte that it holds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventstream.pipes import RingBuffer
from eventstream.pipes.pieces import MANY, SMALL

CONTENT = bytes(range(251)) * 600


def ring_with(data: bytes, *, sent: int = 0, capacity: int = 10) -> RingBuffer:
    ring = RingBuffer(capacity)
    ring.append(data)
    while ring.sent < sent:
        ring.next_piece(sent - ring.sent)
    return ring


def rest(ring: RingBuffer) -> bytes:
    """All that waits to be sent."""
    pieces = []
    while piece := ring.next_piece(1 << 20):
        pieces.append(bytes(piece))
    return b"".join(pieces)


def shape(ring: RingBuffer) -> tuple[int, int, int, int]:
    return ring.start, ring.sent, ring.end, ring.free


class Machine(RuleBasedStateMachine):
    """A ring is all bytes that were ever taken in, and three positions among them."""

    @initialize(capacity=st.sampled_from([1, 2, 7, 64, 1000, 3 * SMALL]))
    def begin(self, capacity: int) -> None:
        self.ring = RingBuffer(capacity)
        self.capacity = capacity
        self.start = self.sent = self.end = 0

    @rule(size=st.one_of(st.integers(0, 9), st.integers(0, 2 * SMALL)))
    def append(self, size: int) -> None:
        if size > self.capacity - (self.end - self.start):
            with pytest.raises(ValueError, match=f"{size} bytes do not fit into a ring with {self.ring.free} free"):
                self.ring.append(bytes(size))
        elif self.end + size <= len(CONTENT):
            self.ring.append(CONTENT[self.end : self.end + size])
            self.end += size

    @rule(size=st.one_of(st.integers(0, 9), st.integers(0, 2 * SMALL)))
    def pass_on(self, size: int) -> None:
        """Only where nothing waits, and only if it fits; else nothing has happened."""
        size = min(size, len(CONTENT) - self.end)
        goes = self.sent == self.end and size <= self.capacity - (self.end - self.start)
        assert self.ring.pass_on(CONTENT[self.end : self.end + size]) == goes
        if goes:
            self.sent = self.end = self.end + size

    @rule(limit=st.one_of(st.integers(-1, 9), st.integers(0, 2 * SMALL)))
    def send(self, limit: int) -> None:
        piece = self.ring.next_piece(limit)
        assert len(piece) <= max(0, limit)
        assert bool(piece) == (self.sent < self.end and limit > 0)
        assert bytes(piece) == CONTENT[self.sent : self.sent + len(piece)]
        self.sent += len(piece)

    @rule(share=st.floats(0, 1), beyond=st.integers(-1, 1))
    def acknowledge(self, share: float, beyond: int) -> None:
        position = self.start + round((self.sent - self.start) * share) + (beyond if share in (0, 1) else 0)
        if position > self.sent:
            with pytest.raises(ValueError, match=f"{position} acknowledged, but only {self.sent} sent"):
                self.ring.acknowledge(position)
        else:
            self.ring.acknowledge(position)
            self.start = max(self.start, position)

    @rule(share=st.floats(0, 1), beyond=st.integers(-1, 1))
    def rewind(self, share: float, beyond: int) -> None:
        position = self.start + round((self.end - self.start) * share) + (beyond if share in (0, 1) else 0)
        if not self.start <= position <= self.end:
            with pytest.raises(ValueError, match=f"from {position}: there is {self.start} to {self.end}"):
                self.ring.rewind(position)
        else:
            self.ring.rewind(position)
            self.start = self.sent = position

    @invariant()
    def it_holds_what_the_model_says(self) -> None:
        ring = self.ring
        assert shape(ring) == (self.start, self.sent, self.end, self.capacity - (self.end - self.start))
        assert ring.size == self.end - self.start <= self.capacity
        assert b"".join(ring._in_flight._queue) == CONTENT[self.start : self.sent]
        assert b"".join(ring._waiting._queue) == CONTENT[self.sent : self.end]


TestRing = Machine.TestCase
TestRing.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_ring_holds_at_least_one_byte(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"at least one byte, not {capacity}"):
        RingBuffer(capacity)


def test_a_new_ring_is_empty() -> None:
    ring = RingBuffer(10)
    assert shape(ring) == (0, 0, 0, 10)
    assert ring.size == 0
    assert ring.next_piece(10) == b""


@pytest.mark.parametrize(("size", "fits"), [(0, True), (9, True), (10, True), (11, False), (1000, False)])
def test_what_fits_is_taken_whole_and_what_does_not_is_refused_whole(size: int, fits: bool) -> None:
    """Nothing is evicted to make room, and a refusal changes nothing."""
    ring = RingBuffer(10)
    if fits:
        ring.append(bytes(size))
    else:
        with pytest.raises(ValueError, match="do not fit into a ring with 10 free"):
            ring.append(bytes(size))
    assert ring.size == (size if fits else 0)


def test_a_full_ring_keeps_the_oldest_byte() -> None:
    ring = ring_with(b"0123456789", sent=10)
    with pytest.raises(ValueError, match="1 bytes do not fit into a ring with 0 free"):
        ring.append(b"x")
    ring.rewind(0)
    assert rest(ring) == b"0123456789"


def test_only_an_acknowledgement_makes_room() -> None:
    """Sending does not."""
    ring = ring_with(b"0123456789", sent=10)
    assert ring.free == 0
    ring.acknowledge(4)
    assert ring.free == 4
    ring.append(b"abcd")
    assert rest(ring) == b"abcd"


def test_what_was_not_sent_cannot_be_acknowledged() -> None:
    ring = ring_with(b"0123456789", sent=5)
    with pytest.raises(ValueError, match="6 acknowledged, but only 5 sent"):
        ring.acknowledge(6)
    assert shape(ring) == (0, 5, 10, 0)


def test_an_older_acknowledgement_changes_nothing() -> None:
    ring = ring_with(b"0123456789", sent=8)
    ring.acknowledge(5)
    for older in (5, 3, 0):
        ring.acknowledge(older)
    assert shape(ring) == (5, 8, 10, 5)


@pytest.mark.parametrize("position", [2, 3, 7, 8, 10])
def test_it_goes_back_or_on_to_any_byte_that_it_holds(position: int) -> None:
    """What stood before that byte is let go of; bytes that were never sent may be what the peer has already."""
    ring = ring_with(b"0123456789", sent=8)
    ring.acknowledge(2)
    ring.rewind(position)
    assert shape(ring) == (position, position, 10, position)
    ring.append(b"ab"[: ring.free])
    assert rest(ring) == b"0123456789ab"[position:]


@pytest.mark.parametrize("position", [-1, 1, 11])
def test_it_cannot_go_to_a_byte_that_it_does_not_hold(position: int) -> None:
    ring = ring_with(b"0123456789", sent=8)
    ring.acknowledge(2)
    with pytest.raises(ValueError, match=f"cannot send from {position}: there is 2 to 10"):
        ring.rewind(position)
    assert shape(ring) == (2, 8, 10, 2)


def test_a_large_payload_is_kept_by_reference_and_sent_again_as_the_same_object() -> None:
    large = bytes(SMALL)
    ring = ring_with(large, capacity=10_000)
    ring.append(b"x")
    assert ring.next_piece(10_000) is large
    ring.rewind(0)
    assert ring.next_piece(10_000) is large


def test_a_million_one_byte_sends_are_few_objects_also_after_they_were_sent() -> None:
    """A peer that takes them one by one, and acknowledges none, does not change that."""
    ring = RingBuffer(1_000_000)
    for _ in range(1_000_000):
        ring.append(b"x")
    assert len(ring._waiting._queue) <= 1_000_000 // MANY + MANY
    for _ in range(300_000):
        ring.next_piece(1)
    assert len(ring._in_flight._queue) <= 300_000 // MANY + MANY


def test_clear_lets_go_of_all_and_keeps_count() -> None:
    ring = ring_with(b"0123456789", sent=4)
    ring.clear()
    assert shape(ring) == (10, 10, 10, 10)
    assert rest(ring) == b""

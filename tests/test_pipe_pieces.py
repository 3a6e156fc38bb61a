"""A queue of bytes: any portions in and out, by reference if large, few objects if small, and no step twice."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventstream.pipes.pieces import MANY, SMALL, Piece, Pieces

CONTENT = bytes(range(251)) * 100
sizes = st.one_of(st.integers(0, 9), st.integers(SMALL - 2, SMALL + 2), st.integers(0, 3 * SMALL))


class Machine(RuleBasedStateMachine):
    """Pieces and a bytes object, changed alike, hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces()
        self.model = b""
        self.at = 0

    def fresh(self, size: int) -> bytes:
        self.at = (self.at + 7) % 5000
        return CONTENT[self.at : self.at + size]

    @rule(size=sizes, as_view=st.booleans())
    def append(self, size: int, as_view: bool) -> None:
        data = self.fresh(size)
        self.pieces.append(memoryview(data) if as_view else data)
        self.model += data

    @rule(count=st.integers(1, 2 * MANY), size=st.integers(1, 5))
    def append_many(self, count: int, size: int) -> None:
        for _ in range(count):
            self.append(size, as_view=False)

    @precondition(lambda self: self.model)
    @rule(limit=sizes.filter(bool))
    def take(self, limit: int) -> None:
        piece = self.pieces.take(limit)
        assert 1 <= len(piece) <= limit
        assert bytes(piece) == self.model[: len(piece)]
        self.model = self.model[len(piece) :]

    @rule(share=st.floats(0, 1))
    def drop(self, share: float) -> None:
        count = round(len(self.model) * share)
        self.pieces.drop(count)
        self.model = self.model[count:]

    @rule()
    def clear(self) -> None:
        self.pieces.clear()
        self.model = b""

    @invariant()
    def they_hold_the_same(self) -> None:
        queue = self.pieces._queue
        assert b"".join(queue) == self.model
        assert self.pieces.size == len(self.model)
        assert all(queue)
        assert 0 <= self.pieces._run <= min(len(queue), MANY - 1)


TestPieces = Machine.TestCase
TestPieces.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class CountingDeque(deque[Piece]):
    """Counts what is done to it."""

    steps = 0

    def append(self, piece: Piece) -> None:
        self.steps += 1
        super().append(piece)

    def appendleft(self, piece: Piece) -> None:
        self.steps += 1
        super().appendleft(piece)

    def pop(self, *_: Any) -> Piece:
        self.steps += 1
        return super().pop()

    def popleft(self) -> Piece:
        self.steps += 1
        return super().popleft()


def filled(sizes: list[int]) -> Pieces:
    pieces = Pieces()
    for size in sizes:
        pieces.append(bytes(size))
    return pieces


def test_a_million_one_byte_pieces_are_few_objects() -> None:
    """The bytes cost about themselves, not an object each."""
    pieces = filled([1] * 1_000_000)
    assert pieces.size == 1_000_000
    assert len(pieces._queue) <= 1_000_000 // MANY + MANY


@pytest.mark.parametrize("limit", [1, 100, 5000, 10**6])
def test_each_byte_is_handled_a_bounded_number_of_times(limit: int) -> None:
    """In any portions: no step is repeated for those that wait behind it."""
    pieces, count = Pieces(), 20_000
    pieces._queue = queue = CountingDeque()
    for _ in range(count):
        pieces.append(b"x")
    while pieces.size:
        pieces.take(limit)
    assert queue.steps <= 6 * count


def test_a_run_of_small_pieces_among_large_ones_is_bounded() -> None:
    """What is not joined are fewer than MANY for each large piece: memory follows the bytes."""
    pieces = filled(([1] * (MANY - 1) + [SMALL]) * 4)
    assert len(pieces._queue) == 4 * MANY
    assert pieces.size == 4 * (MANY - 1 + SMALL)


@pytest.mark.parametrize("piece", [bytes(SMALL), memoryview(bytes(SMALL)), bytes(10**6)], ids=["bytes", "view", "huge"])
def test_a_large_piece_comes_out_as_the_object_that_went_in(piece: Piece) -> None:
    pieces = filled([1])
    pieces.append(piece)
    pieces.append(b"x")
    assert pieces.take(10**7) == b"\0"
    assert pieces.take(10**7) is piece
    assert pieces.take(10**7) == b"x"


def test_a_part_of_a_piece_is_a_view_of_it() -> None:
    whole = bytes(range(200))
    pieces = Pieces()
    pieces.append(whole)
    pieces.drop(10)
    part = pieces.take(50)
    assert isinstance(part, memoryview)
    assert part.obj is whole
    assert part == whole[10:60]
    assert pieces.size == 140


def test_small_pieces_come_joined_up_to_the_limit() -> None:
    pieces = filled([3, 3, 3, SMALL])
    assert [len(pieces.take(7)), len(pieces.take(100)), len(pieces.take(100))] == [6, 3, 100]


def test_small_pieces_before_a_large_one_stay_apart_from_it() -> None:
    """A large piece ends a run: it is never copied into a joined one."""
    large = bytes(SMALL)
    pieces = filled([1] * (MANY - 1))
    pieces.append(large)
    for _ in range(MANY):
        pieces.append(b"x")
    assert len(pieces._queue) == MANY - 1 + 1 + 1
    assert any(piece is large for piece in pieces._queue)


def test_an_empty_piece_is_no_piece() -> None:
    pieces = filled([0, 0])
    assert pieces.size == 0
    assert not pieces._queue

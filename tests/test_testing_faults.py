"""The drawing of faults: what a seed decides, and within which bounds."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream.testing import Faults
from eventstream.testing.faults import PIECES, draw_delay, draw_fate, draw_part, draw_sizes

CHANCES = ["fragment", "stall", "cut", "lossy", "close", "half_open", "refuse", "hang", "duplicate"]
AMOUNTS = ["latency", "jitter", "stall_seconds", "life_bytes", "dial_seconds"]


@pytest.mark.parametrize("name", CHANCES)
@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_chance_is_between_0_and_1(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=name):
        Faults(**{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan")])
def test_an_amount_is_finite_and_not_negative(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=name):
        Faults(**{name: wrong})  # type: ignore[arg-type]


def test_the_shares_of_links_are_at_most_all() -> None:
    Faults(cut=0.7, close=0.2, half_open=0.1)
    with pytest.raises(ValueError, match="shares"):
        Faults(cut=0.7, close=0.3, half_open=0.1)


def test_drawn_mixtures_differ_and_follow_the_seed() -> None:
    drawn = [Faults.draw(seed) for seed in range(200)]
    assert drawn == [Faults.draw(seed) for seed in range(200)]
    assert len(set(drawn)) == 200
    for name in CHANCES:  # each is left out by some, and used by some
        assert {getattr(faults, name) > 0 for faults in drawn} == {True, False}


@given(st.integers(0, 10_000), st.integers(0, 1000))
def test_the_pieces_of_a_send_add_up(size: int, seed: int) -> None:
    sizes = list(draw_sizes(size, Faults(fragment=1.0), Random(seed)))
    assert sum(sizes) == size
    assert len(sizes) <= PIECES
    assert all(size > 0 for size in sizes)


@given(st.integers(1, 10_000), st.integers(0, 1000))
def test_a_part_is_at_least_one_byte_and_at_most_all(size: int, seed: int) -> None:
    assert 1 <= draw_part(size, Random(seed)) <= size


def test_without_faults_nothing_is_drawn() -> None:
    random = Random(1)
    state = random.getstate()
    assert list(draw_sizes(100, Faults(), random)) == [100]
    assert draw_delay(Faults(latency=2), random) == 2
    assert random.getstate() == state
    assert draw_fate(Faults(), random) is None


def test_a_fate_is_one_of_three() -> None:
    faults = Faults(cut=0.4, close=0.3, half_open=0.3, lossy=1.0)
    fates = [draw_fate(faults, Random(seed)) for seed in range(200)]
    assert {fate.kind for fate in fates if fate} == {"cut", "close", "half_open"}
    assert None not in fates
    assert {fate.direction for fate in fates if fate} == {"up", "down", None}
    assert {(fate.kind, fate.lose) for fate in fates if fate} == {("cut", True), ("close", False), ("half_open", False)}

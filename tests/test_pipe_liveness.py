"""The heartbeat of one link: a dead peer is noticed in two to three intervals, and our own absence is not its fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream.pipes.liveness import Liveness, Verdict

PING, DEAD = Verdict.PING, Verdict.DEAD


def ticks(liveness: Liveness, *times: float) -> list[Verdict]:
    return [liveness.tick(now) for now in times]


def test_the_first_tick_asks_at_once() -> None:
    assert ticks(Liveness(10, 100.0), 100.0) == [PING]


def test_a_peer_that_says_nothing_is_given_up_at_the_second_silent_tick() -> None:
    assert ticks(Liveness(10, 0), 0, 10, 20) == [PING, PING, DEAD]


def test_any_sign_of_life_begins_the_count_anew() -> None:
    liveness = Liveness(10, 0)
    for turn in range(0, 100, 20):
        assert ticks(liveness, turn, turn + 10) == [PING, PING]
        liveness.heard = True
    assert ticks(liveness, 100, 110, 120) == [PING, PING, DEAD]


@given(interval=st.floats(0.01, 100), share=st.floats(0, 5), late=st.floats(0, 1e-6))
def test_death_is_noticed_two_to_three_intervals_after_the_last_sign(
    interval: float, share: float, late: float
) -> None:
    """Wherever between two ticks that came, and if ticks are a little late."""
    liveness = Liveness(interval, 0)
    last_sign = share * interval
    now = before = 0.0
    while True:
        liveness.heard = before <= last_sign
        if liveness.tick(now) is DEAD:
            break
        before, now = now, now + interval * (1 + late)
    assert 2 - 1e-4 <= (now - last_sign) / interval <= 3 + 1e-4


@pytest.mark.parametrize("gap", [21, 100, 10**9])
def test_after_an_absence_of_ours_the_peer_may_answer_first(gap: float) -> None:
    """A suspended laptop: the silence was ours. The next silence is the peer's."""
    liveness = Liveness(10, 0)
    assert ticks(liveness, 0, 10) == [PING, PING]
    assert ticks(liveness, 10 + gap, 20 + gap) == [PING, DEAD]


def test_a_tick_that_is_a_little_late_is_no_absence() -> None:
    """Up to one interval too late: else a busy loop would keep dead links for ever."""
    assert ticks(Liveness(10, 0), 0, 10, 30) == [PING, PING, DEAD]


def test_an_absence_with_a_sign_of_life_counts_for_nothing() -> None:
    liveness = Liveness(10, 0)
    ticks(liveness, 0, 10)
    liveness.heard = True
    assert ticks(liveness, 100, 110, 120) == [PING, PING, DEAD]


def test_a_pong_measures_the_round_trip() -> None:
    liveness = Liveness(10, 0)
    assert liveness.round_trip is None
    liveness.pong(liveness.ping(5.0), 5.25)
    assert liveness.round_trip == 0.25


def test_only_the_first_answer_to_the_latest_ping_measures() -> None:
    """An answer to an earlier PING, to none, or a second one, says only that the peer lives."""
    liveness = Liveness(10, 0)
    liveness.pong(0, 1.0)
    assert liveness.round_trip is None
    first, second = liveness.ping(10.0), liveness.ping(20.0)
    assert first != second
    liveness.pong(first, 20.5)
    assert liveness.round_trip is None
    liveness.pong(second, 21.0)
    liveness.pong(second, 29.0)
    assert liveness.round_trip == 1.0

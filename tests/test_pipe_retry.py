"""The schedule of dials: at once, then full jitter under a bound that doubles up to a cap."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream.pipes import Retry

ALMOST_ONE = 1 - 2**-53


def test_the_first_dial_after_a_working_link_is_made_at_once() -> None:
    assert Retry().delay(0, ALMOST_ONE) == 0.0


def test_the_bound_doubles_up_to_the_cap() -> None:
    retry = Retry(first=0.5, cap=5)
    assert [retry.delay(failures, 1.0) for failures in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]


@given(
    failures=st.integers(1, 10**9),
    roll=st.floats(0, 1, exclude_max=True),
    first=st.floats(0.001, 10),
    times=st.floats(1, 1000),
)
def test_each_wait_is_a_random_part_of_its_bound(failures: int, roll: float, first: float, times: float) -> None:
    """From nothing to the whole bound, in proportion; after any number of failures."""
    retry = Retry(first=first, cap=first * times)
    bound = retry.delay(failures, 1.0)
    assert first <= bound <= retry.cap
    assert retry.delay(failures, roll) == roll * bound
    assert retry.delay(failures + 1, 1.0) in (min(2 * bound, retry.cap), retry.cap)


@pytest.mark.parametrize(
    "options",
    [
        {"first": 0},
        {"first": -1},
        {"first": nan},
        {"first": 2, "cap": 1},
        {"cap": nan},
        {"cap": inf},
        {"first": inf, "cap": inf},
        {"give_up_after": -1},
        {"give_up_after": nan},
    ],
    ids=str,
)
def test_a_schedule_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"first <= cap|give_up_after"):
        Retry(**options)


@pytest.mark.parametrize("options", [{"first": 1, "cap": 1}, {"give_up_after": 0}, {"give_up_after": inf}], ids=str)
def test_a_schedule_at_its_bounds_is_one(options: dict[str, Any]) -> None:
    """Waits of one length; giving up at the first failure; never giving up."""
    assert Retry(**options).delay(1, 1.0) > 0

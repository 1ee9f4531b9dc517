"""Rates: how much passes over a while, whatever the pattern of asking."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.limits import Limits, take


def _pass(rate: float, seconds: float, pauses: list[float], wanted: int, burst: float = 0.25) -> int:
    now, used, passed = 1_000.0, None, 0
    for pause in itertools.cycle(pauses):
        if now > 1_000.0 + seconds:
            return passed
        grant, used = take(used, now, rate, wanted, burst)
        passed += grant.granted
        now += pause
    raise AssertionError


@settings(derandomize=True, deadline=None, database=None)
@given(
    rate=st.floats(0.5, 500),
    pauses=st.lists(st.floats(0.001, 0.2), min_size=1, max_size=5),
    wanted=st.integers(1, 200),
)
def test_never_more_than_the_rate_and_its_burst_passes(rate: float, pauses: list[float], wanted: int) -> None:
    burst = max(0.25, 1 / rate)
    assert _pass(rate, 20, pauses, wanted, burst) <= rate * (20 + burst) + 2


def test_within_two_percent_over_a_minute_when_asked_often() -> None:
    assert abs(_pass(50, 60, [0.013], 100) - 3_000) <= 60


def test_a_rate_below_one_a_second_passes_too() -> None:
    assert 5 <= _pass(0.1, 60, [0.5], 10, burst=10.0) <= 8


def test_who_is_refused_is_told_when_to_ask_again() -> None:
    grant, used = take(None, 100.0, 2.0, 1, 0.5)
    assert grant.granted == 1
    grant, _ = take(used, 100.0, 2.0, 1, 0.5)
    assert grant.granted == 0
    assert abs(grant.wait_seconds - 0.5) < 1e-6


def test_a_process_alone_keeps_to_its_part() -> None:
    now = [50.0]
    limits = Limits(None, monotonic=lambda: now[0])
    passed = 0
    for _ in range(600):
        passed += limits.take("server:primary", 100.0, 50, burst_seconds=0.2, processes=4).granted
        now[0] += 0.1
    assert abs(passed - 60 * 25) <= 30

"""Limits of several periods at once: what passes over a while, whatever the pattern of asking."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.limit import Limit, Meter
from campaigns.limits import Limits, Request

quick = settings(derandomize=True, deadline=None, database=None)


def smooth(count: float, period_seconds: float = 1.0, burst_seconds: float = 0.2) -> Limit:
    return Limit(name="rate", count=count, period_seconds=period_seconds, burst_seconds=burst_seconds)


def _pass(limit: Limit, seconds: float, pauses: list[float], wanted: int) -> int:
    meter, now, passed = Meter(), 1_000.0, 0
    for pause in itertools.cycle(pauses):
        if now > 1_000.0 + seconds:
            return passed
        passed += meter.take([limit], wanted, now).granted
        now += pause
    raise AssertionError


@quick
@given(
    rate=st.floats(0.5, 500),
    pauses=st.lists(st.floats(0.001, 0.2), min_size=1, max_size=5),
    wanted=st.integers(1, 200),
)
def test_never_more_than_the_rate_and_its_burst_passes(rate: float, pauses: list[float], wanted: int) -> None:
    limit = smooth(rate)
    assert _pass(limit, 5, pauses, wanted) <= rate * (5 + limit.burst) + 2


def test_a_time_without_mail_is_caught_up_to_a_burst_at_most() -> None:
    limit, meter = smooth(100, burst_seconds=0.2), Meter()
    assert meter.take([limit], 1, 1_000.0).granted == 1
    assert meter.take([limit], 5_000, 1_060.0).granted == 20


def test_within_two_percent_over_a_minute_when_asked_often() -> None:
    assert abs(_pass(smooth(50), 60, [0.013], 100) - 3_000) <= 60


def test_a_rate_below_one_a_second_passes_too() -> None:
    assert 5 <= _pass(smooth(6, 60), 60, [0.5], 10) <= 8


@quick
@given(
    count=st.integers(0, 40),
    period=st.sampled_from([3600, 86400]),
    asked=st.lists(st.tuples(st.floats(0, 6000), st.integers(1, 15)), min_size=1, max_size=60),
)
def test_no_window_of_an_hour_or_a_day_ever_sees_more_than_its_limit(
    count: int, period: int, asked: list[tuple[float, int]]
) -> None:
    limit, meter, now = Limit.of("x", count, period, ""), Meter(), 12_345.0
    sent: deque[tuple[float, int]] = deque()
    for pause, wanted in asked:
        now += pause
        sent.append((now, meter.take([limit], wanted, now).granted))
        while sent[0][0] <= now - period:
            sent.popleft()
        assert sum(granted for _, granted in sent) <= count


@pytest.mark.parametrize("period", [3600, 86400])
def test_what_went_out_just_within_the_window_counts_with_the_rest_of_its_bucket(period: int) -> None:
    limit, meter = Limit.of("x", 10, period, ""), Meter()
    sent_at = 10 * 86_400 + limit.bucket_seconds - 1.0
    assert meter.take([limit], 10, sent_at).granted == 10
    assert meter.take([limit], 10, sent_at + period - 1).granted == 0
    assert meter.take([limit], 10, sent_at + period + limit.bucket_seconds).granted == 10


@quick
@given(
    count=st.integers(1, 40),
    used=st.lists(st.tuples(st.floats(0, 600), st.integers(1, 15)), min_size=1, max_size=30),
)
def test_after_the_wait_one_more_passes_and_not_before(count: int, used: list[tuple[float, int]]) -> None:
    limit, meter, now = Limit.of("x", count, 3600, ""), Meter(), 12_345.0
    for pause, wanted in used:
        now += pause
        wait_seconds = meter.take([limit], wanted, now).wait_seconds
    if wait_seconds > 0:
        assert meter.take([limit], 1, now + wait_seconds - 0.5).granted == 0
        assert meter.take([limit], 1, now + wait_seconds + 0.001).granted == 1


def test_what_counted_an_hour_ago_counts_no_more() -> None:
    limit, meter = Limit.of("x", 10, 3600, ""), Meter()
    assert meter.take([limit], 20, 0.0).granted == 10
    assert meter.take([limit], 20, 3_600.0).granted == 0
    assert meter.take([limit], 20, 3_661.0).granted == 10


def test_several_limits_grant_what_all_of_them_allow_and_take_it_from_each() -> None:
    meter, hour, day = Meter(), Limit.of("x", 5, 3600, "5/h"), Limit.of("x", 7, 86400, "7/d")
    assert meter.take([hour, day], 9, 0.0).granted == 5
    grant = meter.take([hour, day], 9, 0.0)
    assert (grant.granted, grant.limit, grant.left) == (0, hour, (0, 2))
    assert meter.take([hour, day], 9, 4_000.0).granted == 2
    assert meter.take([hour, day], 9, 4_000.0).limit == day


def test_what_is_given_back_may_be_taken_again() -> None:
    meter, limits = Meter(), [smooth(10), Limit.of("x", 3, 3600, "")]
    assert meter.take(limits, 1, 100.0).granted == 1
    assert meter.take(limits, 1, 100.0).granted == 0
    meter.take(limits, -1, 100.0)
    assert meter.take(limits, 1, 100.0).granted == 1


def test_looking_takes_nothing() -> None:
    meter, limit = Meter(), Limit.of("x", 3, 3600, "")
    assert [meter.take([limit], 0, 0.0).left for _ in range(3)] == [(3,)] * 3


def test_a_limit_of_nothing_allows_nothing() -> None:
    grant = Meter().take([Limit.of("x", 0, 86400, "")], 1, 0.0)
    assert (grant.granted, grant.wait_seconds) == (0, 86400)


def test_who_is_refused_is_told_when_to_ask_again() -> None:
    meter, limit = Meter(), smooth(2, burst_seconds=0.5)
    assert meter.take([limit], 1, 100.0).granted == 1
    grant = meter.take([limit], 1, 100.0)
    assert grant.granted == 0
    assert grant.wait_seconds == pytest.approx(0.5)


def test_a_clock_that_is_set_back_stops_nothing_for_long() -> None:
    meter, limit = Meter(), smooth(10)
    meter.take([limit], 1, 1_000_000.0)
    assert meter.take([limit], 9, 1_000.0).granted == 1
    assert meter.take([limit], 9, 1_000.1).granted == 1


def test_a_process_alone_keeps_to_its_part() -> None:
    now = [50.0]
    limits = Limits(None, clock=lambda: now[0])
    passed = 0
    for _ in range(600):
        passed += limits.take("server:primary", 100.0, 50, burst_seconds=0.2, processes=4).granted
        now[0] += 0.1
    assert abs(passed - 60 * 25) <= 30


class _Ledger:
    """A memory of one limit, of which so much was used a minute ago."""

    name = "one"

    def __init__(self, limit: Limit, used: int) -> None:
        self.limit, self.used, self.reads = limit, used, 0

    def read(self) -> list[tuple[Limit, list[tuple[float, int]]]]:
        self.reads += 1
        return [(self.limit, [(60.0, self.used)])]


def test_a_process_alone_keeps_to_its_part_of_what_is_left_of_the_day() -> None:
    limit = Limit.of("x", 100, 86400, "")
    limits = Limits(None, memory=_Ledger(limit, 60), clock=lambda: 1_000_000.0)
    granted = limits.take_all([Request(limits=(limit,), wanted=99, processes=4)])[0].granted
    assert granted == 10


def test_a_process_alone_looks_again_what_the_others_have_sent() -> None:
    now = [0.0]
    limit = Limit.of("x", 100, 86400, "")
    memory = _Ledger(limit, 0)
    limits = Limits(None, memory=memory, clock=lambda: 1_000_000.0 + now[0], monotonic=lambda: now[0])
    request = Request(limits=(limit,), wanted=99, processes=2)
    assert limits.take_all([request])[0].granted == 50
    assert limits.take_all([request])[0].granted == 0
    memory.used, now[0] = 80, 61.0
    assert limits.take_all([request])[0].granted == 10
    assert memory.reads == 2

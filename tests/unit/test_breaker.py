"""The circuit breaker's transitions, with time and chance as arguments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.breaker import Breaker, BreakerState, cool_down_seconds
from tests.unit.strategies import ANY_TEXT, REPEATABLE

NOW = 1_700_000_000.0
MIDDLE = 0.5
"""The random number that jitters nothing."""


def faulted(breaker: Breaker, times: int, now: float = NOW) -> Breaker:
    for _ in range(times):
        breaker = breaker.after_fault(now, reason="refused", random=MIDDLE)
    return breaker


def test_three_faults_in_a_row_open_it() -> None:
    assert faulted(Breaker(), 2).state is BreakerState.CLOSED
    opened = faulted(Breaker(), 3)
    assert (opened.state, opened.open_until, opened.reason) == (BreakerState.OPEN, NOW + 2, "refused")


def test_a_success_between_faults_starts_the_count_again() -> None:
    breaker = faulted(faulted(Breaker(), 2).after_success(NOW), 2)
    assert (breaker.state, breaker.faults) == (BreakerState.CLOSED, 2)


def test_a_success_that_the_reporter_kept_to_itself_starts_the_count_again_too() -> None:
    breaker = faulted(Breaker(), 2).after_fault(NOW, reason="x", random=MIDDLE, after_success=True)
    assert (breaker.state, breaker.faults) == (BreakerState.CLOSED, 1)


def test_stragglers_change_nothing_while_it_is_open() -> None:
    opened = faulted(Breaker(), 3)
    assert faulted(opened, 5, NOW + 1) == opened
    assert opened.after_success(NOW + 1) == opened


def test_it_is_half_open_when_its_cool_down_is_over() -> None:
    opened = faulted(Breaker(), 3)
    assert opened.at(NOW + 1.99).state is BreakerState.OPEN
    assert opened.at(NOW + 2).state is BreakerState.HALF_OPEN


def test_half_open_lets_one_mail_through_at_a_time_until_that_expires() -> None:
    opened = faulted(Breaker(), 3)
    assert opened.probed(NOW + 1, token="a", seconds=20) is None
    probed = opened.probed(NOW + 2, token="a", seconds=20)
    assert probed is not None
    assert probed.probed(NOW + 21, token="b", seconds=20) is None
    assert probed.probed(NOW + 22, token="b", seconds=20) is not None


def test_a_probe_that_is_given_back_makes_room_for_the_next_and_only_its_owner_can() -> None:
    probed = faulted(Breaker(), 3).probed(NOW + 2, token="a", seconds=20)
    assert probed is not None
    assert probed.released("b").probed(NOW + 3, token="c", seconds=20) is None
    assert probed.released("a").probed(NOW + 3, token="c", seconds=20) is not None


def test_a_success_closes_it_and_a_fault_opens_it_for_twice_as_long() -> None:
    probed = faulted(Breaker(), 3).probed(NOW + 2, token="a", seconds=20)
    assert probed is not None
    closed = probed.after_success(NOW + 3)
    assert (closed.state, closed.faults, closed.probe) == (BreakerState.CLOSED, 0, "")
    again = faulted(probed, 1, NOW + 3)
    assert (again.state, again.open_until, again.probe) == (BreakerState.OPEN, NOW + 7, "")


@pytest.mark.parametrize("step_back", [73.0, 3600.0, 86_400.0])
def test_a_clock_that_was_set_back_does_not_prolong_anything(step_back: float) -> None:
    opened = faulted(Breaker(), 3)
    back = NOW - step_back
    assert (opened.at(back).state, opened.at(back).since) == (BreakerState.HALF_OPEN, back)
    probed = opened.probed(NOW + 2, token="a", seconds=20)
    assert probed is not None and probed.probed(back, token="b", seconds=20) is not None
    assert faulted(probed.after_success(NOW + 3), 3, back).open_until == back + 2, (
        "it was calm for all we know"
    )
    full = Breaker().filled(NOW, until=NOW + 600)
    assert full.is_full(NOW) and not full.is_full(back)
    assert full.filled(back, until=back + 10).full_until == back + 10


def test_a_small_step_back_keeps_the_cool_down() -> None:
    assert faulted(Breaker(), 3).at(NOW - 1).state is BreakerState.OPEN


def test_cool_downs_double_to_a_minute() -> None:
    assert [cool_down_seconds(n, MIDDLE) for n in range(1, 9)] == [2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 1.6), (0.999999, 2.4)])
def test_cool_downs_are_jittered_by_a_fifth(random: float, seconds: float) -> None:
    assert cool_down_seconds(1, random) == pytest.approx(seconds, abs=1e-3)


def test_one_that_flaps_goes_on_doubling_and_one_that_was_calm_starts_anew() -> None:
    closed = faulted(Breaker(), 3).at(NOW + 2).after_success(NOW + 2)
    assert faulted(closed, 3, NOW + 10).open_until == NOW + 10 + 4
    assert faulted(closed, 3, NOW + 100).open_until == NOW + 100 + 2


@REPEATABLE
@given(
    ANY_TEXT | st.sampled_from(["null", "[]", '{"state": "odd"}', '{"extra": 1}', '{"faults": null, "x": 2}'])
)
def test_what_cannot_be_read_is_closed(text: str) -> None:
    assert Breaker.from_json(text).state is BreakerState.CLOSED


STEPS = st.lists(
    st.tuples(st.sampled_from(["fault", "success", "probe", "release"]), st.floats(0, 90)), max_size=40
)


@REPEATABLE
@given(STEPS, st.floats(0, 0.999))
def test_it_never_stays_open_for_more_than_the_longest_cool_down(
    steps: list[tuple[str, float]], random: float
) -> None:
    breaker, now = Breaker(), NOW
    for step, passed in steps:
        now += passed
        match step:
            case "fault":
                breaker = breaker.after_fault(now, reason="x", random=random)
            case "success":
                breaker = breaker.after_success(now)
            case "probe":
                breaker = breaker.probed(now, token="t", seconds=20) or breaker
            case _:
                breaker = breaker.released("t")
        assert breaker.open_until <= now + 72
        assert Breaker.from_json(breaker.to_json()) == breaker
    assert breaker.at(now + 72).state is not BreakerState.OPEN

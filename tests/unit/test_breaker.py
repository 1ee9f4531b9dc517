"""The circuit breaker's transitions, with time and chance as arguments."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.breaker import WHOLE, Breaker, BreakerState, Fault, cool_down_seconds
from campaigns.policies import BreakerPolicy
from campaigns.tally import Tally
from tests.unit.strategies import REPEATABLE

NOW = 1_700_000_000.0
MIDDLE = 0.5
"""The random number that jitters nothing."""
POLICY = BreakerPolicy()
REFUSED = Fault(reason="refused")


def faulted(breaker: Breaker, times: int, now: float = NOW, fault: Fault = REFUSED) -> Breaker:
    for _ in range(times):
        breaker = breaker.at(now, POLICY).after_fault(fault, now, POLICY, random=MIDDLE)
    return breaker


def worked(breaker: Breaker, now: float, count: int = 1, token: str = "") -> Breaker:
    return breaker.at(now, POLICY).after_successes(count, now, POLICY, token=token)


def back(now: float = NOW) -> Breaker:
    """Closed again after one opening, at its first step."""
    breaker = faulted(Breaker(), 5, now - 10)
    for _ in range(POLICY.probes):
        breaker = worked(breaker, now, token="t")
    assert (breaker.state, breaker.percent(POLICY)) == (BreakerState.CLOSED, 10)
    return breaker


# It opens.


def test_faults_in_a_row_open_it_and_the_reason_says_how_many_and_how_fast() -> None:
    assert faulted(Breaker(), 4).state is BreakerState.CLOSED
    opened = faulted(faulted(Breaker(), 4), 1, NOW + 0.8)
    assert (opened.state, opened.open_until) == (BreakerState.OPEN, NOW + 0.8 + 2)
    assert opened.reason == "5 faults in 0.8 s: refused"


def test_one_fault_is_enough_where_that_is_configured() -> None:
    policy = BreakerPolicy(consecutive_faults=1)
    opened = Breaker().after_fault(REFUSED, NOW, policy, random=MIDDLE)
    assert (opened.state, opened.reason) == (BreakerState.OPEN, "a fault: refused")


def test_a_success_between_faults_starts_the_count_again() -> None:
    breaker = faulted(worked(faulted(Breaker(), 4), NOW), 4)
    assert (breaker.state, breaker.faults) == (BreakerState.CLOSED, 4)


def test_a_part_of_all_mail_opens_it_once_that_is_enough_to_judge_by() -> None:
    breaker = Breaker()
    for _ in range(6):
        breaker = worked(faulted(breaker, 2), NOW)
    assert breaker.state is BreakerState.CLOSED, "12 of 18, two in a row at most"
    opened = faulted(breaker, 2)
    assert opened.reason == "70 % of 20 mails failed within 30 s: refused"


def test_a_smaller_part_does_not_however_long_it_lasts() -> None:
    breaker, now = Breaker(), NOW
    for _ in range(500):
        now += 0.1
        breaker = faulted(worked(breaker, now, 5), 4, now)
    assert breaker.state is BreakerState.CLOSED


def test_what_is_older_than_the_window_is_forgotten() -> None:
    breaker = worked(faulted(Breaker(), 4), NOW)
    breaker = worked(faulted(breaker, 4), NOW)
    breaker = worked(breaker, NOW + 31, 12)
    assert faulted(breaker, 1, NOW + 31).state is BreakerState.CLOSED
    assert breaker.tally.counts(NOW + 31, POLICY.window_seconds) == (12, 0)


def slow(seconds: float = 10.0, *, is_stuck: bool = False) -> Fault:
    return Fault(reason="no reply to RCPT", waited_seconds=seconds, age_seconds=seconds, is_stuck=is_stuck)


def test_two_slow_ones_open_it_if_nothing_went_through_meanwhile() -> None:
    breaker = worked(Breaker(), NOW - 12)
    one = faulted(breaker, 1, NOW, slow())
    assert one.state is BreakerState.CLOSED
    assert faulted(one, 1, NOW, slow()).reason == "nothing went through for 10.0 s: no reply to RCPT"


def test_slow_ones_among_good_traffic_condemn_nobody() -> None:
    breaker = worked(Breaker(), NOW - 9, 100)
    assert faulted(breaker, 4, NOW, slow(is_stuck=True)).state is BreakerState.CLOSED


def test_one_slow_mail_opens_it_where_it_holds_up_every_connection() -> None:
    assert faulted(Breaker(), 1, NOW, slow(is_stuck=True)).state is BreakerState.OPEN


def test_a_refusal_is_no_stall_however_long_nothing_went_through() -> None:
    assert (
        faulted(Breaker(), 4, NOW, Fault(reason="refused", waited_seconds=0.1)).state is BreakerState.CLOSED
    )


def test_stragglers_change_nothing_while_it_is_open() -> None:
    opened = faulted(Breaker(), 5)
    assert faulted(opened, 5, NOW + 1) == opened
    assert worked(opened, NOW + 1) == opened


# It is tried.


def test_it_is_half_open_when_its_cool_down_is_over() -> None:
    opened = faulted(Breaker(), 5)
    assert opened.at(NOW + 1.99, POLICY).state is BreakerState.OPEN
    assert opened.at(NOW + 2, POLICY).state is BreakerState.HALF_OPEN


def tried(now: float = NOW + 2) -> Breaker:
    breaker = faulted(Breaker(), 5).at(now, POLICY).probed(now, token="a", seconds=20)
    assert breaker is not None
    return breaker


def test_half_open_lets_one_mail_through_at_a_time_until_that_expires() -> None:
    assert faulted(Breaker(), 5).probed(NOW + 1, token="a", seconds=20) is None
    assert tried().probed(NOW + 21, token="b", seconds=20) is None
    assert tried().probed(NOW + 22, token="b", seconds=20) is not None


def test_a_probe_that_is_given_back_makes_room_for_the_next_and_only_its_owner_can() -> None:
    assert tried().released("b").probed(NOW + 3, token="c", seconds=20) is None
    assert tried().released("a").probed(NOW + 3, token="c", seconds=20) is not None


def test_so_many_trials_close_it_at_the_first_step_and_one_makes_room_for_the_next() -> None:
    breaker = worked(tried(), NOW + 3, token="a")
    assert (breaker.state, breaker.passed, breaker.probe) == (BreakerState.HALF_OPEN, 1, "")
    breaker = worked(worked(breaker, NOW + 4, token="b"), NOW + 4, token="c")
    assert (breaker.state, breaker.percent(POLICY)) == (BreakerState.CLOSED, 10)
    assert breaker.reason == "3 trial mails went through; back at 10 %"


def test_only_trials_count_while_half_open() -> None:
    straggler = worked(faulted(tried(), 9, NOW + 3), NOW + 3, 100)
    assert straggler == tried()


def test_a_trial_that_fails_opens_it_for_twice_as_long() -> None:
    again = faulted(tried(), 1, NOW + 3, Fault(reason="refused", token="a"))
    assert (again.state, again.open_until, again.probe, again.passed) == (BreakerState.OPEN, NOW + 7, "", 0)
    assert again.reason == "a trial mail failed: refused"


def test_cool_downs_double_to_the_longest() -> None:
    lengths = [cool_down_seconds(POLICY, n, MIDDLE) for n in range(8)]
    assert lengths == [2, 4, 8, 16, 32, 64, 120, 120]


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 1.6), (0.999999, 2.4)])
def test_cool_downs_are_jittered_by_a_fifth(random: float, seconds: float) -> None:
    assert cool_down_seconds(POLICY, 0, random) == pytest.approx(seconds, abs=1e-3)


# It comes back.


def test_it_gets_its_load_back_in_steps_of_some_seconds() -> None:
    breaker, percents = back(), []
    for second in range(0, 21, 5):
        breaker = worked(breaker, NOW + second)
        percents.append(breaker.percent(POLICY))
    assert percents == [10, 25, 50, 100, 100]
    assert (breaker.step, breaker.reason) == (WHOLE, "mail went through at 50 %, all of it is back")


def test_a_step_without_a_success_lasts() -> None:
    assert back().at(NOW + 3600, POLICY).percent(POLICY) == 10


def test_a_fault_costs_a_step_and_makes_the_next_ones_longer() -> None:
    at_50 = worked(worked(worked(back(), NOW), NOW + 5), NOW + 10)
    assert at_50.percent(POLICY) == 50
    at_25 = faulted(at_50, 1, NOW + 11)
    assert (at_25.percent(POLICY), at_25.reason) == (25, "a fault: refused")
    at_25 = worked(at_25, NOW + 12)
    assert at_25.at(NOW + 11 + 19.9, POLICY).percent(POLICY) == 25
    assert at_25.at(NOW + 11 + 20, POLICY).percent(POLICY) == 50
    assert worked(at_25, NOW + 15, 499).at(NOW + 11 + 5, POLICY).percent(POLICY) == 50, "so many do it sooner"


def test_faults_of_mails_that_were_begun_together_cost_one_step() -> None:
    at_50 = worked(worked(worked(back(), NOW), NOW + 5), NOW + 10)
    burst = Fault(reason="refused", age_seconds=0.5)
    assert faulted(at_50, 4, NOW + 12, burst).percent(POLICY) == 25
    assert faulted(at_50, 5, NOW + 12, burst).state is BreakerState.OPEN


def test_a_fault_at_the_first_step_opens_it_again_for_longer_still() -> None:
    opened = faulted(back(), 1, NOW + 1)
    assert (opened.state, opened.reason) == (BreakerState.OPEN, "a fault at 10 %: refused")
    assert opened.open_until == NOW + 1 + 8, "it has opened twice, and had been given mail again"


def test_mails_that_were_begun_before_it_closed_are_not_held_against_it() -> None:
    straggler = Fault(reason="no reply to the dot", age_seconds=600, waited_seconds=600)
    assert faulted(back(), 9, NOW + 5, straggler) == back()


def test_without_steps_it_is_whole_at_once() -> None:
    policy = BreakerPolicy(failback_percent=(100,), probes=1)
    breaker = faulted(Breaker(), 5).at(NOW + 2, policy).after_successes(1, NOW + 2, policy, token="t")
    assert (breaker.percent(policy), breaker.step) == (100, WHOLE)


def test_a_step_that_is_not_configured_any_more_is_the_whole() -> None:
    assert worked(worked(back(), NOW), NOW + 5).percent(BreakerPolicy(failback_percent=(50, 100))) == 100


def whole(now: float) -> Breaker:
    """Closed again after one opening, and given all of its share since `now`."""
    breaker = back(now - 15)
    for seconds in (15, 10, 5, 0):
        breaker = worked(breaker, now - seconds)
    assert breaker.step == WHOLE
    return breaker


def test_one_that_was_whole_for_a_while_starts_anew_and_one_that_flaps_does_not() -> None:
    assert faulted(whole(NOW), 5, NOW + 59).open_until == NOW + 59 + 4
    assert faulted(whole(NOW), 5, NOW + 60).open_until == NOW + 60 + 2


def test_a_cool_down_does_not_grow_for_the_last_one_that_takes_mail() -> None:
    again = tried().after_fault(
        Fault(reason="refused", token="a"), NOW + 3, POLICY, random=MIDDLE, is_last=True
    )
    assert (again.open_until, again.openings) == (NOW + 5, 1)


def test_nor_is_it_as_long_as_it_grew_while_others_took_mail() -> None:
    condemned = replace(tried(), openings=4)
    fault = Fault(reason="refused", token="a")
    last = condemned.after_fault(fault, NOW + 3, POLICY, random=MIDDLE, is_last=True)
    assert (last.open_until, last.openings) == (NOW + 5, 4)
    one_of_many = condemned.after_fault(fault, NOW + 3, POLICY, random=MIDDLE)
    assert one_of_many.open_until > NOW + 5


# Clocks and checks.


@pytest.mark.parametrize("step_back", [200.0, 3600.0, 86_400.0])
def test_a_clock_that_was_set_back_does_not_prolong_anything(step_back: float) -> None:
    opened = faulted(Breaker(), 5)
    before = NOW - step_back
    assert (opened.at(before, POLICY).state, opened.at(before, POLICY).since) == (
        BreakerState.HALF_OPEN,
        before,
    )
    assert tried().probed(before, token="b", seconds=20) is not None
    assert worked(back(), before).at(before, POLICY).percent(POLICY) == 25
    assert faulted(whole(NOW), 5, before).open_until == before + 2, "it was calm for all we know"
    full = Breaker().filled(NOW, until=NOW + 600)
    assert full.is_full(NOW) and not full.is_full(before)
    assert full.filled(before, until=before + 10).full_until == before + 10


def test_a_small_step_back_keeps_the_cool_down() -> None:
    assert faulted(Breaker(), 5).at(NOW - 1, POLICY).state is BreakerState.OPEN


def test_failed_checks_in_a_row_open_it_and_one_that_went_well_takes_no_fault_back() -> None:
    breaker = faulted(Breaker(), 4)
    for error in ["refused"] * 4 + [""] + ["refused"] * 4:
        breaker = breaker.after_check(error, NOW, POLICY, random=MIDDLE)
    assert (breaker.state, breaker.faults) == (BreakerState.CLOSED, 4)
    opened = breaker.after_check("refused", NOW, POLICY, random=MIDDLE)
    assert opened.reason == "5 checks in a row failed: refused"


# What is kept of it.


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "open",
        {"state": "odd"},
        {"faults": None},
        {"faults": 1.5},
        {"since": "x"},
        {"probe": 1},
        {"tally": [[1]]},
        {"tally": 3},
        {"tally": [["x", 1, 1]]},
    ],
)
def test_what_cannot_be_read_is_closed(values: object) -> None:
    assert Breaker.from_dict(values) == Breaker()


def test_fields_of_another_version_are_passed_over() -> None:
    assert Breaker.from_dict({"faults": 2, "colour": "red"}) == Breaker(faults=2)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fault", "trial fault", "success", "trial", "check", "full"]), st.floats(0, 200)
    ),
    max_size=60,
)
POLICIES = st.builds(
    BreakerPolicy,
    consecutive_faults=st.integers(1, 10),
    minimum_volume=st.integers(1, 30),
    probes=st.integers(1, 4),
    failback_percent=st.sampled_from([(10, 25, 50, 100), (50, 100), (100,)]),
    cool_down_seconds=st.sampled_from([0.5, 2.0, 120.0]),
)


def stepped(breaker: Breaker, step: str, now: float, policy: BreakerPolicy, random: float) -> Breaker:
    breaker = breaker.at(now, policy)
    match step:
        case "fault" | "trial fault":
            fault = Fault(reason="x", token="t" if step == "trial fault" else "")
            return breaker.after_fault(fault, now, policy, random=random)
        case "success" | "trial":
            return breaker.after_successes(1, now, policy, token="t" if step == "trial" else "")
        case "check":
            return breaker.after_check("x", now, policy, random=random)
        case _:
            return breaker.filled(now, until=now + 10, reason="454")


@REPEATABLE
@given(STEPS, POLICIES, st.floats(0, 0.999))
def test_whatever_happened_a_server_that_fails_is_off_soon_and_one_that_works_is_whole_soon(
    steps: list[tuple[str, float]], policy: BreakerPolicy, random: float
) -> None:
    breaker, now = Breaker(), NOW
    for step, passed in steps:
        now += passed
        breaker = stepped(breaker, step, now, policy, random)
        assert Breaker.from_dict(breaker.to_dict()) == breaker
        assert breaker.open_until <= now + 1.2 * policy.longest_cool_down_seconds
    failing = breaker
    for _ in range(policy.consecutive_faults):
        failing = stepped(failing, "trial fault", now, policy, random)
    assert failing.at(now, policy).state is BreakerState.OPEN
    working = breaker.at(now + 400, policy)
    assert working.state is not BreakerState.OPEN
    now += 400
    for _ in range(policy.probes + 4):
        working = stepped(working, "trial", now, policy, random)
        now += 120
    assert working.at(now, policy).percent(policy) == 100


@REPEATABLE
@given(STEPS, POLICIES, st.floats(0, 0.999))
def test_it_goes_from_state_to_state_in_the_order_of_the_rules(
    steps: list[tuple[str, float]], policy: BreakerPolicy, random: float
) -> None:
    breaker, now = Breaker(), NOW
    for step, passed in steps:
        now += passed
        present = breaker.at(now, policy)
        follows(breaker, present, policy)
        after = stepped(present, step, now, policy, random)
        follows(present, after, policy)
        if "fault" in step or step == "check":
            assert after.percent(policy) <= present.percent(policy), "a fault never earns anything"
        breaker = after


def follows(before: Breaker, after: Breaker, policy: BreakerPolicy) -> None:
    allowed = {
        BreakerState.CLOSED: {BreakerState.CLOSED, BreakerState.OPEN},
        BreakerState.OPEN: {BreakerState.OPEN, BreakerState.HALF_OPEN},
        BreakerState.HALF_OPEN: {BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.CLOSED},
    }
    assert after.state in allowed[before.state]
    if before.state is not BreakerState.CLOSED and after.state is BreakerState.CLOSED:
        assert after.percent(policy) == policy.failback_percent[0]
    if before.state is after.state is BreakerState.CLOSED:
        steps = [*policy.failback_percent]
        assert abs(steps.index(after.percent(policy)) - steps.index(before.percent(policy))) <= 1


@REPEATABLE
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_the_window_counts_what_is_in_it_to_a_tenth_of_its_length(
    seen: list[tuple[float, int, int]],
) -> None:
    tally, now, times = Tally(), NOW, []
    for passed, good, bad in seen:
        now += passed
        tally = tally.plus(now, 30.0, good=good, bad=bad)
        times.append((now, good, bad))
        assert len(tally.buckets) <= 10
    good, bad = tally.counts(now, 30.0)
    surely = [(g, b) for at, g, b in times if now - at < 27.0]
    perhaps = [(g, b) for at, g, b in times if now - at <= 30.0]
    assert sum(g for g, _ in surely) <= good <= sum(g for g, _ in perhaps)
    assert sum(b for _, b in surely) <= bad <= sum(b for _, b in perhaps)

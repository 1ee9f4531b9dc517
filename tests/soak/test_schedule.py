"""The schedule of a soak is a pure function of its seed."""

import itertools
from collections import Counter

import pytest

from tests.soak.faults import Saboteur, doubtful
from tests.soak.schedule import LANES, SERVERS, WORKERS, Planned, schedule

HOUR = 3600.0
DIALECTS = ("sqlite", "postgresql")


def _method(planned: Planned) -> str:
    group = "worker" if planned.lane in WORKERS else "server" if planned.lane in SERVERS else planned.lane
    return f"_{group}_{planned.kind.replace('-', '_')}"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_same_seed_plans_the_same_and_another_seed_does_not(dialect: str) -> None:
    assert schedule(7, 600, dialect=dialect) == schedule(7, 600, dialect=dialect)
    assert schedule(7, 600, dialect=dialect) != schedule(8, 600, dialect=dialect)


def test_a_longer_soak_begins_as_a_shorter_one() -> None:
    short = schedule(7, 300)
    assert all(planned in schedule(7, 900) for planned in short)


def test_what_the_database_is_changes_nothing_for_the_others() -> None:
    plans = [
        [planned for planned in schedule(7, 600, dialect=dialect) if planned.lane != "database"]
        for dialect in DIALECTS
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_lane_has_one_fault_at_a_time_and_all_are_over_before_the_end(dialect: str) -> None:
    plans = schedule(3, HOUR, dialect=dialect)
    for lane in LANES:
        own = [planned for planned in plans if planned.lane == lane]
        assert own
        assert all(one.at + one.seconds <= two.at for one, two in itertools.pairwise(own))
        assert own[-1].at + own[-1].seconds < HOUR


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_hour_has_five_hundred_faults_of_every_kind_that_can_be_done(dialect: str) -> None:
    plans = schedule(3, HOUR, dialect=dialect)
    assert sum(planned.is_fault for planned in plans) > 500
    done = {_method(planned) for planned in plans}
    groups = ("_worker_", "_server_", "_broker_", "_operator_", "_drills_")
    known = {name for name in vars(Saboteur) if name.startswith(groups)}
    assert known == {name for name in done if not name.startswith("_database_")}
    assert {name for name in done if name.startswith("_database_")} <= set(vars(Saboteur))


def test_each_plan_says_when_where_what_and_for_how_long() -> None:
    planned = Planned(at=12.0, seconds=1.5, lane="primary", kind="hold", details={"way": "both"})
    assert str(planned).split() == ["12.0", "s", "primary", "hold", "way='both'", "for", "1.5", "s"]


def test_neither_broker_nor_database_nor_operator_excuses_a_doubt() -> None:
    lanes = Counter(planned.lane for planned in schedule(3, HOUR) if doubtful(planned))
    assert set(lanes) == {*WORKERS, *SERVERS}

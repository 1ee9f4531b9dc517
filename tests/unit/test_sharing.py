"""When mail leaves the weights, and how much of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.sharing import Load, moves, spills

BUSY = Load(queued=400, room=0, sent_per_second=300.0, capacity_per_second=310.0)
IDLE = Load(queued=0, room=200, sent_per_second=120.0, capacity_per_second=300.0)
CRAWLING = Load(queued=100, room=0, sent_per_second=10.0, capacity_per_second=10.0)

rates = st.floats(0, 1_000)
loads = st.builds(
    Load,
    queued=st.integers(0, 4_000),
    room=st.integers(-5, 4_000),
    sent_per_second=rates,
    capacity_per_second=st.none() | rates,
    is_limited=st.booleans(),
    is_stuck=st.booleans(),
)
fleets = st.dictionaries(st.sampled_from(["a", "b", "c"]), loads, min_size=1)


def test_the_weights_hold_while_both_are_busy_at_the_same_pace() -> None:
    assert not spills({"primary": BUSY, "secondary": IDLE})
    assert moves({"primary": BUSY, "secondary": IDLE}) == []


def test_what_a_crawling_server_has_no_room_for_goes_to_the_other() -> None:
    assert spills({"primary": CRAWLING, "secondary": IDLE})


def test_what_waits_for_a_crawling_server_goes_to_one_that_has_run_dry() -> None:
    (move,) = moves({"primary": CRAWLING, "secondary": IDLE})
    assert (move.source, move.target) == ("primary", "secondary")
    assert 90 <= move.count < 100, "both end at about the same time"


def test_a_server_that_its_limits_hold_spills_at_once() -> None:
    limited = Load(queued=10, room=0, sent_per_second=5.0, capacity_per_second=500.0, is_limited=True)
    assert spills({"primary": limited, "secondary": IDLE})


def test_a_server_whose_queue_stands_still_spills_even_if_nobody_knows_what_it_could_send() -> None:
    assert spills({"primary": Load(queued=10, room=0, is_stuck=True), "secondary": IDLE})


def test_a_server_of_which_nothing_is_known_keeps_its_weight() -> None:
    assert not spills({"primary": Load(queued=10, room=0), "secondary": IDLE})


def test_a_queue_that_is_soon_worked_off_stays() -> None:
    short = Load(queued=15, room=0, sent_per_second=10.0, capacity_per_second=10.0)
    assert moves({"primary": short, "secondary": IDLE}) == []


@pytest.mark.parametrize("name", ["primary", "secondary"])
def test_a_server_alone_never_spills(name: str) -> None:
    assert not spills({name: CRAWLING})
    assert moves({name: CRAWLING}) == []


@given(fleets)
def test_nothing_spills_where_nobody_has_room(fleet: dict[str, Load]) -> None:
    if all(load.room <= 0 for load in fleet.values()):
        assert not spills(fleet)


@given(fleets)
def test_moves_stay_within_what_waits_and_what_there_is_room_for(fleet: dict[str, Load]) -> None:
    for move in moves(fleet):
        assert 0 < move.count <= min(fleet[move.source].queued, fleet[move.target].room)


@given(fleets)
def test_nobody_gives_and_takes_at_once(fleet: dict[str, Load]) -> None:
    found = moves(fleet)
    assert not {move.source for move in found} & {move.target for move in found}

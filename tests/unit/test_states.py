from __future__ import annotations

import pytest

from campaigns.states import ALIVE, FINAL, LEGAL, LEGAL_STATUS, State, Status, is_legal


def test_every_state_is_either_alive_or_final() -> None:
    assert set(State) == ALIVE | FINAL
    assert not ALIVE & FINAL
    assert set(LEGAL) == set(State)
    assert set(LEGAL_STATUS) == set(Status)


@pytest.mark.parametrize("state", [State.SENT, State.SUPPRESSED, State.CANCELLED])
def test_what_is_over_never_changes(state: State) -> None:
    assert LEGAL[state] == frozenset()


def test_a_failed_delivery_only_ever_becomes_pending() -> None:
    assert LEGAL[State.FAILED] == {State.PENDING}


def test_only_a_committing_delivery_becomes_uncertain() -> None:
    assert {state for state in State if is_legal(state, State.UNCERTAIN)} == {State.COMMITTING}


def test_only_a_claimed_delivery_passes_the_commit_point() -> None:
    assert {state for state in State if is_legal(state, State.COMMITTING)} - {State.COMMITTING} == {
        State.CLAIMED
    }


def test_every_alive_state_may_become_sent_by_a_definite_250() -> None:
    assert all(is_legal(state, State.SENT) for state in ALIVE)


def test_from_every_alive_state_there_is_a_way_to_an_end() -> None:
    for start in ALIVE:
        seen, todo = {start}, [start]
        while todo:
            for state in LEGAL[todo.pop()] - seen:
                seen.add(state)
                todo.append(state)
        assert State.SENT in seen


def test_a_cancelled_campaign_stays_cancelled() -> None:
    assert LEGAL_STATUS[Status.CANCELLED] == frozenset()

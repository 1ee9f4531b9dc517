"""Waits of before the database's clock was set back end; those that something holds do not."""

from __future__ import annotations

import pytest

from campaigns.ledger import Ledger
from campaigns.states import State, Status
from tests.crowd import Crowd

HOURS = 3600.0
LONGEST_SECONDS = 24 * HOURS


def wait(crowd: Crowd, seconds: float) -> None:
    crowd.set("next_attempt_at", crowd.ledger.now() + seconds)


def waits_seconds(crowd: Crowd) -> float:
    return float(crowd.row()["next_attempt_at"]) - crowd.ledger.now()


def deferred(ledger: Ledger) -> Crowd:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    crowd.report(claim, State.PENDING)
    return crowd


@pytest.mark.parametrize("is_sent", [True, False])
def test_who_was_imported_while_the_clock_was_ahead_is_due(ledger: Ledger, is_sent: bool) -> None:
    crowd = Crowd(ledger, 3, send=is_sent)
    wait(crowd, 2 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 3
    if not is_sent:
        ledger.send(crowd.name)
    assert {due.delivery_id for due in ledger.due(10)} == set(crowd.ids)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 0
    crowd.counts()


def test_who_was_tried_waits_for_no_longer_than_anybody_may(ledger: Ledger) -> None:
    crowd = deferred(ledger)
    wait(crowd, 4 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 0, "so it was told to"
    wait(crowd, LONGEST_SECONDS + 2 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 1
    assert waits_seconds(crowd) == pytest.approx(LONGEST_SECONDS, abs=5)


def test_whom_a_limit_holds_waits_for_it(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.set("reply", "held by the limits of example.com")
    wait(crowd, 20 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 0
    wait(crowd, 30 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 1
    assert waits_seconds(crowd) == pytest.approx(LONGEST_SECONDS, abs=5)


def test_what_no_server_may_take_now_waits_as_it_was_told(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    ledger.postpone(crowd.ids, 15)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 0
    assert waits_seconds(crowd) == pytest.approx(15, abs=5)


def test_a_wait_that_gave_way_to_a_server_is_no_reason_to_wait_for_hours(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.set("reply", "server unavailable")
    wait(crowd, 2 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 1
    assert len(ledger.due(10)) == 1


def test_the_start_that_an_operator_set_is_left(ledger: Ledger) -> None:
    crowd = Crowd(ledger, send=False)
    start = ledger.now() + 48 * HOURS
    ledger.send(crowd.name, at=start)
    wait(crowd, 2 * HOURS)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 1
    assert ledger.start_scheduled() == []
    assert ledger.due(10) == []
    with_start = ledger.campaign(crowd.name)
    assert (with_start.status, with_start.scheduled_at) == (Status.SCHEDULED, pytest.approx(start))


def test_waits_are_cut_in_small_steps(ledger: Ledger) -> None:
    crowds = [Crowd(ledger, 3), Crowd(ledger, 2)]
    for crowd in crowds:
        wait(crowd, 2 * HOURS)
    assert [ledger.shorten_waits(LONGEST_SECONDS, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_whoever_is_queued_or_over_is_left(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    crowd.queue(ids=crowd.ids[:1])
    ledger.cancel(crowd.name)
    assert ledger.shorten_waits(LONGEST_SECONDS) == 0

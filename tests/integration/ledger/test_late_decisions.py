"""What changed between the look and the write: who decides over many rows looks first, and locks later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection

from campaigns.database import create_database
from campaigns.errors import TransitionRefused
from campaigns.ledger import Claim, Ledger
from campaigns.ledger.changes import Change, lock_rows
from campaigns.states import State, Status
from tests.crowd import OWNER, Crowd, report


@contextmanager
def meanwhile(ledger: Ledger, act: Callable[[], object]) -> Iterator[None]:
    """Before the next write transaction begins, and after what was read for it, `act` happens once."""
    database, write = ledger.database, ledger.database.write

    def interrupted() -> Any:
        database.write = write  # type: ignore[method-assign]
        act()
        return write()

    database.write = interrupted  # type: ignore[method-assign]
    yield
    assert database.write is not interrupted, "nothing was written"


def test_the_fence_of_a_delivery_that_goes_back_stays(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    for fence in (1, 2, 3):
        (claim,) = crowd.claim()
        assert claim.fence == fence
        crowd.report(claim, State.PENDING)
        assert crowd.row()["fence"] == fence


@pytest.mark.parametrize("became", [State.CLAIMED, State.COMMITTING, State.UNCERTAIN, State.QUEUED])
def test_a_reroute_leaves_what_has_left_the_queue_since_it_looked(ledger: Ledger, became: State) -> None:
    crowd = Crowd(ledger, 3)
    crowd.queue("primary")
    first = crowd.ids[:1]

    def leave() -> None:
        if became is State.QUEUED:
            ledger.reroute_queued("primary", {"tertiary": 1}, limit=1)
            return
        (claim,) = crowd.claim("primary", first)
        if became is not State.CLAIMED:
            crowd.commit([claim])
        if became is State.UNCERTAIN:
            crowd.report(claim, State.UNCERTAIN)

    with meanwhile(ledger, leave):
        moved = ledger.reroute_queued("primary", {"secondary": 1})
    assert [one.delivery_id for one in moved] == crowd.ids[1:]
    assert crowd.state() is became
    assert crowd.row()["server"] == ("tertiary" if became is State.QUEUED else "primary")


def test_a_withdrawal_leaves_what_was_claimed_since_it_looked(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3)
    crowd.queue("primary")
    with meanwhile(ledger, lambda: crowd.claim("primary", crowd.ids[:1])):
        assert ledger.withdraw_queued("primary") == 2
    assert crowd.state() is State.CLAIMED


def test_a_cancel_leaves_what_is_committing_since_it_looked(ledger: Ledger) -> None:
    """Whatever the look has found, the row under lock decides."""
    crowd = Crowd(ledger, 2)
    claims = crowd.claim()
    candidates = ledger._candidates

    def looked(campaign_id: int, sql: str, after: int) -> list[int]:
        found = candidates(campaign_id, sql, after)
        return sorted({*found, *crowd.ids}) if not after else found

    crowd.commit(claims[:1])
    ledger._candidates = looked  # type: ignore[method-assign]
    assert ledger.cancel(crowd.name) == 1
    assert crowd.state(crowd.ids[0]) is State.COMMITTING
    assert crowd.state(crowd.ids[1]) is State.CANCELLED
    assert crowd.report(claims[0], State.SENT).state is State.SENT


def test_a_retry_leaves_what_its_own_late_reply_has_resolved(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    claims = crowd.uncertain()
    with meanwhile(ledger, lambda: ledger.apply([report(claims[0], State.SENT)])):
        assert ledger.retry(crowd.name, State.UNCERTAIN).moved == 1
    assert crowd.state(crowd.ids[0]) is State.SENT
    assert crowd.state(crowd.ids[1]) is State.PENDING


def test_a_retry_leaves_all_of_a_campaign_that_was_cancelled_since_it_looked(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.uncertain()
    candidates = ledger._candidates

    def looked(campaign_id: int, sql: str, after: int) -> list[int]:
        found = candidates(campaign_id, sql, after)
        Ledger(ledger.database).cancel(crowd.name)
        return found

    ledger._candidates = looked  # type: ignore[method-assign]
    with pytest.raises(TransitionRefused):
        ledger.retry(crowd.name, State.UNCERTAIN)
    assert crowd.state() is State.UNCERTAIN


def test_a_campaign_that_was_paused_since_it_was_found_idle_is_not_finished(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    crowd.report(claim, State.SENT)
    with meanwhile(ledger, lambda: ledger.pause(crowd.name)):
        assert ledger.finish_idle() == []
    assert ledger.campaign(crowd.name).status is Status.PAUSED


def test_a_suppression_leaves_what_an_attempt_holds(postgres_url: str) -> None:
    """It locks the rows some statements after it has found them; SQLite lets nobody write meanwhile."""
    mine, other = Ledger(create_database(postgres_url)), Ledger(create_database(postgres_url))
    crowd = Crowd(other, 2)
    crowd.queue()
    change = mine._change

    def later(connection: Connection, ids: Sequence[int], decide: Any) -> list[Change]:
        claim = Claim(delivery_id=crowd.ids[0], server="primary", owner=OWNER, lease_seconds=60)
        assert other.apply([claim]) != [None]
        return change(connection, ids, decide)

    mine._change = later  # type: ignore[method-assign]
    assert mine.suppress([(f"person{number}@example.com", "", None) for number in range(2)]) == 2
    assert crowd.state(crowd.ids[0]) is State.CLAIMED
    assert crowd.state(crowd.ids[1]) is State.SUPPRESSED
    mine.database.close()
    other.database.close()


def test_a_pause_waits_for_what_changes_its_deliveries(postgres_url: str) -> None:
    """On SQLite one transaction writes at a time anyway."""
    ledger = Ledger(create_database(postgres_url))
    crowd = Crowd(ledger)
    pausing = threading.Thread(target=ledger.pause, args=(crowd.name,))
    with ledger.database.write() as connection:
        (row,) = lock_rows(connection, crowd.ids)
        assert row.status is Status.RUNNING
        pausing.start()
        pausing.join(0.5)
        assert pausing.is_alive(), "it would return while a commit point is on its way"
    pausing.join(10)
    assert ledger.campaign(crowd.name).status is Status.PAUSED
    ledger.database.close()

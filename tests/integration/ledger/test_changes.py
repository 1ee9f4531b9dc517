"""The one place that writes states: what it refuses, and what it does when it loses a race."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import text

from campaigns.database import create_database
from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Ledger
from campaigns.ledger.batch import again_after_conflict
from campaigns.ledger.changes import Change, Conflict, lock_rows, write_changes
from campaigns.states import State
from tests.crowd import Crowd


def test_a_row_that_is_not_as_it_was_read_is_not_written(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    with ledger.database.write() as connection:
        (read,) = lock_rows(connection, crowd.ids)
    crowd.queue()
    with pytest.raises(Conflict), ledger.database.write() as connection:
        write_changes(connection, [Change(read, read.ended(State.CANCELLED, now=1.0))], shard=0)
    assert crowd.in_state(State.QUEUED) == 1


def test_a_row_under_a_newer_fence_is_not_written(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    with ledger.database.write() as connection:
        (read,) = lock_rows(connection, crowd.ids)
    crowd.report(claim, State.PENDING)
    crowd.claim()
    with pytest.raises(Conflict), ledger.database.write() as connection:
        write_changes(connection, [Change(read, read.committing(now=1.0))], shard=0)


def test_an_illegal_transition_is_never_written(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.report(crowd.claim()[0], State.SENT)
    with ledger.database.write() as connection:
        (read,) = lock_rows(connection, crowd.ids)
        with pytest.raises(ValueError, match="cannot go from sent to pending"):
            write_changes(connection, [Change(read, replace(read, state=State.PENDING))], shard=0)


@pytest.mark.parametrize(
    "wrong",
    [
        "state = 'lost'",
        "state = 'pending', next_attempt_at = NULL",
        "state = 'queued', server = NULL",
        "state = 'claimed', lease_until = NULL, owner = 'me', server = 'primary', fence = 1",
        "state = 'committing', lease_until = 1, owner = NULL, server = 'primary', fence = 1",
        "state = 'sent', server = NULL",
    ],
)
def test_the_database_itself_refuses_a_row_that_nothing_would_wake(ledger: Ledger, wrong: str) -> None:
    crowd = Crowd(ledger)
    with pytest.raises(Exception, match=r"(?i)check"), ledger.database.write() as connection:
        connection.execute(text(f"UPDATE delivery SET {wrong}"))
    assert crowd.in_state(State.PENDING) == 1


def test_a_transaction_that_lost_a_race_is_run_again() -> None:
    losses = iter([Conflict(), Conflict()])

    def transaction() -> str:
        for loss in losses:
            raise loss
        return "done"

    assert again_after_conflict(transaction) == "done"


def test_a_transaction_that_loses_every_race_is_an_outage() -> None:
    def transaction() -> None:
        raise Conflict

    with pytest.raises(DatabaseUnavailable, match="busy"):
        again_after_conflict(transaction)


def test_a_deadlock_is_run_again(postgres_url: str) -> None:
    database = create_database(postgres_url)
    with database.write() as connection:
        connection.execute(text("INSERT INTO event (at, kind) VALUES (1, 'a'), (2, 'b')"))
    both_hold_one, failures = threading.Barrier(2), list[Exception]()

    def add(first: str, second: str) -> Callable[[], None]:
        waits = iter([True])

        def transaction() -> None:
            with database.write() as connection:
                connection.execute(text("UPDATE event SET at = at + 1 WHERE kind = :kind"), {"kind": first})
                if next(waits, False):
                    both_hold_one.wait(20)
                connection.execute(text("UPDATE event SET at = at + 1 WHERE kind = :kind"), {"kind": second})

        def run() -> None:
            try:
                again_after_conflict(transaction)
            except Exception as error:
                failures.append(error)

        return run

    threads = [threading.Thread(target=add(*kinds)) for kinds in [("a", "b"), ("b", "a")]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.read() as connection:
        assert connection.execute(text("SELECT sum(at) FROM event")).scalar_one() == 7
    database.close()

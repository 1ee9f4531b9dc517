"""Who waits for whom on PostgreSQL: one order of locks, and a deadlock that reaches nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, text

from campaigns.database import Database, create_database
from campaigns.ledger import Ledger
from campaigns.ledger.changes import CAMPAIGN_LOCK
from campaigns.states import State, Status
from tests.crowd import Crowd, eventually

EXCLUSIVE = text("SELECT pg_advisory_xact_lock(:key, CAST(:id AS integer))")
ROW = "SELECT id FROM campaign WHERE id = :id FOR NO KEY UPDATE"
WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = create_database(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def wait_for_a_waiter(database: Database, call: Future[object]) -> None:
    def waits() -> bool:
        assert not call.done(), "it was to wait"
        with database.read() as connection:
            return bool(connection.execute(WAITING).scalar_one())

    eventually(waits)


def take_advisory_lock(connection: Connection, campaign_id: int) -> None:
    connection.execute(EXCLUSIVE, {"key": CAMPAIGN_LOCK, "id": campaign_id})


def test_a_suppression_that_waits_for_an_operator_holds_nothing_that_he_wants(
    ledger: Ledger, pool: ThreadPoolExecutor
) -> None:
    crowd = Crowd(ledger, 2)
    with ledger.database.write() as operator:
        take_advisory_lock(operator, crowd.campaign_id)
        call = pool.submit(ledger.suppress, [("person0@example.com", "person0@example.com", None)])
        wait_for_a_waiter(ledger.database, call)
        operator.execute(text(f"{ROW} NOWAIT"), {"id": crowd.campaign_id})
    assert call.result(20) == 1
    assert crowd.in_state(State.SUPPRESSED) == 1


def done(crowd: Crowd) -> None:
    crowd.uncertain()


def failed(crowd: Crowd) -> None:
    crowd.report(crowd.claim()[0], State.FAILED)


TRANSITIONS: dict[str, tuple[Callable[[Crowd], object], Callable[[Crowd], object], Status]] = {
    "send": (lambda _: None, lambda crowd: crowd.ledger.send(crowd.name), Status.RUNNING),
    "pause": (lambda _: None, lambda crowd: crowd.ledger.pause(crowd.name), Status.PAUSED),
    "resume": (
        lambda crowd: crowd.ledger.pause(crowd.name),
        lambda crowd: crowd.ledger.resume(crowd.name),
        Status.RUNNING,
    ),
    "cancel": (lambda _: None, lambda crowd: crowd.ledger.cancel(crowd.name), Status.CANCELLED),
    "retry": (failed, lambda crowd: crowd.ledger.retry(crowd.name), Status.RUNNING),
    "policy": (
        lambda _: None,
        lambda crowd: crowd.ledger.pause_by_policy(crowd.campaign_id, "refused"),
        Status.PAUSED,
    ),
    "finish": (done, lambda crowd: crowd.ledger.finish_idle(), Status.FINISHED),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_a_deadlock_reaches_no_operator(ledger: Ledger, pool: ThreadPoolExecutor, name: str) -> None:
    prepare, act, status = TRANSITIONS[name]
    crowd = Crowd(ledger)
    prepare(crowd)
    with ledger.database.write() as other:
        # PostgreSQL ends whoever looks for the deadlock first: not this one
        other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        other.execute(text(ROW), {"id": crowd.campaign_id})
        call = pool.submit(act, crowd)
        wait_for_a_waiter(ledger.database, call)  # it has the advisory lock, and wants the row
        take_advisory_lock(other, crowd.campaign_id)
    call.result(20)
    assert ledger.campaign(crowd.name).status is status


def test_operators_and_suppressions_never_fail_each_other(ledger: Ledger) -> None:
    crowds = [Crowd(ledger, 20) for _ in range(2)]
    errors: list[Exception] = []
    ends_at = time.monotonic() + 2

    def suppress() -> None:
        number = 0
        while time.monotonic() < ends_at:
            number = (number + 1) % 20
            address = f"person{number}@example.com"
            ledger.suppress([(address, address, None)])
            ledger.unsuppress(address)

    def pause_and_resume() -> None:
        while time.monotonic() < ends_at:
            for crowd in crowds:
                ledger.pause(crowd.name)
                ledger.resume(crowd.name)

    def run(step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(step,)) for step in (suppress, suppress, pause_and_resume)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

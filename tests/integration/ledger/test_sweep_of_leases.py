"""Leases that ran out, campaigns that start and finish, workers that report themselves."""

from __future__ import annotations

import pytest

from campaigns.ledger import Ledger, Renew, Swept
from campaigns.states import State, Status
from tests.crowd import Crowd


def expire(crowd: Crowd) -> None:
    with_lease = crowd.ledger.now() - 1
    crowd.set("lease_until", with_lease)


def test_the_lease_of_a_dead_worker_is_free_again(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    (committed, _) = crowd.claim()
    crowd.commit([committed])
    assert ledger.sweep_leases() == Swept(pending=0, uncertain=0, failed=0)
    expire(crowd)
    assert ledger.sweep_leases() == Swept(pending=1, uncertain=1, failed=0)
    assert ledger.sweep_leases() == Swept(pending=0, uncertain=0, failed=0)
    assert crowd.row(crowd.ids[1])["crashes"] == 1
    assert {attempt["outcome"] for attempt in crowd.attempts()} == {"crashed", "uncertain"}
    crowd.counts()


def test_the_sweep_resends_if_that_was_asked_for_and_keeps_the_doubt_on_record(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    expire(crowd)
    assert ledger.sweep_leases(resends=True) == Swept(pending=1, uncertain=0, failed=0)
    assert [attempt["outcome"] for attempt in crowd.attempts()] == ["uncertain"]
    assert "after the commit point" in crowd.row()["reply"]
    assert crowd.report(claim, State.SENT).state is State.SENT, "its own late 250 still counts"
    crowd.counts()


def test_a_delivery_that_kills_every_worker_fails(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    for _ in range(2):
        crowd.claim()
        expire(crowd)
        swept = ledger.sweep_leases(max_crashes=2)
    assert swept.failed == 1
    assert "vanished" in crowd.row()["reply"]


def test_the_sweep_takes_small_steps(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 5)
    crowd.claim()
    expire(crowd)
    assert [ledger.sweep_leases(limit=2).pending for _ in range(4)] == [2, 2, 1, 0]


def test_an_attempt_resolves_what_the_sweep_doubted(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    expire(crowd)
    ledger.sweep_leases()
    assert crowd.state() is State.UNCERTAIN
    assert crowd.report(claim, State.SENT).state is State.SENT
    assert crowd.in_state(State.UNCERTAIN) == 0


def test_what_a_killed_cancel_left_behind_is_swept(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 4)
    crowd.claim(ids=crowd.ids[:1])
    crowd.queue(ids=crowd.ids[1:2])
    with ledger.database.write() as connection:  # as if it was killed right after the status
        connection.exec_driver_sql("UPDATE campaign SET status = 'cancelled'")
    expire(crowd)
    assert ledger.sweep_leases().cancelled == 4
    assert crowd.in_state(State.CANCELLED) == 4


def test_a_scheduled_campaign_starts_when_its_time_has_come(ledger: Ledger) -> None:
    early, late = Crowd(ledger, send=False), Crowd(ledger, send=False)
    ledger.send(early.name, at=ledger.now() - 1)
    ledger.send(late.name, at=ledger.now() + 3600)
    assert ledger.due(10) == []
    assert ledger.start_scheduled() == [early.name]
    assert ledger.start_scheduled() == []
    assert ledger.campaign(early.name).started_at is not None
    assert ledger.campaign(late.name).status is Status.SCHEDULED


@pytest.mark.parametrize("alive", ["pending", "queued", "claimed", "committing"])
def test_a_campaign_with_somebody_alive_is_not_finished(ledger: Ledger, alive: str) -> None:
    crowd = Crowd(ledger)
    {"pending": list, "queued": crowd.queue, "claimed": crowd.claim, "committing": crowd.committing}[alive]()
    assert crowd.in_state(State(alive)) == 1
    assert ledger.finish_idle() == []


def test_rows_decide_whether_a_campaign_is_finished_even_if_counters_lie(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM counter")
    assert ledger.finish_idle() == []
    assert ledger.campaign(crowd.name).status is Status.RUNNING


def test_uncertain_does_not_keep_a_campaign_from_being_finished(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.uncertain()
    assert ledger.finish_idle() == [crowd.name]
    assert ledger.finish_idle() == []
    assert ledger.campaign(crowd.name).finished_at is not None


def test_a_paused_campaign_is_not_finished(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.uncertain()
    ledger.pause(crowd.name)
    assert ledger.finish_idle() == []


def test_workers_report_themselves_and_are_forgotten(ledger: Ledger) -> None:
    for rate in (1.0, 2.0):
        ledger.heartbeat("worker-1", ["primary"], host="host", pid=7, sent_per_second=rate)
    (worker,) = ledger.live_workers(30)
    assert (worker.owner, worker.servers, worker.pid, worker.sent_per_second) == (
        "worker-1",
        ("primary",),
        7,
        2.0,
    )
    assert ledger.forget_workers(30) == 0
    with ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE worker SET seen_at = seen_at - 60")
    assert ledger.live_workers(30) == []
    assert ledger.forget_workers(30) == 1


def test_a_worker_of_before_the_clock_was_set_back_is_dead_unless_it_reports_itself(ledger: Ledger) -> None:
    for owner in ("dead", "living"):
        ledger.heartbeat(owner, ["primary"], host="host", pid=7, sent_per_second=1.0)
    with ledger.database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE worker SET seen_at = seen_at + 3600, started_at = started_at + 3500"
        )
    assert ledger.live_workers(30) == []
    ledger.heartbeat("living", ["primary"], host="host", pid=7, sent_per_second=1.0)
    (worker,) = ledger.live_workers(30)
    assert worker.owner == "living" and worker.started_at <= ledger.now()
    assert ledger.forget_workers(30) == 1


@pytest.mark.parametrize("held", ["claim", "committing"])
def test_leases_of_before_the_clock_was_set_back_run_out_unless_they_are_renewed(
    ledger: Ledger, held: str
) -> None:
    dead, living = Crowd(ledger), Crowd(ledger)
    getattr(dead, held)(lease_seconds=20)
    (claim,) = getattr(living, held)(lease_seconds=20)
    for crowd in (dead, living):
        crowd.set("lease_until", ledger.now() + 86_400)
    assert ledger.sweep_leases(lease_seconds=0.0).pending == 0, "the living get the time to renew"
    assert living.state() == dead.state() == State({"claim": "claimed"}.get(held, held))
    assert ledger.apply([Renew(delivery_id=claim.delivery_id, fence=claim.fence, lease_seconds=20)]) == [True]
    swept = ledger.sweep_leases(lease_seconds=20.0)
    assert (swept.pending, swept.uncertain) == ((1, 0) if held == "claim" else (0, 1))
    assert living.row()["lease_until"] > ledger.now()
    assert len(dead.attempts()) == 1 and living.attempts() == []

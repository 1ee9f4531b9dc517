"""`apply`: many operations, one transaction, a result for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import event, text

from campaigns.ledger import Claim, Claimed, CommitPoint, Ledger, Move, Operation, Recorded, Renew
from campaigns.states import State, Status
from tests.crowd import LEASE_SECONDS, OWNER, Crowd, report


def claim_of(delivery_id: int, server: str = "primary") -> Claim:
    return Claim(delivery_id=delivery_id, server=server, owner=OWNER, lease_seconds=LEASE_SECONDS)


def test_a_claim_returns_all_that_the_send_needs(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    assert (claim.email, claim.domain) == ("person0@example.com", "example.com")
    assert claim.fields == {"first_name": "Ünal 0"}
    assert (claim.fence, claim.deferrals, claim.crashes, claim.campaign_revision) == (1, 0, 0, 1)
    assert claim.campaign_id == crowd.campaign_id
    assert "person0" not in repr(claim)
    row = crowd.row()
    assert row["lease_until"] == pytest.approx(ledger.now() + LEASE_SECONDS, abs=5)


def test_of_two_claims_of_one_delivery_in_a_batch_exactly_one_wins(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.queue()
    results = ledger.apply([claim_of(crowd.ids[0]), claim_of(crowd.ids[0])])
    assert [type(result) for result in results] == [Claimed, type(None)]
    assert crowd.row()["fence"] == 1


def test_the_claim_for_the_right_server_wins_whatever_the_order(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.queue("secondary")
    results = ledger.apply([claim_of(crowd.ids[0], "primary"), claim_of(crowd.ids[0], "secondary")])
    assert [type(result) for result in results] == [type(None), Claimed]


def test_a_duplicated_message_claims_nothing(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.claim()
    assert ledger.apply([claim_of(crowd.ids[0])]) == [None]
    assert ledger.apply([claim_of(999_999)]) == [None]


def test_pause_is_felt_by_claims_and_by_commit_points(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    (claim,) = crowd.claim(ids=crowd.ids[:1])
    crowd.queue(ids=crowd.ids[1:])
    ledger.pause(crowd.name)
    assert crowd.commit([claim]) == [False]
    assert ledger.apply([claim_of(crowd.ids[1])]) == [None]
    ledger.resume(crowd.name)
    assert crowd.commit([claim]) == [True]


def test_a_zombie_whose_lease_ran_out_does_not_pass_its_commit_point(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    crowd.set("lease_until", ledger.now() - 0.01)
    assert crowd.commit([claim]) == [False]
    assert crowd.state() is State.CLAIMED


def test_the_lease_is_the_databases_and_not_the_workers_clock(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim(lease_seconds=-0.01)
    assert crowd.commit([claim]) == [False]


def test_a_lease_is_renewed_at_the_dot_too(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    crowd.set("lease_until", ledger.now() - 5)
    renew = Renew(delivery_id=claim.delivery_id, fence=claim.fence, lease_seconds=30)
    assert ledger.apply([renew]) == [True]
    assert ledger.sweep_leases().uncertain == 0
    assert ledger.apply([replace(renew, fence=claim.fence + 1)]) == [False]


def test_a_renewal_and_a_commit_point_in_one_batch_are_taken_in_their_order(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    crowd.set("lease_until", ledger.now() - 1)
    operations: list[Operation] = [
        Renew(delivery_id=claim.delivery_id, fence=claim.fence, lease_seconds=30),
        CommitPoint(delivery_id=claim.delivery_id, fence=claim.fence),
        CommitPoint(delivery_id=claim.delivery_id, fence=claim.fence),
    ]
    assert ledger.apply(operations) == [True, True, False]


def test_a_whole_attempt_leaves_its_trace(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    done = crowd.report(claim, State.SENT, started_seconds_ago=2.0, enhanced="2.0.0")
    assert done == Recorded(state=State.SENT, server="primary")
    row = crowd.row()
    assert (row["lease_until"], row["owner"], row["next_attempt_at"]) == (None, None, None)
    (attempt,) = crowd.attempts()
    assert attempt["finished_at"] - attempt["started_at"] == pytest.approx(2.0, abs=0.01)
    assert (attempt["outcome"], attempt["phase"], attempt["code"]) == ("sent", "dot", 250)
    counts = crowd.counts()
    assert counts.states[State.SENT] == 1 and counts.servers["primary"].sent == 1


def test_the_same_report_twice_counts_once(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    assert crowd.report(claim, State.SENT) == crowd.report(claim, State.SENT)
    assert (
        ledger.apply([report(claim, State.SENT), report(claim, State.SENT)])
        == [Recorded(state=State.SENT, server="primary")] * 2
    )
    assert len(crowd.attempts()) == 1
    assert crowd.counts().servers["primary"].sent == 1


def test_a_late_250_of_an_old_fence_stops_the_second_mail(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (old,) = crowd.uncertain()
    ledger.retry(crowd.name, State.UNCERTAIN)
    (new,) = crowd.claim("secondary")
    assert new.fence > old.fence
    assert crowd.report(old, State.SENT).state is State.SENT
    assert crowd.commit([new]) == [False]
    assert crowd.report(new, State.PENDING, server="secondary").state is None
    assert crowd.in_state(State.SENT) == 1


def test_an_old_fence_changes_nothing_that_is_committing_anew(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (old,) = crowd.uncertain()
    ledger.retry(crowd.name, State.UNCERTAIN)
    (new,) = crowd.claim("secondary")
    assert crowd.commit([new]) == [True]
    for to in (State.SENT, State.FAILED, State.PENDING):
        assert crowd.report(old, to, from_committing=True).state is None
    assert crowd.state() is State.COMMITTING


def test_an_attempt_takes_its_own_committing_row_back_if_it_wrote_no_dot(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    assert crowd.report(claim, State.PENDING).state is None
    assert crowd.report(claim, State.PENDING, from_committing=True).state is State.PENDING


def test_an_attempt_that_resolves_its_uncertain_wakes_a_finished_campaign(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.uncertain()
    assert ledger.finish_idle() == [crowd.name]
    assert crowd.report(claim, State.PENDING, from_committing=True).state is State.PENDING
    assert ledger.campaign(crowd.name).status is Status.RUNNING
    assert crowd.queue("secondary") == crowd.ids


def test_what_returns_to_a_cancelled_campaign_is_cancelled(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    claims = crowd.committing()
    ledger.cancel(crowd.name)
    assert crowd.counts().states[State.COMMITTING] == 2
    back = crowd.report(claims[0], State.PENDING, from_committing=True)
    there = crowd.report(claims[1], State.QUEUED, to_server="secondary", from_committing=True)
    assert back.state is there.state is State.CANCELLED
    assert crowd.in_state(State.CANCELLED) == 2


def test_a_reroute_counts_the_departure_once_for_a_delivery_and_server(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    for _ in range(2):
        crowd.queue("primary")
        (claim,) = crowd.ledger.apply([claim_of(crowd.ids[0], "primary")])
        assert isinstance(claim, Claimed)
        crowd.report(claim, State.QUEUED, to_server="secondary")
        assert ledger.apply(
            [Move(delivery_id=crowd.ids[0], from_server="secondary", to_server="primary")]
        ) == [True]
    counts = crowd.counts()
    assert counts.servers["primary"].rerouted == counts.servers["secondary"].rerouted == 1


def test_a_deferred_delivery_that_comes_back_to_its_server_has_not_left_it(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    crowd.report(claim, State.PENDING, deferral=True)
    assert crowd.queue("primary") == crowd.ids
    assert crowd.counts().servers == {}
    assert crowd.row()["deferrals"] == 1


def test_a_deferred_delivery_that_goes_elsewhere_has_left(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    crowd.report(claim, State.PENDING)
    assert crowd.queue("secondary") == crowd.ids
    assert crowd.counts().servers["primary"].rerouted == 1


def test_a_move_leaves_what_was_claimed_alone(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    crowd.claim(ids=crowd.ids[:1])
    crowd.queue(ids=crowd.ids[1:])
    moves = [
        Move(delivery_id=one, from_server="primary", to_server=None, wait_seconds=9) for one in crowd.ids
    ]
    assert ledger.apply(moves) == [False, True]
    assert crowd.row(crowd.ids[1])["next_attempt_at"] == pytest.approx(ledger.now() + 9, abs=5)


def test_what_the_databases_refuse_in_a_reply_is_scrubbed(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    assert crowd.report(claim, State.FAILED, reply="550 no\0 such \udcff user").state is State.FAILED
    assert crowd.row()["reply"] == "550 no such ? user"


def test_a_value_that_no_row_can_take_fails_alone(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3)
    claims = crowd.claim()
    operations = [report(claim, State.PENDING) for claim in claims]
    operations[1] = replace(operations[1], wait_seconds=float("nan"))
    commits: list[object] = []
    event.listen(ledger.database.engine, "commit", commits.append)
    results = ledger.apply(operations)
    assert len(commits) == 1, "it costs the others no transaction more"
    assert isinstance(results[1], ValueError)
    assert crowd.in_state(State.PENDING) == 2


def test_a_row_that_the_database_refuses_fails_alone(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 20)
    claims = crowd.claim()
    _refuse_replies(ledger, "poison")
    operations: list[Operation] = [
        report(claim, State.SENT, reply="poison" if claim is claims[7] else "fine") for claim in claims
    ]
    results = ledger.apply(operations)
    assert [index for index, result in enumerate(results) if isinstance(result, Exception)] == [7]
    assert "person" not in str(results[7])
    assert crowd.in_state(State.SENT) == 19 and crowd.in_state(State.CLAIMED) == 1


def _refuse_replies(ledger: Ledger, word: str) -> None:
    """Make the database itself refuse an attempt with that reply."""
    statements = {
        "sqlite": [
            f"CREATE TRIGGER refuse BEFORE INSERT ON attempt WHEN NEW.reply = '{word}'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        ],
        "postgresql": [f"ALTER TABLE attempt ADD CONSTRAINT refuse CHECK (reply <> '{word}')"],
    }
    with ledger.database.write() as connection:
        for sql in statements[ledger.database.dialect]:
            connection.execute(text(sql))


def test_five_hundred_operations_cost_a_handful_of_statements(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 500)
    crowd.queue()
    executed: list[str] = []

    def note(*arguments: object) -> None:
        executed.append(str(arguments[2]))

    event.listen(ledger.database.engine, "before_cursor_execute", note)
    results = ledger.apply([claim_of(one) for one in crowd.ids])
    event.remove(ledger.database.engine, "before_cursor_execute", note)
    assert all(isinstance(result, Claimed) for result in results)
    assert len(executed) <= 8


def test_no_operations_cost_nothing(ledger: Ledger) -> None:
    assert ledger.apply([]) == []


def test_more_operations_than_a_transaction_takes_are_all_answered(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 1200)
    assert len(crowd.claim()) == 1200

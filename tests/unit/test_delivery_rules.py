"""The rules that carry the promise, one by one, without a database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaigns.ledger import rules
from campaigns.ledger.operations import Claim, CommitPoint, Move, Record, Renew
from campaigns.ledger.row import Row
from campaigns.states import FINAL, State, Status

NOW = 1_000.0
FENCE = 3
HELD = {State.CLAIMED, State.COMMITTING}


def row(state: State, **changes: object) -> Row:
    base = Row(
        id=1,
        campaign_id=1,
        status=Status.RUNNING,
        state=state,
        server="primary",
        fence=FENCE,
        lease_until=NOW + 10 if state in HELD else None,
        owner="me" if state in HELD else None,
        deferrals=0,
        crashes=0,
        next_attempt_at=NOW if state is State.PENDING else None,
        first_attempt_at=None,
        queued_at=NOW if state is State.QUEUED else None,
        reply=None,
        updated_at=NOW - 5,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def record(to: State, **changes: object) -> Record:
    base = Record(delivery_id=1, fence=FENCE, server="primary", owner="me", to=to, outcome="x", reply="r")
    return replace(base, **changes)  # type: ignore[arg-type]


CLAIM = Claim(delivery_id=1, server="primary", owner="me", lease_seconds=20)
COMMIT = CommitPoint(delivery_id=1, fence=FENCE)


def test_a_claim_raises_the_fence_and_takes_a_lease() -> None:
    claimed = rules.claim(row(State.QUEUED), CLAIM, NOW)
    assert claimed is not None
    assert (claimed.state, claimed.fence, claimed.lease_until) == (State.CLAIMED, FENCE + 1, NOW + 20)
    assert claimed.first_attempt_at == NOW


@pytest.mark.parametrize("state", sorted(set(State) - {State.QUEUED}))
def test_only_what_is_queued_is_claimed(state: State) -> None:
    assert rules.claim(row(state), CLAIM, NOW) is None


def test_a_delivery_queued_for_another_server_is_not_claimed() -> None:
    assert rules.claim(row(State.QUEUED, server="secondary"), CLAIM, NOW) is None


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.RUNNING}))
def test_nothing_is_claimed_or_committed_while_the_campaign_does_not_run(status: Status) -> None:
    assert rules.claim(row(State.QUEUED, status=status), CLAIM, NOW) is None
    assert rules.commit_point(row(State.CLAIMED, status=status), COMMIT, NOW) is None


def test_the_commit_point_needs_the_own_fence() -> None:
    assert rules.commit_point(row(State.CLAIMED), COMMIT, NOW) is not None
    assert rules.commit_point(row(State.CLAIMED, fence=FENCE + 1), COMMIT, NOW) is None


def test_the_commit_point_needs_a_lease_that_holds() -> None:
    assert rules.commit_point(row(State.CLAIMED, lease_until=NOW), COMMIT, NOW) is None
    assert rules.commit_point(row(State.CLAIMED, lease_until=NOW + 0.1), COMMIT, NOW) is not None


@pytest.mark.parametrize("state", sorted(set(State) - {State.CLAIMED}))
def test_the_commit_point_is_passed_from_claimed_alone(state: State) -> None:
    assert rules.commit_point(row(state, lease_until=NOW + 10), COMMIT, NOW) is None


@pytest.mark.parametrize("state", sorted(HELD))
def test_an_expired_lease_is_renewed_until_somebody_judged_the_row(state: State) -> None:
    renewed = rules.renew(
        row(state, lease_until=NOW - 9), Renew(delivery_id=1, fence=FENCE, lease_seconds=20), NOW
    )
    assert renewed is not None and renewed.lease_until == NOW + 20


def test_a_renewal_counts_from_now_whatever_the_clock_said_before() -> None:
    before = row(State.CLAIMED, lease_until=NOW + 86_400)
    renewed = rules.renew(before, Renew(delivery_id=1, fence=FENCE, lease_seconds=20), NOW)
    assert renewed is not None and renewed.lease_until == NOW + 20


def test_nobody_renews_under_another_fence_or_what_is_not_held() -> None:
    renew = Renew(delivery_id=1, fence=FENCE, lease_seconds=20)
    assert rules.renew(row(State.CLAIMED, fence=FENCE + 1), renew, NOW) is None
    assert all(rules.renew(row(state), renew, NOW) is None for state in set(State) - HELD)


@pytest.mark.parametrize("state", [State.PENDING, State.QUEUED, State.CLAIMED])
@pytest.mark.parametrize("newer", [0, 1, 5])
def test_a_definite_250_makes_sent_of_every_row_before_its_commit_point(state: State, newer: int) -> None:
    sent = rules.record(row(state, fence=FENCE + newer), record(State.SENT), NOW)
    assert sent is not None and sent.state is State.SENT


def test_a_definite_250_leaves_a_newer_attempt_that_is_committing_alone() -> None:
    assert rules.record(row(State.COMMITTING, fence=FENCE + 1), record(State.SENT), NOW) is None
    assert rules.record(row(State.COMMITTING), record(State.SENT), NOW) is not None


def test_a_definite_250_resolves_the_own_uncertain_and_no_other() -> None:
    assert rules.record(row(State.UNCERTAIN), record(State.SENT), NOW) is not None
    assert rules.record(row(State.UNCERTAIN, fence=FENCE + 1), record(State.SENT), NOW) is None


@pytest.mark.parametrize("state", sorted(FINAL - {State.UNCERTAIN, State.SENT}))
def test_a_definite_250_changes_nothing_that_is_final(state: State) -> None:
    assert rules.record(row(state), record(State.SENT), NOW) is None


@pytest.mark.parametrize("to", [State.FAILED, State.PENDING, State.UNCERTAIN])
@pytest.mark.parametrize("state", [State.CLAIMED, State.COMMITTING, State.UNCERTAIN])
@pytest.mark.parametrize("is_after_the_dot", [True, False])
def test_no_other_outcome_is_recorded_under_a_newer_fence(
    to: State, state: State, is_after_the_dot: bool
) -> None:
    late = record(to, from_committing=is_after_the_dot)
    assert rules.record(row(state, fence=FENCE + 1), late, NOW) is None


def test_before_the_dot_only_a_claimed_row_is_changed() -> None:
    for state in set(State) - {State.CLAIMED, State.FAILED}:
        assert rules.record(row(state), record(State.FAILED), NOW) is None
    assert rules.record(row(State.CLAIMED), record(State.FAILED), NOW) is not None


@pytest.mark.parametrize("state", [State.CLAIMED, State.COMMITTING, State.UNCERTAIN])
def test_a_definite_refusal_after_the_dot_ends_the_own_row(state: State) -> None:
    assert rules.record(row(state), record(State.FAILED, from_committing=True), NOW) is not None


def test_only_the_own_committing_row_becomes_uncertain() -> None:
    taken = {s for s in set(State) - {State.UNCERTAIN} if rules.record(row(s), record(State.UNCERTAIN), NOW)}
    assert taken == {State.COMMITTING}


def test_what_returns_to_a_cancelled_campaign_is_cancelled() -> None:
    for to in (State.PENDING, State.QUEUED):
        back = rules.record(
            row(State.CLAIMED, status=Status.CANCELLED), record(to, to_server="secondary"), NOW
        )
        assert back is not None and back.state is State.CANCELLED


def test_what_is_rerouted_in_a_paused_campaign_waits_instead() -> None:
    back = rules.record(
        row(State.CLAIMED, status=Status.PAUSED), record(State.QUEUED, to_server="secondary"), NOW
    )
    assert back is not None and back.state is State.PENDING and back.next_attempt_at == NOW


def test_a_deferral_is_counted_and_a_servers_fault_is_not() -> None:
    deferred = rules.record(row(State.CLAIMED), record(State.PENDING, deferral=True, wait_seconds=60), NOW)
    assert deferred is not None and (deferred.deferrals, deferred.next_attempt_at) == (1, NOW + 60)
    rerouted = rules.record(row(State.CLAIMED), record(State.QUEUED, to_server="secondary"), NOW)
    assert rerouted is not None and (rerouted.deferrals, rerouted.crashes) == (0, 0)


def test_the_same_report_twice_is_one() -> None:
    before = row(State.SENT)
    assert rules.record(before, record(State.SENT), NOW) is before


@pytest.mark.parametrize("to", [State.CLAIMED, State.COMMITTING, State.CANCELLED, State.SUPPRESSED])
def test_an_attempt_cannot_end_in_a_state_that_is_no_end(to: State) -> None:
    with pytest.raises(ValueError, match="cannot end"):
        rules.record(row(State.CLAIMED), record(to), NOW)


def test_a_reroute_without_a_server_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a server"):
        rules.record(row(State.CLAIMED), record(State.QUEUED), NOW)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_a_wait_that_is_no_number_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        rules.record(row(State.CLAIMED), record(State.PENDING, wait_seconds=seconds), NOW)


def test_only_what_still_waits_in_that_queue_is_moved() -> None:
    move = Move(delivery_id=1, from_server="primary", to_server="secondary")
    moved = rules.move(row(State.QUEUED), move, NOW)
    assert moved is not None and (moved.state, moved.server) == (State.QUEUED, "secondary")
    assert rules.move(row(State.QUEUED, server="secondary"), move, NOW) is None
    assert all(rules.move(row(state), move, NOW) is None for state in set(State) - {State.QUEUED})


def test_the_sweep_leaves_a_lease_that_holds() -> None:
    assert rules.swept(row(State.CLAIMED, lease_until=NOW + 0.1), NOW, 5) is None


def test_the_sweep_frees_the_claimed_and_doubts_the_committing() -> None:
    claimed = rules.swept(row(State.CLAIMED, lease_until=NOW), NOW, 5)
    assert claimed is not None and (claimed.state, claimed.crashes) == (State.PENDING, 1)
    committing = rules.swept(row(State.COMMITTING, lease_until=NOW), NOW, 5)
    assert committing is not None and (committing.state, committing.crashes) == (State.UNCERTAIN, 0)


def test_a_delivery_that_kills_its_workers_fails_as_poison() -> None:
    poison = rules.swept(row(State.CLAIMED, lease_until=NOW, crashes=4), NOW, 5)
    assert poison is not None and poison.state is State.FAILED and poison.reply


def test_what_may_have_been_sent_is_sent_again_if_the_operator_says_so_but_not_without_end() -> None:
    again = rules.swept(row(State.COMMITTING, lease_until=NOW, crashes=3), NOW, 5, resends=True)
    assert again is not None and (again.state, again.crashes, again.owner) == (State.PENDING, 4, None)
    last = rules.swept(row(State.COMMITTING, lease_until=NOW, crashes=4), NOW, 5, resends=True)
    assert last is not None and last.state is State.UNCERTAIN
    cancelled = row(State.COMMITTING, lease_until=NOW, status=Status.CANCELLED)
    doubted = rules.swept(cancelled, NOW, 5, resends=True)
    assert doubted is not None and doubted.state is State.UNCERTAIN, "it may have been sent"


def test_the_poison_of_a_cancelled_campaign_is_cancelled() -> None:
    poison = row(State.CLAIMED, lease_until=NOW, crashes=4, status=Status.CANCELLED)
    swept = rules.swept(poison, NOW, 5)
    assert swept is not None and swept.state is State.CANCELLED


@pytest.mark.parametrize("state", sorted(set(State) - HELD))
def test_the_sweep_touches_only_what_is_held(state: State) -> None:
    assert rules.swept(row(state, lease_until=NOW - 1), NOW, 5) is None


@pytest.mark.parametrize("state", sorted(HELD))
def test_a_lease_of_before_the_clock_was_set_back_is_shortened_and_no_other(state: State) -> None:
    later = NOW + 0.1
    shortened = rules.shortened(row(state, lease_until=NOW + 20.1, updated_at=later), NOW, 20)
    assert shortened is not None and (shortened.state, shortened.lease_until) == (state, NOW + 20)
    assert rules.shortened(row(state, lease_until=NOW + 20, updated_at=later), NOW, 20) is None
    assert rules.shortened(row(State.PENDING, lease_until=NOW + 86_400, updated_at=later), NOW, 20) is None


@pytest.mark.parametrize("state", sorted(HELD))
def test_the_longer_lease_of_a_process_with_other_settings_is_left(state: State) -> None:
    assert rules.shortened(row(state, lease_until=NOW + 3600, updated_at=NOW), NOW, 20) is None
    beyond = rules.shortened(row(state, lease_until=NOW + 3600.1, updated_at=NOW), NOW, 20)
    assert beyond is not None and beyond.lease_until == NOW + 20


def test_a_delivery_of_another_campaign_than_the_letters_is_neither_claimed_nor_moved() -> None:
    queued = row(State.QUEUED)
    own, other = queued.campaign_id, queued.campaign_id + 1
    assert rules.claim(queued, replace(CLAIM, campaign_id=own), NOW) is not None
    assert rules.claim(queued, replace(CLAIM, campaign_id=other), NOW) is None
    move = Move(delivery_id=queued.id, from_server="primary", to_server=None, campaign_id=own)
    assert rules.move(queued, move, NOW) is not None
    assert rules.move(queued, replace(move, campaign_id=other), NOW) is None


def test_whom_the_suppression_list_names_is_not_claimed() -> None:
    suppressed = rules.claim(row(State.QUEUED), CLAIM, NOW, is_suppressed=True)
    assert suppressed is not None and (suppressed.state, suppressed.owner) == (State.SUPPRESSED, None)
    assert rules.claim(row(State.CLAIMED), CLAIM, NOW, is_suppressed=True) is None
    assert rules.claim(row(State.QUEUED, server="secondary"), CLAIM, NOW, is_suppressed=True) is None

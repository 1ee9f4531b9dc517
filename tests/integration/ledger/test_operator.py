"""What an operator may ask for, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from sqlalchemy import text

from campaigns.classifier import Classification, Outcome, Scope
from campaigns.errors import CampaignExists, TransitionRefused, UnknownCampaign
from campaigns.ledger import Ledger
from campaigns.states import State, Status
from tests.crowd import Crowd, eventually, new_recipients


def test_a_campaign_is_kept_as_it_was_given(ledger: Ledger) -> None:
    created = ledger.create_campaign(
        "spring",
        sender="Ünal <u@example.org>",
        subject="{{ x }}",
        html="<p>",
        headers={"X-A": "b"},
        defaults={"x": "y"},
        rate_per_second=2.5,
    )
    assert ledger.campaign("spring") == created == ledger.campaign_by_id(created.id)
    assert (created.status, created.headers, created.defaults) == (Status.DRAFT, {"X-A": "b"}, {"x": "y"})
    assert [one.name for one in ledger.campaigns()] == ["spring"]


def test_a_name_is_taken_once(ledger: Ledger) -> None:
    Crowd(ledger)
    name = ledger.campaigns()[0].name
    with pytest.raises(CampaignExists, match=name):
        ledger.create_campaign(name, sender="a@b.example", subject="x")


@pytest.mark.parametrize("what", ["campaign", "send", "pause", "resume", "cancel", "retry", "counts"])
def test_an_unknown_name_is_said(ledger: Ledger, what: str) -> None:
    call: Callable[[str], object] = getattr(ledger, what)
    with pytest.raises(UnknownCampaign, match="nobody"):
        call("nobody")


def test_pausing_what_is_paused_is_no_failure(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    assert ledger.pause(crowd.name).status is Status.PAUSED
    assert ledger.pause(crowd.name).status is Status.PAUSED
    assert ledger.resume(crowd.name).status is Status.RUNNING
    assert ledger.resume(crowd.name).status is Status.RUNNING


def test_a_policy_pause_keeps_its_reason_until_the_resume(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    assert ledger.pause_by_policy(crowd.campaign_id, "SPF fails everywhere")
    assert not ledger.pause_by_policy(crowd.campaign_id, "again")
    assert ledger.counts(crowd.name).reason == "SPF fails everywhere"
    assert ledger.resume(crowd.name).reason is None


def test_a_scheduled_campaign_that_is_paused_and_resumed_keeps_its_time(ledger: Ledger) -> None:
    crowd = Crowd(ledger, send=False)
    at = ledger.now() + 3600
    ledger.send(crowd.name, at=at)
    ledger.pause(crowd.name)
    assert ledger.resume(crowd.name).status is Status.SCHEDULED
    assert ledger.send(crowd.name).status is Status.RUNNING


@pytest.mark.parametrize("what", ["send", "pause", "resume", "retry"])
def test_a_cancelled_campaign_stays_cancelled(ledger: Ledger, what: str) -> None:
    crowd = Crowd(ledger)
    ledger.cancel(crowd.name)
    with pytest.raises(TransitionRefused, match="cancelled"):
        getattr(ledger, what)(crowd.name)


@pytest.mark.parametrize("what", ["pause", "resume", "retry"])
def test_a_draft_can_only_be_sent_or_cancelled(ledger: Ledger, what: str) -> None:
    crowd = Crowd(ledger, send=False)
    with pytest.raises(TransitionRefused, match="draft"):
        getattr(ledger, what)(crowd.name)


def test_cancel_takes_all_that_is_before_its_commit_point(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 5)
    claims = crowd.claim(ids=crowd.ids[:3])
    crowd.commit(claims[:1])
    crowd.report(claims[1], State.FAILED)
    crowd.queue(ids=crowd.ids[3:4])
    assert ledger.cancel(crowd.name) == 3
    counts = crowd.counts()
    assert (counts.states[State.CANCELLED], counts.states[State.COMMITTING]) == (3, 1)
    assert counts.states[State.FAILED] == 1
    assert crowd.commit([claims[2]]) == [False]
    assert crowd.report(claims[0], State.SENT).state is State.SENT
    assert ledger.cancel(crowd.name) == 0


def test_cancel_goes_in_chunks_through_more_than_one(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 1203)
    assert ledger.cancel(crowd.name) == 1203
    assert crowd.in_state(State.CANCELLED) == 1203


def test_a_retry_gives_the_failed_a_new_start(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    claims = crowd.claim()
    crowd.report(claims[0], State.FAILED, deferral=True)
    crowd.report(claims[1], State.SENT)
    ledger.finish_idle()
    retried = ledger.retry(crowd.name)
    assert (retried.moved, retried.left) == (1, 0)
    row = crowd.row()
    assert (row["state"], row["fence"], row["deferrals"], row["first_attempt_at"]) == ("pending", 2, 0, None)
    assert ledger.campaign(crowd.name).status is Status.RUNNING
    assert crowd.in_state(State.SENT) == 1


def test_a_retry_of_nothing_leaves_a_finished_campaign_finished(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.report(crowd.claim()[0], State.SENT)
    ledger.finish_idle()
    assert ledger.retry(crowd.name).moved == 0
    assert ledger.campaign(crowd.name).status is Status.FINISHED


def test_uncertain_is_not_retried_before_the_dots_deadline(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    crowd.uncertain()
    early = ledger.retry(crowd.name, "uncertain", not_before_seconds=600)
    assert (early.moved, early.left) == (0, 2)
    crowd.set("updated_at", ledger.now() - 601)
    late = ledger.retry(crowd.name, "uncertain", not_before_seconds=600)
    assert (late.moved, late.left) == (2, 0)
    assert crowd.row()["fence"] == 2


@pytest.mark.parametrize("state", sorted(set(State) - {State.FAILED, State.UNCERTAIN}))
def test_nothing_else_is_retried(ledger: Ledger, state: State) -> None:
    crowd = Crowd(ledger)
    with pytest.raises(TransitionRefused, match="cannot be retried"):
        ledger.retry(crowd.name, state)


def test_a_retry_in_a_paused_campaign_waits_for_the_resume(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.report(crowd.claim()[0], State.FAILED)
    ledger.pause(crowd.name)
    assert ledger.retry(crowd.name).moved == 1
    assert ledger.campaign(crowd.name).status is Status.PAUSED


@pytest.mark.parametrize("over", ["finished", "cancelled"])
def test_nobody_is_added_to_what_is_over(ledger: Ledger, over: str) -> None:
    crowd = Crowd(ledger, 0)
    assert ledger.finish_idle() == [crowd.name] if over == "finished" else ledger.cancel(crowd.name) == 0
    with pytest.raises(TransitionRefused, match=over):
        ledger.add_recipients(crowd.campaign_id, new_recipients(1))


def test_deliveries_are_read_in_pages_and_by_state(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 1001)
    crowd.report(crowd.claim(ids=crowd.ids[:1])[0], State.FAILED, reply="550 5.1.1 no such user")
    assert [one.id for one in ledger.deliveries(crowd.name)] == crowd.ids
    (failed,) = ledger.deliveries(crowd.name, "failed")
    assert (failed.email, failed.server, failed.reply) == (
        "person0@example.com",
        "primary",
        "550 5.1.1 no such user",
    )
    assert "person0" not in repr(failed)


def test_events_are_read_back_the_oldest_first(ledger: Ledger) -> None:
    for number in range(3):
        ledger.record_event(
            "breaker", server="primary", from_state="closed", to_state="open", reason=f"refused {number}"
        )
    ledger.record_event("paused", campaign="spring")
    assert [one.reason for one in ledger.events(server="primary", limit=2)] == ["refused 1", "refused 2"]
    (paused,) = ledger.events(campaign="spring")
    assert paused.at == pytest.approx(ledger.now(), abs=5)


def test_a_block_holds_until_its_time(ledger: Ledger) -> None:
    ledger.add_block("primary", sender="a@b.example", reason="SPF", until=ledger.now() + 60)
    ledger.add_block("primary", domain="gmail.example", reason="listed", until=ledger.now() - 1)
    ledger.add_block("secondary", reason="for good")
    assert [(one.server, one.reason) for one in ledger.blocks()] == [
        ("primary", "SPF"),
        ("secondary", "for good"),
    ]
    assert ledger.remove_blocks("secondary") == 1


def test_a_block_that_holds_already_is_prolonged(ledger: Ledger) -> None:
    until = ledger.now() + 60
    assert ledger.add_block("primary", domain="a.example", reason="full", until=until)
    assert not ledger.add_block("primary", domain="a.example", reason="full", until=until + 60)
    assert not ledger.add_block("primary", domain="a.example", reason="full", until=until - 30)
    assert ledger.add_block("primary", domain="b.example", reason="full", until=until)
    assert ledger.add_block("secondary", domain="a.example", reason="full", until=until)
    first = ledger.blocks()[0]
    assert (first.domain, first.until) == ("a.example", pytest.approx(until + 60))


def test_a_block_of_a_domain_is_an_event_and_so_is_its_end(ledger: Ledger) -> None:
    ledger.add_block("primary", sender="a@b.example", reason="SPF", until=ledger.now() - 1)
    for _ in range(2):
        ledger.add_block("primary", domain="a.example", reason="takes no more", until=ledger.now() + 0.5)
    assert ledger.end_blocks() == 1
    eventually(lambda: ledger.end_blocks() == 1)
    assert ledger.end_blocks() == 0
    told = [(one.kind, one.server, one.from_state, one.to_state, one.reason) for one in ledger.events()]
    assert told == [
        ("limit", "primary", "open", "full", "a.example: takes no more"),
        ("limit", "primary", "full", "open", "a.example: the time is over"),
    ]


def refused_by_policy(ledger: Ledger, *, outcome: str = "policy", server: str = "primary") -> Crowd:
    """A campaign whose mail to two domains was refused through one server, and waits."""
    crowd = Crowd(ledger, 1)
    ledger.add_recipients(crowd.campaign_id, new_recipients(1, domain="other.example"))
    crowd.ids = [one.id for one in ledger.deliveries(crowd.name)]
    for claim in crowd.claim(server):
        crowd.report(claim, State.PENDING, outcome=outcome, server=server)
    return crowd


def a_moment_later(ledger: Ledger) -> None:
    """The clock's resolution is a millisecond on SQLite."""
    now = ledger.now()
    eventually(lambda: ledger.now() > now)


BOTH_DOMAINS = frozenset({"example.com", "other.example"})


def test_policy_refusals_are_told_by_server_and_domain(ledger: Ledger) -> None:
    crowd = refused_by_policy(ledger)
    assert ledger.policy_refusals(crowd.campaign_id) == {"primary": BOTH_DOMAINS}
    assert ledger.policy_refusers(crowd.ids[0]) == {"primary"}


@pytest.mark.parametrize("scope", [Scope.MESSAGE, Scope.SERVER_DOMAIN])
def test_a_refusal_of_one_mail_or_by_one_domain_is_not_held_against_the_campaign(
    ledger: Ledger, scope: Scope
) -> None:
    outcome = Classification(outcome=Outcome.POLICY, scope=scope, rule="x").recorded_as
    crowd = refused_by_policy(ledger, outcome=outcome)
    assert ledger.policy_refusals(crowd.campaign_id) == {}
    assert ledger.policy_refusers(crowd.ids[0]) == {"primary"}


def answered(crowd: Crowd, outcome: str, phase: str, code: int | None) -> float:
    """One attempt more; when it ended."""
    crowd.set("next_attempt_at", 0.0)
    [claim] = crowd.claim(ids=crowd.ids[:1])
    crowd.report(claim, State.PENDING, outcome=outcome, phase=phase, code=code)
    a_moment_later(crowd.ledger)
    return float(crowd.attempts()[-1]["finished_at"])


def test_since_when_a_mail_is_deferred_is_known_until_it_is_made_new(ledger: Ledger) -> None:
    crowd, other = Crowd(ledger), Crowd(ledger)
    answered(other, "deferred", "rcpt", 450)
    answered(crowd, "unreachable", "rcpt", 451)
    assert ledger.deferred_since(crowd.ids[0]) is None
    first = answered(crowd, "deferred", "rcpt", 450)
    answered(crowd, "deferred", "dot", 451)
    assert ledger.deferred_since(crowd.ids[0]) == first
    crowd.set("first_attempt_at", ledger.now())
    assert ledger.deferred_since(crowd.ids[0]) is None


def paused(crowd: Crowd, began_at: float, ended_at: float | None) -> None:
    with crowd.ledger.database.write() as connection:
        sql = "INSERT INTO pause (campaign_id, began_at, ended_at) VALUES (:id, :began_at, :ended_at)"
        values = {"id": crowd.campaign_id, "began_at": began_at, "ended_at": ended_at}
        connection.execute(text(sql), values)


def deferred_seconds_ago(crowd: Crowd, seconds: float) -> float:
    """By the database's clock: when."""
    answered(crowd, "deferred", "rcpt", 450)
    first = crowd.ledger.now() - seconds
    with crowd.ledger.database.write() as connection:
        connection.execute(text("UPDATE delivery SET first_attempt_at = :first"), {"first": first})
        connection.execute(text("UPDATE attempt SET finished_at = :first"), {"first": first})
    return first


def test_the_time_of_pauses_is_taken_off_how_long_a_mail_is_deferred(ledger: Ledger) -> None:
    crowd, other = Crowd(ledger), Crowd(ledger)
    first = deferred_seconds_ago(crowd, 100)
    paused(other, first + 10, None)
    paused(crowd, first - 20, first - 10)
    assert ledger.deferred_since(crowd.ids[0]) == first
    paused(crowd, first - 5, first + 2)
    paused(crowd, first + 3, first + 7)
    assert ledger.deferred_since(crowd.ids[0]) == pytest.approx(first + 2 + 4)
    paused(crowd, first + 90, None)
    so_far = ledger.now() - first - 90
    assert ledger.deferred_since(crowd.ids[0]) == pytest.approx(first + 2 + 4 + so_far, abs=2)


def test_a_clock_that_was_wrong_during_a_pause_adds_no_time_and_takes_none_off(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    first = deferred_seconds_ago(crowd, 100)
    paused(crowd, first + 30, first + 10)
    assert ledger.deferred_since(crowd.ids[0]) == first
    paused(crowd, first + 90, first + 90_000)
    so_far = ledger.now() - first - 90
    assert ledger.deferred_since(crowd.ids[0]) == pytest.approx(first + so_far, abs=2)


def test_a_pause_lasts_until_its_campaign_runs_again_or_ends(ledger: Ledger) -> None:
    first, second = Crowd(ledger), Crowd(ledger)
    for crowd in (first, second):
        ledger.pause(crowd.name)
        ledger.pause(crowd.name)
    ledger.resume(first.name)
    ledger.pause(first.name)
    ledger.cancel(second.name)
    with ledger.database.read() as connection:
        sql = "SELECT campaign_id, ended_at >= began_at FROM pause ORDER BY campaign_id, id"
        found = [tuple(row) for row in connection.execute(text(sql))]
    assert found == [(first.campaign_id, True), (first.campaign_id, None), (second.campaign_id, True)]


def test_since_when_a_server_answers_a_mail_with_faults_is_known_if_it_takes_others(ledger: Ledger) -> None:
    crowd, other = Crowd(ledger), Crowd(ledger)
    [delivery_id] = crowd.ids
    [sent] = other.committing()
    answered(crowd, "unreachable", "connect", None)
    answered(crowd, "unreachable", "rcpt", None)
    answered(crowd, "unreachable", "mail", 421)
    answered(crowd, "deferred", "rcpt", 450)
    assert ledger.answered_since(delivery_id, "primary", "unreachable", 60) is None
    first = answered(crowd, "unreachable", "rcpt", 451)
    answered(crowd, "unreachable", "dot", 451)
    assert ledger.answered_since(delivery_id, "primary", "unreachable", 60) is None, (
        "it took nobody's mail since"
    )
    assert ledger.answered_since(delivery_id, "primary", "unreachable", 0) == first, "for long enough"
    other.report(sent, State.SENT)
    assert ledger.answered_since(delivery_id, "primary", "unreachable", 60) == first
    assert ledger.answered_since(delivery_id, "secondary", "unreachable", 60) is None
    assert ledger.answered_since(delivery_id, "primary", "full", 0) is None
    full = answered(crowd, "full", "rcpt", 452)
    assert ledger.answered_since(delivery_id, "primary", "full", 0) == full
    assert ledger.answered_since(delivery_id, "primary", "full", math.inf) is None
    crowd.set("first_attempt_at", ledger.now())
    assert ledger.answered_since(delivery_id, "primary", "unreachable", 0) is None, "it was made new since"


def test_what_was_refused_before_the_operator_resumed_is_not_held_against_the_campaign(
    ledger: Ledger,
) -> None:
    crowd = refused_by_policy(ledger)
    ledger.resume(crowd.name)
    assert ledger.policy_refusals(crowd.campaign_id) == {"primary": BOTH_DOMAINS}
    assert ledger.pause_by_policy(crowd.campaign_id, "SPF fails everywhere")
    a_moment_later(ledger)
    ledger.resume(crowd.name)
    assert ledger.policy_refusals(crowd.campaign_id) == {}
    [again] = crowd.claim("secondary", ids=crowd.ids[:1])
    crowd.report(again, State.PENDING, outcome="policy", server="secondary")
    assert ledger.policy_refusals(crowd.campaign_id) == {"secondary": {"example.com"}}
    assert ledger.policy_refusers(crowd.ids[0]) == {"primary", "secondary"}


def test_what_was_refused_before_a_finished_campaign_was_retried_is_not_held_against_it(
    ledger: Ledger,
) -> None:
    crowd = Crowd(ledger)
    [claim] = crowd.claim()
    crowd.report(claim, State.FAILED, outcome="policy")
    assert ledger.finish_idle() == [crowd.name]
    assert ledger.policy_refusals(crowd.campaign_id) == {"primary": {"example.com"}}
    a_moment_later(ledger)
    ledger.retry(crowd.name)
    assert ledger.campaign(crowd.name).status is Status.RUNNING
    assert ledger.policy_refusals(crowd.campaign_id) == {}


def test_a_schedule_that_starts_a_campaign_says_since_when_it_runs(ledger: Ledger) -> None:
    crowd = refused_by_policy(ledger)
    a_moment_later(ledger)
    with ledger.database.write() as connection:
        connection.execute(text("UPDATE campaign SET status = 'scheduled', scheduled_at = 0"))
    assert ledger.start_scheduled() == [crowd.name]
    assert ledger.policy_refusals(crowd.campaign_id) == {}

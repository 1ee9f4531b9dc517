"""What follows from each outcome. `random` is 0 here unless a test says otherwise: no jitter."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.classifier import Classification, Outcome, Scope, classify
from campaigns.decision import Decision, Facts, decide
from campaigns.reply import Fault, Phase, Reply, SmtpResult, Stop
from campaigns.settings import Delivery
from campaigns.states import LEGAL, State
from tests.unit.strategies import REPEATABLE, results

NOW = 1_700_000_000.0
DELIVERY = Delivery()
RESEND = Delivery(on_uncertain="resend")
BOTH = ("primary", "secondary")
FINAL_SCOPES = [Scope.RECIPIENT, Scope.MESSAGE]


def known(outcome: Outcome, scope: Scope = Scope.SERVER, **fields: object) -> Classification:
    return Classification(outcome=outcome, scope=scope, rule="a-rule", **fields)  # type: ignore[arg-type]


def facts(**fields: object) -> Facts:
    given_facts = {
        "server": "primary",
        "route": BOTH,
        "usable_servers": ("secondary",),
        "domain": "example.com",
    }
    return Facts(**{**given_facts, "sender": "news@example.org", **fields})  # type: ignore[arg-type]


def decided(
    classification: Classification, its_facts: Facts, delivery: Delivery = DELIVERY, random: float = 0.0
) -> Decision:
    return decide(classification, its_facts, delivery, NOW, lambda: random)


def test_an_accepted_mail_is_sent_and_its_task_succeeded() -> None:
    decision = decided(known(Outcome.SENT), facts())
    assert (decision.to, decision.task_state) == (State.SENT, "success")


@pytest.mark.parametrize("scope", FINAL_SCOPES)
def test_a_550_never_reroutes(scope: Scope) -> None:
    decision = decided(known(Outcome.REJECTED, scope), facts())
    assert decision == Decision(to=State.FAILED, task_state="failure")


def test_a_deferral_waits_for_the_same_server_and_is_counted() -> None:
    decision = decided(known(Outcome.DEFERRED, Scope.RECIPIENT), facts(first_attempt_at=NOW - 1))
    assert decision == Decision(
        to=State.PENDING, to_server="primary", wait_seconds=300, deferral=True, task_state="retry"
    )


@pytest.mark.parametrize(("deferrals", "seconds"), [(0, 300), (1, 900), (2, 3600), (3, 14400), (9, 14400)])
def test_each_deferral_waits_longer_and_the_last_wait_repeats(deferrals: int, seconds: float) -> None:
    assert decided(known(Outcome.DEFERRED), facts(deferrals=deferrals)).wait_seconds == seconds


def test_a_wait_is_jittered_and_never_shorter_than_asked_for() -> None:
    classification = known(Outcome.DEFERRED, wait_seconds=1000.0)
    assert decided(classification, facts()).wait_seconds == 1000
    assert 1000 < decided(classification, facts(), random=0.99).wait_seconds <= 1200


def test_a_deferred_mail_is_given_up_after_the_time_for_it() -> None:
    give_up = DELIVERY.give_up_after_seconds
    late = facts(deferred_since=NOW - give_up, deferrals=7)
    early = facts(deferred_since=NOW - give_up + 1, deferrals=7)
    assert decided(known(Outcome.DEFERRED), late).to is State.FAILED
    assert decided(known(Outcome.DEFERRED), early).to is State.PENDING


def test_a_mail_that_was_held_back_for_long_has_all_the_time_from_its_first_deferral() -> None:
    held_back = facts(first_attempt_at=1.0)
    decision = decided(known(Outcome.DEFERRED, Scope.RECIPIENT), held_back)
    assert (decision.to, decision.deferral) == (State.PENDING, True)


def test_an_unreachable_servers_mail_goes_to_the_other_at_once() -> None:
    decision = decided(known(Outcome.UNREACHABLE), facts(usable_servers=("third", "secondary")))
    assert decision == Decision(to=State.QUEUED, to_server="third", task_state="retry")


def test_mail_that_no_server_can_take_waits_a_little_and_is_never_given_up() -> None:
    decision = decided(
        known(Outcome.UNREACHABLE), facts(usable_servers=(), first_attempt_at=1.0, deferrals=99)
    )
    assert decision.to is State.PENDING
    assert 1 <= decision.wait_seconds <= 10
    assert not decision.deferral


def test_a_mail_that_servers_answer_with_faults_of_their_own_is_given_up_after_the_time_for_it() -> None:
    give_up = DELIVERY.give_up_after_seconds
    answer = known(Outcome.UNREACHABLE, is_answer=True)
    long = {"attempts": 99, "first_attempt_at": 1.0}
    assert decided(answer, facts(**long, answered_since=NOW - give_up)).to is State.FAILED
    assert decided(answer, facts(**long, answered_since=NOW - give_up + 1)).to is State.PENDING
    assert decided(answer, facts(**long)).to is State.PENDING


def test_that_a_server_is_not_reached_is_no_reason_to_give_up_whatever_was_answered_before() -> None:
    decision = decided(known(Outcome.UNREACHABLE), facts(attempts=99, answered_since=1.0))
    assert decision.to is State.PENDING


def test_before_it_is_given_up_each_server_is_asked_twice() -> None:
    answer = known(Outcome.UNREACHABLE, is_answer=True)
    assert decided(answer, facts(attempts=4, answered_since=1.0)).to is State.QUEUED
    assert decided(answer, facts(attempts=5, answered_since=1.0)).to is State.FAILED


@pytest.mark.parametrize("outcome", [Outcome.UNREACHABLE, Outcome.FULL, Outcome.STOPPED, Outcome.POLICY])
@pytest.mark.parametrize("usable", [(), ("secondary",)])
def test_what_is_not_the_recipients_side_is_no_deferral(outcome: Outcome, usable: tuple[str, ...]) -> None:
    assert not decided(known(outcome), facts(usable_servers=usable, first_attempt_at=1.0)).deferral


def test_a_mail_that_makes_every_server_stumble_is_slowed_and_not_lost() -> None:
    waits = [decided(known(Outcome.UNREACHABLE), facts(attempts=n)).wait_seconds for n in range(1, 14)]
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[4:] == sorted(waits[4:])
    assert waits[4] > 0
    assert waits[-1] == 60


def test_a_full_server_is_said_to_be_full_and_its_mail_goes_to_the_other() -> None:
    decision = decided(known(Outcome.FULL, wait_seconds=900.0), facts())
    assert (decision.to, decision.to_server, decision.full_seconds) == (State.QUEUED, "secondary", 900)


def test_mail_waits_until_a_full_server_has_room_if_no_other_takes_it() -> None:
    decision = decided(known(Outcome.FULL, wait_seconds=900.0), facts(usable_servers=()))
    assert (decision.to, decision.wait_seconds, decision.full_seconds) == (State.PENDING, 900, 900)


def test_a_server_that_does_not_say_how_long_it_is_full_is_full_for_a_minute() -> None:
    assert decided(known(Outcome.FULL), facts()).full_seconds == 60


def test_full_that_is_said_of_one_mail_closes_the_server_for_no_other() -> None:
    said = known(Outcome.FULL, wait_seconds=900.0, is_answer=True)
    alone = facts(is_full_for_others=False)
    assert decided(said, alone) == Decision(to=State.QUEUED, to_server="secondary")
    waiting = decided(said, facts(is_full_for_others=False, usable_servers=()))
    assert (waiting.to, waiting.wait_seconds, waiting.full_seconds) == (State.PENDING, 900, None)
    assert decided(said, facts()).full_seconds == 900, "of several in a row it is the server's word"
    before_any_was_named = known(Outcome.FULL, wait_seconds=900.0)
    assert decided(before_any_was_named, alone).full_seconds == 900


def test_a_mail_that_hears_full_from_all_is_slowed_and_comes_to_an_end() -> None:
    said = known(Outcome.FULL, wait_seconds=5.0, is_answer=True)
    assert [decided(said, facts(attempts=n)).to for n in (4, 5)] == [State.QUEUED, State.PENDING]
    assert decided(said, facts(attempts=10)).wait_seconds == 60
    since = NOW - DELIVERY.give_up_after_seconds

    def alone(attempts: int, answered_since: float) -> Decision:
        its_facts = facts(attempts=attempts, answered_since=answered_since, is_full_for_others=False)
        return decided(said, its_facts)

    assert alone(5, since).to is State.FAILED
    assert alone(5, since + 1).to is State.PENDING
    assert alone(4, since).to is State.QUEUED


def test_a_server_that_is_full_for_all_fails_no_mail() -> None:
    said = known(Outcome.FULL, wait_seconds=900.0, is_answer=True)
    long_ago = facts(attempts=50, answered_since=NOW - 2 * DELIVERY.give_up_after_seconds, usable_servers=())
    assert decided(said, long_ago) == Decision(to=State.PENDING, wait_seconds=900, full_seconds=900)
    of_our_account = replace(said, is_answer=False, of_our_account=True)
    assert decided(of_our_account, replace(long_ago, is_full_for_others=False)).to is State.PENDING


@pytest.mark.parametrize(("asked_seconds", "told_seconds"), [(5.0, 5), (3600.0, 60), (86400.0, 60)])
def test_a_quota_of_our_account_closes_the_server_at_once_but_not_for_long_until_others_hear_of_it(
    asked_seconds: float, told_seconds: float
) -> None:
    said = known(Outcome.FULL, wait_seconds=asked_seconds, of_our_account=True)
    first = facts(is_full_for_others=False)
    assert decided(said, first) == Decision(to=State.QUEUED, to_server="secondary", full_seconds=told_seconds)
    assert decided(said, facts()).full_seconds == asked_seconds
    alone = decided(said, replace(first, usable_servers=()))
    assert (alone.wait_seconds, alone.full_seconds) == (asked_seconds, told_seconds)


def test_a_mail_that_alone_hears_of_a_quota_again_and_again_comes_ever_less_often() -> None:
    said = known(Outcome.FULL, wait_seconds=3600.0, of_our_account=True)
    waits = [decided(said, facts(attempts=n, is_full_for_others=False)).wait_seconds for n in (5, 6, 50)]
    assert waits == [*DELIVERY.retry_after_seconds[:2], min(3600, DELIVERY.retry_after_seconds[-1])]
    assert decided(said, facts(attempts=50)).wait_seconds == 60, "the other server may take it"


@pytest.mark.parametrize("scope", [Scope.SERVER, Scope.SERVER_DOMAIN])
def test_a_mail_that_was_tried_often_waits_no_day_for_a_full_server_beside_one_that_takes_it(
    scope: Scope,
) -> None:
    said = known(Outcome.FULL, scope, wait_seconds=86400.0, is_answer=True)
    assert decided(said, facts(attempts=5)).wait_seconds == 2
    assert decided(said, facts(attempts=5, usable_servers=())).wait_seconds == 86400
    if scope is Scope.SERVER:
        assert decided(said, facts(attempts=5, is_full_for_others=False)).wait_seconds == 86400


def test_one_refusal_by_policy_tries_the_other_server_and_blames_nobody() -> None:
    decision = decided(known(Outcome.POLICY, Scope.SENDER), facts())
    assert decision == Decision(to=State.QUEUED, to_server="secondary", task_state="retry")


def test_a_mail_that_every_server_of_its_route_refused_fails_alone() -> None:
    decision = decided(
        known(Outcome.POLICY, Scope.SENDER),
        facts(tried_by_policy=frozenset({"secondary"}), policy_domains={"secondary": {"example.com"}}),
    )
    assert decision == Decision(to=State.FAILED, task_state="failure")


def test_three_domains_refused_through_one_server_take_it_off_the_sender() -> None:
    decision = decided(
        known(Outcome.POLICY, Scope.SENDER), facts(policy_domains={"primary": {"a.example", "b.example"}})
    )
    assert (decision.to, decision.to_server) == (State.QUEUED, "secondary")
    assert decision.block is not None
    assert (decision.block.server, decision.block.sender, decision.block.domain) == (
        "primary",
        "news@example.org",
        None,
    )
    assert decision.pause_reason is None


def test_the_same_domain_over_and_over_takes_nothing_off() -> None:
    decision = decided(
        known(Outcome.POLICY, Scope.SENDER), facts(policy_domains={"primary": {"example.com", "b.example"}})
    )
    assert decision.block is None


def test_three_domains_refused_through_every_server_pause_the_campaign() -> None:
    domains = {"primary": {"a.example", "b.example"}, "secondary": {"a.example", "b.example", "c.example"}}
    decision = decided(known(Outcome.POLICY, Scope.SENDER), facts(policy_domains=domains))
    assert decision.to is State.PENDING
    assert decision.pause_reason is not None
    assert "primary, secondary" in decision.pause_reason
    assert "@" not in decision.pause_reason
    assert decision.block is None


def test_a_route_of_one_server_is_paused_by_that_server_alone() -> None:
    decision = decided(
        known(Outcome.POLICY, Scope.SENDER),
        facts(route=("primary",), usable_servers=(), policy_domains={"primary": {"a.example", "b.example"}}),
    )
    assert decision.pause_reason is not None


def test_a_listed_server_is_taken_off_that_domain_alone() -> None:
    domains = {"primary": {"a.example", "b.example", "c.example"}, "secondary": {"a", "b", "c"}}
    decision = decided(known(Outcome.POLICY, Scope.SERVER_DOMAIN), facts(policy_domains=domains))
    assert decision.block is not None
    assert (decision.block.sender, decision.block.domain) == (None, "example.com")
    assert (decision.to, decision.to_server, decision.pause_reason) == (State.QUEUED, "secondary", None)


def test_refused_mail_waits_for_a_server_that_has_not_refused_it_but_is_down() -> None:
    decision = decided(known(Outcome.POLICY, Scope.SENDER), facts(usable_servers=()))
    assert decision.to is State.PENDING
    assert decision.wait_seconds > 0


def test_refused_mail_does_not_wait_for_a_server_that_is_taken_off_it() -> None:
    decision = decided(
        known(Outcome.POLICY, Scope.SENDER), facts(usable_servers=(), blocked=frozenset({"secondary"}))
    )
    assert decision.to is State.FAILED


def test_a_mail_that_needs_utf8_goes_to_a_server_that_may_have_it_and_blocks_none() -> None:
    domains = {name: {"a.example", "b.example", "c.example"} for name in BOTH}
    decision = decided(known(Outcome.POLICY, Scope.MESSAGE), facts(policy_domains=domains))
    assert decision == Decision(to=State.QUEUED, to_server="secondary", task_state="retry")
    tried = facts(tried_by_policy=frozenset({"secondary"}))
    assert decided(known(Outcome.POLICY, Scope.MESSAGE), tried).to is State.FAILED


@pytest.mark.parametrize(
    "result",
    [
        SmtpResult(phase=Phase.MAIL, fault=Fault.SIZE),
        SmtpResult(phase=Phase.MAIL, reply=Reply.parse(552, "5.3.4 Message size exceeds fixed limit")),
        SmtpResult(phase=Phase.DOT, reply=Reply.parse(552, "5.3.4 Message too big"), dot_sent=True),
    ],
)
def test_a_mail_that_is_too_big_for_one_server_is_tried_through_the_other_once(result: SmtpResult) -> None:
    decision = decided(classify(result), facts())
    assert decision == Decision(to=State.QUEUED, to_server="secondary", task_state="retry")
    tried = facts(tried_by_policy=frozenset({"secondary"}))
    assert decided(classify(result), tried) == Decision(to=State.FAILED, task_state="failure")


@pytest.mark.parametrize("scope", [Scope.MESSAGE, Scope.SERVER_DOMAIN])
def test_what_says_nothing_of_the_sender_never_pauses_and_never_takes_a_server_off_it(scope: Scope) -> None:
    domains = {name: {"a.example", "b.example", "c.example"} for name in BOTH}
    for others in (("secondary",), ()):
        decision = decided(known(Outcome.POLICY, scope), facts(policy_domains=domains, usable_servers=others))
        assert decision.pause_reason is None
        assert decision.block is None or decision.block.sender is None


def test_after_a_resume_three_domains_must_refuse_anew_before_the_campaign_is_paused_again() -> None:
    refused: set[str] = set()
    paused = []
    for domain in ("a.example", "b.example", "c.example"):
        at = facts(
            route=("primary",), usable_servers=(), domain=domain, policy_domains={"primary": set(refused)}
        )
        paused.append(decided(known(Outcome.POLICY, Scope.SENDER), at).pause_reason is not None)
        refused.add(domain)
    assert paused == [False, False, True]


def test_an_uncertain_mail_is_held_for_the_operator() -> None:
    decision = decided(known(Outcome.UNCERTAIN), facts())
    assert (decision.to, decision.task_state) == (State.UNCERTAIN, "failure")


def test_an_uncertain_mail_is_sent_again_only_where_that_is_asked_for_and_not_without_end() -> None:
    assert decided(known(Outcome.UNCERTAIN), facts(first_attempt_at=NOW), RESEND).to is State.PENDING
    late = facts(first_attempt_at=NOW - RESEND.give_up_after_seconds)
    assert decided(known(Outcome.UNCERTAIN), late, RESEND).to is State.UNCERTAIN


@pytest.mark.parametrize("stop", [stop for stop in Stop if stop is not Stop.FENCED])
def test_what_we_stopped_is_free_again_at_once(stop: Stop) -> None:
    decision = decided(known(Outcome.STOPPED, stop=stop), facts())
    assert decision == Decision(to=State.PENDING, task_state="retry")


def test_of_a_mail_that_is_anothers_by_now_nothing_is_recorded() -> None:
    decision = decided(known(Outcome.STOPPED, stop=Stop.FENCED), facts())
    assert decision == Decision(to=None, task_state="ignored")


NAMES = st.sampled_from(["primary", "secondary", "third"])
ANY_FACTS = st.builds(
    Facts,
    server=NAMES,
    route=st.lists(NAMES, unique=True, min_size=1).map(tuple),
    usable_servers=st.lists(NAMES, unique=True).map(tuple),
    deferrals=st.integers(0, 1000),
    attempts=st.integers(1, 10**6),
    first_attempt_at=st.none() | st.floats(0, 2 * NOW),
    deferred_since=st.none() | st.floats(0, 2 * NOW),
    answered_since=st.none() | st.floats(0, 2 * NOW),
    is_full_for_others=st.booleans(),
    tried_by_policy=st.frozensets(NAMES),
    blocked=st.frozensets(NAMES),
    policy_domains=st.dictionaries(NAMES, st.frozensets(st.sampled_from("abcde"))),
    sender=st.just("news@example.org"),
    domain=st.sampled_from("abcde"),
)
CLASSIFICATIONS = results().map(classify) | st.builds(
    Classification,
    outcome=st.sampled_from(Outcome),
    scope=st.sampled_from(Scope),
    rule=st.just("any"),
    wait_seconds=st.none() | st.floats(0, 86400),
    stop=st.none() | st.sampled_from(Stop),
    is_answer=st.booleans(),
)


@REPEATABLE
@given(CLASSIFICATIONS, ANY_FACTS, st.sampled_from([DELIVERY, RESEND]), st.floats(0, 0.999))
def test_everything_has_one_decision_that_the_state_machine_allows(
    classification: Classification, its_facts: Facts, delivery: Delivery, random: float
) -> None:
    decision = decided(classification, its_facts, delivery, random)
    assert decision.to is None or decision.to in LEGAL[State.COMMITTING]
    assert (decision.to is State.SENT) == (classification.outcome is Outcome.SENT)
    assert (decision.to is State.QUEUED) <= (decision.to_server in its_facts.usable_servers)
    assert 0 <= decision.wait_seconds <= 2 * 86400
    assert decision.deferral <= (classification.outcome is Outcome.DEFERRED)
    assert (decision.task_state == "success") == (decision.to is State.SENT)
    assert (decision.task_state == "failure") == (decision.to in {State.FAILED, State.UNCERTAIN})


def test_a_domain_that_takes_no_more_for_now_gets_none_from_this_server_until_then() -> None:
    classification = known(Outcome.DEFERRED, Scope.SERVER_DOMAIN, wait_seconds=400.0)
    decision = decided(classification, facts())
    assert decision.block is not None
    assert (decision.block.server, decision.block.domain) == ("primary", "example.com")
    assert decision.block.until == NOW + 400
    assert (decision.to, decision.to_server, decision.deferral) == (State.PENDING, "primary", True)


def test_a_server_that_is_full_for_one_domain_is_not_full_for_the_others() -> None:
    decision = decided(known(Outcome.FULL, Scope.SERVER_DOMAIN), facts())
    assert decision.full_seconds is None
    assert decision.block is not None
    assert decision.block.domain == "example.com"
    assert decision.to is State.QUEUED


def test_an_ordinary_deferral_blocks_nothing() -> None:
    assert decided(known(Outcome.DEFERRED, Scope.RECIPIENT), facts()).block is None


def test_a_refused_mail_waits_longer_each_time_for_the_other_server_and_not_for_ever() -> None:
    """A standby that rests is not usable: nothing starts it while the primary is well."""
    refused = known(Outcome.POLICY, Scope.MESSAGE)
    waits = []
    for attempts in range(1, 10):
        decision = decided(refused, facts(usable_servers=(), attempts=attempts, refused_since=NOW - 172_799))
        assert (decision.to, decision.deferral) == (State.PENDING, False)
        waits.append(decision.wait_seconds)
    assert waits == [60, 60, 60, 60, 300, 900, 3600, 14400, 14400]
    over = decided(refused, facts(usable_servers=(), attempts=9, refused_since=NOW - 172_800))
    assert (over.to, over.task_state) == (State.FAILED, "failure")
    usable = decided(refused, facts(attempts=9, refused_since=NOW - 172_800))
    assert (usable.to, usable.to_server) == (State.QUEUED, "secondary"), "one that may take it is asked"

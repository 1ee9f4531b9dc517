"""Adding recipients, going on after a kill, and suppressions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaigns.errors import TransitionRefused
from campaigns.ledger import Added, Claim, ImportProgress, Ledger
from campaigns.states import State, Status
from tests.crowd import Crowd, new_recipients


def test_duplicates_within_a_batch_and_across_batches_are_counted_and_not_added(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3, send=False)
    rows = new_recipients(3, start=2)
    assert ledger.add_recipients(crowd.campaign_id, [*rows, rows[1]]) == Added(
        added=2, duplicate=2, suppressed=0
    )
    assert crowd.counts().total == 5


def test_the_same_address_may_be_in_two_campaigns(ledger: Ledger) -> None:
    assert Crowd(ledger, 3).counts().total == Crowd(ledger, 3).counts().total == 3


def test_suppressed_addresses_are_added_as_suppressed(ledger: Ledger) -> None:
    assert ledger.suppress([("person1@example.com", "person1@example.com", "asked for it")]) == 1
    assert ledger.suppress([("person1@example.com", "person1@example.com", None)]) == 0
    crowd = Crowd(ledger, 3)
    assert crowd.in_state(State.SUPPRESSED) == 1
    assert len(ledger.due(10)) == 2
    (entry,) = ledger.suppressions()
    assert (entry.email, entry.reason) == ("person1@example.com", "asked for it")
    assert ledger.unsuppress("person1@example.com") and not ledger.unsuppress("person1@example.com")


def test_who_is_suppressed_later_gets_nothing_either(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3)
    crowd.queue(ids=crowd.ids[1:2])
    crowd.claim(ids=crowd.ids[2:])
    ledger.suppress([(f"person{n}@example.com", f"person{n}@example.com", None) for n in range(3)])
    counts = crowd.counts()
    assert (counts.states[State.SUPPRESSED], counts.states[State.CLAIMED]) == (2, 1)


def _on_the_list(ledger: Ledger, number: int) -> None:
    ledger.suppress([(f"person{number}@example.com", f"person{number}@example.com", None)])


def test_whoever_is_suppressed_while_an_attempt_holds_the_mail_gets_no_second_try(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3)
    deferred, refused, doubtful = crowd.claim()
    for number in range(3):
        _on_the_list(ledger, number)
    crowd.report(deferred, State.PENDING, deferral=True, wait_seconds=900)
    crowd.report(refused, State.FAILED)
    assert crowd.commit([doubtful]) == [True]
    crowd.report(doubtful, State.UNCERTAIN)
    for state in (State.FAILED, State.UNCERTAIN):
        assert ledger.retry(crowd.name, state).moved == 1
    claims = [
        Claim(delivery_id=one, server="primary", owner="other", lease_seconds=20) for one in crowd.ids[1:]
    ]
    assert len(crowd.queue()) == 2 and ledger.apply(claims) == [None, None]
    crowd.set("next_attempt_at", 0.0)  # the deferral is over
    assert crowd.queue() == crowd.ids[:1]
    assert ledger.apply([replace(claims[0], delivery_id=crowd.ids[0])]) == [None]
    counts = crowd.counts()
    assert counts.states[State.SUPPRESSED] == counts.total == 3
    assert ledger.finish_idle() == [crowd.name]


def test_a_reroute_of_whoever_is_suppressed_meanwhile_ends_there(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 1)
    (claim,) = crowd.claim()
    _on_the_list(ledger, 0)
    crowd.report(claim, State.QUEUED, to_server="secondary")
    other = Claim(delivery_id=claim.delivery_id, server="secondary", owner="other", lease_seconds=20)
    assert ledger.apply([other, other]) == [None, None]
    assert crowd.state() is State.SUPPRESSED


def test_the_rest_of_an_import_is_taken_though_all_before_it_were_served(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    first = ImportProgress(import_id=begun.id, from_line=0, from_position=0, line=3, position=120)
    ledger.add_recipients(crowd.campaign_id, new_recipients(2), first)
    ledger.suppress([(f"person{number}@example.com", "", None) for number in range(2)])
    assert ledger.finish_idle() == [crowd.name]
    rest = ImportProgress(
        import_id=begun.id, from_line=3, from_position=120, line=5, position=200, finished=True
    )
    assert ledger.add_recipients(crowd.campaign_id, new_recipients(2, start=2), rest).added == 2
    assert crowd.counts().status is Status.RUNNING and ledger.finish_idle() == []
    with pytest.raises(TransitionRefused, match="has finished it"):
        ledger.add_recipients(crowd.campaign_id, new_recipients(2, start=4), rest)


def test_a_list_that_was_put_right_after_an_interrupted_import_is_taken_as_its_rest(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    ledger.begin_import(crowd.campaign_id, "never read")
    first = ImportProgress(import_id=begun.id, from_line=0, from_position=0, line=3, position=120)
    ledger.add_recipients(crowd.campaign_id, [], first)
    assert ledger.finish_idle() == [crowd.name]
    other = ledger.begin_import(crowd.campaign_id, "digest of the whole")
    whole = ImportProgress(
        import_id=other.id, from_line=0, from_position=0, line=9, position=9, finished=True
    )
    assert ledger.add_recipients(crowd.campaign_id, new_recipients(1), whole).added == 1
    assert crowd.counts().status is Status.RUNNING


def test_after_a_list_that_was_added_whole_a_finished_campaign_takes_no_other(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    whole = ImportProgress(
        import_id=begun.id, from_line=0, from_position=0, line=3, position=120, finished=True
    )
    ledger.add_recipients(crowd.campaign_id, [], whole)
    assert ledger.finish_idle() == [crowd.name]
    other = ledger.begin_import(crowd.campaign_id, "another digest")
    with pytest.raises(TransitionRefused, match="finished"):
        ledger.add_recipients(crowd.campaign_id, new_recipients(1), replace(whole, import_id=other.id))
    assert crowd.counts().total == 0


def test_a_finished_campaign_takes_no_list_of_which_nothing_was_read_before(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    assert ledger.finish_idle() == [crowd.name]
    whole = ImportProgress(
        import_id=begun.id, from_line=0, from_position=0, line=3, position=120, finished=True
    )
    with pytest.raises(TransitionRefused, match="finished"):
        ledger.add_recipients(crowd.campaign_id, new_recipients(1), whole)
    assert crowd.counts().total == 0


def test_a_rest_that_is_nobody_leaves_the_campaign_finished(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    first = ImportProgress(import_id=begun.id, from_line=0, from_position=0, line=3, position=120)
    ledger.add_recipients(crowd.campaign_id, [], first)
    assert ledger.finish_idle() == [crowd.name]
    rest = ImportProgress(
        import_id=begun.id, from_line=3, from_position=120, line=3, position=120, finished=True
    )
    ledger.add_recipients(crowd.campaign_id, [], rest)
    assert crowd.counts().status is Status.FINISHED


def test_nobody_is_added_to_a_cancelled_campaign_by_the_rest_of_a_list(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 1)
    ledger.cancel(crowd.name)
    with pytest.raises(TransitionRefused, match="cancelled"):
        ledger.add_recipients(crowd.campaign_id, new_recipients(1, start=1), continues=True)


def test_an_import_that_was_killed_goes_on_exactly(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0, send=False)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    step = ImportProgress(import_id=begun.id, from_line=0, from_position=0, line=3, position=120, rejected=1)
    ledger.add_recipients(crowd.campaign_id, new_recipients(2), step)
    again = ledger.begin_import(crowd.campaign_id, "digest")
    assert (again.id, again.line, again.position) == (begun.id, 3, 120)
    assert (again.added, again.duplicate, again.rejected) == (2, 0, 1)
    last = ImportProgress(
        import_id=begun.id, from_line=3, from_position=120, line=5, position=200, finished=True
    )
    ledger.add_recipients(crowd.campaign_id, new_recipients(2, start=2), last)
    (done,) = ledger.imports(crowd.campaign_id)
    assert done.finished and done.added == 4


def test_two_processes_cannot_import_the_same_piece(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0, send=False)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    step = ImportProgress(import_id=begun.id, from_line=0, from_position=0, line=2, position=50)
    ledger.add_recipients(crowd.campaign_id, new_recipients(2), step)
    with pytest.raises(TransitionRefused, match="another process"):
        ledger.add_recipients(crowd.campaign_id, new_recipients(2, start=5), step)
    assert crowd.counts().total == 2


def test_merge_fields_come_back_as_they_went_in(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0)
    odd = new_recipients(1)[0]
    fields = {"nul": "a\0b", "surrogate": "\udcff", "quote": "'\"\\", "script": "日本語", "empty": ""}
    ledger.add_recipients(crowd.campaign_id, [type(odd)(**{**_fields_of(odd), "fields": fields})])
    crowd.ids = [one.id for one in ledger.deliveries(crowd.name)]
    assert crowd.claim()[0].fields == fields


def _fields_of(recipient: object) -> dict[str, object]:
    return {name: getattr(recipient, name) for name in ("email", "dedupe_key", "domain", "fields")}

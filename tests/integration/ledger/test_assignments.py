"""The producer's side of the ledger."""

from __future__ import annotations

from collections import Counter

import pytest

from campaigns.ledger import Ledger, Move
from campaigns.states import State
from campaigns.waiting import waiting_for_later
from tests.crowd import Crowd


def test_what_is_due_is_what_waits_in_a_running_campaign(ledger: Ledger) -> None:
    running, draft, paused = Crowd(ledger, 2), Crowd(ledger, 2, send=False), Crowd(ledger, 2)
    ledger.pause(paused.name)
    due = ledger.due(10)
    assert [one.delivery_id for one in due] == running.ids
    assert {(one.campaign_name, one.stream, one.domain, one.server) for one in due} == {
        (running.name, "promotional", "example.com", None)
    }
    assert draft.counts().states[State.PENDING] == 2


def test_what_was_deferred_is_not_due_before_its_time(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.claim()
    crowd.report(claim, State.PENDING, wait_seconds=60)
    assert ledger.due(10) == [] and crowd.queue() == []
    crowd.set("next_attempt_at", ledger.now() - 1)
    assert [one.server for one in ledger.due(10)] == ["primary"]
    assert crowd.queue() == crowd.ids


def test_a_big_campaign_does_not_starve_a_small_one(ledger: Ledger) -> None:
    big, small = Crowd(ledger, 50), Crowd(ledger, 3)
    shares = Counter(one.campaign_name for one in ledger.due(10))
    assert shares == {big.name: 7, small.name: 3}


def test_many_campaigns_share_a_small_window(ledger: Ledger) -> None:
    crowds = [Crowd(ledger, 4) for _ in range(8)]
    shares = Counter(one.campaign_name for one in ledger.due(16))
    assert shares == {crowd.name: 2 for crowd in crowds}


def test_no_campaign_is_left_out_of_a_window_smaller_than_their_number_for_ever(ledger: Ledger) -> None:
    crowds = [Crowd(ledger, 1) for _ in range(4)]
    seen = {one.campaign_name for _ in range(200) for one in ledger.due(2)}
    assert seen == {crowd.name for crowd in crowds}
    assert all(len(ledger.due(2)) == 2 for _ in range(5))


def test_only_the_streams_asked_for_are_due(ledger: Ledger) -> None:
    Crowd(ledger, 3)
    wanted = Crowd(ledger, 3, stream="transactional")
    assert [one.delivery_id for one in ledger.due(2, {"transactional"})] == wanted.ids[:2]
    assert ledger.due(2, set()) == []


def test_campaigns_with_a_rate_take_no_places_from_those_without(ledger: Ledger) -> None:
    rated, free = [Crowd(ledger, 9, rate_per_second=1.0) for _ in range(3)], Crowd(ledger, 9)
    shares = Counter(one.campaign_name for one in ledger.due(6))
    assert shares == {free.name: 6} | {crowd.name: 2 for crowd in rated}
    shares = Counter(one.campaign_name for one in ledger.due(6, without={rated[0].campaign_id}))
    assert shares == {free.name: 6} | {crowd.name: 3 for crowd in rated[1:]}


def test_a_delivery_is_queued_by_one_of_two_producers(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3)
    first = ledger.enqueue([(one, "primary") for one in crowd.ids])
    second = ledger.enqueue([(one, "secondary") for one in crowd.ids])
    assert [one.server for one in first] == ["primary"] * 3 and second == []
    assert ledger.queued_counts() == {"primary": 3}
    assert crowd.in_state(State.QUEUED) == 3


def test_nothing_is_queued_in_a_paused_campaign(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    ledger.pause(crowd.name)
    assert crowd.queue() == []


def test_what_is_queued_for_long_is_found_and_touched(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    crowd.queue()
    assert ledger.stale_queued("primary", 30, 10) == []
    crowd.set("queued_at", ledger.now() - 60)
    stale = ledger.stale_queued("primary", 30, 10)
    assert [one.delivery_id for one in stale] == crowd.ids
    assert ledger.stale_queued("secondary", 30, 10) == []
    assert ledger.touch_queued(crowd.ids) == 2
    assert ledger.stale_queued("primary", 30, 10) == []


def test_a_touch_leaves_what_is_not_queued_alone(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    crowd.claim()
    assert ledger.touch_queued(crowd.ids) == 0
    assert crowd.row()["queued_at"] is None


def test_a_queue_is_rerouted_in_chunks_by_weight(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 100)
    crowd.queue()
    moved = ledger.reroute_queued("primary", {"secondary": 30, "third": 10}, limit=60)
    moved += ledger.reroute_queued("primary", {"secondary": 30, "third": 10}, limit=60)
    assert ledger.reroute_queued("primary", {"secondary": 1}) == []
    assert Counter(one.server for one in moved) == {"secondary": 75, "third": 25}
    assert crowd.counts().servers["primary"].rerouted == 100


def test_a_reroute_takes_only_its_stream_and_nothing_that_is_claimed(ledger: Ledger) -> None:
    promotional, transactional = Crowd(ledger, 2), Crowd(ledger, 2, stream="transactional")
    promotional.queue()
    transactional.claim(ids=transactional.ids[:1])
    transactional.queue(ids=transactional.ids[1:])
    moved = ledger.reroute_queued("primary", {"secondary": 1}, stream="transactional")
    assert [one.delivery_id for one in moved] == transactional.ids[1:]


def test_a_reroute_to_nowhere_is_a_mistake(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="other servers"):
        ledger.reroute_queued("primary", {})


def test_what_no_server_may_take_is_postponed(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 2)
    assert ledger.postpone(crowd.ids[:1], 60) == 1
    assert [one.delivery_id for one in ledger.due(10)] == crowd.ids[1:]
    crowd.queue(ids=crowd.ids[1:])
    assert ledger.postpone(crowd.ids[1:], 60) == 0, "another has given it to a server meanwhile"


def test_what_a_limit_holds_says_so(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 4)
    ledger.postpone_each(dict.fromkeys(crowd.ids[:2], 60.0), "held by the limits of example.com")
    ledger.postpone_each({crowd.ids[2]: 60.0})
    waiting = waiting_for_later(ledger.database, crowd.campaign_id)
    assert (waiting.count, waiting.held, waiting.held_by) == (3, 2, "the limits of example.com")
    crowd.queue(ids=crowd.ids[3:])
    move = Move(
        delivery_id=crowd.ids[3], from_server="primary", to_server=None, wait_seconds=60.0, why="held by 5/m"
    )
    assert ledger.apply([move]) == [True]
    held = next(one for one in ledger.deliveries(crowd.name) if one.id == crowd.ids[3])
    assert (held.state, held.reply) == (State.PENDING, "held by 5/m")


def test_the_queued_deliveries_of_a_campaign_are_read_in_pages(ledger: Ledger) -> None:
    crowd, other = Crowd(ledger, 5), Crowd(ledger, 1)
    crowd.queue()
    other.queue()
    first = ledger.queued_of(crowd.campaign_id, limit=3)
    rest = ledger.queued_of(crowd.campaign_id, after_id=first[-1].delivery_id, limit=3)
    assert [one.delivery_id for one in first + rest] == crowd.ids

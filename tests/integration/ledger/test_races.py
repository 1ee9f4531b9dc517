"""Threads that meet at the same rows: operators against workers, writers against writers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from campaigns.errors import TransitionRefused
from campaigns.ledger import Claim, Claimed, CommitPoint, Ledger
from campaigns.states import State, Status
from tests.crowd import OWNER, Crowd, new_recipients, report


def together(*calls: Callable[[], object]) -> None:
    """Run them at the same time; an exception of any is raised here."""
    barrier, errors = threading.Barrier(len(calls)), list[BaseException]()

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_batches_in_opposite_orders_do_not_hurt_each_other(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 60)
    crowd.queue()
    results: list[object] = []

    def claim(ids: list[int]) -> None:
        results.extend(
            ledger.apply(
                [Claim(delivery_id=one, server="primary", owner=OWNER, lease_seconds=60) for one in ids]
            )
        )

    together(*[lambda ids=ids: claim(ids) for ids in [crowd.ids, crowd.ids[::-1]] * 3])
    assert len([result for result in results if isinstance(result, Claimed)]) == 60
    assert not [result for result in results if isinstance(result, Exception)]
    assert crowd.in_state(State.CLAIMED) == 60


def test_nothing_passes_its_commit_point_after_a_pause_has_returned(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 80)
    claims = crowd.claim()
    paused = threading.Event()
    late: list[bool] = []

    def commit() -> None:
        for number, claim in enumerate(claims):
            if number == 40:  # so that some are left that come too late
                assert paused.wait(60)
            was_paused = paused.is_set()
            passed = ledger.apply([CommitPoint(delivery_id=claim.delivery_id, fence=claim.fence)]) == [True]
            if was_paused:
                late.append(passed)

    def pause() -> None:
        while crowd.ledger.counts(crowd.name).states[State.COMMITTING] < 5:
            pass
        ledger.pause(crowd.name)
        paused.set()

    together(commit, pause)
    assert len(late) >= 40 and not any(late)


def test_a_cancel_strands_nobody_who_is_on_the_way_back(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 90)
    claims = crowd.committing()

    def give_back(part: int) -> None:
        for claim in claims[part::3]:
            crowd.report(
                claim, random.choice([State.PENDING, State.QUEUED]), to_server="b", from_committing=True
            )

    together(lambda: ledger.cancel(crowd.name), *[lambda part=part: give_back(part) for part in range(3)])
    assert crowd.in_state(State.CANCELLED) == 90


def test_finishing_and_retrying_do_not_race(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 30)
    for claim in crowd.claim():
        crowd.report(claim, State.FAILED)
    together(*[ledger.finish_idle] * 2, lambda: ledger.retry(crowd.name), *[ledger.finish_idle] * 2)
    counts = crowd.counts()
    assert counts.states[State.PENDING] == 30
    assert counts.status is Status.RUNNING


def test_two_retries_raise_the_fence_once(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 20)
    crowd.uncertain()
    together(*[lambda: ledger.retry(crowd.name, State.UNCERTAIN)] * 3)
    assert crowd.row()["fence"] == 2
    assert crowd.in_state(State.PENDING) == 20


def test_counters_of_many_writers_add_up(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 120)
    claims = crowd.committing()
    ends = [State.SENT, State.FAILED, State.UNCERTAIN]

    def end(part: int) -> None:
        own = Ledger(ledger.database, shard=part)
        for start in range(0, 40, 8):
            batch = claims[part::3][start : start + 8]
            own.apply([report(claim, ends[part], from_committing=True) for claim in batch])

    together(*[lambda part=part: end(part) for part in range(3)])
    counts = crowd.counts()
    assert [counts.states[state] for state in ends] == [40, 40, 40]


def test_who_is_added_while_a_campaign_is_cancelled_is_cancelled_or_refused(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 10)
    cancelled = threading.Event()

    def add() -> None:
        for start in range(100, 2000, 50):
            if start == 1000:  # so that some are left that come too late
                assert cancelled.wait(60)
            try:
                ledger.add_recipients(crowd.campaign_id, new_recipients(50, start=start))
            except TransitionRefused:
                return

    def cancel() -> None:
        while ledger.counts(crowd.name).total < 200:
            pass
        ledger.cancel(crowd.name)
        cancelled.set()

    together(add, cancel)
    counts = crowd.counts()
    assert counts.alive == 0 and counts.states[State.CANCELLED] == counts.total <= 910


def test_nobody_is_added_to_a_campaign_that_just_finished(ledger: Ledger) -> None:
    for _ in range(8):
        crowd = Crowd(ledger, 0)
        refused: list[Exception] = []

        def add(crowd: Crowd = crowd, refused: list[Exception] = refused) -> None:
            try:
                ledger.add_recipients(crowd.campaign_id, new_recipients(300))
            except TransitionRefused as error:
                refused.append(error)

        together(ledger.finish_idle, add, ledger.finish_idle)
        counts = crowd.counts()
        assert counts.total == (0 if refused else 300)
        assert counts.status is (Status.FINISHED if refused else Status.RUNNING)
        if not refused:
            ledger.cancel(crowd.name)

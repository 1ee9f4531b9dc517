"""Defects to plant: each takes one guard out of the ledger. The machine must find every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from campaigns.ledger import campaigns, changes, leases, rules
from campaigns.ledger.campaigns import CampaignSide
from campaigns.ledger.operations import Claim, CommitPoint, Move, Record, Renew
from campaigns.ledger.row import Row
from campaigns.states import ALIVE, State, Status

HELD = frozenset({State.CLAIMED, State.COMMITTING})
Patch = pytest.MonkeyPatch


def the_commit_point_ignores_the_fence(patch: Patch) -> None:
    real = rules.commit_point

    def commit_point(row: Row, operation: CommitPoint, now: float) -> Row | None:
        return real(row, replace(operation, fence=row.fence), now)

    patch.setattr(rules, "commit_point", commit_point)


def the_commit_point_ignores_the_lease(patch: Patch) -> None:
    def commit_point(row: Row, operation: CommitPoint, now: float) -> Row | None:
        mine = row.state is State.CLAIMED and row.fence == operation.fence
        return row.committing(now=now) if mine and row.status is Status.RUNNING else None

    patch.setattr(rules, "commit_point", commit_point)


def the_commit_point_ignores_a_pause(patch: Patch) -> None:
    real = rules.commit_point

    def commit_point(row: Row, operation: CommitPoint, now: float) -> Row | None:
        after = real(replace(row, status=Status.RUNNING), operation, now)
        return after and replace(after, status=row.status)

    patch.setattr(rules, "commit_point", commit_point)


def a_claim_keeps_the_fence(patch: Patch) -> None:
    real = rules.claim

    def claim(row: Row, operation: Claim, now: float) -> Row | None:
        after = real(row, operation, now)
        return after and replace(after, fence=max(1, row.fence))

    patch.setattr(rules, "claim", claim)


def a_claim_takes_what_is_claimed(patch: Patch) -> None:
    real = rules.claim

    def claim(row: Row, operation: Claim, now: float) -> Row | None:
        if row.state is State.CLAIMED:
            row = replace(row, state=State.QUEUED)
        return real(row, operation, now)

    patch.setattr(rules, "claim", claim)


def a_retry_keeps_the_fence(patch: Patch) -> None:
    def without_fence(row: Row, **values: Any) -> Row:
        values.pop("fence")
        return replace(row, **values)

    patch.setattr(campaigns, "replace", without_fence)


def the_sweep_sends_what_is_committing_again(patch: Patch) -> None:
    real = rules.swept

    def swept(row: Row, now: float, max_crashes: int, **options: bool) -> Row | None:
        after = real(row, now, max_crashes, **options)
        return row.waiting(seconds=0.0, now=now) if after and after.state is State.UNCERTAIN else after

    patch.setattr(rules, "swept", swept)


def the_sweep_does_not_wait_for_the_lease(patch: Patch) -> None:
    real = rules.swept
    patch.setattr(
        rules, "swept", lambda row, now, *most, **options: real(row, now + 3600.0, *most, **options)
    )
    patch.setattr(leases, "_EXPIRED", leases._EXPIRED.replace("<= {clock}", "<= {clock} + 3600"))


def any_attempt_ends_what_is_committing(patch: Patch) -> None:
    real = rules._may_record

    def may_record(row: Row, operation: Record) -> bool:
        return real(row, operation) or (operation.from_committing and row.state in HELD)

    patch.setattr(rules, "_may_record", may_record)


def a_late_250_is_dropped(patch: Patch) -> None:
    real = rules._takes_a_definite_250
    patch.setattr(rules, "_takes_a_definite_250", lambda row, fence: row.fence == fence and real(row, fence))


def a_late_250_ends_what_another_is_committing(patch: Patch) -> None:
    patch.setattr(rules, "_takes_a_definite_250", lambda row, _: row.state in ALIVE)


def a_move_takes_what_is_uncertain(patch: Patch) -> None:
    real = rules.move

    def move(row: Row, operation: Move, now: float) -> Row | None:
        if row.state is State.UNCERTAIN:
            return row.queued(operation.to_server or "secondary", seconds=0.0, now=now)
        return real(row, operation, now)

    patch.setattr(rules, "move", move)


def a_stale_attempt_renews(patch: Patch) -> None:
    real = rules.renew

    def renew(row: Row, operation: Renew, now: float) -> Row | None:
        return real(row, replace(operation, fence=row.fence), now)

    patch.setattr(rules, "renew", renew)


def a_cancel_takes_what_is_committing(patch: Patch) -> None:
    real = CampaignSide.cancel

    def take(row: Row, now: float) -> Row | None:
        return row.ended(State.CANCELLED, now=now) if row.state is State.COMMITTING else None

    def cancel(self: CampaignSide, name: str) -> int:
        done = real(self, name)
        committing = campaigns._IN_STATE.format(state="committing")
        return done + sum(len(part) for part in self._in_chunks(self.campaign(name).id, committing, take))

    patch.setattr(CampaignSide, "cancel", cancel)


def a_campaign_finishes_too_soon(patch: Patch) -> None:
    patch.setattr(leases, "_ALIVE", "SELECT :id < 0")
    patch.setattr(leases, "_IDLE", "SELECT id FROM campaign WHERE status = 'running'")


def a_finished_campaign_is_not_reopened(patch: Patch) -> None:
    patch.setattr(changes, "_reopen", lambda *_: None)


def the_counters_forget_what_is_failed(patch: Patch) -> None:
    real = changes._tally

    def tally(rows: Any) -> Counter[Any]:
        return Counter({key: n for key, n in real(rows).items() if key[1] != "failed"})

    patch.setattr(changes, "_tally", tally)


def nobody_wakes_what_waits(patch: Patch) -> None:
    real = Row.waiting
    patch.setattr(Row, "waiting", lambda row, **values: real(row, **{**values, "seconds": 1e9}))


def a_pending_row_of_a_cancelled_campaign_stays(patch: Patch) -> None:
    patch.setattr(leases, "_STRANDED", "SELECT id FROM delivery WHERE id < 0 AND state = :state LIMIT :limit")


BREAK_THE_PROMISE: tuple[Callable[[Patch], None], ...] = (
    the_commit_point_ignores_the_fence,
    a_claim_keeps_the_fence,
    a_retry_keeps_the_fence,
    the_sweep_sends_what_is_committing_again,
    any_attempt_ends_what_is_committing,
    a_move_takes_what_is_uncertain,
    a_cancel_takes_what_is_committing,
    a_campaign_finishes_too_soon,
    a_finished_campaign_is_not_reopened,
    the_counters_forget_what_is_failed,
    nobody_wakes_what_waits,
    a_pending_row_of_a_cancelled_campaign_stays,
)
"""The promise alone finds these, whatever the reference says."""

BREAK_A_RULE: tuple[Callable[[Patch], None], ...] = (
    the_commit_point_ignores_the_lease,
    the_commit_point_ignores_a_pause,
    a_claim_takes_what_is_claimed,
    a_stale_attempt_renews,
    the_sweep_does_not_wait_for_the_lease,
    a_late_250_is_dropped,
    a_late_250_ends_what_another_is_committing,
)
"""Behind these stands another guard, or nobody is harmed at once: the reference finds them."""

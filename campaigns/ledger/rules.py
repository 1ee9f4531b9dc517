"""What each operation does to a delivery: the rules that carry the promise. Pure.

Each function takes the row as it stands under lock and the database's time, and returns the row as it
shall be, or None if the operation may not touch it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from campaigns.ledger.operations import Claim, CommitPoint, Move, Record, Renew
from campaigns.ledger.row import Row
from campaigns.states import FINAL, State, Status

__all__ = ["LONGEST_LEASE_SECONDS", "claim", "commit_point", "move", "record", "renew", "shortened", "swept"]

LONGEST_LEASE_SECONDS = 3600.0
"""What the settings allow at most."""

_HELD = frozenset({State.CLAIMED, State.COMMITTING})
_RECORDABLE = frozenset({State.SENT, State.FAILED, State.UNCERTAIN, State.PENDING, State.QUEUED})


def claim(row: Row, operation: Claim, now: float, *, is_suppressed: bool = False) -> Row | None:
    """Only what is queued for this very server, of the letter's own campaign, and only while that runs.

    Whoever came on the suppression list since it was last looked at becomes suppressed instead.
    """
    if row.state is not State.QUEUED or row.server != operation.server or row.status is not Status.RUNNING:
        return None
    if operation.campaign_id not in {None, row.campaign_id}:
        return None
    if is_suppressed:
        return row.ended(State.SUPPRESSED, now=now)
    lease_seconds = _finite(operation.lease_seconds)
    return row.claimed(owner=operation.owner, lease_seconds=lease_seconds, now=now)


def commit_point(row: Row, operation: CommitPoint, now: float) -> Row | None:
    """Only under the own fence and a lease that holds by the database's clock, while the campaign runs."""
    if row.state is not State.CLAIMED or row.fence != operation.fence or row.status is not Status.RUNNING:
        return None
    if row.lease_until is None or row.lease_until <= now:
        return None
    return row.committing(now=now)


def renew(row: Row, operation: Renew, now: float) -> Row | None:
    """An expired lease is renewed too, as long as nobody has judged the row since."""
    if row.state not in _HELD or row.fence != operation.fence:
        return None
    return row.renewed(until=now + _finite(operation.lease_seconds))


def move(row: Row, operation: Move, now: float) -> Row | None:
    """Only what still waits in that server's queue, of the letter's own campaign."""
    if row.state is not State.QUEUED or row.server != operation.from_server:
        return None
    if operation.campaign_id not in {None, row.campaign_id}:
        return None
    seconds = _finite(operation.wait_seconds)
    if operation.to_server is None:
        return row.waiting(seconds=seconds, now=now, reply=operation.why)
    return row.queued(operation.to_server, seconds=seconds, now=now)


def record(row: Row, operation: Record, now: float) -> Row | None:
    """The end of an attempt; None if the row is not this attempt's to change."""
    if operation.to not in _RECORDABLE:
        raise ValueError(f"an attempt cannot end as {operation.to}")
    if operation.to is State.QUEUED and not operation.to_server:
        raise ValueError("a delivery that is queued needs a server")
    if row.state is operation.to and row.fence == operation.fence and row.state in FINAL:
        return row  # the same report again: a replayed journal, or a commit whose reply was lost
    if operation.fence > row.fence or not _may_record(row, operation):
        return None  # no row is older than its own attempt: that one was of another database
    return _recorded(row, operation, now)


def _may_record(row: Row, operation: Record) -> bool:
    mine = row.fence == operation.fence
    if operation.to is State.SENT:
        return _takes_a_definite_250(row, operation.fence)
    if operation.to is State.UNCERTAIN:
        return mine and row.state is State.COMMITTING
    if operation.from_committing:
        return mine and row.state in {State.CLAIMED, State.COMMITTING, State.UNCERTAIN}
    return mine and row.state is State.CLAIMED


def _takes_a_definite_250(row: Row, fence: int) -> bool:
    if row.state is State.UNCERTAIN:
        return row.fence == fence
    if row.state is State.COMMITTING:
        return row.fence <= fence
    return row.state not in FINAL


def _recorded(row: Row, operation: Record, now: float) -> Row:
    seconds, reply = _finite(operation.wait_seconds), operation.reply
    if operation.deferral:
        row = replace(row, deferrals=row.deferrals + 1)
    if operation.to is State.PENDING:
        return row.waiting(seconds=seconds, now=now, reply=reply)
    if operation.to is State.QUEUED and operation.to_server:
        return row.queued(operation.to_server, seconds=seconds, now=now, reply=reply)
    return row.ended(operation.to, now=now, server=operation.server, reply=reply)


def swept(row: Row, now: float, max_crashes: int, *, resends: bool = False) -> Row | None:
    """What becomes of a delivery whose lease has run out; None while it holds.

    `resends`: what may have been sent is sent again, if the operator has so decided; but not without end.
    """
    if row.state not in _HELD or row.lease_until is None or row.lease_until > now:
        return None
    crashed = replace(row, crashes=row.crashes + 1)
    is_last = crashed.crashes >= max_crashes
    if row.state is State.COMMITTING:
        reply = "the worker vanished after the commit point"
        if resends and not is_last and row.status is not Status.CANCELLED:
            return crashed.waiting(seconds=0.0, now=now, reply=reply)
        return row.ended(State.UNCERTAIN, now=now, reply=reply)
    if is_last and row.status is not Status.CANCELLED:
        return crashed.ended(
            State.FAILED, now=now, reply=f"{crashed.crashes} workers vanished while sending it"
        )
    return crashed.waiting(seconds=0.0, now=now)


def shortened(row: Row, now: float, lease_seconds: float) -> Row | None:
    """A lease of before the clock was set back ends as one that is taken now; None if it is none of these.

    It is not ended at once, for its worker may live, and renews it then. That another process takes longer
    leases than this one is no reason to cut its.
    """
    if row.state not in _HELD or row.lease_until is None or row.lease_until <= now + lease_seconds:
        return None
    if row.updated_at <= now and row.lease_until <= now + LONGEST_LEASE_SECONDS:
        return None
    return row.renewed(until=now + lease_seconds)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError("a number of seconds must be finite")
    return float(seconds)

"""The states of a delivery and the statuses of a campaign, and which may follow which. Pure.

`LEGAL` is checked by the ledger at every write; `docs/state_machine.md` tells the same in words.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["ALIVE", "FINAL", "LEGAL", "LEGAL_STATUS", "OPEN", "State", "Status", "is_legal"]


class State(StrEnum):
    """Where one recipient of one campaign stands."""

    PENDING = "pending"
    """Waits in the database for `next_attempt_at`; no message in the broker is needed for it."""

    QUEUED = "queued"
    """Has a server, and a message in that server's queue (or lost one: the sweep publishes it again)."""

    CLAIMED = "claimed"
    """One attempt, named by its fence, works on it under a lease; the final dot was not sent."""

    COMMITTING = "committing"
    """The attempt may have sent the final dot. Only its own reply, or the sweep, takes it from here."""

    SENT = "sent"
    """A server answered the final dot with a 2yz reply."""

    FAILED = "failed"
    """Refused for good, given up, or poison. `retry failed` makes it pending again."""

    UNCERTAIN = "uncertain"
    """The dot was (or may have been) sent and no definite reply came. Never resent on its own."""

    SUPPRESSED = "suppressed"
    """On the suppression list: nothing is sent."""

    CANCELLED = "cancelled"
    """Its campaign was cancelled before the dot."""


ALIVE: Final = frozenset({State.PENDING, State.QUEUED, State.CLAIMED, State.COMMITTING})
FINAL: Final = frozenset(State) - ALIVE

LEGAL: Final[dict[State, frozenset[State]]] = {
    # producer; a late definite 250; cancel; a suppression that came later
    State.PENDING: frozenset({State.QUEUED, State.SENT, State.CANCELLED, State.SUPPRESSED}),
    # reroute and touch; claim, or a suppression; park; a late definite 250; cancel
    State.QUEUED: frozenset(
        {State.QUEUED, State.CLAIMED, State.PENDING, State.SENT, State.CANCELLED, State.SUPPRESSED}
    ),
    # renewal; commit point; the attempt's own outcome before the dot; the sweep (pending, failed); cancel
    State.CLAIMED: frozenset(
        {
            State.CLAIMED,
            State.COMMITTING,
            State.PENDING,
            State.QUEUED,
            State.SENT,
            State.FAILED,
            State.CANCELLED,
        }
    ),
    # renewal; the reply to the dot; the sweep (uncertain); the same attempt that never wrote its dot
    State.COMMITTING: frozenset(
        {
            State.COMMITTING,
            State.SENT,
            State.FAILED,
            State.UNCERTAIN,
            State.PENDING,
            State.QUEUED,
            State.CANCELLED,
        }
    ),
    State.SENT: frozenset(),
    State.FAILED: frozenset({State.PENDING}),  # operator: retry failed
    # operator: retry uncertain; or the attempt whose fence it still is resolves it
    State.UNCERTAIN: frozenset({State.PENDING, State.QUEUED, State.SENT, State.FAILED, State.CANCELLED}),
    State.SUPPRESSED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Status(StrEnum):
    """Where a campaign stands."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"


LEGAL_STATUS: Final[dict[Status, frozenset[Status]]] = {
    Status.DRAFT: frozenset({Status.SCHEDULED, Status.RUNNING, Status.CANCELLED}),
    Status.SCHEDULED: frozenset({Status.SCHEDULED, Status.RUNNING, Status.PAUSED, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.FINISHED, Status.CANCELLED}),
    Status.PAUSED: frozenset({Status.SCHEDULED, Status.RUNNING, Status.CANCELLED}),
    Status.FINISHED: frozenset({Status.RUNNING}),  # a retry, or an attempt that resolved its uncertain
    Status.CANCELLED: frozenset(),
}

OPEN: Final = frozenset({Status.DRAFT, Status.SCHEDULED, Status.RUNNING, Status.PAUSED})
"""Statuses in which recipients may be added."""


def is_legal(before: State, after: State) -> bool:
    """Whether a delivery may go from `before` to `after`."""
    return after in LEGAL[before]

"""A delivery's row as the ledger reads it under lock, and the steps that it may take. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from campaigns.states import State, Status

__all__ = ["Row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One delivery, with the status of its campaign at the same moment."""

    id: int
    campaign_id: int
    status: Status
    state: State
    server: str | None
    fence: int
    lease_until: float | None
    owner: str | None
    deferrals: int
    crashes: int
    next_attempt_at: float | None
    first_attempt_at: float | None
    queued_at: float | None
    reply: str | None
    updated_at: float

    def claimed(self, *, owner: str, lease_seconds: float, now: float) -> Row:
        return replace(
            self,
            state=State.CLAIMED,
            fence=self.fence + 1,
            owner=owner,
            lease_until=now + lease_seconds,
            queued_at=None,
            next_attempt_at=None,
            first_attempt_at=now if self.first_attempt_at is None else self.first_attempt_at,
            updated_at=now,
        )

    def committing(self, *, now: float) -> Row:
        return replace(self, state=State.COMMITTING, updated_at=now)

    def renewed(self, *, until: float) -> Row:
        """Until then, even if that is sooner: the clock was set back, and the worker counts from now."""
        return replace(self, lease_until=until)

    def ended(self, state: State, *, now: float, server: str | None = None, reply: str | None = None) -> Row:
        """Final, with the server and reply that ended it (the present ones if none are given)."""
        return replace(
            self,
            state=state,
            server=server or self.server,
            reply=self.reply if reply is None else reply,
            lease_until=None,
            owner=None,
            next_attempt_at=None,
            queued_at=None,
            updated_at=now,
        )

    def waiting(self, *, seconds: float, now: float, reply: str | None = None) -> Row:
        """Pending for `seconds`; what belongs to a cancelled campaign is cancelled instead."""
        if self.status is Status.CANCELLED:
            return self.ended(State.CANCELLED, now=now, reply=reply)
        ended = self.ended(State.PENDING, now=now, reply=reply)
        return replace(ended, next_attempt_at=now + max(0.0, seconds))

    def queued(self, server: str, *, seconds: float, now: float, reply: str | None = None) -> Row:
        """In that server's queue, or waiting if the campaign is not running."""
        if self.status is not Status.RUNNING:
            return self.waiting(seconds=seconds, now=now, reply=reply)
        ended = self.ended(State.QUEUED, now=now, server=server, reply=reply)
        return replace(ended, queued_at=now)

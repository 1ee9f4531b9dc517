"""What a worker asks of the ledger, and what it is told. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from campaigns.states import State

__all__ = ["Claim", "Claimed", "CommitPoint", "Move", "Operation", "Record", "Recorded", "Renew"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Take a queued delivery for one attempt. Answered with Claimed, or None if it is not to be had.

    `campaign_id`: whose letter is to be sent; a delivery of another campaign is not to be had.
    """

    delivery_id: int
    server: str
    owner: str
    lease_seconds: float
    campaign_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """All that the send needs. The lease is for `leased_seconds` from before the claim was asked for."""

    delivery_id: int
    campaign_id: int
    fence: int
    email: str = field(repr=False)
    domain: str = field(repr=False)
    fields: dict[str, Any] = field(repr=False)
    deferrals: int
    crashes: int
    first_attempt_at: float
    leased_seconds: float
    campaign_revision: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitPoint:
    """Ask to write the final dot. Answered with True once that is durable; False: no dot."""

    delivery_id: int
    fence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Report how an attempt ended. Answered with Recorded; its state is None if the fence is not ours.

    `from_committing` says that the end is definite even though the commit point was passed: a reply to
    the dot, or no dot was handed over. `campaign_token` tells a journaled one of this database from one of
    another that had the same ids. `wait_seconds` counts from now, for a delivery that goes back.
    """

    delivery_id: int
    fence: int
    server: str
    owner: str
    to: State
    to_server: str | None = None
    wait_seconds: float = 0.0
    deferral: bool = False
    from_committing: bool = False
    outcome: str
    phase: str | None = None
    code: int | None = None
    enhanced: str | None = None
    reply: str | None = None
    started_seconds_ago: float = 0.0
    campaign_token: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Where the delivery stands now, and its server; `state` None: the report changed nothing."""

    state: State | None
    server: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Take a delivery that was never claimed out of a server's queue: to another, or (None) to wait.

    `why`: what it waits for, kept in the place of a reply; without addresses. `campaign_id`: as of Claim.
    """

    delivery_id: int
    from_server: str
    to_server: str | None
    wait_seconds: float = 0.0
    why: str | None = None
    campaign_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Renew:
    """Hold a claimed or committing delivery for `lease_seconds` from now, also if the lease ran out."""

    delivery_id: int
    fence: int
    lease_seconds: float


Operation = Claim | CommitPoint | Record | Move | Renew

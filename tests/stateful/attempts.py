"""Attempts as the ledger sees them: what each may ask, in which order, and how it may end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from campaigns.ledger import Claim, Claimed, CommitPoint, Record, Renew
from campaigns.states import State
from tests.stateful.promise import Dot

LEASE_SECONDS = 60.0
SERVERS = ("primary", "secondary")


class Stage(StrEnum):
    CLAIMED = "claimed"
    ALLOWED = "allowed"  # past the commit point, and told so
    STOPPED = "stopped"  # not told that it may: no dot
    ANSWERED = "answered"  # the dot was handed over; see `Attempt.dot`
    OVER = "over"  # reported, or dead


@dataclass(kw_only=True)
class Attempt:
    """One try. `valid_until` is by the worker's own clock, which `clock_is_right` says it can rely on."""

    delivery_id: int
    fence: int
    server: str
    token: str
    valid_until: float
    stage: Stage = Stage.CLAIMED
    clock_is_right: bool = True
    dot: Dot | None = None

    @classmethod
    def of(cls, claimed: Claimed, server: str, token: str, monotonic: float) -> Attempt:
        return cls(
            delivery_id=claimed.delivery_id,
            fence=claimed.fence,
            server=server,
            token=token,
            valid_until=monotonic + claimed.leased_seconds,
        )

    @property
    def commit_point(self) -> CommitPoint:
        return CommitPoint(delivery_id=self.delivery_id, fence=self.fence)

    @property
    def renewal(self) -> Renew:
        return Renew(delivery_id=self.delivery_id, fence=self.fence, lease_seconds=LEASE_SECONDS)

    @property
    def ends(self) -> tuple[State, ...]:
        """What it may report of itself."""
        if self.dot is None:
            return (State.PENDING, State.QUEUED, State.FAILED)
        if not self.dot.is_heard:
            return (State.UNCERTAIN,)
        return (State.SENT,) if self.dot.is_accepted else (State.FAILED, State.PENDING, State.QUEUED)

    def hand_over_dot(self, *, is_accepted: bool, is_heard: bool) -> Dot:
        self.stage = Stage.ANSWERED
        self.dot = Dot(
            delivery_id=self.delivery_id,
            fence=self.fence,
            server=self.server,
            is_accepted=is_accepted,
            is_heard=is_heard,
        )
        return self.dot

    def report(self, to: State, wait_seconds: float = 0.0) -> Record:
        return Record(
            delivery_id=self.delivery_id,
            fence=self.fence,
            server=self.server,
            owner="worker",
            to=to,
            to_server=other(self.server) if to is State.QUEUED else None,
            wait_seconds=wait_seconds if to is State.PENDING else 0.0,
            deferral=wait_seconds > 0,
            from_committing=True,
            outcome=to.value,
            campaign_token=self.token,
        )


def other(server: str) -> str:
    return SERVERS[1 - SERVERS.index(server)]


def claim_of(delivery_id: int, server: str) -> Claim:
    return Claim(delivery_id=delivery_id, server=server, owner="worker", lease_seconds=LEASE_SECONDS)

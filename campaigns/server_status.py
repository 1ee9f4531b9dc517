"""What `campaigns servers` tells of a server: health, share, rate, the last change and its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from campaigns.breaker import BreakerState
from campaigns.health import ServerHealth
from campaigns.ledger import Ledger
from campaigns.routing import evened, usable
from campaigns.settings import DEFAULT_STREAM, Server, Settings

UNKNOWN = "not known now: the broker is not there"
_LATEST_EVENTS = 20
_STATE_TEXTS = {
    str(BreakerState.CLOSED): "working",
    str(BreakerState.HALF_OPEN): "on trial",
    str(BreakerState.OPEN): "resting",
}


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One server now. `share` is the part (0 to 1) of the default stream's new mail that it is given."""

    name: str
    state: str
    share: float
    weight: int
    rate: str | None = None
    since: float | None = None
    reason: str | None = None
    has_worker: bool = False
    last_fault: str | None = None

    @property
    def state_text(self) -> str:
        """The breaker's state in words for people: JSON keeps its own."""
        return _STATE_TEXTS.get(self.state, self.state)

    @property
    def reason_text(self) -> str:
        """The reason, for people: on trial, the breaker knows no more than that its rest is over."""
        if self.state != BreakerState.HALF_OPEN or self.reason == UNKNOWN:
            return self.reason or ""
        cause = f"last fault: {self.last_fault}" if self.last_fault else self.reason
        return "being tried with single mails" + (f"; {cause}" if cause else "")

    def to_dict(self) -> dict[str, Any]:
        """The object that `campaigns servers --json` prints; `since` in ISO 8601, UTC."""
        since = (
            datetime.fromtimestamp(self.since, UTC).isoformat(timespec="milliseconds") if self.since else None
        )
        return {
            "name": self.name,
            "state": self.state,
            "share": round(self.share, 4),
            "weight": self.weight,
            "since": since,
            "reason": self.reason,
            "worker": self.has_worker,
            "limit": self.rate,
        }


def server_statuses(
    settings: Settings,
    health: Mapping[str, ServerHealth],
    readers: Collection[str],
    now: float,
    *,
    is_known: bool = True,
) -> list[ServerStatus]:
    """All configured servers in their order. `readers` are the names that a live worker serves. Pure.

    `is_known` is False while the health board is away: then each server says so.
    """
    route = settings.route(DEFAULT_STREAM)
    able = usable(route, health=health, readers=readers, now=now)
    weights = evened({server.name: float(server.weight) for server in route if server.name in able})
    total = sum(weights.values())
    statuses = [
        _status(
            server,
            health.get(server.name),
            server.name in readers,
            weights.get(server.name, 0.0) / (total or 1),
        )
        for server in settings.servers
    ]
    return statuses if is_known else [replace(status, reason=UNKNOWN) for status in statuses]


def with_last_fault(status: ServerStatus, ledger: Ledger) -> ServerStatus:
    """The breaker forgets, while half-open, why it opened; the events know."""
    if status.state != BreakerState.HALF_OPEN:
        return status
    events = ledger.events(status.name, None, _LATEST_EVENTS)
    faults = [event.reason for event in events if event.to_state == BreakerState.OPEN]
    return replace(status, last_fault=faults[-1] if faults else None)


def _status(server: Server, health: ServerHealth | None, has_worker: bool, share: float) -> ServerStatus:
    return ServerStatus(
        name=server.name,
        state="closed" if health is None else str(health.state),
        share=share,
        weight=server.weight,
        rate=str(server.rate) if server.rate else None,
        since=health.since or None if health else None,
        reason=health.reason or None if health else None,
        has_worker=has_worker,
    )

"""How far a campaign has come, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from campaigns.states import ALIVE, State, Status
from campaigns.waiting import MOST_COUNTED, Waiting

OVER = frozenset({Status.FINISHED, Status.CANCELLED})


@dataclass(frozen=True, kw_only=True)
class ServerProgress:
    """What one server did: mails accepted, and distinct deliveries that left it for another server."""

    sent: int = 0
    rerouted: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A campaign's status, with a count for every state; the counts add up to `total`.

    `rate_per_second` is of the last seconds; `eta_seconds` is None while nothing can be foretold.
    `waiting` are those of the pending whose time has not come. `most_per_second` is the campaign's own rate,
    if it has one: for a few seconds more than that may go out, but not until the end.
    """

    name: str
    status: Status
    reason: str | None = None
    total: int
    counts: Mapping[State, int]
    servers: Mapping[str, ServerProgress] = field(default_factory=dict)
    rate_per_second: float = 0.0
    most_per_second: float | None = None
    waiting: Waiting = field(default_factory=Waiting)

    @property
    def alive(self) -> int:
        """Recipients that are not in a final state."""
        return sum(self.counts.get(state, 0) for state in ALIVE)

    @property
    def done(self) -> int:
        """Recipients in a final state."""
        return self.total - self.alive

    @property
    def is_over(self) -> bool:
        """True if nothing more will happen by itself."""
        return self.status in OVER

    @property
    def eta_seconds(self) -> float | None:
        if self.status is not Status.RUNNING or self.rate_per_second <= 0:
            return None
        pace = self.rate_per_second
        seconds = self.alive / (pace if self.most_per_second is None else min(pace, self.most_per_second))
        # Who waits for longer than that ends the campaign, not the pace: and may have to wait once more.
        return None if self.waiting.last_seconds > seconds else seconds

    @property
    def waiting_text(self) -> str:
        """`49 wait for a later time, 40 held by the limits of example.com`; empty if nobody does."""
        count = self.waiting.count
        if not count:
            return ""
        most = "at least " if count >= MOST_COUNTED else ""
        held = f", {self.waiting.held:,} held by {self.waiting.held_by}" if self.waiting.held else ""
        return f"{most}{count:,} {'waits' if count == 1 else 'wait'} for a later time{held}"

    def to_dict(self) -> dict[str, Any]:
        """The object that `campaigns status NAME --json` prints."""
        reason = {} if self.reason is None else {"reason": self.reason}
        eta = self.eta_seconds
        return {
            "name": self.name,
            "status": str(self.status),
            **reason,
            "total": self.total,
            "counts": {str(state): self.counts.get(state, 0) for state in State},
            "servers": {
                name: {"sent": server.sent, "rerouted": server.rerouted}
                for name, server in self.servers.items()
            },
            "rate_per_second": round(self.rate_per_second, 1),
            "eta_seconds": None if eta is None else round(eta, 1),
        }

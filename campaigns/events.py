"""What changed, when and why, as it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from campaigns.ledger import EventRecord

BY_OPERATOR = "by the operator"
"""The reason of a campaign's changes that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of a server or a campaign; `at` in epoch seconds by the database's clock."""

    at: float
    server: str | None
    campaign: str | None
    kind: str
    from_state: str | None
    to_state: str | None
    reason: str | None

    @classmethod
    def from_record(cls, record: EventRecord) -> Event:
        return cls(
            at=record.at,
            server=record.server,
            campaign=record.campaign,
            kind=record.kind,
            from_state=record.from_state,
            to_state=record.to_state,
            reason=record.reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """The object that `campaigns events --json` prints; `at` in ISO 8601, UTC."""
        return {
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "server": self.server,
            "campaign": self.campaign,
            "kind": self.kind,
            "from": self.from_state,
            "to": self.to_state,
            "reason": self.reason,
        }

"""What is kept of the servers beside their mail: the operator's decisions and the standbys' states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.row_source import statement

__all__ = ["Mode", "ModeRecord", "Servers", "StandbyRecord", "StandbyState"]

Mode = Literal["open", "drained", "closed"]
StandbyState = Literal["resting", "starting", "active", "stopping"]

_MODES = "SELECT server, mode, weight, reason, changed_at FROM server_mode"
_STANDBYS = "SELECT server, state, owner, until, reason, changed_at FROM standby"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeRecord:
    """What the operator decided of a server. `weight` None: the configured one."""

    server: str
    mode: Mode
    weight: int | None
    reason: str | None
    changed_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StandbyRecord:
    """A cold server that must be started first. `until`: when its owner's turn ends (epoch seconds)."""

    server: str
    state: StandbyState
    owner: str | None
    until: float | None
    reason: str | None
    changed_at: float


class Servers(LedgerPart):
    """Read by every process every few seconds; written by operators, standbys and drills."""

    def modes(self) -> dict[str, ModeRecord]:
        """What operators decided, by server; a server without an entry is open with its configured weight."""
        with self.database.read() as connection:
            found = connection.execute(statement(_MODES))
            return {row.server: ModeRecord(**row._mapping) for row in found}

    def standbys(self) -> dict[str, StandbyRecord]:
        """The standbys that were ever started, by server; one without an entry rests."""
        with self.database.read() as connection:
            found = connection.execute(statement(_STANDBYS))
            return {row.server: StandbyRecord(**row._mapping) for row in found}

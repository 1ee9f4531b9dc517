"""What operators say of the servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from campaigns.database import database_clock
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.events import insert_event
from campaigns.ledger.row_source import clean, statement

__all__ = ["Mode", "ModeRecord", "Servers"]

Mode = Literal["open", "drained", "closed"]

_MODES = "SELECT server, mode, weight, reason, changed_at FROM server_mode"
_MAKE = """
INSERT INTO server_mode (server, mode, weight, reason, changed_at)
VALUES (:server, 'open', NULL, NULL, {clock}) ON CONFLICT (server) DO NOTHING
"""
# An update that changes nothing locks the row, on both databases.
_LOCK = "UPDATE server_mode SET server = server WHERE server = :server RETURNING mode, weight"
_SET_MODE = """
UPDATE server_mode SET mode = :mode, reason = :reason, changed_at = {clock} WHERE server = :server
"""
_SET_WEIGHT = """
UPDATE server_mode SET weight = CAST(:weight AS bigint), changed_at = {clock} WHERE server = :server
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeRecord:
    """What the operator decided of a server. `weight` None: the configured one."""

    server: str
    mode: Mode
    weight: int | None
    reason: str | None
    changed_at: float


class Servers(LedgerPart):
    """Read by every process every few seconds; written by operators."""

    def modes(self) -> dict[str, ModeRecord]:
        """What operators decided, by server; a server without an entry is open with its configured weight."""
        with self.database.read() as connection:
            found = connection.execute(statement(_MODES))
            return {row.server: ModeRecord(**row._mapping) for row in found}

    def set_server_mode(self, server: str, mode: Mode, reason: str | None = None) -> bool:
        """Open, drain or close a server, with an event. False: it was so already, and nothing is changed."""
        with self.database.write() as connection:
            before = self._locked_mode(connection, server)
            if before.mode == mode:
                return False
            self._set(connection, _SET_MODE, server=server, mode=mode, reason=clean(reason))
            insert_event(
                connection,
                "operator",
                server=server,
                from_state=before.mode,
                to_state=mode,
                reason=reason,
            )
            return True

    def set_server_weight(
        self, server: str, weight: int | None, *, configured: int, reason: str | None = None
    ) -> bool:
        """Give a server another weight than the `configured` one, or (None) that one, with an event.

        False: it has it already, and nothing is changed.
        """
        with self.database.write() as connection:
            before = self._locked_mode(connection, server)
            if before.weight == weight:
                return False
            self._set(connection, _SET_WEIGHT, server=server, weight=weight)
            insert_event(
                connection,
                "operator",
                server=server,
                from_state=_weight_text(before.weight, configured),
                to_state=_weight_text(weight, configured),
                reason=reason,
            )
            return True

    def _locked_mode(self, connection: Connection, server: str) -> Any:
        """Mode and weight, which nobody else changes before this transaction ends."""
        self._set(connection, _MAKE, server=server)
        return connection.execute(statement(_LOCK), {"server": server}).one()

    def _set(self, connection: Connection, sql: str, **parameters: object) -> None:
        clock = database_clock(self.database.dialect)
        connection.execute(statement(sql.format(clock=clock)), parameters)


def _weight_text(weight: int | None, configured: int) -> str:
    return f"weight {configured} (configured)" if weight is None else f"weight {weight}"

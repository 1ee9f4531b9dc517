"""How idle servers answered when they were tried without a mail, and whose turn it is to try them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from campaigns.database import database_clock
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.events import insert_event
from campaigns.ledger.row_source import clean, statement

__all__ = ["ProbeRecord", "Probes"]

_PROBES = """
SELECT server, probed_at, succeeded_at, latency_seconds, certificate_until, error FROM probe
"""
_MAKE = """
INSERT INTO probe (server, next_at, probed_at, succeeded_at, latency_seconds, certificate_until, error)
VALUES (:server, {clock}, NULL, NULL, NULL, NULL, NULL) ON CONFLICT (server) DO NOTHING
"""
# A turn that lies further ahead than any can was given before the clock was set back.
_TAKE = """
UPDATE probe SET next_at = {clock} + CAST(:seconds AS double precision)
 WHERE server = :server AND (next_at <= {clock} OR next_at > {clock} + 2 * :seconds)
"""
_WAITS = """
SELECT EXISTS (SELECT 1 FROM probe
                WHERE server = :server AND next_at > {clock} AND next_at <= {clock} + 2 * :seconds)
"""
_SOONER = """
UPDATE probe SET next_at = {clock} + CAST(:seconds AS double precision)
 WHERE server = :server AND next_at > {clock} + :seconds
"""
_CARRIED = """
SELECT EXISTS (SELECT 1 FROM attempt WHERE server = :server AND finished_at > {clock} - :seconds)
"""
_OUTDATED = """
SELECT EXISTS (SELECT 1 FROM probe AS p JOIN attempt AS a ON a.server = p.server
                WHERE p.server = :server AND a.finished_at > p.probed_at)
    OR EXISTS (SELECT 1 FROM probe AS p JOIN event AS e ON e.server = p.server
                WHERE p.server = :server AND e.kind = 'breaker' AND e.at > p.probed_at + :seconds)
"""
# An update that changes nothing locks the row, on both databases.
_LOCK = "UPDATE probe SET server = server WHERE server = :server RETURNING probed_at, error"
_SUCCEEDED = """
UPDATE probe SET probed_at = {clock}, succeeded_at = {clock}, latency_seconds = :latency_seconds,
       certificate_until = :certificate_until, error = NULL
 WHERE server = :server
"""
_FAILED = "UPDATE probe SET probed_at = {clock}, error = :error WHERE server = :server"
_WARNED = """
SELECT EXISTS (SELECT 1 FROM event WHERE server = :server AND kind = 'probe' AND to_state = :to_state
                  AND at > {clock} - :seconds)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecord:
    """The last try of a server without a mail. `error` None: it went well. Times in epoch seconds."""

    server: str
    probed_at: float | None
    succeeded_at: float | None
    latency_seconds: float | None
    certificate_until: float | None
    error: str | None


OWN_EVENT_SECONDS = 5.0
"""Within so long after a probe that opens a breaker, that is an event."""


class Probes(LedgerPart):
    """One process at a time tries a server: whoever moves its next time on."""

    def probes(self) -> dict[str, ProbeRecord]:
        """The last try of each server that was ever tried."""
        with self.database.read() as connection:
            found = connection.execute(statement(_PROBES))
            return {row.server: ProbeRecord(**row._mapping) for row in found}

    def take_probe_turn(self, server: str, seconds: float) -> bool:
        """Whether this process is to try the server now; the next turn is after `seconds`."""
        if not self._is_probe_due(server, seconds):
            return False
        with self.database.write() as connection:
            self._execute_now(connection, _MAKE, server=server)
            return bool(self._execute_now(connection, _TAKE, server=server, seconds=seconds))

    def _is_probe_due(self, server: str, seconds: float) -> bool:
        """A look that locks nothing, as it is taken often."""
        sql = statement(_WAITS.format(clock=database_clock(self.database.dialect)))
        with self.database.read() as connection:
            found = connection.execute(sql, {"server": server, "seconds": seconds})
            return not found.scalar_one()

    def probe_sooner(self, server: str, seconds: float) -> None:
        """Let the next turn be after `seconds` at the latest."""
        with self.database.write() as connection:
            self._execute_now(connection, _SOONER, server=server, seconds=seconds)

    def has_carried(self, server: str, within_seconds: float) -> bool:
        """Whether any mail was tried through the server within that time."""
        sql = statement(_CARRIED.format(clock=database_clock(self.database.dialect)))
        with self.database.read() as connection:
            found = connection.execute(sql, {"server": server, "seconds": within_seconds})
            return bool(found.scalar_one())

    def is_probe_outdated(self, server: str) -> bool:
        """Whether mail was tried through the server, or its breaker changed, since the last probe."""
        values = {"server": server, "seconds": OWN_EVENT_SECONDS}
        with self.database.read() as connection:
            return bool(connection.execute(statement(_OUTDATED), values).scalar_one())

    def record_probe(
        self,
        server: str,
        *,
        error: str | None,
        latency_seconds: float | None = None,
        certificate_until: float | None = None,
    ) -> bool:
        """Keep how the server answered (`error` None: well); an event, and True, when it is not as before."""
        with self.database.write() as connection:
            self._execute_now(connection, _MAKE, server=server)
            before = connection.execute(statement(_LOCK), {"server": server}).one()
            if error is None:
                self._execute_now(
                    connection,
                    _SUCCEEDED,
                    server=server,
                    latency_seconds=latency_seconds,
                    certificate_until=certificate_until,
                )
            else:
                self._execute_now(connection, _FAILED, server=server, error=clean(error))
            states = _state(before.error), _state(error)
            if states[0] != states[1]:
                _tell(connection, server, *states, reason=error or "it answers again")
            return states[0] != states[1]

    def warn_of_certificate(self, server: str, reason: str, *, every_seconds: float) -> bool:
        """An event for a certificate that ends soon, unless there was one within `every_seconds`."""
        sql = statement(_WARNED.format(clock=database_clock(self.database.dialect)))
        values = {"server": server, "to_state": "certificate", "seconds": every_seconds}
        with self.database.write() as connection:
            if connection.execute(sql, values).scalar_one():
                return False
            _tell(connection, server, None, "certificate", reason=reason)
            return True

    def _execute_now(self, connection: Connection, sql: str, **parameters: object) -> int:
        clock = database_clock(self.database.dialect)
        return connection.execute(statement(sql.format(clock=clock)), parameters).rowcount


def _state(error: str | None) -> str:
    return "ok" if error is None else "failing"


def _tell(connection: Connection, server: str, before: str | None, after: str, *, reason: str) -> None:
    insert_event(connection, "probe", server=server, from_state=before, to_state=after, reason=reason)

"""Rehearsed failovers: which server counts as dead meanwhile, what their mail did, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from campaigns.database import database_clock
from campaigns.errors import DrillRefused
from campaigns.ledger.batch import again_after_conflict
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.events import insert_event
from campaigns.ledger.row_source import clean, ids_in, ids_parameter, statement

__all__ = ["DeadServer", "DrillAttempt", "DrillRecord", "DrillResult", "DrillStatus", "Drills"]

DrillStatus = Literal["running", "passed", "failed"]

OVERDUE = "overdue"
BROKEN_OFF = "it was broken off before its end"
DRILL_LOCK = 0x6472696C6C
"""An advisory lock of PostgreSQL: of two who begin, or remind, at the same time, one is the second."""

_COLUMNS = (
    "id, server, is_live, status, dead_until, started_at, finished_at, detection_seconds, switch_seconds,"
    " return_seconds, recipients, sent, lost, duplicates, uncertain, reason"
)
_DEAD = """
SELECT id, server, is_live, started_at, dead_until FROM drill
 WHERE status = 'running' AND dead_until > {clock}
"""
_BEGIN = """
INSERT INTO drill (server, is_live, status, started_at, dead_until, recipients, sent, lost, duplicates,
                   uncertain)
SELECT :server, :is_live, 'running', now.at + CAST(:notice AS double precision),
       now.at + CAST(:notice AS double precision) + CAST(:seconds AS double precision), 0, 0, 0, 0, 0
  FROM (SELECT {clock} AS at) AS now
RETURNING id
"""
_GIVE_UP = """
UPDATE drill SET status = 'failed', finished_at = {clock}, dead_until = NULL, reason = :reason
 WHERE status = 'running' AND dead_until <= {clock} - CAST(:seconds AS double precision)
RETURNING server
"""
_MEET = """
UPDATE drill SET detection_seconds = {clock} - started_at
 WHERE id = :id AND status = 'running' AND detection_seconds IS NULL
"""
_END = "UPDATE drill SET dead_until = {clock} WHERE id = :id AND status = 'running' AND dead_until > {clock}"
_FINISH = """
UPDATE drill SET status = :status, finished_at = {clock}, dead_until = NULL, reason = :reason,
       detection_seconds = :detection_seconds, switch_seconds = :switch_seconds,
       return_seconds = :return_seconds, recipients = :recipients, sent = :sent, lost = :lost,
       duplicates = :duplicates, uncertain = :uncertain
 WHERE id = :id AND status = 'running' RETURNING server
"""
_STEER = "UPDATE delivery SET server = :server WHERE campaign_id = :campaign_id AND state = 'pending'"
_ATTEMPTS = """
SELECT a.delivery_id, a.server, a.outcome, a.finished_at, a.reply FROM attempt AS a
 WHERE a.delivery_id IN (SELECT id FROM delivery WHERE campaign_id {ids}) ORDER BY a.id
"""
_LAST = "SELECT max(id) FROM drill WHERE status <> 'running' GROUP BY server"
_REMINDED = """
SELECT count(*) FROM event WHERE server = :server AND kind = 'drill' AND to_state = :overdue
   AND at > {clock} - CAST(:seconds AS double precision)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadServer:
    """A drill declares the server dead from one moment to another (epoch seconds): for all mail, or for the
    drill's own."""

    drill_id: int
    server: str
    is_live: bool
    since: float
    until: float

    def concerns(self, purpose: str, now: float) -> bool:
        """Whether mail of a campaign of this purpose finds the server dead now.

        The drill's own does before its time, too: it is sent at that very moment, and clocks differ a little.
        """
        return now < self.until and (purpose == "drill" or (self.is_live and now >= self.since))


@dataclass(frozen=True, kw_only=True, slots=True)
class DrillAttempt:
    """One attempt for a mail of a drill."""

    delivery_id: int
    server: str
    outcome: str
    finished_at: float
    reply: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DrillResult:
    """What a drill measured. Seconds are None where it did not come to that."""

    status: DrillStatus
    detection_seconds: float | None = None
    switch_seconds: float | None = None
    return_seconds: float | None = None
    recipients: int = 0
    sent: int = 0
    lost: int = 0
    duplicates: int = 0
    uncertain: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DrillRecord:
    """A rehearsed failover; times are epoch seconds by the database's clock.

    The server counts as dead from `started_at`, which may lie ahead, until `dead_until`. `recipients` counts
    the drill's mails.
    """

    id: int
    server: str
    is_live: bool
    status: DrillStatus
    dead_until: float | None
    started_at: float
    finished_at: float | None
    detection_seconds: float | None
    switch_seconds: float | None
    return_seconds: float | None
    recipients: int
    sent: int
    lost: int
    duplicates: int
    uncertain: int
    reason: str | None


class Drills(LedgerPart):
    """Begun and finished by whoever rehearses; read by every process every few seconds."""

    def begin_drill(
        self, server: str, *, is_live: bool, notice_seconds: float, seconds: float
    ) -> DrillRecord:
        """Announce that a server counts as dead from `notice_seconds` on, for so many seconds.

        Raises DrillRefused while a server is declared dead already: one at a time.
        """
        values = {"server": server, "is_live": is_live, "notice": notice_seconds, "seconds": seconds}

        def begin() -> DrillRecord:
            with self.database.write() as connection:
                self._lock_drills(connection)
                if running := self._dead_now(connection):
                    raise DrillRefused(f"a drill of {running[0].server} runs now; try again when it is over")
                self._give_up(connection, 0.0)
                drill_id = connection.execute(self._timed(_BEGIN), values).scalar_one()
                why = "for all mail" if is_live else "for the drill's own mail alone"
                insert_event(connection, "drill", server=server, to_state="running", reason=why)
                return _read(connection, "WHERE id = :id", {"id": drill_id})[0]

        return again_after_conflict(begin)

    def declared_dead(self) -> list[DeadServer]:
        """The servers that a drill declares dead now, or soon."""
        with self.database.read() as connection:
            return self._dead_now(connection)

    def meet_drill(self, drill_id: int) -> bool:
        """A mail has found the server dead; False if another one did before."""
        return self._write(_MEET, {"id": drill_id})

    def end_declaration(self, drill_id: int) -> bool:
        """The server is alive again; False if it was already."""
        return self._write(_END, {"id": drill_id})

    def finish_drill(self, drill_id: int, result: DrillResult) -> bool:
        """Keep what was measured; False if the drill was given up meanwhile."""
        values = {name: getattr(result, name) for name in DrillResult.__slots__}
        values |= {"id": drill_id, "reason": clean(result.reason)}
        with self.database.write() as connection:
            server = connection.execute(self._timed(_FINISH), values).scalar()
            if server is not None:
                _tell_the_end(connection, server, result.status, result.reason)
            return server is not None

    def give_up_drills(self, after_seconds: float) -> list[str]:
        """Those whose end nobody recorded have failed; their servers. `after_seconds`: since the server was
        alive again."""
        with self.database.write() as connection:
            return self._give_up(connection, after_seconds)

    def drill(self, drill_id: int) -> DrillRecord:
        with self.database.read() as connection:
            return _read(connection, "WHERE id = :id", {"id": drill_id})[0]

    def drills(self, limit: int = 100) -> list[DrillRecord]:
        """The latest, the newest last."""
        with self.database.read() as connection:
            return _read(connection, "ORDER BY id DESC LIMIT :limit", {"limit": limit})[::-1]

    def last_drills(self) -> dict[str, DrillRecord]:
        """The newest finished drill of each server that had one."""
        with self.database.read() as connection:
            return {drill.server: drill for drill in _read(connection, f"WHERE id IN ({_LAST})", {})}

    def steer(self, campaign_id: int, server: str) -> int:
        """Have what is pending go to that server first, as what it deferred does; how many."""
        with self.database.write() as connection:
            values = {"campaign_id": campaign_id, "server": server}
            return connection.execute(statement(_STEER), values).rowcount

    def drill_attempts(self, campaign_ids: Sequence[int]) -> list[DrillAttempt]:
        """All attempts for the mails of these campaigns, in their order."""
        dialect = self.database.dialect
        sql = statement(_ATTEMPTS.format(ids=ids_in(dialect)))
        with self.database.read() as connection:
            found = connection.execute(sql, {"ids": ids_parameter(dialect, sorted(campaign_ids))})
            return [DrillAttempt(**row._mapping) for row in found]

    def remind_of_drill(self, server: str, reason: str, every_seconds: float) -> bool:
        """An event that says that a drill is overdue; False if there is one that is younger than that."""
        values = {"server": server, "overdue": OVERDUE, "seconds": every_seconds}
        with self.database.write() as connection:
            self._lock_drills(connection)
            if connection.execute(self._timed(_REMINDED), values).scalar_one():
                return False
            insert_event(connection, "drill", server=server, to_state=OVERDUE, reason=reason)
            return True

    def _dead_now(self, connection: Connection) -> list[DeadServer]:
        return [
            DeadServer(
                drill_id=row.id,
                server=row.server,
                is_live=bool(row.is_live),
                since=row.started_at,
                until=row.dead_until,
            )
            for row in connection.execute(self._timed(_DEAD))
        ]

    def _give_up(self, connection: Connection, after_seconds: float) -> list[str]:
        values = {"seconds": after_seconds, "reason": BROKEN_OFF}
        servers = list(connection.execute(self._timed(_GIVE_UP), values).scalars())
        for server in servers:
            _tell_the_end(connection, server, "failed", BROKEN_OFF)
        return servers

    def _write(self, sql: str, values: dict[str, Any]) -> bool:
        with self.database.write() as connection:
            return connection.execute(self._timed(sql), values).rowcount > 0

    def _timed(self, sql: str) -> Any:
        return statement(sql.format(clock=database_clock(self.database.dialect)))

    def _lock_drills(self, connection: Connection) -> None:
        if self.database.dialect == "postgresql":
            connection.execute(statement(f"SELECT pg_advisory_xact_lock({DRILL_LOCK})"))


def _tell_the_end(connection: Connection, server: str, status: str, reason: str | None) -> None:
    insert_event(connection, "drill", server=server, from_state="running", to_state=status, reason=reason)


def _read(connection: Connection, where: str, values: dict[str, Any]) -> list[DrillRecord]:
    found = connection.execute(statement(f"SELECT {_COLUMNS} FROM drill {where}"), values)  # noqa: S608 - constants
    return [DrillRecord(**{**row._mapping, "is_live": bool(row.is_live)}) for row in found]

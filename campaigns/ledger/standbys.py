"""Cold standbys that must be started first: whose turn it is to start or stop one, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from campaigns.database import database_clock
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.events import insert_event
from campaigns.ledger.row_source import clean, statement

__all__ = ["StandbyRecord", "StandbyState", "Standbys"]

StandbyState = Literal["resting", "starting", "active", "stopping"]

LONGEST_TURN_SECONDS = 7200.0
"""No turn and no pause ends further ahead; one that seems to was begun before the clock was set back."""
SOON_SECONDS = 30.0
"""Mail that was put off for a moment, because no server could take it, still waits for a server."""

_STANDBYS = "SELECT server, state, owner, until, failures, reason, changed_at FROM standby"
_MAKE = """
INSERT INTO standby (server, state, owner, until, failures, reason, changed_at)
VALUES (:server, 'resting', NULL, NULL, 0, NULL, {clock}) ON CONFLICT (server) DO NOTHING
"""
_BEGIN = """
UPDATE standby SET state = :state, owner = :owner, until = {clock} + CAST(:seconds AS double precision),
       reason = :reason, changed_at = {clock}
 WHERE server = :server AND state = :before
   AND (until IS NULL OR until <= {clock} OR until > {clock} + :longest)
"""
_END = """
UPDATE standby SET state = :state, owner = NULL, until = {clock} + CAST(:pause_seconds AS double precision),
       failures = CASE WHEN :is_failure THEN failures + 1 ELSE 0 END, reason = :reason, changed_at = {clock}
 WHERE server = :server AND state = :before AND owner = :owner
"""
_WAITING = """
SELECT DISTINCT c.stream FROM campaign AS c
 WHERE c.status = 'running' AND (
       EXISTS (SELECT 1 FROM delivery AS d
                WHERE d.campaign_id = c.id AND d.state = 'pending' AND d.next_attempt_at <= {clock} + :soon)
    OR (SELECT SUM(n.n) FROM counter AS n
         WHERE n.campaign_id = c.id AND n.kind = 'queued' AND n.server = '') > 0)
"""
_HELD = """
SELECT EXISTS (SELECT 1 FROM delivery WHERE state IN ('claimed', 'committing') AND server = :server)
"""
_QUEUED = """
SELECT EXISTS (SELECT 1 FROM delivery AS d JOIN campaign AS c ON c.id = d.campaign_id
                WHERE d.state = 'queued' AND d.server = :server AND c.status = 'running')
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StandbyRecord:
    """A cold server that must be started first. `until`: when its owner's turn or its pause ends (epoch
    seconds). `failures`: how many turns in a row came to nothing."""

    server: str
    state: StandbyState
    owner: str | None
    until: float | None
    failures: int
    reason: str | None
    changed_at: float

    def is_waiting(self, now: float) -> bool:
        """Whether somebody has the turn, or a pause lasts; not one from before a clock was set back."""
        return self.until is not None and 0 < self.until - now <= LONGEST_TURN_SECONDS


class Standbys(LedgerPart):
    """Changed by compare-and-set, so that one process starts or stops a standby; each change is an event."""

    def standbys(self) -> dict[str, StandbyRecord]:
        """The standbys that were ever started, by server; one without an entry rests."""
        with self.database.read() as connection:
            found = connection.execute(statement(_STANDBYS))
            return {row.server: StandbyRecord(**row._mapping) for row in found}

    def begin_standby_turn(  # noqa: PLR0913 - a transition's fields, by keyword
        self,
        server: str,
        owner: str,
        *,
        before: StandbyState,
        state: StandbyState,
        seconds: float,
        reason: str,
    ) -> bool:
        """Take it on to start or stop the standby, for so long. False: another process has the turn.

        Also what a process left behind that did not end its turn in time.
        """
        clock = database_clock(self.database.dialect)
        values: dict[str, object] = {"server": server, "owner": owner, "before": before, "state": state}
        values |= {"seconds": seconds, "longest": LONGEST_TURN_SECONDS, "reason": clean(reason)}
        with self.database.write() as connection:
            connection.execute(statement(_MAKE.format(clock=clock)), {"server": server})
            if not connection.execute(statement(_BEGIN.format(clock=clock)), values).rowcount:
                return False
            _tell(connection, server, before, state, reason)
            return True

    def end_standby_turn(  # noqa: PLR0913
        self,
        server: str,
        owner: str,
        *,
        before: StandbyState,
        state: StandbyState,
        reason: str,
        is_failure: bool = False,
        pause_seconds: float = 0.0,
    ) -> bool:
        """Say what came of the turn; the next one begins after the pause. False: it was not ours any more."""
        clock = database_clock(self.database.dialect)
        values: dict[str, object] = {"server": server, "owner": owner, "before": before, "state": state}
        values |= {"is_failure": is_failure, "pause_seconds": pause_seconds, "reason": clean(reason)}
        with self.database.write() as connection:
            if not connection.execute(statement(_END.format(clock=clock)), values).rowcount:
                return False
            _tell(connection, server, before, state, reason)
            return True

    def waiting_streams(self) -> frozenset[str]:
        """The streams with mail of running campaigns that is queued, due, or due in a moment."""
        sql = statement(_WAITING.format(clock=database_clock(self.database.dialect)))
        with self.database.read() as connection:
            return frozenset(connection.execute(sql, {"soon": SOON_SECONDS}).scalars())

    def is_held(self, server: str) -> bool:
        """Whether mail is on its way through the server now."""
        with self.database.read() as connection:
            return bool(connection.execute(statement(_HELD), {"server": server}).scalar_one())

    def is_busy(self, server: str) -> bool:
        """Whether mail is on its way through the server, or waits for it."""
        with self.database.read() as connection:
            queued = connection.execute(statement(_QUEUED), {"server": server}).scalar_one()
        return bool(queued) or self.is_held(server)


def _tell(connection: Connection, server: str, before: str, after: str, reason: str) -> None:
    insert_event(connection, "standby", server=server, from_state=before, to_state=after, reason=reason)

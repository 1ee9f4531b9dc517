"""The sweep's side: leases that ran out, campaigns that start and finish, and who is alive."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from campaigns.database import database_clock
from campaigns.ledger import rules
from campaigns.ledger.batch import again_after_conflict, insert_attempts
from campaigns.ledger.changes import CHUNK, Change, LedgerPart
from campaigns.ledger.row import Row
from campaigns.ledger.row_source import statement
from campaigns.ledger.status import lock_campaign
from campaigns.states import State, Status

__all__ = ["Leases", "LiveWorker", "Swept"]

_EXPIRED = """
SELECT id FROM delivery
 WHERE state IN ('claimed', 'committing') AND lease_until <= {clock} ORDER BY lease_until LIMIT :limit
"""
_TOO_LONG = """
SELECT id FROM delivery
 WHERE state IN ('claimed', 'committing') AND lease_until > {clock} + :lease_seconds
 ORDER BY lease_until DESC LIMIT :limit
"""
# The unary plus keeps SQLite's planner on the small index of each state, and off all of a campaign.
_STRANDED = (
    """
SELECT d.id FROM delivery AS d JOIN campaign AS c ON c.id = d.campaign_id
 WHERE c.status = 'cancelled' AND d.state = 'pending' LIMIT :limit
""",
    """
SELECT d.id FROM delivery AS d JOIN campaign AS c ON c.id = +d.campaign_id
 WHERE c.status = 'cancelled' AND d.state = 'queued' LIMIT :limit
""",
)
_START = """
UPDATE campaign SET status = 'running', started_at = COALESCE(started_at, {clock}),
       running_since = {clock}
 WHERE status = 'scheduled' AND scheduled_at <= {clock} RETURNING name
"""
_IDLE = """
SELECT c.id FROM campaign AS c
 WHERE c.status = 'running' AND NOT EXISTS (
       SELECT 1 FROM counter AS n
        WHERE n.campaign_id = c.id AND n.server = ''
          AND n.kind IN ('pending', 'queued', 'claimed', 'committing')
        GROUP BY n.kind HAVING SUM(n.n) <> 0)
"""
_ALIVE = """
SELECT EXISTS (SELECT 1 FROM delivery WHERE campaign_id = :id AND state = 'pending')
    OR EXISTS (SELECT 1 FROM delivery WHERE +campaign_id = :id AND state = 'queued')
    OR EXISTS (SELECT 1 FROM delivery WHERE +campaign_id = :id AND state IN ('claimed', 'committing'))
"""
_FINISH = """
UPDATE campaign SET status = 'finished', finished_at = {clock} WHERE id = :id AND status = 'running'
RETURNING name
"""
_HEARTBEAT = """
INSERT INTO worker (owner, host, pid, servers, started_at, seen_at, sent_per_second, loads)
VALUES (:owner, :host, :pid, :servers, {clock}, {clock}, :sent_per_second, :loads)
ON CONFLICT (owner) DO UPDATE SET host = excluded.host, pid = excluded.pid, servers = excluded.servers,
   seen_at = excluded.seen_at, sent_per_second = excluded.sent_per_second, loads = excluded.loads,
   started_at = CASE WHEN worker.started_at > excluded.seen_at THEN excluded.seen_at
                     ELSE worker.started_at END
"""
_LIVE = """
SELECT owner, host, pid, servers, started_at, seen_at, sent_per_second, loads FROM worker
 WHERE seen_at BETWEEN {clock} - :seconds AND {clock} + :seconds ORDER BY owner
"""
# The dead do not live on for as long as a clock was set back.
_FORGET = "DELETE FROM worker WHERE seen_at NOT BETWEEN {clock} - :seconds AND {clock} + :seconds"


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """How many deliveries one sweep step took from where, and where they are now."""

    pending: int
    uncertain: int
    failed: int
    cancelled: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveWorker:
    """A process that reported itself lately; times in epoch seconds by the database's clock.

    `loads`: by server, mails per second, and how many they could be (None: not known).
    """

    owner: str
    host: str
    pid: int
    servers: tuple[str, ...]
    started_at: float
    seen_at: float
    sent_per_second: float
    loads: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)


class Leases(LedgerPart):
    """What must be done about time that has passed. Any number of processes may do it at once."""

    def sweep_leases(
        self,
        limit: int = CHUNK,
        max_crashes: int = 5,
        *,
        lease_seconds: float = rules.LONGEST_LEASE_SECONDS,
        resends: bool = False,
    ) -> Swept:
        """Judge at most `limit` leases that ran out, and what a cancelled campaign left behind.

        Claimed goes back to pending, or fails as poison when workers vanished over it `max_crashes` times;
        committing becomes uncertain, or with `resends` goes back as well. A lease that ends later than one of
        `lease_seconds` could, because the database's clock was set back, is cut to that: the living renew
        theirs meanwhile.
        """
        clock = database_clock(self.database.dialect)
        parameters = {"limit": limit, "lease_seconds": lease_seconds}
        with self.database.read() as connection:
            ids: list[int] = []
            for sql in (_EXPIRED, _TOO_LONG):
                ids += connection.execute(statement(sql.format(clock=clock)), parameters).scalars()
            for sql in _STRANDED:
                ids += connection.execute(statement(sql), {"limit": limit}).scalars()

        def judge(row: Row, now: float) -> Row | None:
            if row.status is Status.CANCELLED and row.state in {State.PENDING, State.QUEUED}:
                return row.ended(State.CANCELLED, now=now)
            swept = rules.swept(row, now, max_crashes, resends=resends)
            return rules.shortened(row, now, lease_seconds) or swept

        return _swept(again_after_conflict(lambda: self._sweep(sorted(ids), judge)) if ids else [])

    def _sweep(self, ids: Sequence[int], judge: Callable[[Row, float], Row | None]) -> list[Change]:
        with self.database.write() as connection:
            changes = self._change(connection, ids, judge)
            insert_attempts(connection, [_vanished(change) for change in changes if _has_vanished(change)])
            return changes

    def start_scheduled(self) -> list[str]:
        """Start the scheduled campaigns whose time has come; their names."""
        sql = statement(_START.format(clock=database_clock(self.database.dialect)))

        def start() -> list[str]:
            with self.database.write() as connection:
                return list(connection.execute(sql).scalars())

        return again_after_conflict(start)

    def finish_idle(self) -> list[str]:
        """Finish the running campaigns that have nobody alive; their names."""
        with self.database.read() as connection:
            idle = list(connection.execute(statement(_IDLE)).scalars())
        return [name for one in idle for name in again_after_conflict(partial(self._finish, one))]

    def _finish(self, campaign_id: int) -> list[str]:
        sql = statement(_FINISH.format(clock=database_clock(self.database.dialect)))
        with self.database.write() as connection:
            lock_campaign(connection, campaign_id)
            if connection.execute(statement(_ALIVE), {"id": campaign_id}).scalar_one():
                return []
            return list(connection.execute(sql, {"id": campaign_id}).scalars())

    def heartbeat(  # noqa: PLR0913 - what a worker tells of itself, by keyword
        self,
        owner: str,
        servers: Sequence[str],
        *,
        host: str,
        pid: int,
        sent_per_second: float,
        loads: Mapping[str, tuple[float, float | None]] | None = None,
    ) -> None:
        """Say that this process lives and reads these servers' queues."""
        sql = statement(_HEARTBEAT.format(clock=database_clock(self.database.dialect)))
        with self.database.write() as connection:
            connection.execute(
                sql,
                {
                    "owner": owner,
                    "host": host,
                    "pid": pid,
                    "servers": json.dumps(list(servers)),
                    "sent_per_second": sent_per_second,
                    "loads": json.dumps(dict(loads or {})),
                },
            )

    def live_workers(self, within_seconds: float) -> list[LiveWorker]:
        """The processes that reported themselves within that time."""
        sql = statement(_LIVE.format(clock=database_clock(self.database.dialect)))
        with self.database.read() as connection:
            return [
                LiveWorker(
                    owner=row.owner,
                    host=row.host,
                    pid=row.pid,
                    servers=tuple(_from_json(row.servers)),
                    started_at=row.started_at,
                    seen_at=row.seen_at,
                    sent_per_second=row.sent_per_second,
                    loads={name: (rate, most) for name, (rate, most) in _from_json(row.loads).items()},
                )
                for row in connection.execute(sql, {"seconds": within_seconds})
            ]

    def forget_worker(self, owner: str) -> None:
        """This process goes in good order: nobody need wait for its heartbeat to be missed."""
        with self.database.write() as connection:
            connection.execute(statement("DELETE FROM worker WHERE owner = :owner"), {"owner": owner})

    def forget_workers(self, older_than_seconds: float) -> int:
        """Remove the processes not seen for that long, or seen that far in the future; how many."""
        sql = statement(_FORGET.format(clock=database_clock(self.database.dialect)))

        def forget() -> int:
            with self.database.write() as connection:
                return connection.execute(sql, {"seconds": older_than_seconds}).rowcount

        return again_after_conflict(forget)


def _swept(changes: Sequence[Change]) -> Swept:
    after = [change.after.state for change in changes]
    return Swept(
        pending=after.count(State.PENDING),
        uncertain=after.count(State.UNCERTAIN),
        failed=after.count(State.FAILED),
        cancelled=after.count(State.CANCELLED),
    )


def _has_vanished(change: Change) -> bool:
    return change.before.owner is not None and change.after.state is not change.before.state


def _vanished(change: Change) -> tuple[object, ...]:
    before, after = change
    outcome = "uncertain" if before.state is State.COMMITTING else "crashed"
    return (
        after.id,
        after.campaign_id,
        before.server,
        before.fence,
        outcome,
        None,
        None,
        None,
        after.reply if outcome == "uncertain" or after.state is State.FAILED else "the worker vanished",
        before.updated_at,
        after.updated_at,
    )


def _from_json(value: Any) -> Any:
    """PostgreSQL's driver has parsed it already."""
    return json.loads(value) if isinstance(value, str) else value

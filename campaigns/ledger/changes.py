"""Reading deliveries under lock and writing what became of them: the one place that changes a state.

A change is the row before and the row after. States, counters and departures are written in one
transaction, and every transition is held against the table of legal ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from campaigns.database import Database, database_clock
from campaigns.ledger.row import Row
from campaigns.ledger.row_source import RowSource, clean, ids_in, ids_parameter, statement
from campaigns.states import ALIVE, State, Status, is_legal

__all__ = [
    "CAMPAIGN_LOCK",
    "CHUNK",
    "Change",
    "Conflict",
    "LedgerPart",
    "count",
    "lock_rows",
    "reopen",
    "write_changes",
]

CAMPAIGN_LOCK = 0x6C656467
"""Class of the advisory locks: shared while deliveries change, exclusive while a campaign's status does."""

CHUNK = 500
"""Rows a transaction changes at most: some tens of milliseconds of SQLite's write lock."""

SHARDS = 32

_READ = """
SELECT d.id, d.campaign_id, c.status, d.state, d.server, d.fence, d.lease_until, d.owner, d.deferrals,
       d.crashes, d.next_attempt_at, d.first_attempt_at, d.queued_at, d.reply, d.updated_at
  FROM delivery AS d JOIN campaign AS c ON c.id = d.campaign_id
 WHERE d.id {ids} ORDER BY d.id {lock}
"""
_SHARE = """
SELECT pg_advisory_xact_lock_shared({key}, CAST(campaign_id AS integer))
  FROM (SELECT DISTINCT campaign_id FROM delivery WHERE id {ids} ORDER BY campaign_id) AS concerned
"""
_CHANGED = RowSource(
    id="bigint",
    old_state="text",
    old_fence="bigint",
    state="text",
    server="text",
    fence="bigint",
    lease_until="double precision",
    owner="text",
    deferrals="integer",
    crashes="integer",
    next_attempt_at="double precision",
    first_attempt_at="double precision",
    queued_at="double precision",
    reply="text",
    updated_at="double precision",
)
_UPDATE = """
UPDATE delivery SET state = w.state, server = w.server, fence = w.fence, lease_until = w.lease_until,
       owner = w.owner, deferrals = w.deferrals, crashes = w.crashes, next_attempt_at = w.next_attempt_at,
       first_attempt_at = w.first_attempt_at, queued_at = w.queued_at, reply = w.reply,
       updated_at = w.updated_at
  FROM {rows}
 WHERE delivery.id = w.id AND delivery.state = w.old_state AND delivery.fence = w.old_fence
"""
_DEPARTED = RowSource(delivery_id="bigint", server="text", campaign_id="bigint")
_DEPART = """
INSERT INTO departure (delivery_id, server, campaign_id)
SELECT w.delivery_id, w.server, w.campaign_id FROM {rows} WHERE true
ON CONFLICT (delivery_id, server) DO NOTHING RETURNING campaign_id, server
"""
_COUNTED = RowSource(campaign_id="bigint", kind="text", server="text", shard="integer", n="bigint")
_COUNT = """
INSERT INTO counter (campaign_id, kind, server, shard, n)
SELECT w.campaign_id, w.kind, w.server, w.shard, w.n FROM {rows} WHERE true
ON CONFLICT (campaign_id, kind, server, shard) DO UPDATE SET n = counter.n + excluded.n
"""
_REOPEN = """
UPDATE campaign SET status = 'running', running_since = {clock}, finished_at = NULL
 WHERE id {ids} AND status = 'finished'
"""

CountKey = tuple[int, str, str]  # campaign, kind, server


class Change(NamedTuple):
    before: Row
    after: Row


class Conflict(Exception):  # noqa: N818 - not an error: the transaction is run again
    """A row was changed by somebody else between its reading and its writing."""


class LedgerPart:
    """What every part of the ledger stands on."""

    def __init__(self, database: Database, *, shard: int | None = None) -> None:
        self.database = database
        self.shard = os.getpid() % SHARDS if shard is None else shard

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.database!r}, shard {self.shard}>"

    def now(self) -> float:
        """The database's time, seconds since the epoch."""
        return self.database.now()

    def _clock(self, connection: Connection) -> float:
        return self.database.clock(connection)

    def _change(
        self, connection: Connection, ids: Sequence[int], decide: Callable[[Row, float], Row | None]
    ) -> list[Change]:
        """Lock these deliveries, decide on each, write what was decided."""
        rows = lock_rows(connection, ids)
        now = self._clock(connection)
        changes = [Change(row, after) for row in rows if (after := decide(row, now)) is not None]
        write_changes(connection, changes, shard=self.shard)
        return changes


def lock_rows(connection: Connection, ids: Sequence[int]) -> list[Row]:
    """These deliveries in the order of their ids, locked until the end of the transaction.

    The status of their campaigns cannot change meanwhile either. SQLite's write transaction locks all.
    """
    dialect = connection.dialect.name
    parameters = {"ids": ids_parameter(dialect, ids)}
    lock = ""
    if dialect == "postgresql":
        connection.execute(statement(_SHARE.format(key=CAMPAIGN_LOCK, ids=ids_in(dialect))), parameters)
        lock = "FOR NO KEY UPDATE OF d"
    found = connection.execute(statement(_READ.format(ids=ids_in(dialect), lock=lock)), parameters)
    return [_row(*values) for values in found]


def _row(  # noqa: PLR0913, PLR0917 - the columns of one statement
    id: int,
    campaign_id: int,
    status: str,
    state: str,
    server: str | None,
    fence: int,
    lease_until: float | None,
    owner: str | None,
    deferrals: int,
    crashes: int,
    next_attempt_at: float | None,
    first_attempt_at: float | None,
    queued_at: float | None,
    reply: str | None,
    updated_at: float,
) -> Row:
    return Row(
        id=id,
        campaign_id=campaign_id,
        status=Status(status),
        state=State(state),
        server=server,
        fence=fence,
        lease_until=lease_until,
        owner=owner,
        deferrals=deferrals,
        crashes=crashes,
        next_attempt_at=next_attempt_at,
        first_attempt_at=first_attempt_at,
        queued_at=queued_at,
        reply=reply,
        updated_at=updated_at,
    )


def write_changes(connection: Connection, changes: Sequence[Change], *, shard: int) -> None:
    """Write states, departures and counters. Raises Conflict if a row is not as it was read."""
    changes = [change for change in changes if change.after is not change.before]
    if not changes:
        return
    _update(connection, changes)
    tally = _tally(changes)
    tally.update(_depart(connection, changes))
    count(connection, tally, shard=shard)
    _reopen(connection, changes)


def _update(connection: Connection, changes: Sequence[Change]) -> None:
    for before, after in changes:
        if after.state is not before.state and not is_legal(before.state, after.state):
            raise ValueError(f"a delivery cannot go from {before.state} to {after.state}")
    dialect = connection.dialect.name
    rows = [
        (
            after.id,
            before.state.value,
            before.fence,
            after.state.value,
            clean(after.server),
            after.fence,
            after.lease_until,
            clean(after.owner),
            after.deferrals,
            after.crashes,
            after.next_attempt_at,
            after.first_attempt_at,
            after.queued_at,
            clean(after.reply),
            after.updated_at,
        )
        for before, after in changes
    ]
    sql = statement(_UPDATE.format(rows=_CHANGED.sql(dialect)))
    if connection.execute(sql, _CHANGED.parameters(dialect, rows)).rowcount != len(rows):
        raise Conflict


def _tally(changes: Iterable[Change]) -> Counter[CountKey]:
    tally: Counter[CountKey] = Counter()
    for before, after in changes:
        if after.state is before.state:
            continue
        tally[after.campaign_id, before.state.value, ""] -= 1
        tally[after.campaign_id, after.state.value, ""] += 1
        if after.state is State.SENT:
            tally[after.campaign_id, "sent", after.server or ""] += 1
    return tally


def _depart(connection: Connection, changes: Iterable[Change]) -> Counter[CountKey]:
    departed = sorted(
        (after.id, before.server, after.campaign_id)
        for before, after in changes
        if before.server is not None and after.server != before.server
    )
    tally: Counter[CountKey] = Counter()
    if departed:
        dialect = connection.dialect.name
        sql = statement(_DEPART.format(rows=_DEPARTED.sql(dialect)))
        for campaign_id, server in connection.execute(sql, _DEPARTED.parameters(dialect, departed)):
            tally[campaign_id, "rerouted", server] += 1
    return tally


def count(connection: Connection, tally: Counter[CountKey], *, shard: int) -> None:
    """Add to the counters, in an order that every process keeps, so that none waits for another in a ring."""
    rows = sorted((*key, shard, n) for key, n in tally.items() if n)
    if rows:
        dialect = connection.dialect.name
        sql = statement(_COUNT.format(rows=_COUNTED.sql(dialect)))
        connection.execute(sql, _COUNTED.parameters(dialect, rows))


def _reopen(connection: Connection, changes: Iterable[Change]) -> None:
    """A finished campaign that has somebody alive again (an attempt resolved its uncertain) runs again."""
    alive = (after for _, after in changes if after.state in ALIVE)
    reopen(connection, {after.campaign_id for after in alive if after.status is Status.FINISHED})


def reopen(connection: Connection, ids: Collection[int]) -> None:
    """Those of the campaigns that are finished run again."""
    if ids:
        dialect = connection.dialect.name
        sql = statement(_REOPEN.format(ids=ids_in(dialect), clock=database_clock(dialect)))
        connection.execute(sql, {"ids": ids_parameter(dialect, sorted(ids))})

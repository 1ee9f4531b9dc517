"""The hot path: what many attempts ask for, written as one transaction."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, exc

from campaigns.database import is_conflict
from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import rules
from campaigns.ledger.changes import CHUNK, Change, Conflict, LedgerPart, lock_rows, write_changes
from campaigns.ledger.operations import (
    Claim,
    Claimed,
    CommitPoint,
    Move,
    Operation,
    Record,
    Recorded,
    Renew,
)
from campaigns.ledger.row import Row
from campaigns.ledger.row_source import RowSource, clean, ids_in, ids_parameter, statement
from campaigns.states import State

__all__ = ["Batches", "again_after_conflict"]

_ATTEMPT = RowSource(
    delivery_id="bigint",
    campaign_id="bigint",
    server="text",
    fence="bigint",
    outcome="text",
    phase="text",
    code="integer",
    enhanced="text",
    reply="text",
    started_at="double precision",
    finished_at="double precision",
)
_INSERT_ATTEMPTS = """
INSERT INTO attempt (delivery_id, campaign_id, server, fence, outcome, phase, code, enhanced, reply,
                     started_at, finished_at)
SELECT w.delivery_id, w.campaign_id, w.server, w.fence, w.outcome, w.phase, w.code, w.enhanced, w.reply,
       w.started_at, w.finished_at
  FROM {rows} WHERE true
ON CONFLICT (delivery_id, fence, outcome) DO NOTHING
"""
_CONTENT = """
SELECT r.id, r.email, r.domain, r.fields, c.revision
  FROM recipient AS r JOIN campaign AS c ON c.id = r.campaign_id WHERE r.id {ids}
"""
_SUPPRESSED = """
SELECT r.id FROM recipient AS r
 WHERE r.id {ids} AND EXISTS (SELECT 1 FROM suppression AS s WHERE s.dedupe_key = r.dedupe_key)
"""
_TRIES = 6

Value = TypeVar("Value")


class Batches(LedgerPart):
    """`apply`, and nothing else."""

    def apply(self, operations: Sequence[Operation]) -> list[object]:
        """Carry out the operations in their order, as one transaction (of 500 at most); a result for each.

        Claim gives Claimed or None, CommitPoint, Move and Renew give bool, Record gives Recorded. An
        operation that the database refuses has its exception as the result and harms no other.
        Everything that is answered is durable. Raises DatabaseUnavailable for the whole in an outage.
        """
        results: list[object] = []
        for start in range(0, len(operations), CHUNK):
            results += self._apply_chunk(operations[start : start + CHUNK])
        return results

    def _apply_chunk(self, operations: Sequence[Operation]) -> list[object]:
        try:
            return again_after_conflict(lambda: self._apply_once(operations))
        except DatabaseUnavailable:
            raise
        except (exc.SQLAlchemyError, ValueError, OverflowError, TypeError) as error:
            if len(operations) == 1:
                return [error]
            middle = len(operations) // 2
            return self._apply_chunk(operations[:middle]) + self._apply_chunk(operations[middle:])

    def _apply_once(self, operations: Sequence[Operation]) -> list[object]:
        with self.database.write() as connection:
            ids = sorted({operation.delivery_id for operation in operations})
            before = {row.id: row for row in lock_rows(connection, ids)}
            batch = _Batch(before, self._clock(connection), _suppressed(connection, operations))
            results = [_take(batch, operation) for operation in operations]
            changes = [Change(row, batch.rows[row.id]) for row in before.values()]
            write_changes(connection, changes, shard=self.shard)
            insert_attempts(connection, batch.attempts)
            return _with_content(connection, results)


def _suppressed(connection: Connection, operations: Sequence[Operation]) -> frozenset[int]:
    """Whom of those that are to be claimed the suppression list names: also since they were queued."""
    ids = [operation.delivery_id for operation in operations if isinstance(operation, Claim)]
    if not ids:
        return frozenset()
    dialect = connection.dialect.name
    sql = statement(_SUPPRESSED.format(ids=ids_in(dialect)))
    return frozenset(connection.execute(sql, {"ids": ids_parameter(dialect, ids)}).scalars())


def _take(batch: _Batch, operation: Operation) -> object:
    try:
        return batch.take(operation)
    except (ValueError, TypeError) as error:  # a value that no row can take: this operation's alone
        return error


class _Batch:
    """The rows as they stand after each operation, and the attempts that were reported."""

    def __init__(self, rows: dict[int, Row], now: float, suppressed: frozenset[int]) -> None:
        self.rows = dict(rows)
        self.now = now
        self.suppressed = suppressed
        self.attempts: list[tuple[Any, ...]] = []

    def take(self, operation: Operation) -> object:
        """The operation's result; of a granted claim (row, claim), as its content is read later."""
        row = self.rows.get(operation.delivery_id)
        if isinstance(operation, Record):
            return self._record(row, operation)
        after = None if row is None else self._decide(row, operation)
        if after is not None:
            self.rows[after.id] = after
        if isinstance(operation, Claim):
            return (after, operation) if after is not None and after.state is State.CLAIMED else None
        return after is not None

    def _decide(self, row: Row, operation: Claim | CommitPoint | Move | Renew) -> Row | None:
        if isinstance(operation, Claim):
            return rules.claim(row, operation, self.now, is_suppressed=row.id in self.suppressed)
        if isinstance(operation, CommitPoint):
            return rules.commit_point(row, operation, self.now)
        if isinstance(operation, Renew):
            return rules.renew(row, operation, self.now)
        return rules.move(row, operation, self.now)

    def _record(self, row: Row | None, operation: Record) -> Recorded:
        if row is None:
            return Recorded(state=None, server=None)
        after = rules.record(row, operation, self.now)
        self.attempts.append(_attempt(row, operation, self.now))
        if after is None:
            return Recorded(state=None, server=row.server)
        self.rows[after.id] = after
        return Recorded(state=after.state, server=after.server)


def _attempt(row: Row, operation: Record, now: float) -> tuple[Any, ...]:
    return (
        row.id,
        row.campaign_id,
        clean(operation.server),
        operation.fence,
        clean(operation.outcome),
        clean(operation.phase),
        operation.code,
        clean(operation.enhanced),
        clean(operation.reply),
        now - operation.started_seconds_ago,
        now,
    )


def insert_attempts(connection: Connection, attempts: Sequence[tuple[Any, ...]]) -> None:
    if attempts:
        dialect = connection.dialect.name
        sql = statement(_INSERT_ATTEMPTS.format(rows=_ATTEMPT.sql(dialect)))
        connection.execute(sql, _ATTEMPT.parameters(dialect, attempts))


def _with_content(connection: Connection, results: list[object]) -> list[object]:
    granted = [result[0].id for result in results if isinstance(result, tuple)]
    if not granted:
        return results
    dialect = connection.dialect.name
    sql = statement(_CONTENT.format(ids=ids_in(dialect)))
    found = connection.execute(sql, {"ids": ids_parameter(dialect, granted)})
    content = {values[0]: values[1:] for values in found}
    return [
        _claimed(*result, *content[result[0].id]) if isinstance(result, tuple) else result
        for result in results
    ]


def _claimed(  # noqa: PLR0913, PLR0917 - a row and its content
    row: Row, claim: Claim, email: str, domain: str, fields: str | dict[str, Any], revision: int
) -> Claimed:
    return Claimed(
        delivery_id=row.id,
        campaign_id=row.campaign_id,
        fence=row.fence,
        email=email,
        domain=domain,
        fields=json.loads(fields) if isinstance(fields, str) else fields,
        deferrals=row.deferrals,
        crashes=row.crashes,
        first_attempt_at=row.first_attempt_at or 0.0,
        leased_seconds=claim.lease_seconds,
        campaign_revision=revision,
    )


def again_after_conflict(transaction: Callable[[], Value]) -> Value:
    """Run the transaction; run it again when it lost a race (deadlock, serialization, a changed row).

    Raises DatabaseUnavailable if it loses every time.
    """
    for attempt in range(_TRIES):
        try:
            return transaction()
        except (exc.DBAPIError, Conflict) as error:
            if not (isinstance(error, Conflict) or is_conflict(error)):
                raise
            time.sleep(random.random() * 0.01 * 2**attempt)  # noqa: S311 - jitter
    raise DatabaseUnavailable(
        "the database is so busy that a change lost every race; it is tried again later"
    )

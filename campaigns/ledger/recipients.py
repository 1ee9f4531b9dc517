"""Adding recipients in batches, each one transaction with the import's progress; suppressions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from campaigns.database import database_clock
from campaigns.errors import TransitionRefused
from campaigns.ledger.batch import again_after_conflict
from campaigns.ledger.changes import LedgerPart, count, reopen
from campaigns.ledger.row import Row
from campaigns.ledger.row_source import RowSource, clean, ids_in, ids_parameter, statement
from campaigns.ledger.status import lock_campaign, read_campaign, refuse
from campaigns.states import OPEN, State, Status

__all__ = ["Added", "Import", "ImportProgress", "NewRecipient", "Recipients", "Suppressed"]

_NEW = RowSource(email="text", dedupe_key="text", domain="text", fields="text")
_INSERT_RECIPIENTS = """
INSERT INTO recipient (campaign_id, email, dedupe_key, domain, fields)
SELECT CAST(:campaign_id AS bigint), w.email, w.dedupe_key, w.domain, {fields} FROM {rows} WHERE true
ON CONFLICT (campaign_id, dedupe_key) DO NOTHING RETURNING id
"""
_INSERT_DELIVERIES = """
INSERT INTO delivery (id, campaign_id, state, fence, deferrals, crashes, next_attempt_at, updated_at)
SELECT r.id, r.campaign_id, CASE WHEN s.dedupe_key IS NULL THEN 'pending' ELSE 'suppressed' END, 0, 0, 0,
       CASE WHEN s.dedupe_key IS NULL THEN now.at END, now.at
  FROM recipient AS r LEFT JOIN suppression AS s ON s.dedupe_key = r.dedupe_key,
       (SELECT {clock} AS at) AS now
 WHERE r.id {ids}
RETURNING state
"""
_BEGIN_IMPORT = """
INSERT INTO recipient_import (campaign_id, source, line, position, added, duplicate, rejected, suppressed,
                              finished)
VALUES (:campaign_id, :source, 0, 0, 0, 0, 0, 0, false)
ON CONFLICT (campaign_id, source) DO NOTHING
"""
_READ_IMPORT = """
SELECT id, source, line, position, added, duplicate, rejected, suppressed, finished FROM recipient_import
"""
_UNFINISHED = """
SELECT 1 FROM recipient_import WHERE campaign_id = :campaign_id AND NOT finished AND position > 0
"""
_ADVANCE = """
UPDATE recipient_import SET line = :line, position = :position, added = added + :added,
       duplicate = duplicate + :duplicate, rejected = rejected + :rejected,
       suppressed = suppressed + :suppressed, finished = :finished
 WHERE id = :id AND position = :from_position AND line = :from_line AND NOT finished
"""
_SUPPRESSIONS = RowSource(dedupe_key="text", email="text", reason="text")
_SUPPRESS = """
INSERT INTO suppression (dedupe_key, email, reason, created_at)
SELECT w.dedupe_key, w.email, w.reason, {clock} FROM {rows} WHERE true
ON CONFLICT (dedupe_key) DO NOTHING
"""
_OPEN = "SELECT id FROM campaign WHERE status IN ('draft', 'scheduled', 'running', 'paused') ORDER BY id"
_WAITING_KEYS = """
SELECT r.id FROM {rows} JOIN campaign AS c ON c.status IN ('draft', 'scheduled', 'running', 'paused')
  JOIN recipient AS r ON r.campaign_id = c.id AND r.dedupe_key = w.dedupe_key
  JOIN delivery AS d ON d.id = r.id WHERE d.state IN ('pending', 'queued')
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRecipient:
    """A checked and normalised address with its merge fields."""

    email: str = field(repr=False)
    dedupe_key: str = field(repr=False)
    domain: str
    fields: Mapping[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """What one batch did: `added` counts the rows (those suppressed included), `duplicate` those left out."""

    added: int
    duplicate: int
    suppressed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """How far an import has come; go on at `position`."""

    id: int
    source: str
    line: int
    position: int
    added: int
    duplicate: int
    rejected: int
    suppressed: int
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportProgress:
    """Where the import stands after a batch, and where it stood before; `rejected` counts this batch's."""

    import_id: int
    from_line: int
    from_position: int
    line: int
    position: int
    rejected: int = 0
    finished: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Suppressed:
    """An address that gets nothing."""

    email: str = field(repr=False)
    dedupe_key: str = field(repr=False)
    reason: str | None
    created_at: float


class Recipients(LedgerPart):
    """Imports and suppressions."""

    def begin_import(self, campaign_id: int, source: str) -> Import:
        """The import of that source (a digest) into the campaign: a new one, or the one interrupted."""
        with self.database.write() as connection:
            connection.execute(statement(_BEGIN_IMPORT), {"campaign_id": campaign_id, "source": source})
            return _imports(connection, campaign_id, source)[0]

    def imports(self, campaign_id: int) -> list[Import]:
        """The campaign's imports, in the order in which they began."""
        with self.database.read() as connection:
            return _imports(connection, campaign_id)

    def add_recipients(
        self,
        campaign_id: int,
        rows: Sequence[NewRecipient],
        progress: ImportProgress | None = None,
        *,
        continues: bool = False,
    ) -> Added:
        """Add a batch (1,000 to 2,000 rows are best) and move the import's progress, in one transaction.

        Whom the campaign has already is a duplicate; who is on the suppression list is added as
        suppressed. Raises TransitionRefused if the campaign is finished or cancelled, or if another
        process has moved the import meanwhile (then nothing of the batch is added).

        `continues`, or an import that has come some way and is not finished: a list was begun while the
        campaign was open. The rest is taken although all before it were served meanwhile, also from a file
        that was put right since; the finished campaign runs again.
        """
        return again_after_conflict(lambda: self._add(campaign_id, rows, progress, continues=continues))

    def _add(
        self,
        campaign_id: int,
        rows: Sequence[NewRecipient],
        progress: ImportProgress | None,
        *,
        continues: bool,
    ) -> Added:
        with self.database.write() as connection:
            lock_campaign(connection, campaign_id, exclusive=False)
            campaign = read_campaign(connection, campaign_id=campaign_id)
            if campaign.status not in OPEN and not (
                campaign.status is Status.FINISHED and (continues or _has_rest(connection, campaign_id))
            ):
                raise refuse(campaign, "given more recipients")
            states = self._insert(connection, campaign_id, rows)
            tally = Counter({(campaign_id, state, ""): n for state, n in states.items()})
            tally[campaign_id, "total", ""] = states.total()
            count(connection, tally, shard=self.shard)
            if states["pending"]:
                reopen(connection, [campaign_id])
            added = Added(
                added=states.total(),
                duplicate=len(rows) - states.total(),
                suppressed=states["suppressed"],
            )
            if progress is not None:
                _advance(connection, progress, added)
            return added

    def _insert(self, connection: Connection, campaign_id: int, rows: Sequence[NewRecipient]) -> Counter[str]:
        if not rows:
            return Counter()
        dialect = self.database.dialect
        values = [
            (clean(row.email), clean(row.dedupe_key), clean(row.domain), json.dumps(row.fields))
            for row in rows
        ]
        fields = "CAST(w.fields AS json)" if dialect == "postgresql" else "w.fields"
        sql = statement(_INSERT_RECIPIENTS.format(rows=_NEW.sql(dialect), fields=fields))
        parameters = {"campaign_id": campaign_id, **_NEW.parameters(dialect, values)}
        ids = list(connection.execute(sql, parameters).scalars())
        if not ids:
            return Counter()
        sql = statement(_INSERT_DELIVERIES.format(ids=ids_in(dialect), clock=database_clock(dialect)))
        return Counter(connection.execute(sql, {"ids": ids_parameter(dialect, ids)}).scalars())

    def suppress(self, suppressions: Iterable[tuple[str, str, str | None]]) -> int:
        """Add (dedupe key, address, reason) to the list; how many were new. A batch of some 1,000 is best.

        Whoever waits in a campaign that is not over becomes suppressed. What an attempt holds goes on; should
        it come back, or whoever failed be tried again, the next claim makes it suppressed.
        """
        rows = sorted(
            {clean(key): (clean(key), clean(email), clean(why)) for key, email, why in suppressions}.values()
        )
        return again_after_conflict(lambda: self._suppress(rows)) if rows else 0

    def _suppress(self, rows: Sequence[tuple[str | None, ...]]) -> int:
        dialect = self.database.dialect
        sql = statement(_SUPPRESS.format(rows=_SUPPRESSIONS.sql(dialect), clock=database_clock(dialect)))
        parameters = _SUPPRESSIONS.parameters(dialect, rows)
        with self.database.write() as connection:
            for campaign_id in connection.execute(statement(_OPEN)).scalars().all():
                lock_campaign(connection, campaign_id, exclusive=False)  # an import shows it at once
            new = connection.execute(sql, parameters).rowcount
            waiting = statement(_WAITING_KEYS.format(rows=_SUPPRESSIONS.sql(dialect)))
            ids = list(connection.execute(waiting, parameters).scalars())
            self._change(connection, ids, _suppressed)
            return new

    def unsuppress(self, dedupe_key: str) -> bool:
        """Take an address off the list; False if it was not on it."""
        sql = statement("DELETE FROM suppression WHERE dedupe_key = :key")
        with self.database.write() as connection:
            return connection.execute(sql, {"key": dedupe_key}).rowcount > 0

    def suppressions(self) -> Iterable[Suppressed]:
        """The whole list in the order of its keys, read in pages."""
        sql = statement(
            "SELECT email, dedupe_key, reason, created_at FROM suppression"
            " WHERE dedupe_key > :after ORDER BY dedupe_key LIMIT 1000"
        )
        after = ""
        while True:
            with self.database.read() as connection:
                page = [Suppressed(**row._mapping) for row in connection.execute(sql, {"after": after})]
            if not page:
                return
            yield from page
            after = page[-1].dedupe_key


def _has_rest(connection: Connection, campaign_id: int) -> bool:
    found = connection.execute(statement(_UNFINISHED), {"campaign_id": campaign_id})
    return found.first() is not None


def _suppressed(row: Row, now: float) -> Row | None:
    if row.state not in {State.PENDING, State.QUEUED}:
        return None
    return row.ended(State.SUPPRESSED, now=now)


def _imports(connection: Connection, campaign_id: int, source: str | None = None) -> list[Import]:
    where = "WHERE campaign_id = :campaign_id" + ("" if source is None else " AND source = :source")
    parameters = {"campaign_id": campaign_id} | ({} if source is None else {"source": source})
    found = connection.execute(statement(f"{_READ_IMPORT} {where} ORDER BY id"), parameters)
    return [Import(**{**row._mapping, "finished": bool(row.finished)}) for row in found]


def _advance(connection: Connection, progress: ImportProgress, added: Added) -> None:
    moved = connection.execute(
        statement(_ADVANCE),
        {
            "id": progress.import_id,
            "from_line": progress.from_line,
            "from_position": progress.from_position,
            "line": progress.line,
            "position": progress.position,
            "added": added.added,
            "duplicate": added.duplicate,
            "rejected": progress.rejected,
            "suppressed": added.suppressed,
            "finished": progress.finished,
        },
    ).rowcount
    if not moved:
        raise TransitionRefused(
            "another process imports this list, or has finished it; nothing was added twice"
        )

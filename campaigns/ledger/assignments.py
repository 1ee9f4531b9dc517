"""The producer's side: what is due, what is queued where, and moving whole queues."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, TextClause

from campaigns.database import database_clock
from campaigns.ledger.batch import again_after_conflict
from campaigns.ledger.changes import CHUNK, Change, LedgerPart
from campaigns.ledger.row import Row
from campaigns.ledger.row_source import RowSource, clean, ids_in, ids_parameter, statement
from campaigns.states import State, Status

__all__ = ["Assignments", "Due", "QueuedDelivery"]

_DUE_CAMPAIGNS = """
SELECT c.id, c.name, c.stream, c.sender, c.rate_per_second FROM campaign AS c
 WHERE c.status = 'running' AND EXISTS (
       SELECT 1 FROM delivery AS d
        WHERE d.campaign_id = c.id AND d.state = 'pending' AND d.next_attempt_at <= {clock})
 ORDER BY c.id
"""
_DUE = """
SELECT d.id, r.domain, d.server FROM delivery AS d JOIN recipient AS r ON r.id = d.id
 WHERE d.campaign_id = :campaign_id AND d.state = 'pending' AND d.next_attempt_at <= {clock}
 ORDER BY d.next_attempt_at, d.id LIMIT :limit
"""
# The unary plus keeps SQLite's planner on the small index of what is queued, and off all of a campaign.
_QUEUED_COUNTS = """
SELECT d.server, count(*) AS n FROM delivery AS d JOIN campaign AS c ON c.id = +d.campaign_id
 WHERE d.state = 'queued' AND c.status = 'running' GROUP BY d.server
"""
_QUEUED_BY_STREAM = """
SELECT d.server, c.stream, count(*) AS n FROM delivery AS d JOIN campaign AS c ON c.id = +d.campaign_id
 WHERE d.state = 'queued' AND c.status = 'running' GROUP BY d.server, c.stream
"""
_QUEUED = """
SELECT d.id, d.campaign_id, c.name, c.stream, d.server
  FROM delivery AS d JOIN campaign AS c ON c.id = +d.campaign_id
 WHERE d.state = 'queued' AND c.status = 'running' {where} LIMIT :limit
"""
_NAMES = "SELECT id, name, stream FROM campaign WHERE id {ids}"
_POSTPONE = """
UPDATE delivery SET next_attempt_at = {clock} + CAST(:seconds AS double precision)
 WHERE id {ids} AND state = 'pending' AND next_attempt_at <= {clock}
"""
_POSTPONED = RowSource(id="bigint", seconds="double precision")
_POSTPONE_EACH = """
UPDATE delivery SET next_attempt_at = {clock} + w.seconds,
       reply = COALESCE(CAST(:why AS text), reply) FROM {rows}
 WHERE delivery.id = w.id AND delivery.state = 'pending' AND delivery.next_attempt_at <= {clock}
"""
_OPEN = "SELECT id FROM campaign WHERE status IN ('draft', 'scheduled', 'running', 'paused') ORDER BY id"
_IS_WITHOUT_REASON = "first_attempt_at IS NULL AND (reply IS NULL OR reply NOT LIKE 'held by %')"
_IS_TOO_LONG = f"""next_attempt_at > :soon
   AND (next_attempt_at > CAST(:latest AS double precision) OR ({_IS_WITHOUT_REASON}))"""
_TOO_LONG = f"""
SELECT id FROM delivery
 WHERE campaign_id = :campaign_id AND state = 'pending' AND {_IS_TOO_LONG} LIMIT :limit
"""  # noqa: S608 - constants
_SHORTEN = f"""
UPDATE delivery SET next_attempt_at = CASE WHEN {_IS_WITHOUT_REASON} THEN CAST(:now AS double precision)
                                           ELSE CAST(:latest AS double precision) END
 WHERE id {{ids}} AND state = 'pending' AND {_IS_TOO_LONG}
"""  # noqa: S608 - constants
_TOUCH = "UPDATE delivery SET queued_at = {clock} WHERE id {ids} AND state = 'queued'"

POSTPONED_SECONDS = 60.0
"""What was never tried, and no limit holds, waits for less: until a server may take it, or rests no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A pending delivery whose time has come; `server` is the one that it had last, if any."""

    delivery_id: int
    campaign_id: int
    campaign_name: str
    stream: str
    sender: str
    domain: str = field(repr=False)
    server: str | None
    rate_per_second: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedDelivery:
    """A delivery that is queued in the ledger, and shall have a message in that server's queue."""

    delivery_id: int
    campaign_id: int
    campaign_name: str
    stream: str
    server: str


class Assignments(LedgerPart):
    """Pending to queued, from one queue to another, and back to pending."""

    def due(
        self, limit: int, streams: Collection[str] | None = None, without: Collection[int] = ()
    ) -> list[Due]:
        """Due deliveries of running campaigns, the oldest of each first: `limit` shared fairly among those
        without a rate, and as many among those with one, of which most are not allowed yet.

        Only of these streams if they are given, and not of the campaigns (ids) in `without`. The campaigns
        come in random order, so that whoever finds no room this time does not find none for ever.
        Reads only: `enqueue` decides who gets a delivery that two producers saw.
        """
        clock = database_clock(self.database.dialect)
        with self.database.read() as connection:
            campaigns = [
                campaign
                for campaign in connection.execute(statement(_DUE_CAMPAIGNS.format(clock=clock)))
                if (streams is None or campaign.stream in streams) and campaign.id not in without
            ]
            free = [campaign for campaign in campaigns if campaign.rate_per_second is None]
            rated = [campaign for campaign in campaigns if campaign.rate_per_second is not None]
            lists = self._share(connection, free, limit, clock) + self._share(connection, rated, limit, clock)
        random.shuffle(lists)
        return [due for found in lists for due in found]

    def _share(
        self, connection: Connection, campaigns: Sequence[Any], limit: int, clock: str
    ) -> list[list[Due]]:
        each = limit if len(campaigns) <= 4 else -(-2 * limit // len(campaigns))  # bounds what is read
        chosen = random.sample(campaigns, min(limit, len(campaigns)))
        return _shared_fairly([self._due_of(connection, one, each, clock) for one in chosen], limit)

    def _due_of(self, connection: Connection, campaign: Any, limit: int, clock: str) -> list[Due]:
        found = connection.execute(
            statement(_DUE.format(clock=clock)), {"campaign_id": campaign.id, "limit": limit}
        )
        return [
            Due(
                delivery_id=delivery_id,
                campaign_id=campaign.id,
                campaign_name=campaign.name,
                stream=campaign.stream,
                sender=campaign.sender,
                domain=domain,
                server=server,
                rate_per_second=campaign.rate_per_second,
            )
            for delivery_id, domain, server in found
        ]

    def enqueue(self, assignments: Sequence[tuple[int, str]]) -> list[QueuedDelivery]:
        """Give each (delivery id, server) that is due its server; those that this call moved, durably.

        A delivery that is not pending any more, whose time has not come, or whose campaign does not run is
        left alone. Publish what is returned: until then only the sweep would find it.
        """
        servers = dict(assignments)

        def assign(row: Row, now: float) -> Row | None:
            if row.state is not State.PENDING or row.status is not Status.RUNNING:
                return None
            if row.next_attempt_at is None or row.next_attempt_at > now:
                return None
            return row.queued(servers[row.id], seconds=0.0, now=now)

        ids = sorted(servers)
        return [
            queued
            for start in range(0, len(ids), CHUNK)
            for queued in self._changed_to_queued(ids[start : start + CHUNK], assign)
        ]

    def queued_counts(self) -> dict[str, int]:
        """How many deliveries of running campaigns are queued, by server."""
        with self.database.read() as connection:
            return {row.server: row.n for row in connection.execute(statement(_QUEUED_COUNTS))}

    def queued_by_stream(self) -> dict[tuple[str, str], int]:
        """The same by server and stream."""
        with self.database.read() as connection:
            found = connection.execute(statement(_QUEUED_BY_STREAM))
            return {(row.server, row.stream): row.n for row in found}

    def running_streams(self) -> list[str]:
        """The streams of the campaigns that run."""
        sql = "SELECT DISTINCT stream FROM campaign WHERE status = 'running' ORDER BY stream"
        with self.database.read() as connection:
            return list(connection.execute(statement(sql)).scalars())

    def stale_queued(
        self, server: str, older_than_seconds: float, limit: int = CHUNK
    ) -> list[QueuedDelivery]:
        """Queued there for longer than that, the oldest first. Reads only; see `touch_queued`."""
        clock = database_clock(self.database.dialect)
        where = f"AND d.server = :server AND d.queued_at < {clock} - :seconds ORDER BY d.queued_at, d.id"
        return self._queued(where, server=server, seconds=older_than_seconds, limit=limit)

    def queued_of(self, campaign_id: int, after_id: int = 0, limit: int = CHUNK) -> list[QueuedDelivery]:
        """The campaign's queued deliveries with greater ids than `after_id`, in their order."""
        # the unary plus keeps planners off the index over the whole campaign: few are queued at a time
        where = "AND +d.campaign_id = :campaign_id AND d.id > :after_id ORDER BY d.id"
        return self._queued(where, campaign_id=campaign_id, after_id=after_id, limit=limit)

    def _queued(self, where: str, **parameters: object) -> list[QueuedDelivery]:
        with self.database.read() as connection:
            found = connection.execute(statement(_QUEUED.format(where=where)), parameters)
            return [
                QueuedDelivery(
                    delivery_id=values[0],
                    campaign_id=values[1],
                    campaign_name=values[2],
                    stream=values[3],
                    server=values[4],
                )
                for values in found
            ]

    def touch_queued(self, ids: Sequence[int]) -> int:
        """Their wait begins anew, as they are published again; how many are still queued."""
        dialect = self.database.dialect
        sql = statement(_TOUCH.format(clock=database_clock(dialect), ids=ids_in(dialect)))
        return self._in_chunks_of_ids(sql, ids)

    def postpone(self, ids: Sequence[int], seconds: float) -> int:
        """Due deliveries that no server may take now wait so long, and stand in nobody's way; how many."""
        dialect = self.database.dialect
        sql = statement(_POSTPONE.format(clock=database_clock(dialect), ids=ids_in(dialect)))
        return self._in_chunks_of_ids(sql, ids, seconds=seconds)

    def postpone_each(self, seconds: Mapping[int, float], why: str | None = None) -> int:
        """The same, each for a time of its own, by delivery id; `why` is kept in the place of a reply."""
        dialect = self.database.dialect
        rows = statement(_POSTPONE_EACH.format(clock=database_clock(dialect), rows=_POSTPONED.sql(dialect)))
        ordered, changed = sorted(seconds.items()), 0
        for start in range(0, len(ordered), CHUNK):
            parameters = _POSTPONED.parameters(dialect, ordered[start : start + CHUNK]) | {"why": clean(why)}
            changed += again_after_conflict(partial(self._execute, rows, parameters))
        return changed

    def shorten_waits(self, longest_seconds: float, limit: int = CHUNK) -> int:
        """Cut at most `limit` waits that end later than any could, as the clock was set back; how many.

        What was never tried and is held by no limit is due at once; all else waits for `longest_seconds` at
        most, and whoever holds it looks again then. When a campaign starts is the operator's, and is left.
        """
        with self.database.read() as connection:
            now = self._clock(connection)
            moments = {"now": now, "soon": now + POSTPONED_SECONDS, "latest": now + longest_seconds}
            ids: list[int] = []
            for campaign_id in connection.execute(statement(_OPEN)).scalars().all():
                values = {**moments, "campaign_id": campaign_id, "limit": limit - len(ids)}
                ids += connection.execute(statement(_TOO_LONG), values).scalars()
                if len(ids) >= limit:
                    break
        sql = statement(_SHORTEN.format(ids=ids_in(self.database.dialect)))
        return self._in_chunks_of_ids(sql, ids, **moments)

    def _in_chunks_of_ids(self, sql: TextClause, ids: Sequence[int], **parameters: object) -> int:
        ordered, changed = sorted(ids), 0
        for start in range(0, len(ordered), CHUNK):
            chunk = ids_parameter(self.database.dialect, ordered[start : start + CHUNK])
            changed += again_after_conflict(partial(self._execute, sql, {"ids": chunk, **parameters}))
        return changed

    def _execute(self, sql: TextClause, parameters: Mapping[str, object]) -> int:
        with self.database.write() as connection:
            return connection.execute(sql, parameters).rowcount

    def reroute_queued(
        self,
        from_server: str,
        to: Mapping[str, float],
        limit: int = CHUNK,
        *,
        stream: str | None = None,
        latest: bool = False,
    ) -> list[QueuedDelivery]:
        """Move what waits for one server to others, split by weight; one chunk, the oldest first.

        Call it until it returns nothing. With `stream`, only that stream's deliveries. `latest`: from the end
        of the queue, where no worker has them in hand yet.
        """
        if not to or from_server in to:
            raise ValueError("a reroute needs other servers to go to")
        share = iter(_split(to, limit))

        def assign(row: Row, now: float) -> Row | None:
            if row.state is not State.QUEUED or row.server != from_server:
                return None
            return row.queued(next(share), seconds=0.0, now=now)

        ids = self._waiting_for(from_server, limit, stream, latest=latest)
        return self._changed_to_queued(ids, assign)

    def withdraw_queued(self, from_server: str, limit: int = CHUNK, *, stream: str | None = None) -> int:
        """Take back what waits for a server: it is due again, in the ledger. One chunk; how many."""

        def take_back(row: Row, now: float) -> Row | None:
            if row.state is not State.QUEUED or row.server != from_server:
                return None
            return row.waiting(seconds=0.0, now=now)

        return len(self._changed(self._waiting_for(from_server, limit, stream), take_back))

    def _waiting_for(self, server: str, limit: int, stream: str | None, *, latest: bool = False) -> list[int]:
        order = "d.queued_at DESC, d.id DESC" if latest else "d.queued_at, d.id"
        where = f"AND d.server = :server ORDER BY {order}"
        parameters: dict[str, object] = {"server": server, "limit": min(limit, CHUNK)}
        if stream is not None:
            where, parameters["stream"] = f"AND c.stream = :stream {where}", stream
        return [queued.delivery_id for queued in self._queued(where, **parameters)]

    def _changed(self, ids: Sequence[int], decide: Callable[[Row, float], Row | None]) -> list[Change]:
        if not ids:
            return []

        def transaction() -> list[Change]:
            with self.database.write() as connection:
                return self._change(connection, ids, decide)

        return again_after_conflict(transaction)

    def _changed_to_queued(
        self, ids: Sequence[int], decide: Callable[[Row, float], Row | None]
    ) -> list[QueuedDelivery]:
        changes = [change.after for change in self._changed(ids, decide)]
        queued = [row for row in changes if row.state is State.QUEUED]
        names = self._names({row.campaign_id for row in queued})
        return [
            QueuedDelivery(
                delivery_id=row.id,
                campaign_id=row.campaign_id,
                campaign_name=names[row.campaign_id][0],
                stream=names[row.campaign_id][1],
                server=row.server or "",
            )
            for row in queued
        ]

    def _names(self, ids: set[int]) -> dict[int, tuple[str, str]]:
        if not ids:
            return {}
        dialect = self.database.dialect
        with self.database.read() as connection:
            sql = statement(_NAMES.format(ids=ids_in(dialect)))
            found = connection.execute(sql, {"ids": ids_parameter(dialect, sorted(ids))})
            return {values[0]: (values[1], values[2]) for values in found}


def _shared_fairly(lists: Sequence[list[Due]], limit: int) -> list[list[Due]]:
    """`limit` in all, as even as the lists allow; each list in its own order, the small ones whole."""
    share: dict[int, int] = {}
    left = limit
    by_size = sorted(range(len(lists)), key=lambda index: len(lists[index]))
    for done, index in enumerate(by_size):
        share[index] = min(len(lists[index]), -(-left // (len(lists) - done)))
        left -= share[index]
    return [found[: share[index]] for index, found in enumerate(lists)]


def _split(weights: Mapping[str, float], total: int) -> list[str]:
    """`total` names in turn, in the proportion of their weights (all equal if every weight is 0)."""
    usable = {name: weight for name, weight in weights.items() if weight > 0} or dict.fromkeys(weights, 1.0)
    whole, credit = sum(usable.values()), dict.fromkeys(usable, 0.0)
    chosen = []
    for _ in range(total):
        for name, weight in usable.items():
            credit[name] += weight
        best = max(credit, key=credit.__getitem__)
        credit[best] -= whole
        chosen.append(best)
    return chosen

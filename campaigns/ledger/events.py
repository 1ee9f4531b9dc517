"""What changed and why; which server is taken off whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from campaigns.database import database_clock
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.row_source import clean, statement

__all__ = ["BlockRecord", "EventRecord", "Events", "insert_event"]

_RECORD = """
INSERT INTO event (at, server, campaign, kind, from_state, to_state, reason)
VALUES ({clock}, :server, :campaign, :kind, :from_state, :to_state, :reason)
"""
_EVENTS = """
SELECT id, at, server, campaign, kind, from_state, to_state, reason FROM event
 WHERE id > :after {where} ORDER BY id DESC LIMIT :limit
"""
_BLOCK = """
INSERT INTO block (server, sender, domain, until, reason, created_at)
VALUES (:server, :sender, :domain, :until, :reason, {clock})
"""
_LOCK_BLOCKS = "LOCK TABLE block IN SHARE ROW EXCLUSIVE MODE"
_PROLONG = """
UPDATE block SET until = CASE WHEN until < :until THEN :until ELSE until END
 WHERE server = :server AND (until IS NULL OR until > {clock})
   AND COALESCE(sender, '') = COALESCE(CAST(:sender AS text), '')
   AND COALESCE(domain, '') = COALESCE(CAST(:domain AS text), '')
"""
_ANY_ENDED = "SELECT 1 FROM block WHERE until <= {clock} LIMIT 1"
_END_BLOCKS = "DELETE FROM block WHERE until <= {clock} RETURNING server, domain"
_BLOCKS = """
SELECT id, server, sender, domain, until, reason, created_at FROM block
 WHERE until IS NULL OR until > {clock} ORDER BY id
"""
_REFUSALS = """
SELECT DISTINCT a.server, r.domain
  FROM attempt AS a
  JOIN recipient AS r ON r.id = a.delivery_id
  JOIN campaign AS c ON c.id = a.campaign_id
 WHERE a.campaign_id = :campaign_id AND a.outcome = 'policy' AND a.finished_at >= COALESCE(c.running_since, 0)
"""
_REFUSERS = """
SELECT DISTINCT a.server FROM attempt AS a JOIN delivery AS d ON d.id = a.delivery_id
 WHERE a.delivery_id = :delivery_id AND a.finished_at >= d.first_attempt_at
   AND a.outcome IN ('policy', 'policy-message', 'policy-server-domain')
"""
_SINCE = """
SELECT MIN(a.finished_at) FROM attempt AS a JOIN delivery AS d ON d.id = a.delivery_id
 WHERE a.delivery_id = :delivery_id AND a.finished_at >= d.first_attempt_at AND {what}
"""
_PAUSED_SECONDS = """
SELECT COALESCE(SUM(w.ended_at - w.began_at), 0)
  FROM (SELECT CASE WHEN p.began_at > :since THEN p.began_at ELSE :since END AS began_at,
               CASE WHEN p.ended_at < {clock} THEN p.ended_at ELSE {clock} END AS ended_at
          FROM delivery AS d JOIN pause AS p ON p.campaign_id = d.campaign_id
         WHERE d.id = :delivery_id) AS w
 WHERE w.ended_at > w.began_at
"""
"""No longer than until now, and never less than nothing, if the clock was wrong meanwhile."""
_DEFERRED = "a.outcome = 'deferred'"
_REFUSED = "a.outcome IN ('policy', 'policy-message', 'policy-server-domain')"
_ANSWERED = """a.outcome = :outcome AND a.code IS NOT NULL
   AND a.phase IN ('rcpt', 'data', 'body', 'commit', 'dot')"""
_TOOK_MAIL_SINCE = """
SELECT 1 FROM attempt WHERE finished_at > :since AND server = :server AND outcome = 'sent'
 ORDER BY finished_at DESC LIMIT 1
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRecord:
    """Something that changed; `at` in epoch seconds by the database's clock."""

    id: int
    at: float
    server: str | None
    campaign: str | None
    kind: str
    from_state: str | None
    to_state: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRecord:
    """A server taken off a sender, a recipient domain, or both (None: any), `until` (None: for good)."""

    id: int
    server: str
    sender: str | None = field(repr=False)
    domain: str | None
    until: float | None
    reason: str
    created_at: float


class Events(LedgerPart):
    """The journal of changes, and the blocks that policy refusals leave."""

    def record_event(  # noqa: PLR0913 - an event's fields, by keyword
        self,
        kind: str,
        *,
        server: str | None = None,
        campaign: str | None = None,
        from_state: str | None = None,
        to_state: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Keep what changed. `reason` must be redacted: no address."""
        with self.database.write() as connection:
            insert_event(
                connection,
                kind,
                server=server,
                campaign=campaign,
                from_state=from_state,
                to_state=to_state,
                reason=reason,
            )

    @property
    def _clock_sql(self) -> str:
        return database_clock(self.database.dialect)

    def events(
        self, server: str | None = None, campaign: str | None = None, limit: int = 1000, after_id: int = 0
    ) -> list[EventRecord]:
        """The latest `limit` events, the oldest of them first; of one server or campaign if given."""
        where = ""
        parameters: dict[str, object] = {"limit": limit, "after": after_id}
        for column, value in (("server", server), ("campaign", campaign)):
            if value is not None:
                where += f" AND {column} = :{column}"
                parameters[column] = value
        with self.database.read() as connection:
            found = connection.execute(statement(_EVENTS.format(where=where)), parameters).all()
        return [EventRecord(**row._mapping) for row in reversed(found)]

    def add_block(
        self,
        server: str,
        *,
        sender: str | None = None,
        domain: str | None = None,
        until: float | None = None,
        reason: str,
    ) -> bool:
        """Take a server off a sender or a recipient domain until then (epoch seconds; None: for good).

        One that holds already is prolonged. Returns whether it is new; of a domain that is an event.
        """
        values = {"server": server, "sender": sender, "domain": domain, "until": until}
        with self.database.write() as connection:
            if self.database.dialect == "postgresql":
                connection.execute(statement(_LOCK_BLOCKS))  # two at once must not both be the first
            if connection.execute(statement(_PROLONG.format(clock=self._clock_sql)), values).rowcount:
                return False
            sql = statement(_BLOCK.format(clock=self._clock_sql))
            connection.execute(sql, values | {"reason": clean(reason)})
            if domain is not None:
                said = f"{domain}: {reason}"
                insert_event(
                    connection, "limit", server=server, from_state="open", to_state="full", reason=said
                )
        return True

    def end_blocks(self) -> int:
        """Forget the blocks whose time is over; how many. Of a domain that is an event, once."""
        with self.database.read() as connection:
            if connection.execute(statement(_ANY_ENDED.format(clock=self._clock_sql))).first() is None:
                return 0
        with self.database.write() as connection:
            ended = connection.execute(statement(_END_BLOCKS.format(clock=self._clock_sql))).all()
            for server, domain in ended:
                if domain is not None:
                    said = f"{domain}: the time is over"
                    insert_event(
                        connection, "limit", server=server, from_state="full", to_state="open", reason=said
                    )
        return len(ended)

    def blocks(self) -> list[BlockRecord]:
        """The blocks that hold now."""
        with self.database.read() as connection:
            found = connection.execute(statement(_BLOCKS.format(clock=self._clock_sql)))
            return [BlockRecord(**row._mapping) for row in found]

    def remove_blocks(self, server: str) -> int:
        """Lift all blocks of a server; how many."""
        with self.database.write() as connection:
            sql = statement("DELETE FROM block WHERE server = :server")
            return connection.execute(sql, {"server": server}).rowcount

    def policy_refusals(self, campaign_id: int) -> dict[str, frozenset[str]]:
        """The distinct recipient domains that refused the sender for policy since the campaign began to run.

        By server. Refusals of one mail, or of a server by one domain, say nothing of the campaign and are not
        among them; nor is what was refused before the operator last resumed it.
        """
        found: dict[str, set[str]] = {}
        with self.database.read() as connection:
            for server, domain in connection.execute(statement(_REFUSALS), {"campaign_id": campaign_id}):
                found.setdefault(server, set()).add(domain)
        return {server: frozenset(domains) for server, domains in found.items()}

    def policy_refusers(self, delivery_id: int) -> frozenset[str]:
        """The servers through which this delivery was refused for policy since it was last made new."""
        with self.database.read() as connection:
            found = connection.execute(statement(_REFUSERS), {"delivery_id": delivery_id})
            return frozenset(found.scalars())

    def deferred_since(self, delivery_id: int) -> float | None:
        """When this delivery was first deferred; None: never.

        This and the next two begin when it was last made new, and are later by the time for which its
        campaign was paused since: nobody asks then.
        """
        return self._since(_DEFERRED, {"delivery_id": delivery_id})

    def refused_since(self, delivery_id: int) -> float | None:
        """When a server first refused this delivery by policy; None: never."""
        return self._since(_REFUSED, {"delivery_id": delivery_id})

    def answered_since(
        self, delivery_id: int, server: str, outcome: str, alone_seconds: float
    ) -> float | None:
        """When a server first answered this delivery with a fault of its own; None: never.

        `outcome`: "unreachable", or "full".

        None as well, for `alone_seconds`, if `server` took nobody's mail since: then it may not be this mail
        that it does not take.
        """
        since = self._since(_ANSWERED, {"delivery_id": delivery_id, "outcome": outcome})
        if since is None:
            return None
        with self.database.read() as connection:
            if self._clock(connection) - since >= alone_seconds:
                return since
            took = connection.execute(statement(_TOOK_MAIL_SINCE), {"since": since, "server": server})
            return since if took.first() is not None else None

    def _since(self, what: str, values: Mapping[str, object]) -> float | None:
        with self.database.read() as connection:
            found = connection.execute(statement(_SINCE.format(what=what)), values)
            since: float | None = found.scalar_one()
            if since is None:
                return None
            sql = statement(_PAUSED_SECONDS.format(clock=self._clock_sql))
            paused = connection.execute(sql, {"delivery_id": values["delivery_id"], "since": since})
            return since + float(paused.scalar_one())


def insert_event(  # noqa: PLR0913 - an event's fields, by keyword
    connection: Connection,
    kind: str,
    *,
    server: str | None = None,
    campaign: str | None = None,
    from_state: str | None = None,
    to_state: str | None = None,
    reason: str | None = None,
) -> None:
    """The same within a transaction, so that what changed and its event are there together or not at all."""
    values = {
        "kind": kind,
        "server": server,
        "campaign": campaign,
        "from_state": from_state,
        "to_state": to_state,
        "reason": clean(reason),
    }
    clock = database_clock(connection.dialect.name)
    connection.execute(statement(_RECORD.format(clock=clock)), values)

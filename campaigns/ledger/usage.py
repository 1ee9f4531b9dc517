"""What went out lately, by server and recipient domain: what limits are held against."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.row_source import ids_in, ids_parameter, statement

__all__ = ["Usage", "UsageRecord"]

# What a server was asked to take, whatever it said; and what is under way, which has no attempt to show yet.
# One statement, so that a mail which ends meanwhile is seen once.
_ASKED = """
 a.finished_at > :since
   AND (a.phase IN ('data', 'body', 'commit', 'dot') OR (a.phase = 'rcpt' AND a.code IS NOT NULL))
"""
_UNDER_WAY = "d.state IN ('claimed', 'committing')"
_USAGE = """
SELECT a.server, NULL AS domain, {age} AS age, count(*) AS n FROM attempt AS a
 WHERE {asked} GROUP BY 1, 3
UNION ALL
SELECT d.server, NULL AS domain, 0 AS age, count(*) AS n FROM delivery AS d
 WHERE {under_way} GROUP BY 1
"""
_USAGE_BY_DOMAIN = """
SELECT a.server, r.domain, {age} AS age, count(*) AS n
  FROM attempt AS a JOIN recipient AS r ON r.id = a.delivery_id
 WHERE {asked} AND {named} GROUP BY 1, 2, 3
UNION ALL
SELECT d.server, r.domain, 0 AS age, count(*) AS n
  FROM delivery AS d JOIN recipient AS r ON r.id = d.id
 WHERE {under_way} AND {named} GROUP BY 1, 2
"""
_AGES = {  # in whole buckets
    "sqlite": "CAST((:now - a.finished_at) / :bucket_seconds AS integer)",
    "postgresql": "CAST(floor((:now - a.finished_at) / :bucket_seconds) AS integer)",
}
_NAMED = {
    "sqlite": "r.domain IN (SELECT value FROM json_each(:domains))",
    "postgresql": "r.domain = ANY(CAST(:domains AS text[]))",
}
_DOMAINS = "SELECT id, domain FROM recipient WHERE id {ids}"
_QUEUED = """
SELECT d.server, r.domain, count(*) AS n FROM delivery AS d JOIN recipient AS r ON r.id = d.id
 WHERE d.state = 'queued' AND {named} GROUP BY 1, 2
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageRecord:
    """So many mails through that server, to that domain (None: to all), at least so long ago."""

    server: str
    domain: str | None = field(repr=False)
    age_seconds: float
    count: int


class Usage(LedgerPart):
    """Reads only."""

    def usage(self, seconds: float, bucket_seconds: float) -> list[UsageRecord]:
        """What each server was given within the last `seconds`, by age in steps of `bucket_seconds`."""
        return self._usage(_USAGE, seconds, bucket_seconds, {})

    def usage_by_domain(
        self, seconds: float, bucket_seconds: float, domains: Collection[str] | None = None
    ) -> list[UsageRecord]:
        """The same by recipient domain too: of these, or of all."""
        if domains is None:
            return self._usage(_USAGE_BY_DOMAIN, seconds, bucket_seconds, {})
        names = _names_parameter(self.database.dialect, domains)
        return self._usage(_USAGE_BY_DOMAIN, seconds, bucket_seconds, {"domains": names})

    def domains_of(self, delivery_ids: Sequence[int]) -> dict[int, str]:
        """The recipients' domains, by delivery."""
        dialect = self.database.dialect
        with self.database.read() as connection:
            sql = statement(_DOMAINS.format(ids=ids_in(dialect)))
            found = connection.execute(sql, {"ids": ids_parameter(dialect, delivery_ids)})
            return {row.id: row.domain for row in found}

    def queued_by_domain(self, domains: Collection[str]) -> dict[tuple[str, str], int]:
        """How much mail to these domains waits in the servers' queues, by (server, domain)."""
        dialect = self.database.dialect
        with self.database.read() as connection:
            sql = statement(_QUEUED.format(named=_NAMED[dialect]))
            found = connection.execute(sql, {"domains": _names_parameter(dialect, domains)})
            return {(server, domain): count for server, domain, count in found}

    def _usage(
        self, template: str, seconds: float, bucket_seconds: float, parameters: dict[str, Any]
    ) -> list[UsageRecord]:
        dialect = self.database.dialect
        named = _NAMED[dialect] if parameters else "1 = 1"
        sql = template.format(age=_AGES[dialect], asked=_ASKED, under_way=_UNDER_WAY, named=named)
        with self.database.read() as connection:
            now = self._clock(connection)
            parameters |= {"now": now, "since": now - seconds, "bucket_seconds": float(bucket_seconds)}
            found = connection.execute(statement(sql), parameters).all()
        return [
            UsageRecord(server=server, domain=domain, age_seconds=max(0, age) * bucket_seconds, count=count)
            for server, domain, age, count in found
        ]


def _names_parameter(dialect: str, domains: Collection[str]) -> Any:
    names = sorted(domains)
    return names if dialect == "postgresql" else json.dumps(names)

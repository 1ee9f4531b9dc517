"""How many stand where: kept counters, read at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from campaigns.errors import UnknownCampaign
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.row_source import ids_in, ids_parameter, statement
from campaigns.states import ALIVE, State, Status

__all__ = ["Counting", "Counts", "ServerCounts"]

_COUNTS = """
SELECT c.name, c.status, c.reason, n.kind, n.server, CAST(COALESCE(SUM(n.n), 0) AS bigint)
  FROM campaign AS c LEFT JOIN counter AS n ON n.campaign_id = c.id
 WHERE c.name = :name GROUP BY c.name, c.status, c.reason, n.kind, n.server
"""
_SCAN = """
SELECT c.name, c.status, c.reason, d.state, '', count(*) FROM campaign AS c
  JOIN delivery AS d ON d.campaign_id = c.id WHERE c.name = :name GROUP BY c.name, c.status, c.reason, d.state
 UNION ALL
SELECT c.name, c.status, c.reason, 'sent', d.server, count(*) FROM campaign AS c
  JOIN delivery AS d ON d.campaign_id = c.id
 WHERE c.name = :name AND d.state = 'sent' GROUP BY c.name, c.status, c.reason, d.server
 UNION ALL
SELECT c.name, c.status, c.reason, 'rerouted', p.server, count(*) FROM campaign AS c
  JOIN departure AS p ON p.campaign_id = c.id WHERE c.name = :name
 GROUP BY c.name, c.status, c.reason, p.server
 UNION ALL
SELECT c.name, c.status, c.reason, 'total', '', count(r.id) FROM campaign AS c
  LEFT JOIN recipient AS r ON r.campaign_id = c.id WHERE c.name = :name
 GROUP BY c.name, c.status, c.reason
"""
_TOKENS = (
    "SELECT d.id, c.token FROM delivery AS d JOIN campaign AS c ON c.id = d.campaign_id WHERE d.id {ids}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCounts:
    """`rerouted` counts distinct deliveries that left this server for another."""

    sent: int = 0
    rerouted: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """A campaign at one moment; `states` has every state and sums to `total`."""

    name: str
    status: Status
    reason: str | None
    total: int
    states: dict[State, int]
    servers: dict[str, ServerCounts]

    @property
    def alive(self) -> int:
        return sum(self.states[state] for state in ALIVE)


class Counting(LedgerPart):
    """Counts from the counters, and (for tests) from the rows themselves."""

    def counts(self, name: str) -> Counts:
        """The campaign's counts, in one statement. Raises UnknownCampaign."""
        return self._read(_COUNTS, name)

    def campaign_tokens(self, delivery_ids: Sequence[int]) -> dict[int, str]:
        """The token of each delivery's campaign, which no other database has."""
        dialect = self.database.dialect
        sql = statement(_TOKENS.format(ids=ids_in(dialect)))
        with self.database.read() as connection:
            found = connection.execute(sql, {"ids": ids_parameter(dialect, sorted(delivery_ids))})
            return {values[0]: values[1] for values in found}

    def scan_counts(self, name: str) -> Counts:
        """The same from the rows, slowly: what the counters are held against."""
        return self._read(_SCAN, name)

    def _read(self, sql: str, name: str) -> Counts:
        with self.database.read() as connection:
            rows = connection.execute(statement(sql), {"name": name}).all()
        if not rows:
            raise UnknownCampaign(f"there is no campaign {name}; `campaigns status` lists the names")
        found = {(row[3], row[4]): int(row[5]) for row in rows if row[3] is not None}
        servers = sorted({server for _, server in found if server})
        return Counts(
            name=rows[0][0],
            status=Status(rows[0][1]),
            reason=rows[0][2],
            total=found.get(("total", ""), 0),
            states={state: found.get((state.value, ""), 0) for state in State},
            servers={
                server: ServerCounts(
                    sent=found.get(("sent", server), 0), rerouted=found.get(("rerouted", server), 0)
                )
                for server in servers
            },
        )

"""What the database holds: rows to compare, and a database emptied for the next run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from campaigns.database import Database
from campaigns.ledger import Ledger
from campaigns.states import ALIVE, State, Status
from tests.stateful.reference import HELD, Seen

_TABLES = (
    "attempt",
    "departure",
    "counter",
    "event",
    "delivery",
    "recipient_import",
    "pause",
    "recipient",
    "campaign",
    "suppression",
)
_ROWS = """
SELECT d.*, r.dedupe_key FROM delivery AS d JOIN recipient AS r ON r.id = d.id ORDER BY d.id
"""
_STATUSES = "SELECT id, status FROM campaign"
_TRIES = "SELECT delivery_id, fence, outcome, server FROM attempt ORDER BY id"

Raw = dict[int, dict[str, Any]]


def empty(database: Database) -> None:
    with database.write() as connection:
        for table in _TABLES:
            connection.execute(text(f"DELETE FROM {table}"))


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Every column of every delivery; what was tried, in its order; the status of each campaign."""

    raw: Raw
    rows: dict[int, Seen]
    tries: list[tuple[Any, ...]]
    statuses: dict[int, Status]

    @classmethod
    def of(cls, database: Database) -> Stock:
        with database.read() as connection:
            raw = {row.id: dict(row._mapping) for row in connection.execute(text(_ROWS))}
            return cls(
                raw=raw,
                rows={one: _seen(row) for one, row in raw.items()},
                tries=[tuple(row) for row in connection.execute(text(_TRIES))],
                statuses={one: Status(status) for one, status in connection.execute(text(_STATUSES)).all()},
            )

    def concerned(self, before: Stock | None) -> set[int]:
        """The campaigns of which anything has changed since."""
        if before is None:
            return set(self.statuses)
        moved = {row["campaign_id"] for one, row in self.raw.items() if row != before.raw.get(one)}
        return moved | {one for one, status in self.statuses.items() if status != before.statuses.get(one)}


def rows(database: Database) -> dict[int, Seen]:
    return Stock.of(database).rows


def _seen(row: dict[str, Any]) -> Seen:
    state = State(row["state"])
    return Seen(
        id=row["id"],
        campaign_id=row["campaign_id"],
        key=row["dedupe_key"],
        state=state,
        server=row["server"],
        fence=row["fence"],
        crashes=row["crashes"],
        wakes_at=row[waker(state)] if state in ALIVE else None,
        since=row["updated_at"],
    )


def waker(state: State) -> str:
    """The column that says when somebody looks at a delivery in that state again."""
    return {State.PENDING: "next_attempt_at", State.QUEUED: "queued_at"}.get(state, "lease_until")


def check_row(row: dict[str, Any]) -> None:
    """Alive rows have what wakes them, and nobody has what is another state's."""
    state = State(row["state"])
    needed = {waker(state)} if state in ALIVE else set()
    if state in HELD:
        needed.add("owner")
    for column in ("next_attempt_at", "queued_at", "lease_until", "owner"):
        assert (row[column] is not None) == (column in needed), f"{column} of {state}: {row}"
    if state in HELD | {State.QUEUED, State.SENT}:
        assert row["server"], f"{state} without a server: {row}"


def check_counts(ledger: Ledger, name: str, states: list[State], status: Status) -> None:
    """The kept counts are those of the rows, and add up to everybody who was added."""
    counts = ledger.counts(name)
    assert counts == ledger.scan_counts(name), f"the counts of {name} are not those of its rows"
    assert counts.total == len(states) == sum(counts.states.values())
    assert counts.states == {state: states.count(state) for state in State}
    assert counts.status is status, f"{name} is {counts.status}, not {status}"
    if counts.status is Status.FINISHED:
        assert counts.alive == 0, f"finished, and {counts.alive} are alive"

"""A campaign with recipients, brought to any state through the ledger alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import text

from campaigns.ledger import (
    Claim,
    Claimed,
    CommitPoint,
    Counts,
    Ledger,
    NewRecipient,
    Record,
    Recorded,
)
from campaigns.states import State

OWNER = "worker-1"
LEASE_SECONDS = 60.0
_names = itertools.count(1)


def new_recipients(count: int, start: int = 0, domain: str = "example.com") -> list[NewRecipient]:
    return [
        NewRecipient(
            email=f"person{number}@{domain}",
            dedupe_key=f"person{number}@{domain}",
            domain=domain,
            fields={"first_name": f"Ünal {number}"},
        )
        for number in range(start, start + count)
    ]


class Crowd:
    """`size` recipients of one running campaign; `ids` are their deliveries."""

    def __init__(
        self,
        ledger: Ledger,
        size: int = 1,
        *,
        send: bool = True,
        stream: str = "promotional",
        rate_per_second: float | None = None,
    ) -> None:
        self.ledger = ledger
        self.name = f"campaign-{next(_names)}"
        record = ledger.create_campaign(
            self.name,
            sender="News <news@example.org>",
            subject="Hi",
            text="Hello",
            stream=stream,
            rate_per_second=rate_per_second,
        )
        self.campaign_id = record.id
        ledger.add_recipients(record.id, new_recipients(size))
        if send:
            ledger.send(self.name)
        self.ids = [delivery.id for delivery in ledger.deliveries(self.name)]

    def queue(self, server: str = "primary", ids: Sequence[int] | None = None) -> list[int]:
        wanted = self.ids if ids is None else ids
        return [queued.delivery_id for queued in self.ledger.enqueue([(one, server) for one in wanted])]

    def claim(
        self, server: str = "primary", ids: Sequence[int] | None = None, lease_seconds: float = LEASE_SECONDS
    ) -> list[Claimed]:
        """Claims what is queued (queueing it first); every claim must be granted."""
        self.queue(server, ids)
        wanted = self.ids if ids is None else ids
        results = self.ledger.apply(
            [
                Claim(delivery_id=one, server=server, owner=OWNER, lease_seconds=lease_seconds)
                for one in wanted
            ]
        )
        claims = [result for result in results if isinstance(result, Claimed)]
        assert len(claims) == len(results), results
        return claims

    def commit(self, claims: Sequence[Claimed]) -> list[object]:
        return self.ledger.apply(
            [CommitPoint(delivery_id=claim.delivery_id, fence=claim.fence) for claim in claims]
        )

    def committing(self, server: str = "primary", lease_seconds: float = LEASE_SECONDS) -> list[Claimed]:
        claims = self.claim(server, lease_seconds=lease_seconds)
        assert all(result is True for result in self.commit(claims))
        return claims

    def report(self, claim: Claimed, to: State, **changes: Any) -> Recorded:
        result = self.ledger.apply([report(claim, to, **changes)])[0]
        assert isinstance(result, Recorded), result
        return result

    def uncertain(self, server: str = "primary") -> list[Claimed]:
        claims = self.committing(server)
        for claim in claims:
            assert self.report(claim, State.UNCERTAIN, server=server).state is State.UNCERTAIN
        return claims

    def state(self, delivery_id: int | None = None) -> State:
        return State(self.row(delivery_id)["state"])

    def row(self, delivery_id: int | None = None) -> dict[str, Any]:
        """The delivery's row as the database holds it."""
        with self.ledger.database.read() as connection:
            found = connection.execute(
                text("SELECT * FROM delivery WHERE id = :id"), {"id": delivery_id or self.ids[0]}
            ).one()
            return dict(found._mapping)

    def set(self, column: str, value: object) -> None:
        """Force a value into all rows: for times that nobody wants to wait for."""
        with self.ledger.database.write() as connection:
            connection.execute(
                text(f"UPDATE delivery SET {column} = :value WHERE campaign_id = :id"),
                {"value": value, "id": self.campaign_id},
            )

    def attempts(self) -> list[dict[str, Any]]:
        with self.ledger.database.read() as connection:
            sql = text("SELECT * FROM attempt WHERE campaign_id = :id ORDER BY id")
            return [dict(row._mapping) for row in connection.execute(sql, {"id": self.campaign_id})]

    def counts(self) -> Counts:
        """The kept counts, held against the rows."""
        counts = self.ledger.counts(self.name)
        assert counts == self.ledger.scan_counts(self.name)
        assert sum(counts.states.values()) == counts.total
        return counts

    def in_state(self, state: State) -> int:
        return self.counts().states[state]


def report(claim: Claimed, to: State, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "delivery_id": claim.delivery_id,
        "fence": claim.fence,
        "server": "primary",
        "owner": OWNER,
        "to": to,
        "outcome": "sent" if to is State.SENT else "deferred",
        "phase": "dot",
        "code": 250,
        "reply": "250 2.0.0 Ok",
    }
    return Record(**{**values, **changes})


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)

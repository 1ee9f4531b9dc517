"""Enough rows to see that nothing grows with the square."""

from __future__ import annotations

import time

from sqlalchemy import text

from campaigns.database import create_database, database_clock
from campaigns.ledger import ImportProgress, Ledger
from campaigns.ledger.assignments import _DUE
from tests.crowd import Crowd, new_recipients

ROWS = 20_000
BATCH = 2_000


def test_an_import_of_many_rows_takes_seconds(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 0, send=False)
    begun = ledger.begin_import(crowd.campaign_id, "digest")
    batches = [new_recipients(BATCH, start=start) for start in range(0, ROWS, BATCH)]
    started = time.monotonic()
    for number, batch in enumerate(batches):
        ledger.add_recipients(
            crowd.campaign_id,
            batch,
            ImportProgress(
                import_id=begun.id,
                from_line=number,
                from_position=number,
                line=number + 1,
                position=number + 1,
            ),
        )
    assert time.monotonic() - started < 30  # a second or two on a machine that does nothing else
    assert crowd.counts().total == ROWS


def test_what_waits_for_later_does_not_slow_down_what_is_due(postgres_url: str) -> None:
    database = create_database(postgres_url)
    ledger = Ledger(database)
    crowd = Crowd(ledger, 0)
    for start in range(0, ROWS, BATCH):
        ledger.add_recipients(crowd.campaign_id, new_recipients(BATCH, start=start))
    crowd.set("next_attempt_at", ledger.now() + 3600)
    with database.write() as connection:
        connection.execute(text("ANALYZE"))
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        sql = "EXPLAIN " + _DUE.format(clock=database_clock("postgresql"))
        found = connection.execute(text(sql), {"campaign_id": crowd.campaign_id, "limit": 10})
        plan = "\n".join(found.scalars())
    assert "ix_delivery_pending" in plan
    assert any("Index Cond" in line and "next_attempt_at <=" in line for line in plan.splitlines())
    assert ledger.due(10) == []
    database.close()

"""Enough rows to see that nothing grows with the square."""

from __future__ import annotations

import re
import time
from typing import Any

from sqlalchemy import event, text

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


def test_sqlite_reads_only_what_is_alive_of_a_large_campaign(sqlite_url: str) -> None:
    """What producer, sweep and operator ask again and again never goes through all of a campaign."""
    database = create_database(sqlite_url)
    ledger = Ledger(database)
    crowd, cancelled = Crowd(ledger, 3), Crowd(ledger, 3)
    ledger.cancel(cancelled.name)
    asked: dict[str, Any] = {}

    def note(_1: object, _2: object, sql: str, parameters: Any, *_: object) -> None:
        asked[sql] = parameters

    event.listen(database.engine, "before_cursor_execute", note)
    crowd.claim(ids=crowd.queue(ids=crowd.ids[:1]))
    ledger.queued_counts()
    ledger.queued_by_stream()
    ledger.stale_queued("primary", 1)
    ledger.queued_of(crowd.campaign_id)
    ledger.due(10)
    ledger.sweep_leases()
    ledger.shorten_waits(3600)
    crowd.set("state", "suppressed")
    ledger.finish_idle()
    ledger._finish(crowd.campaign_id)
    event.remove(database.engine, "before_cursor_execute", note)
    plans = {}
    with database.read() as connection:
        for sql, parameters in asked.items():
            if sql.lstrip().startswith("SELECT") and "delivery" in sql:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
                plans[sql] = "\n".join(row[-1] for row in plan)
    database.close()
    assert len(plans) >= 10
    small = re.compile(r"USING (COVERING )?INDEX ix_delivery_(queued|held|pending)|USING INTEGER PRIMARY KEY")
    for sql, plan in plans.items():
        lines = [line for line in plan.splitlines() if re.match(r"(SCAN|SEARCH) (d|delivery)\b", line)]
        assert all(small.search(line) for line in lines), f"{sql}\n{plan}"

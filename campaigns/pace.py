"""How fast campaigns go now, told from the latest attempts."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from campaigns.database import Database, database_clock

WINDOW_SECONDS = 10.0
# Read backwards along the primary key: a bounded look, whatever the size of the table, and no further index.
_LATEST = 5000


def rates_per_second(database: Database) -> dict[int, float]:
    """Mails sent per second over the last seconds, by campaign id; campaigns without any are left out."""
    sql = text(
        "SELECT campaign_id, outcome, finished_at FROM attempt"  # noqa: S608 - a constant
        f" ORDER BY id DESC LIMIT {_LATEST}"
    )
    with database.read() as connection:
        now = float(connection.execute(text(f"SELECT {database_clock(database.dialect)}")).scalar_one())
        rows = connection.execute(sql).all()
    return rates_of(((campaign, finished) for campaign, outcome, finished in rows if outcome == "sent"), now)


def rates_of(sent: Iterable[tuple[int, float]], now: float) -> dict[int, float]:
    """Rates of (campaign, when) pairs. What began less than the window ago is not watered down. Pure."""
    counts: dict[int, int] = {}
    first: dict[int, float] = {}
    for campaign, at in sent:
        if at >= now - WINDOW_SECONDS:
            counts[campaign] = counts.get(campaign, 0) + 1
            first[campaign] = min(at, first.get(campaign, at))
    return {campaign: count / max(now - first[campaign], 1.0) for campaign, count in counts.items()}

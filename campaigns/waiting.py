"""What waits for a later time, and until when: read by index, at a cost that no campaign's size raises."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from campaigns.database import Database, database_clock

MOST_COUNTED = 10_000
_LATER = "FROM delivery WHERE campaign_id = :id AND state = 'pending' AND next_attempt_at > :now"
_WAITING = f"""
SELECT (SELECT count(*) FROM (SELECT 1 {_LATER} LIMIT {MOST_COUNTED}) AS later),
       (SELECT min(next_attempt_at) {_LATER}), (SELECT max(next_attempt_at) {_LATER})
"""  # noqa: S608 - constants
_REASON = f"""
SELECT reply, count(*) AS n FROM (SELECT reply {_LATER} LIMIT {MOST_COUNTED}) AS later
 WHERE reply LIKE 'held by %' GROUP BY reply ORDER BY n DESC, reply LIMIT 1
"""  # noqa: S608 - constants
_UNCERTAIN = "SELECT min(updated_at) FROM delivery WHERE campaign_id = :id AND state = 'uncertain'"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """`count` (at most MOST_COUNTED) recipients wait; the first and the last in so many seconds from now.

    `held`: of these, how many the fullest limit holds; `held_by` names it.
    """

    count: int = 0
    first_seconds: float = 0.0
    last_seconds: float = 0.0
    held: int = 0
    held_by: str = ""


def waiting_for_later(database: Database, campaign_id: int) -> Waiting:
    """Who is pending in the campaign for a time that has not come."""
    with database.read() as connection:
        now = _now(database, connection)
        parameters = {"id": campaign_id, "now": now}
        count, first, last = connection.execute(text(_WAITING), parameters).one()
        held = connection.execute(text(_REASON), parameters).first()
    if first is None or last is None:
        return Waiting()
    return Waiting(
        count=count,
        first_seconds=first - now,
        last_seconds=last - now,
        held=held.n if held else 0,
        held_by=held.reply.removeprefix("held by ") if held else "",
    )


def oldest_uncertain_seconds(database: Database, campaign_id: int) -> float | None:
    """For how long the oldest uncertain recipient of the campaign has been so; None if there is none."""
    with database.read() as connection:
        now = _now(database, connection)
        since = connection.execute(text(_UNCERTAIN), {"id": campaign_id}).scalar()
    return None if since is None else now - float(since)


def _now(database: Database, connection: Connection) -> float:
    return float(connection.execute(text(f"SELECT {database_clock(database.dialect)}")).scalar_one())

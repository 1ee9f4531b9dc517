"""How far the operator was told of the events, by channel; who tells next is decided here."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import TextClause

from campaigns.database import database_clock
from campaigns.ledger.changes import LedgerPart
from campaigns.ledger.events import EventRecord
from campaigns.ledger.row_source import clean, statement

__all__ = ["AlertRecord", "Alerts", "TellableEvent"]

_CHANNEL = """
SELECT channel, last_event_id, next_at, failures, error, {clock} AS now FROM alert WHERE channel = :channel
"""
_BEGIN = """
INSERT INTO alert (channel, last_event_id, next_at, failures)
SELECT CAST(:channel AS text), COALESCE(MAX(id), 0), 0, 0 FROM event WHERE true
ON CONFLICT (channel) DO NOTHING
"""
_EVENTS = """
SELECT e.id, e.at, e.server, e.campaign, e.kind, e.from_state, e.to_state, e.reason, c.purpose
  FROM event AS e LEFT JOIN campaign AS c ON c.name = e.campaign
 WHERE e.id > :after AND e.id <= :last ORDER BY e.id LIMIT :limit
"""
_TAKE = """
UPDATE alert SET next_at = {clock} + CAST(:seconds AS double precision)
 WHERE channel = :channel AND next_at = CAST(:next_at AS double precision) AND last_event_id = :last
RETURNING next_at
"""
_SKIP = """
UPDATE alert SET last_event_id = :to
 WHERE channel = :channel AND next_at = CAST(:next_at AS double precision) AND last_event_id = :last
"""
_TOLD = """
UPDATE alert SET last_event_id = :to, next_at = {clock} + CAST(:seconds AS double precision),
       failures = 0, error = NULL
 WHERE channel = :channel AND next_at = CAST(:turn AS double precision)
"""
_FAILED = """
UPDATE alert SET next_at = {clock} + CAST(:seconds AS double precision), failures = failures + 1,
       error = :error
 WHERE channel = :channel AND next_at = CAST(:turn AS double precision)
"""
_MAIL_UNDER_WAY = """
SELECT count(*) FROM campaign
 WHERE status = 'running' AND purpose = 'alert'
   AND started_at > {clock} - CAST(:seconds AS double precision)
"""
_LAST_ID = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertRecord:
    """A channel (`webhook`, `email`): told up to the event `last_event_id`, and not to tell before `next_at`.

    `failures`: tries in a row that did not get through. Times are epoch seconds; `now` is when it was read.
    """

    channel: str
    last_event_id: int
    next_at: float
    failures: int
    error: str | None
    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TellableEvent(EventRecord):
    """An event, with the purpose of the campaign that it is of (None: of none, or of one that is gone)."""

    purpose: str | None = None


class Alerts(LedgerPart):
    """Any number of processes may tell; the one that moves a channel's `next_at` on does."""

    def begin_alerts(self, channel: str) -> AlertRecord:
        """Where the channel stands. A new one begins at the newest event, not with the whole history."""
        if (present := self.alert_record(channel)) is not None:
            return present
        with self.database.write() as connection:
            connection.execute(statement(_BEGIN), {"channel": channel})
        begun = self.alert_record(channel)
        assert begun is not None
        return begun

    def alert_record(self, channel: str) -> AlertRecord | None:
        """Where the channel stands; None if nothing was ever to be told there."""
        with self.database.read() as connection:
            found = connection.execute(self._sql(_CHANNEL), {"channel": channel}).first()
            return None if found is None else AlertRecord(**found._mapping)

    def events_between(
        self, after_id: int, last_id: int | None = None, *, limit: int = 1000
    ) -> list[TellableEvent]:
        """The events above `after_id`, up to and with `last_id` if given, the oldest first."""
        values = {"after": after_id, "last": _LAST_ID if last_id is None else last_id, "limit": limit}
        with self.database.read() as connection:
            found = connection.execute(statement(_EVENTS), values)
            return [TellableEvent(**row._mapping) for row in found]

    def take_alert(self, record: AlertRecord, seconds: float) -> float | None:
        """Have this process, and no other, tell for so long: its turn, or None if another was quicker."""
        values = {**_seen(record), "seconds": seconds}
        with self.database.write() as connection:
            found = connection.execute(self._sql(_TAKE), values).scalar()
            return None if found is None else float(found)

    def pass_over_events(self, record: AlertRecord, to_id: int) -> None:
        """Nothing up to that event need be told. Changes nothing if somebody tells meanwhile."""
        with self.database.write() as connection:
            connection.execute(statement(_SKIP), {**_seen(record), "to": to_id})

    def alert_told(self, channel: str, turn: float, *, to_id: int, pause_seconds: float) -> None:
        """All up to that event was told; the next message comes after the pause at the earliest."""
        values = {"channel": channel, "turn": turn, "to": to_id, "seconds": pause_seconds}
        with self.database.write() as connection:
            connection.execute(self._sql(_TOLD), values)

    def alert_failed(self, channel: str, turn: float, *, error: str, pause_seconds: float) -> None:
        """It did not get through, and is tried again after the pause. `error` must hold no secret."""
        values = {"channel": channel, "turn": turn, "error": clean(error), "seconds": pause_seconds}
        with self.database.write() as connection:
            connection.execute(self._sql(_FAILED), values)

    def is_alert_mail_under_way(self, within_seconds: float) -> bool:
        """Whether an alert's mail that was sent within that time still waits to be delivered."""
        with self.database.read() as connection:
            found = connection.execute(self._sql(_MAIL_UNDER_WAY), {"seconds": within_seconds})
            return bool(found.scalar_one())

    def _sql(self, sql: str) -> TextClause:
        return statement(sql.format(clock=database_clock(self.database.dialect)))


def _seen(record: AlertRecord) -> dict[str, object]:
    return {"channel": record.channel, "next_at": record.next_at, "last": record.last_event_id}

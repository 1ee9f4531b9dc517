"""The operator's side: campaigns, their status, and the transitions that only an operator may ask for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sqlalchemy import Connection, exc

from campaigns.database import database_clock
from campaigns.errors import CampaignExists, TransitionRefused
from campaigns.ledger.batch import again_after_conflict
from campaigns.ledger.changes import CHUNK, Change, LedgerPart
from campaigns.ledger.row import Row
from campaigns.ledger.row_source import statement
from campaigns.ledger.status import (
    COLUMNS,
    CampaignRecord,
    lock_campaign,
    read_campaign,
    record_from,
    refuse,
)
from campaigns.states import LEGAL_STATUS, State, Status

__all__ = ["CampaignSide", "DeliveryRecord", "Retried"]

_CREATE = """
INSERT INTO campaign (name, status, sender, subject, html, text, reply_to, headers, list_unsubscribe,
                      defaults, stream, rate_per_second, token, revision, purpose, created_at)
VALUES (:name, 'draft', :sender, :subject, :html, :text, :reply_to, :headers, :list_unsubscribe,
        :defaults, :stream, :rate_per_second, :token, 1, :purpose, {clock})
"""
_SET_STATUS = """
UPDATE campaign SET status = :status, reason = :reason,
       scheduled_at = COALESCE(:scheduled_at, scheduled_at),
       started_at = CASE WHEN :starts = 1 THEN COALESCE(started_at, {clock}) ELSE started_at END,
       running_since = CASE WHEN :starts = 1 THEN {clock} ELSE running_since END,
       finished_at = CASE WHEN :ends = 1 THEN {clock} ELSE NULL END
 WHERE id = :id
"""
_BEGIN_PAUSE = "INSERT INTO pause (campaign_id, began_at) VALUES (:id, {clock})"
_END_PAUSE = "UPDATE pause SET ended_at = {clock} WHERE campaign_id = :id AND ended_at IS NULL"
_IN_STATE = """
SELECT id FROM delivery WHERE campaign_id = :id AND state = '{state}' AND id > :after ORDER BY id LIMIT :limit
"""
_HELD_OF = """
SELECT id FROM delivery
 WHERE +campaign_id = :id AND state IN ('claimed', 'committing') AND state = 'claimed' AND id > :after
 ORDER BY id LIMIT :limit
"""
_DELIVERIES = """
SELECT d.id, r.email, d.state, d.server, d.reply, d.deferrals, d.crashes, d.fence, d.next_attempt_at,
       d.updated_at
  FROM delivery AS d JOIN recipient AS r ON r.id = d.id
 WHERE d.campaign_id = :id AND d.id > :after {where} ORDER BY d.id LIMIT :limit
"""
_PAGE = 1000

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """How many a retry made pending again, and how many uncertain ones were too young for it."""

    moved: int
    left: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryRecord:
    """One recipient of a campaign, for reading. Times are epoch seconds by the database's clock."""

    id: int
    email: str = field(repr=False)
    state: State
    server: str | None
    reply: str | None
    deferrals: int
    crashes: int
    fence: int
    next_attempt_at: float | None
    updated_at: float


class CampaignSide(LedgerPart):
    """Create, send, pause, resume, cancel, retry; read what stands where."""

    def create_campaign(  # noqa: PLR0913 - a campaign's content, by keyword
        self,
        name: str,
        *,
        sender: str,
        subject: str,
        html: str | None = None,
        text: str | None = None,
        reply_to: str | None = None,
        headers: Mapping[str, str] | None = None,
        list_unsubscribe: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        stream: str = "promotional",
        rate_per_second: float | None = None,
        purpose: str = "campaign",
    ) -> CampaignRecord:
        """A new draft. Raises CampaignExists if the name is taken.

        `purpose`: `drill` and `alert` are the system's own mail.
        """
        values = {
            "name": name,
            "sender": sender,
            "subject": subject,
            "html": html,
            "text": text,
            "reply_to": reply_to,
            "headers": json.dumps(dict(headers or {})),
            "list_unsubscribe": list_unsubscribe,
            "defaults": json.dumps(dict(defaults or {})),
            "stream": stream,
            "rate_per_second": rate_per_second,
            "token": secrets.token_hex(8),
            "purpose": purpose,
        }
        try:
            with self.database.write() as connection:
                connection.execute(statement(_CREATE.format(clock=self._clock_sql)), values)
                return read_campaign(connection, name)
        except exc.IntegrityError as error:
            raise CampaignExists(f"a campaign {name} exists already; choose another name") from error

    @property
    def _clock_sql(self) -> str:
        return database_clock(self.database.dialect)

    def campaign(self, name: str) -> CampaignRecord:
        """The campaign of that name. Raises UnknownCampaign."""
        with self.database.read() as connection:
            return read_campaign(connection, name)

    def campaign_by_id(self, campaign_id: int) -> CampaignRecord:
        """The campaign of that id. Raises UnknownCampaign."""
        with self.database.read() as connection:
            return read_campaign(connection, campaign_id=campaign_id)

    def campaigns(self, purpose: str = "campaign") -> list[CampaignRecord]:
        """All campaigns of that purpose, the oldest first."""
        sql = f"SELECT {COLUMNS} FROM campaign WHERE purpose = :purpose ORDER BY id"  # noqa: S608
        with self.database.read() as connection:
            return [record_from(row) for row in connection.execute(statement(sql), {"purpose": purpose})]

    def send(self, name: str, at: float | None = None) -> CampaignRecord:
        """Let the campaign run, now or at that time (epoch seconds). Raises TransitionRefused.

        What runs already is left as it is.
        """
        wanted = Status.RUNNING if at is None else Status.SCHEDULED

        def send(connection: Connection, campaign: CampaignRecord) -> CampaignRecord:
            if campaign.status not in {Status.DRAFT, Status.SCHEDULED, wanted}:
                raise refuse(campaign, "sent")
            return self._set_status(connection, campaign, wanted, scheduled_at=at)

        return self._locked(self.campaign(name).id, send)

    def pause(self, name: str, reason: str | None = None) -> CampaignRecord:
        """Claim nothing more, and write no further dot. Raises TransitionRefused."""

        def pause(connection: Connection, campaign: CampaignRecord) -> CampaignRecord:
            return self._set_status(connection, campaign, Status.PAUSED, reason=reason)

        return self._locked(self.campaign(name).id, pause)

    def pause_by_policy(self, campaign_id: int, reason: str) -> bool:
        """Pause a running campaign by itself, with the reason; False if it does not run."""

        def pause(connection: Connection, campaign: CampaignRecord) -> bool:
            if campaign.status is not Status.RUNNING:
                return False
            self._set_status(connection, campaign, Status.PAUSED, reason=reason)
            return True

        return self._locked(campaign_id, pause)

    def resume(self, name: str) -> CampaignRecord:
        """Go on; before its scheduled time a campaign waits for that again. Raises TransitionRefused.

        Publish `queued_of` afterwards: paused claims swallowed messages.
        """

        def resume(connection: Connection, campaign: CampaignRecord) -> CampaignRecord:
            if campaign.status not in {Status.PAUSED, Status.RUNNING}:
                raise refuse(campaign, "resumed")
            early = campaign.started_at is None and (campaign.scheduled_at or 0) > self._clock(connection)
            wanted = Status.SCHEDULED if early and campaign.status is Status.PAUSED else Status.RUNNING
            return self._set_status(connection, campaign, wanted)

        return self._locked(self.campaign(name).id, resume)

    def cancel(self, name: str) -> int:
        """Send nothing more that is not past its commit point; how many were cancelled by this call.

        The status first, then the rows in chunks; called again, it goes on where it was interrupted.
        """

        def stop(connection: Connection, campaign: CampaignRecord) -> CampaignRecord:
            return self._set_status(connection, campaign, Status.CANCELLED)

        def cancel(row: Row, now: float) -> Row | None:
            if row.state not in {State.PENDING, State.QUEUED, State.CLAIMED}:
                return None
            return row.ended(State.CANCELLED, now=now)

        campaign = self._locked(self.campaign(name).id, stop)
        sources = [_IN_STATE.format(state="pending"), _IN_STATE.format(state="queued"), _HELD_OF]
        return sum(len(changes) for sql in sources for changes in self._in_chunks(campaign.id, sql, cancel))

    def retry(self, name: str, state: State | str = State.FAILED, not_before_seconds: float = 0.0) -> Retried:
        """Make the failed or uncertain deliveries pending again, with a new fence and no deferrals.

        Uncertain ones are left for `not_before_seconds` (the dot's deadline) after they became so: their
        reply may still come. A finished campaign runs again. Raises TransitionRefused.
        """
        state = State(state)
        if state not in {State.FAILED, State.UNCERTAIN}:
            raise TransitionRefused(f"what is {state} cannot be retried; failed and uncertain can")
        left: set[int] = set()

        def again(row: Row, now: float) -> Row | None:
            if row.state is not state:
                return None
            if state is State.UNCERTAIN and row.updated_at > now - not_before_seconds:
                left.add(row.id)
                return None
            fresh = replace(row, fence=row.fence + 1, deferrals=0, crashes=0, first_attempt_at=None)
            return fresh.waiting(seconds=0.0, now=now)

        campaign = self.campaign(name)
        _retryable(campaign)
        moved = self._in_chunks(campaign.id, _IN_STATE.format(state=state), again, guard=_retryable)
        return Retried(moved=sum(len(changes) for changes in moved), left=len(left))

    def _in_chunks(
        self,
        campaign_id: int,
        sql: str,
        decide: Callable[[Row, float], Row | None],
        guard: Callable[[CampaignRecord], None] | None = None,
    ) -> Iterator[list[Change]]:
        """Candidates are read outside the write lock, then changed under it, a chunk a transaction."""
        after = 0
        while ids := self._candidates(campaign_id, sql, after):
            yield again_after_conflict(lambda ids=ids: self._chunk(campaign_id, ids, decide, guard))  # type: ignore[misc]
            after = ids[-1]

    def _candidates(self, campaign_id: int, sql: str, after: int) -> list[int]:
        with self.database.read() as connection:
            parameters = {"id": campaign_id, "after": after, "limit": CHUNK}
            return list(connection.execute(statement(sql), parameters).scalars())

    def _chunk(
        self,
        campaign_id: int,
        ids: list[int],
        decide: Callable[[Row, float], Row | None],
        guard: Callable[[CampaignRecord], None] | None,
    ) -> list[Change]:
        with self.database.write() as connection:
            if guard is not None:
                lock_campaign(connection, campaign_id)
                guard(read_campaign(connection, campaign_id=campaign_id))
            return self._change(connection, ids, decide)

    def deliveries(self, name: str, state: State | str | None = None) -> Iterator[DeliveryRecord]:
        """The campaign's recipients in the order of their ids, read in pages; all, or those in one state."""
        campaign_id, after = self.campaign(name).id, 0
        while page := self._page(campaign_id, None if state is None else State(state), after):
            yield from page
            after = page[-1].id

    def _page(self, campaign_id: int, state: State | None, after: int) -> list[DeliveryRecord]:
        sql = _DELIVERIES.format(where="" if state is None else f"AND d.state = '{state}'")
        with self.database.read() as connection:
            found = connection.execute(statement(sql), {"id": campaign_id, "after": after, "limit": _PAGE})
            return [DeliveryRecord(**{**row._mapping, "state": State(row.state)}) for row in found]

    def _locked(self, campaign_id: int, step: Callable[[Connection, CampaignRecord], Value]) -> Value:
        """One step with the campaign locked, from the start again if it lost a race."""

        def transaction() -> Value:
            with self.database.write() as connection:
                lock_campaign(connection, campaign_id)
                return step(connection, read_campaign(connection, campaign_id=campaign_id))

        return again_after_conflict(transaction)

    def _set_status(
        self,
        connection: Connection,
        campaign: CampaignRecord,
        status: Status,
        *,
        reason: str | None = None,
        scheduled_at: float | None = None,
    ) -> CampaignRecord:
        if status is campaign.status and scheduled_at is None:
            return campaign
        if status is not campaign.status and status not in LEGAL_STATUS[campaign.status]:
            raise refuse(campaign, str(status))
        parameters = {
            "id": campaign.id,
            "status": status.value,
            "reason": reason,
            "scheduled_at": scheduled_at,
            "starts": int(status is Status.RUNNING),
            "ends": int(status in {Status.FINISHED, Status.CANCELLED}),
        }
        sql = _SET_STATUS.replace(":scheduled_at", "CAST(:scheduled_at AS double precision)")
        connection.execute(statement(sql.format(clock=self._clock_sql)), parameters)
        if Status.PAUSED in {status, campaign.status}:
            pause = _BEGIN_PAUSE if status is Status.PAUSED else _END_PAUSE
            connection.execute(statement(pause.format(clock=self._clock_sql)), {"id": campaign.id})
        return read_campaign(connection, campaign_id=campaign.id)


def _retryable(campaign: CampaignRecord) -> None:
    if campaign.status not in {Status.RUNNING, Status.PAUSED, Status.FINISHED}:
        raise refuse(campaign, "retried")

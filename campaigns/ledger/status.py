"""A campaign's row: reading it, locking it, changing its status."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Connection

from campaigns.errors import TransitionRefused, UnknownCampaign
from campaigns.ledger.changes import CAMPAIGN_LOCK
from campaigns.ledger.row_source import statement
from campaigns.states import Status

__all__ = ["CampaignRecord", "lock_campaign", "read_campaign", "refuse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignRecord:
    """A campaign as it is stored. Times are epoch seconds by the database's clock."""

    id: int
    name: str
    status: Status
    reason: str | None
    sender: str
    subject: str
    html: str | None = field(repr=False)
    text: str | None = field(repr=False)
    reply_to: str | None
    headers: dict[str, str] = field(repr=False)
    list_unsubscribe: str | None = field(repr=False)
    defaults: dict[str, str] = field(repr=False)
    stream: str
    rate_per_second: float | None
    token: str
    revision: int
    scheduled_at: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    purpose: str


COLUMNS = ", ".join(column.name for column in fields(CampaignRecord))


def record_from(row: Any) -> CampaignRecord:
    values = dict(row._mapping)
    values["status"] = Status(values["status"])
    for name in ("headers", "defaults"):
        if isinstance(values[name], str):
            values[name] = json.loads(values[name])
    return CampaignRecord(**values)


def read_campaign(
    connection: Connection, name: str | None = None, campaign_id: int | None = None
) -> CampaignRecord:
    """The campaign of that name or id. Raises UnknownCampaign."""
    column, value = ("name", name) if campaign_id is None else ("id", campaign_id)
    found = connection.execute(
        statement(f"SELECT {COLUMNS} FROM campaign WHERE {column} = :value"),  # noqa: S608 - constant names
        {"value": value},
    ).first()
    if found is None:
        raise UnknownCampaign(f"there is no campaign {value}; `campaigns status` lists the names")
    return record_from(found)


def lock_campaign(connection: Connection, campaign_id: int, *, exclusive: bool = True) -> None:
    """Hold the campaign's row until the transaction ends, so that no two operators race.

    `exclusive` waits for the batches in flight that change its deliveries, and keeps new ones out: after
    the commit, nothing that read the old status is still on its way. On SQLite the write transaction
    is that lock already.

    The order is the same everywhere, or two would wait for each other: the advisory lock, the campaign's
    row, its deliveries; and of several campaigns the lowest id first.
    """
    if connection.dialect.name != "postgresql":
        return
    lock = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    connection.execute(
        statement(f"SELECT {lock}({CAMPAIGN_LOCK}, CAST(:id AS integer))"), {"id": campaign_id}
    )
    connection.execute(
        statement("SELECT id FROM campaign WHERE id = :id FOR NO KEY UPDATE"), {"id": campaign_id}
    )


def refuse(campaign: CampaignRecord, wanted: str) -> TransitionRefused:
    """It says what a person can do instead."""
    instead = _INSTEAD[campaign.status].format(name=shlex.quote(campaign.name))
    stands = "a draft" if campaign.status is Status.DRAFT else campaign.status
    return TransitionRefused(f"campaign {campaign.name} is {stands} and cannot be {wanted}; {instead}")


_INSTEAD = {
    Status.DRAFT: "it was not sent yet",
    Status.SCHEDULED: "`campaigns pause {name}` holds it, `campaigns cancel {name}` calls it off",
    Status.RUNNING: "`campaigns pause {name}` stops it for now, `campaigns cancel {name}` for good",
    Status.PAUSED: "`campaigns resume {name}` goes on with it, `campaigns cancel {name}` ends it",
    Status.FINISHED: "`campaigns retry {name}` tries those who failed again",
    Status.CANCELLED: "that is final",
}

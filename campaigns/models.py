"""The tables. Times are floating-point seconds since the epoch (UTC) by the database's clock.

`recipient` is written once; `delivery` is narrow and written often. The check constraints say what each
state needs, so that no row can be alive without something that wakes it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from campaigns.states import State, Status

__all__ = [
    "Alert",
    "Attempt",
    "Base",
    "Block",
    "Campaign",
    "Counter",
    "Delivery",
    "Departure",
    "Drill",
    "Event",
    "Probe",
    "Recipient",
    "RecipientImport",
    "ServerMode",
    "Standby",
    "Suppression",
    "Worker",
]

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite gives row ids only to a column declared INTEGER PRIMARY KEY."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, float: Float(53), int: BigId, dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012 - SQLAlchemy's own convention


def _one_of(column: str, values: type[State] | type[Status]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Campaign(Base):
    """What is sent, and where the whole of it stands."""

    __tablename__ = "campaign"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str]
    reason: Mapped[str | None]
    sender: Mapped[str]
    subject: Mapped[str]
    html: Mapped[str | None]
    text: Mapped[str | None]
    reply_to: Mapped[str | None]
    headers: Mapped[dict[str, Any]]
    list_unsubscribe: Mapped[str | None]
    defaults: Mapped[dict[str, Any]]
    stream: Mapped[str]
    rate_per_second: Mapped[float | None]
    token: Mapped[str] = mapped_column(unique=True)
    revision: Mapped[int] = mapped_column(Integer)
    scheduled_at: Mapped[float | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    running_since: Mapped[float | None]
    """When it last began to run (a resume, too): what was refused before is not held against it."""
    finished_at: Mapped[float | None]
    purpose: Mapped[str] = mapped_column(server_default="campaign")
    """`campaign`; `drill` and `alert` are the system's own mail, and not listed with the others."""
    __table_args__ = (
        CheckConstraint(_one_of("status", Status), name="status"),
        CheckConstraint("status <> 'scheduled' OR scheduled_at IS NOT NULL", name="scheduled"),
        Index("ix_campaign_status", "status"),
    )


class Pause(Base):
    """A time for which a campaign was paused; `ended_at` NULL: it is."""

    __tablename__ = "pause"
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    began_at: Mapped[float]
    ended_at: Mapped[float | None]
    __table_args__ = (Index("ix_pause_campaign", "campaign_id"),)


class Recipient(Base):
    """One address of one campaign, with its merge fields; never changed."""

    __tablename__ = "recipient"
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    email: Mapped[str]
    dedupe_key: Mapped[str]
    domain: Mapped[str]
    fields: Mapped[dict[str, Any]]
    __table_args__ = (UniqueConstraint("campaign_id", "dedupe_key"),)


class Delivery(Base):
    """Where one recipient stands. `server` is the present or the last one."""

    __tablename__ = "delivery"
    id: Mapped[int] = mapped_column(ForeignKey("recipient.id"), primary_key=True, autoincrement=False)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    state: Mapped[str]
    server: Mapped[str | None]
    fence: Mapped[int]
    lease_until: Mapped[float | None]
    owner: Mapped[str | None]
    deferrals: Mapped[int] = mapped_column(Integer)
    crashes: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[float | None]
    first_attempt_at: Mapped[float | None]
    queued_at: Mapped[float | None]
    reply: Mapped[str | None]
    updated_at: Mapped[float]
    __table_args__ = (
        CheckConstraint(_one_of("state", State), name="state"),
        CheckConstraint("state <> 'pending' OR next_attempt_at IS NOT NULL", name="pending_wakes"),
        CheckConstraint(
            "state <> 'queued' OR (server IS NOT NULL AND queued_at IS NOT NULL)", name="queued_has_server"
        ),
        CheckConstraint(
            "state NOT IN ('claimed', 'committing')"
            " OR (server IS NOT NULL AND lease_until IS NOT NULL AND owner IS NOT NULL AND fence > 0)",
            name="held_has_lease",
        ),
        CheckConstraint("state <> 'sent' OR server IS NOT NULL", name="sent_by_server"),
        Index("ix_delivery_campaign", "campaign_id", "id"),
        Index(
            "ix_delivery_pending",
            "campaign_id",
            "next_attempt_at",
            "id",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_delivery_queued",
            "server",
            "queued_at",
            "id",
            sqlite_where=text("state = 'queued'"),
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            "ix_delivery_held",
            "lease_until",
            sqlite_where=text("state IN ('claimed', 'committing')"),
            postgresql_where=text("state IN ('claimed', 'committing')"),
        ),
        Index(
            "ix_delivery_problem",
            "campaign_id",
            "state",
            "id",
            sqlite_where=text("state IN ('failed', 'uncertain')"),
            postgresql_where=text("state IN ('failed', 'uncertain')"),
        ),
    )


class Attempt(Base):
    """One SMTP try, as it was reported. Append-only; the same report twice is one row.

    No foreign key to the campaign: its check would lock that one row in every batch.
    """

    __tablename__ = "attempt"
    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("delivery.id"))
    campaign_id: Mapped[int]
    server: Mapped[str]
    fence: Mapped[int]
    outcome: Mapped[str]
    phase: Mapped[str | None]
    code: Mapped[int | None] = mapped_column(Integer)
    enhanced: Mapped[str | None]
    reply: Mapped[str | None]
    started_at: Mapped[float]
    finished_at: Mapped[float]
    __table_args__ = (
        UniqueConstraint("delivery_id", "fence", "outcome"),
        Index("ix_attempt_finished", "finished_at", "server"),
        Index(
            "ix_attempt_policy",
            "campaign_id",
            "server",
            sqlite_where=text("outcome = 'policy'"),
            postgresql_where=text("outcome = 'policy'"),
        ),
    )


class Departure(Base):
    """The delivery left that server for another, after an attempt there or after waiting in its queue."""

    __tablename__ = "departure"
    delivery_id: Mapped[int] = mapped_column(ForeignKey("delivery.id"), primary_key=True, autoincrement=False)
    server: Mapped[str] = mapped_column(primary_key=True)
    campaign_id: Mapped[int]


class Counter(Base):
    """Counts that are kept: `kind` is a state, `total`, or `sent`/`rerouted` with a server.

    Spread over shards, one a process; a single shard may be negative, the sum never is.
    """

    __tablename__ = "counter"
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    server: Mapped[str] = mapped_column(primary_key=True)
    shard: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    n: Mapped[int]


class Suppression(Base):
    """An address that gets nothing, whatever the campaign."""

    __tablename__ = "suppression"
    dedupe_key: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str]
    reason: Mapped[str | None]
    created_at: Mapped[float]


class RecipientImport(Base):
    """How far an import has come; changed in the same transaction as the rows that it added."""

    __tablename__ = "recipient_import"
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    source: Mapped[str]
    line: Mapped[int]
    position: Mapped[int]
    added: Mapped[int]
    duplicate: Mapped[int]
    rejected: Mapped[int]
    suppressed: Mapped[int]
    finished: Mapped[bool]
    __table_args__ = (UniqueConstraint("campaign_id", "source"),)


class Event(Base):
    """What changed, when and why; never an address."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    server: Mapped[str | None]
    campaign: Mapped[str | None]
    kind: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str | None]
    reason: Mapped[str | None]
    __table_args__ = (Index("ix_event_server", "server", "id"),)


class Worker(Base):
    """A process that was alive at `seen_at` and reads these servers' queues."""

    __tablename__ = "worker"
    owner: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    servers: Mapped[list[str]]
    started_at: Mapped[float]
    seen_at: Mapped[float]
    sent_per_second: Mapped[float]
    loads: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """By server: mails per second, and how many they could be (null: not known)."""


class Block(Base):
    """A server taken off a sender, a recipient domain, or both (NULL: any)."""

    __tablename__ = "block"
    id: Mapped[int] = mapped_column(primary_key=True)
    server: Mapped[str]
    sender: Mapped[str | None]
    domain: Mapped[str | None]
    until: Mapped[float | None]
    reason: Mapped[str]
    created_at: Mapped[float]


class ServerMode(Base):
    """What the operator decided of a server; weight NULL: the configured one."""

    __tablename__ = "server_mode"
    server: Mapped[str] = mapped_column(primary_key=True)
    mode: Mapped[str]
    """`open`: takes mail; `drained`: is given no more, what waits goes out; `closed`: neither."""
    weight: Mapped[int | None]
    reason: Mapped[str | None]
    changed_at: Mapped[float]
    __table_args__ = (CheckConstraint("mode IN ('open', 'drained', 'closed')", name="mode"),)


class Probe(Base):
    """How an idle server answered when it was last tried without a mail."""

    __tablename__ = "probe"
    server: Mapped[str] = mapped_column(primary_key=True)
    next_at: Mapped[float]
    """Who moves it on may probe: so one process does."""
    probed_at: Mapped[float | None]
    succeeded_at: Mapped[float | None]
    latency_seconds: Mapped[float | None]
    certificate_until: Mapped[float | None]
    error: Mapped[str | None]


class Standby(Base):
    """A cold server that must be started before it takes mail."""

    __tablename__ = "standby"
    server: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    """`resting`, `starting`, `active`, `stopping`."""
    owner: Mapped[str | None]
    until: Mapped[float | None]
    """When the owner's turn is over, whatever became of it; without an owner: no turn begins before."""
    failures: Mapped[int]
    """Turns in a row that came to nothing: the pauses between them grow."""
    reason: Mapped[str | None]
    changed_at: Mapped[float]
    __table_args__ = (
        CheckConstraint("state IN ('resting', 'starting', 'active', 'stopping')", name="state"),
    )


class Drill(Base):
    """A rehearsed failover, and what was measured. Seconds are None where it did not come to that."""

    __tablename__ = "drill"
    id: Mapped[int] = mapped_column(primary_key=True)
    server: Mapped[str]
    is_live: Mapped[bool]
    """Whether the server was declared dead for all mail, or for the drill's own alone."""
    status: Mapped[str]
    """`running`, `passed`, `failed`."""
    dead_until: Mapped[float | None]
    """Until when the server counts as dead; None: not (any more)."""
    started_at: Mapped[float]
    finished_at: Mapped[float | None]
    detection_seconds: Mapped[float | None]
    switch_seconds: Mapped[float | None]
    return_seconds: Mapped[float | None]
    recipients: Mapped[int]
    sent: Mapped[int]
    lost: Mapped[int]
    duplicates: Mapped[int]
    uncertain: Mapped[int]
    reason: Mapped[str | None]
    __table_args__ = (
        CheckConstraint("status IN ('running', 'passed', 'failed')", name="status"),
        Index("ix_drill_server", "server", "id"),
    )


class Alert(Base):
    """How far a channel (`webhook`, `email`) has told of the events."""

    __tablename__ = "alert"
    channel: Mapped[str] = mapped_column(primary_key=True)
    last_event_id: Mapped[int]
    next_at: Mapped[float]
    """Who moves it on may tell: so one process does."""
    failures: Mapped[int]
    error: Mapped[str | None]

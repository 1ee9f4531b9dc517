"""The first schema"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "block",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=True),
        sa.Column("domain", sa.Text(), nullable=True),
        sa.Column("until", sa.Float(precision=53), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_block")),
    )
    op.create_table(
        "campaign",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("html", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("reply_to", sa.Text(), nullable=True),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("list_unsubscribe", sa.Text(), nullable=True),
        sa.Column("defaults", sa.JSON(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("rate_per_second", sa.Float(precision=53), nullable=True),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("scheduled_at", sa.Float(precision=53), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=True),
        sa.Column("running_since", sa.Float(precision=53), nullable=True),
        sa.Column("finished_at", sa.Float(precision=53), nullable=True),
        sa.CheckConstraint(
            "status <> 'scheduled' OR scheduled_at IS NOT NULL", name=op.f("ck_campaign_scheduled")
        ),
        sa.CheckConstraint(
            "status IN ('draft', 'scheduled', 'running', 'paused', 'finished', 'cancelled')",
            name=op.f("ck_campaign_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign")),
        sa.UniqueConstraint("name", name=op.f("uq_campaign_name")),
        sa.UniqueConstraint("token", name=op.f("uq_campaign_token")),
    )
    op.create_index("ix_campaign_status", "campaign", ["status"], unique=False)

    op.create_table(
        "event",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("server", sa.Text(), nullable=True),
        sa.Column("campaign", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_server", "event", ["server", "id"], unique=False)

    op.create_table(
        "suppression",
        sa.Column("dedupe_key", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("dedupe_key", name=op.f("pk_suppression")),
    )
    op.create_table(
        "worker",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", BIG_ID, nullable=False),
        sa.Column("servers", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("seen_at", sa.Float(precision=53), nullable=False),
        sa.Column("sent_per_second", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_worker")),
    )
    op.create_table(
        "counter",
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_counter_campaign_id")),
        sa.PrimaryKeyConstraint("campaign_id", "kind", "server", "shard", name=op.f("pk_counter")),
    )
    op.create_table(
        "recipient",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("dedupe_key", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_recipient_campaign_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipient")),
        sa.UniqueConstraint("campaign_id", "dedupe_key", name=op.f("uq_recipient_campaign_id_dedupe_key")),
    )
    op.create_table(
        "recipient_import",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("line", BIG_ID, nullable=False),
        sa.Column("position", BIG_ID, nullable=False),
        sa.Column("added", BIG_ID, nullable=False),
        sa.Column("duplicate", BIG_ID, nullable=False),
        sa.Column("rejected", BIG_ID, nullable=False),
        sa.Column("suppressed", BIG_ID, nullable=False),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaign.id"], name=op.f("fk_recipient_import_campaign_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipient_import")),
        sa.UniqueConstraint("campaign_id", "source", name=op.f("uq_recipient_import_campaign_id_source")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=True),
        sa.Column("fence", BIG_ID, nullable=False),
        sa.Column("lease_until", sa.Float(precision=53), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("deferrals", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.Float(precision=53), nullable=True),
        sa.Column("first_attempt_at", sa.Float(precision=53), nullable=True),
        sa.Column("queued_at", sa.Float(precision=53), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint(
            "state <> 'pending' OR next_attempt_at IS NOT NULL", name=op.f("ck_delivery_pending_wakes")
        ),
        sa.CheckConstraint(
            "state <> 'queued' OR (server IS NOT NULL AND queued_at IS NOT NULL)",
            name=op.f("ck_delivery_queued_has_server"),
        ),
        sa.CheckConstraint("state <> 'sent' OR server IS NOT NULL", name=op.f("ck_delivery_sent_by_server")),
        sa.CheckConstraint(
            "state IN ('pending', 'queued', 'claimed', 'committing', 'sent', 'failed', 'uncertain',"
            " 'suppressed', 'cancelled')",
            name=op.f("ck_delivery_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('claimed', 'committing')"
            " OR (server IS NOT NULL AND lease_until IS NOT NULL AND owner IS NOT NULL AND fence > 0)",
            name=op.f("ck_delivery_held_has_lease"),
        ),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_delivery_campaign_id")),
        sa.ForeignKeyConstraint(["id"], ["recipient.id"], name=op.f("fk_delivery_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
    )
    op.create_index("ix_delivery_campaign", "delivery", ["campaign_id", "id"], unique=False)
    op.create_index(
        "ix_delivery_held",
        "delivery",
        ["lease_until"],
        unique=False,
        sqlite_where=sa.text("state IN ('claimed', 'committing')"),
        postgresql_where=sa.text("state IN ('claimed', 'committing')"),
    )
    op.create_index(
        "ix_delivery_pending",
        "delivery",
        ["campaign_id", "next_attempt_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_delivery_problem",
        "delivery",
        ["campaign_id", "state", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('failed', 'uncertain')"),
        postgresql_where=sa.text("state IN ('failed', 'uncertain')"),
    )
    op.create_index(
        "ix_delivery_queued",
        "delivery",
        ["server", "queued_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )

    op.create_table(
        "attempt",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("delivery_id", BIG_ID, nullable=False),
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("fence", BIG_ID, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("enhanced", sa.Text(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("finished_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"], name=op.f("fk_attempt_delivery_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
        sa.UniqueConstraint(
            "delivery_id", "fence", "outcome", name=op.f("uq_attempt_delivery_id_fence_outcome")
        ),
    )
    op.create_index(
        "ix_attempt_policy",
        "attempt",
        ["campaign_id", "server"],
        unique=False,
        sqlite_where=sa.text("outcome = 'policy'"),
        postgresql_where=sa.text("outcome = 'policy'"),
    )

    op.create_table(
        "departure",
        sa.Column("delivery_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"], name=op.f("fk_departure_delivery_id")),
        sa.PrimaryKeyConstraint("delivery_id", "server", name=op.f("pk_departure")),
    )


def downgrade() -> None:
    op.drop_table("departure")
    op.drop_index(
        "ix_attempt_policy",
        "attempt",
        sqlite_where=sa.text("outcome = 'policy'"),
        postgresql_where=sa.text("outcome = 'policy'"),
    )

    op.drop_table("attempt")
    op.drop_index(
        "ix_delivery_queued",
        "delivery",
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index(
        "ix_delivery_problem",
        "delivery",
        sqlite_where=sa.text("state IN ('failed', 'uncertain')"),
        postgresql_where=sa.text("state IN ('failed', 'uncertain')"),
    )
    op.drop_index(
        "ix_delivery_pending",
        "delivery",
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index(
        "ix_delivery_held",
        "delivery",
        sqlite_where=sa.text("state IN ('claimed', 'committing')"),
        postgresql_where=sa.text("state IN ('claimed', 'committing')"),
    )
    op.drop_index("ix_delivery_campaign", "delivery")

    op.drop_table("delivery")
    op.drop_table("recipient_import")
    op.drop_table("recipient")
    op.drop_table("counter")
    op.drop_table("worker")
    op.drop_table("suppression")
    op.drop_index("ix_event_server", "event")

    op.drop_table("event")
    op.drop_index("ix_campaign_status", "campaign")

    op.drop_table("campaign")
    op.drop_table("block")

"""Failover: operator's modes, probes, standbys, drills, alerts, and what limits look back on"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "alert",
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("last_event_id", BIG_ID, nullable=False),
        sa.Column("next_at", sa.Float(precision=53), nullable=False),
        sa.Column("failures", BIG_ID, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("channel", name=op.f("pk_alert")),
    )
    op.create_table(
        "drill",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("is_live", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("dead_until", sa.Float(precision=53), nullable=True),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("finished_at", sa.Float(precision=53), nullable=True),
        sa.Column("detection_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("switch_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("return_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("recipients", BIG_ID, nullable=False),
        sa.Column("sent", BIG_ID, nullable=False),
        sa.Column("lost", BIG_ID, nullable=False),
        sa.Column("duplicates", BIG_ID, nullable=False),
        sa.Column("uncertain", BIG_ID, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("status IN ('running', 'passed', 'failed')", name=op.f("ck_drill_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drill")),
    )
    op.create_index("ix_drill_server", "drill", ["server", "id"])
    op.create_table(
        "probe",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("next_at", sa.Float(precision=53), nullable=False),
        sa.Column("probed_at", sa.Float(precision=53), nullable=True),
        sa.Column("succeeded_at", sa.Float(precision=53), nullable=True),
        sa.Column("latency_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("certificate_until", sa.Float(precision=53), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("server", name=op.f("pk_probe")),
    )
    op.create_table(
        "server_mode",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("weight", BIG_ID, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint("mode IN ('open', 'drained', 'closed')", name=op.f("ck_server_mode_mode")),
        sa.PrimaryKeyConstraint("server", name=op.f("pk_server_mode")),
    )
    op.create_table(
        "standby",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("until", sa.Float(precision=53), nullable=True),
        sa.Column("failures", BIG_ID, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint(
            "state IN ('resting', 'starting', 'active', 'stopping')", name=op.f("ck_standby_state")
        ),
        sa.PrimaryKeyConstraint("server", name=op.f("pk_standby")),
    )
    op.create_index("ix_attempt_finished", "attempt", ["finished_at", "server"])
    op.add_column("worker", sa.Column("loads", sa.JSON(), server_default="{}", nullable=False))
    op.add_column("campaign", sa.Column("purpose", sa.Text(), server_default="campaign", nullable=False))

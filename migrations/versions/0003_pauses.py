"""Pauses: for how long each campaign was paused, and when"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

NOT_COUNTED_SO_FAR = """
INSERT INTO pause (campaign_id, began_at, ended_at)
SELECT id, created_at, running_since
  FROM campaign WHERE status IN ('running', 'paused') AND running_since > created_at
"""
PAUSED_NOW = """
INSERT INTO pause (campaign_id, began_at)
SELECT c.id, COALESCE((SELECT MAX(e.at) FROM event AS e
                        WHERE e.kind = 'campaign' AND e.campaign = c.name AND e.to_state = 'paused'),
                      c.running_since, c.created_at)
  FROM campaign AS c WHERE c.status = 'paused'
"""


def upgrade() -> None:
    op.create_table(
        "pause",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("campaign_id", BIG_ID, nullable=False),
        sa.Column("began_at", sa.Float(precision=53), nullable=False),
        sa.Column("ended_at", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_pause_campaign_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pause")),
    )
    op.create_index("ix_pause_campaign", "pause", ["campaign_id"])
    op.execute(NOT_COUNTED_SO_FAR)
    op.execute(PAUSED_NOW)

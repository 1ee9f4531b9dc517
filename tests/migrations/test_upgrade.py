"""What an upgrade makes of what is there."""

from __future__ import annotations

from alembic import command
from sqlalchemy import text

from campaigns.database import Database
from campaigns.schema import migration_config

CAMPAIGN = """
INSERT INTO campaign (id, name, status, sender, subject, headers, defaults, stream, token, revision,
                      created_at, running_since, purpose)
VALUES (:id, :name, :status, 'news@example.com', 'Hi', '{}', '{}', 'promotional', :name, 1,
        100, :since, 'campaign')
"""
EVENT = """
INSERT INTO event (at, campaign, kind, from_state, to_state)
VALUES (:at, :name, 'campaign', 'running', 'paused')
"""


def upgrade(database: Database, revision: str) -> None:
    with database.write() as connection:
        config = migration_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_who_is_paused_at_the_upgrade_is_so_since_it_was_paused(empty_database: Database) -> None:
    upgrade(empty_database, "0002")
    with empty_database.write() as connection:
        for id_, name, status, since in (
            (1, "told", "paused", 150.0),
            (2, "untold", "paused", 250.0),
            (3, "runs", "running", 350.0),
        ):
            values = {"id": id_, "name": name, "status": status, "since": since}
            connection.execute(text(CAMPAIGN), values)
        for at in (200.0, 300.0):
            connection.execute(text(EVENT), {"at": at, "name": "told"})
    upgrade(empty_database, "head")
    with empty_database.read() as connection:
        sql = "SELECT campaign_id, began_at, ended_at FROM pause WHERE ended_at IS NULL ORDER BY campaign_id"
        assert [tuple(row) for row in connection.execute(text(sql))] == [(1, 300.0, None), (2, 250.0, None)]


def test_the_time_before_a_campaign_last_began_to_run_is_not_counted_after_the_upgrade_either(
    empty_database: Database,
) -> None:
    upgrade(empty_database, "0002")
    with empty_database.write() as connection:
        for id_, status, since in ((1, "paused", 150.0), (2, "running", 350.0), (3, "running", 100.0)):
            values = {"id": id_, "name": f"c{id_}", "status": status, "since": since}
            connection.execute(text(CAMPAIGN), values)
        connection.execute(text(CAMPAIGN), {"id": 4, "name": "c4", "status": "finished", "since": 350.0})
    upgrade(empty_database, "head")
    with empty_database.read() as connection:
        sql = "SELECT campaign_id, began_at, ended_at FROM pause WHERE ended_at > 0 ORDER BY campaign_id"
        assert [tuple(row) for row in connection.execute(text(sql))] == [(1, 100, 150), (2, 100, 350)]

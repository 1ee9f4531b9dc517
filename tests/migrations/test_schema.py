"""What the migrations make is what the models say, constraints and partial indexes included."""

from __future__ import annotations

import re
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from campaigns.database import Database
from campaigns.errors import DatabaseError
from campaigns.models import Base


def describe(database: Database) -> dict[str, Any]:
    """Everything that the database itself knows of the schema."""
    with database.read() as connection:
        inspector = inspect(connection)
        tables = sorted(set(inspector.get_table_names()) - {"alembic_version"})
        return {
            table: {
                "columns": [
                    (column["name"], str(column["type"]), column["nullable"], column.get("default"))
                    for column in inspector.get_columns(table)
                ],
                "key": inspector.get_pk_constraint(table),
                "foreign": sorted(map(repr, inspector.get_foreign_keys(table))),
                "unique": sorted(map(repr, inspector.get_unique_constraints(table))),
                "checks": sorted(_squeezed(check) for check in _checks(connection, table)),
                "indexes": sorted(_squeezed(index) for index in _indexes(connection, table)),
            }
            for table in tables
        }


def _checks(connection: Connection, table: str) -> list[str]:
    found = inspect(connection).get_check_constraints(table)
    return [f"{check['name']} {check['sqltext']}" for check in found]


def _indexes(connection: Connection, table: str) -> list[str]:
    """As the database prints them: with the condition of a partial index."""
    sql = {
        "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql <> ''",
        "postgresql": "SELECT indexdef FROM pg_indexes WHERE tablename = :table",
    }[connection.dialect.name]
    return list(connection.execute(text(sql), {"table": table}).scalars())


def _squeezed(sql: str) -> str:
    return re.sub(r"\s+", " ", sql)


@pytest.fixture
def migrated(empty_database: Database) -> dict[str, Any]:
    empty_database.upgrade()
    return describe(empty_database)


def test_the_migrations_make_what_the_models_say(empty_database: Database) -> None:
    with empty_database.write() as connection:
        Base.metadata.create_all(connection)
    wanted = describe(empty_database)
    with empty_database.write() as connection:
        Base.metadata.drop_all(connection)
    empty_database.upgrade()
    assert describe(empty_database) == wanted


def test_the_comparison_sees_checks_and_partial_indexes(migrated: dict[str, Any]) -> None:
    checks = " ".join(migrated["delivery"]["checks"])
    assert "ck_delivery_pending_wakes" in checks and "ck_delivery_held_has_lease" in checks
    assert any(
        "ix_delivery_pending" in index and " WHERE " in index for index in migrated["delivery"]["indexes"]
    )


def test_alembic_itself_finds_no_difference(empty_database: Database) -> None:
    empty_database.upgrade()
    with empty_database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(empty_database: Database) -> None:
    empty_database.upgrade()
    before = describe(empty_database)
    empty_database.upgrade()
    assert describe(empty_database) == before


def test_a_database_that_is_not_migrated_is_refused_with_the_command_to_run(empty_database: Database) -> None:
    with pytest.raises(DatabaseError, match="campaigns db upgrade"):
        empty_database.check()
    empty_database.upgrade()
    empty_database.check()


def test_a_database_of_a_newer_version_is_refused(empty_database: Database) -> None:
    empty_database.upgrade()
    with empty_database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer version"):
        empty_database.check()

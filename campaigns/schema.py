"""The migrations: where they are, running them, and whether they were run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from campaigns.errors import DatabaseError

__all__ = ["check", "migration_config", "upgrade"]

UPGRADE_LOCK: Final = 0x63616D70  # any constant: one upgrade at a time


def upgrade(connection: Connection) -> None:
    """Create the tables, or bring them up to date, in this write transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT set_config('lock_timeout', '60s', true)"))
        connection.execute(text("SELECT set_config('statement_timeout', '0', true)"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})"))
    config = migration_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def check(connection: Connection) -> None:
    """Raise DatabaseError if the tables are not those of this version."""
    scripts = ScriptDirectory.from_config(migration_config())
    present = set(MigrationContext.configure(connection).get_current_heads())
    if present == set(scripts.get_heads()):
        return
    if present - {script.revision for script in scripts.walk_revisions()}:
        raise DatabaseError(
            "the database was made by a newer version of campaigns; install that version, or a newer one"
        )
    raise DatabaseError("the database is not up to date; run `campaigns db upgrade`")


def migration_config() -> Config:
    """Alembic's configuration, whether the migrations lie in the wheel or beside the checkout."""
    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _migrations() -> Path:
    package = Path(__file__).resolve().parent
    for candidate in (package / "migrations", package.parent / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    spec = importlib.util.find_spec("campaigns.migrations")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    raise DatabaseError("the migrations are missing from this installation; install campaigns again")

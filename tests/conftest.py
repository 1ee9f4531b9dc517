"""Databases for every test that wants one: real ones, fresh, and both kinds."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.database import Database, create_database
from campaigns.ledger import Ledger
from tests.postgres import PostgresServer, postgres_server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Begun in the background of a shell: what the tests start would be deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEMPLATE = "template_campaigns"
BOTH = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server, with a migrated template database."""
    with postgres_server() as server:
        server.execute(f"CREATE DATABASE {TEMPLATE}")
        template = create_database(server.url(TEMPLATE))
        template.upgrade()
        template.close()
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "campaigns.db"
    template = create_database(f"sqlite:///{path}")
    template.upgrade()
    template.close()
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    path = tmp_path / "campaigns.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    name = postgres.create_database(TEMPLATE)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database of each kind."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture(params=BOTH)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of each kind with no tables."""
    if request.param == "sqlite":
        database = create_database(f"sqlite:///{tmp_path / 'empty.db'}")
        yield database
        database.close()
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = postgres.create_database()
    database = create_database(postgres.url(name))
    yield database
    database.close()
    postgres.drop_database(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The fresh database, opened."""
    opened = create_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)

"""Transactions, the clock, durability checks, outages."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, exc, text

from campaigns.database import Database, create_database
from campaigns.errors import DatabaseError, DatabaseUnavailable
from campaigns.ledger import Ledger
from campaigns.states import State
from tests.crowd import Crowd, eventually
from tests.postgres import PostgresServer, postgres_server


def test_the_clock_runs_within_a_transaction(database: Database) -> None:
    with database.write() as connection:
        first = database.clock(connection)
        time.sleep(0.02)
        assert database.clock(connection) > first
    assert database.now() == pytest.approx(time.time(), abs=5)


def test_a_write_is_there_as_a_whole_or_not_at_all(database: Database) -> None:
    def fail_in_the_middle() -> None:
        with database.write() as connection:
            connection.execute(text("INSERT INTO event (at, kind) VALUES (1, 'a')"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM event")).scalar_one() == 0


def test_a_read_does_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as writer:
        writer.execute(text("INSERT INTO event (at, kind) VALUES (1, 'a')"))
        started = time.monotonic()
        with database.read() as reader:
            assert reader.execute(text("SELECT count(*) FROM event")).scalar_one() == 0
        assert time.monotonic() - started < 1


def test_two_writers_of_one_row_follow_each_other(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("INSERT INTO event (at, kind) VALUES (0, 'n')"))

    def add() -> None:
        for _ in range(20):
            with database.write() as connection:
                connection.execute(text("UPDATE event SET at = at + 1"))

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(text("SELECT at FROM event")).scalar_one() == 60


def test_nobody_writes_between_what_a_transaction_reads_and_what_it_writes(sqlite_url: str) -> None:
    """SQLite cannot lock a row: its write transactions take the lock before they read."""
    mine, other = create_database(sqlite_url), create_database(sqlite_url)
    with mine.write() as connection:
        connection.execute(text("INSERT INTO event (at, kind) VALUES (0, 'n')"))

    def add() -> None:
        with other.write() as connection:
            connection.execute(text("UPDATE event SET at = at + 1"))

    thread = threading.Thread(target=add)
    with mine.write() as connection:
        read = connection.execute(text("SELECT at FROM event")).scalar_one()
        thread.start()
        thread.join(0.3)
        connection.execute(text("UPDATE event SET at = :at"), {"at": read + 1})
    thread.join()
    with mine.read() as connection:
        assert connection.execute(text("SELECT at FROM event")).scalar_one() == 2
    mine.close()
    other.close()


def test_what_is_wrong_with_a_statement_is_no_outage_and_quotes_no_address(database: Database) -> None:
    with pytest.raises(exc.IntegrityError) as caught, database.write() as connection:
        connection.execute(
            text("INSERT INTO suppression (dedupe_key, created_at) VALUES (:key, 1)"), {"key": "a@b.example"}
        )
    assert "[SQL" in str(caught.value) and "parameters" in str(caught.value)
    assert "'key'" not in str(caught.value)


def test_a_database_without_tables_names_the_command(empty_database: Database) -> None:
    with pytest.raises(DatabaseError, match="campaigns db upgrade"):
        Ledger(empty_database).campaigns()


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_will_not_do_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError):
        create_database(url)


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(create_database("postgresql+psycopg://me:secret@127.0.0.1/x"))


def test_sqlite_commits_are_synced_and_checked(sqlite_url: str) -> None:
    database = create_database(sqlite_url)
    with database.read() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    database.check()
    database.close()


@pytest.mark.parametrize("setting", ["OFF", "NORMAL"])
def test_sqlite_that_may_lose_a_commit_is_refused(sqlite_url: str, setting: str) -> None:
    database = create_database(sqlite_url)
    event.listen(
        database.engine,
        "connect",
        lambda connection, _: connection.execute(f"PRAGMA synchronous = {setting}"),
    )
    with pytest.raises(DatabaseError, match="does not sync"):
        database.check()
    database.close()


@pytest.mark.parametrize("version", [(3, 34, 1), (3, 8, 0)])
def test_an_old_sqlite_is_refused(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    database = create_database(sqlite_url)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    with pytest.raises(DatabaseError, match=r"3\.35"):
        database.check()
    database.close()


def test_postgresql_that_may_lose_a_commit_is_refused(postgres: PostgresServer, postgres_url: str) -> None:
    name = postgres_url.rsplit("/", 1)[1]
    postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = create_database(postgres_url)
    with pytest.raises(DatabaseError, match="synchronous_commit"):
        database.check()
    database.close()


def test_a_locked_sqlite_is_an_outage(sqlite_url: str) -> None:
    database = create_database(sqlite_url + "?timeout=0.05")
    holder = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="locked"), database.write():
        pass
    holder.close()
    with database.write():
        pass
    database.close()


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "campaigns.db"
    path.write_text("this is no database\n" * 100)
    with pytest.raises(DatabaseError, match="not a database") as caught:
        create_database(f"sqlite:///{path}").now()
    assert f"the database file {path} is damaged" in str(caught.value)
    assert "put a backup in its place" in str(caught.value)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "campaigns.db"
    with pytest.raises(DatabaseUnavailable, match=f"the database {path} cannot be reached"):
        create_database(f"sqlite:///{path}").now()


def test_a_server_that_is_not_there_is_an_outage() -> None:
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        create_database("postgresql+psycopg://campaigns@127.0.0.1:1/x").now()
    assert time.monotonic() - started < 6


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may kill."""
    with postgres_server() as server:
        server.execute("CREATE DATABASE campaigns")
        yield server


def test_work_goes_on_after_a_crash_of_the_server(own_server: PostgresServer) -> None:
    database = create_database(own_server.url("campaigns"))
    database.upgrade()
    crowd = Crowd(Ledger(database), 3)
    claims = crowd.committing()
    crowd.report(claims[0], State.SENT)
    own_server.stop(signal.SIGQUIT)
    with pytest.raises(DatabaseUnavailable):
        crowd.report(claims[1], State.SENT)
    own_server.start()
    eventually(lambda: _answers(database))
    assert crowd.report(claims[1], State.SENT).state is State.SENT
    assert crowd.in_state(State.SENT) == 2  # what was answered before the crash is still there
    database.close()


def _answers(database: Database) -> bool:
    try:
        return database.now() > 0
    except DatabaseUnavailable:
        return False

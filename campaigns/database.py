"""Engines, the database's clock, and short transactions on SQLite and PostgreSQL."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text

from campaigns.errors import DatabaseError, DatabaseUnavailable
from campaigns.private_files import make_private_file

__all__ = ["Database", "create_database", "database_clock"]

MINIMUM_SQLITE: Final = (3, 35, 0)  # RETURNING
BUSY_SECONDS: Final = 10

_CLOCKS: Final = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    # the subquery is evaluated once, so that an index can be searched by it: the function itself is volatile
    "postgresql": "(SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision))",
}
_SQLITE_OUTAGES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
    }
)
_SQLITE_BROKEN: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# https://www.postgresql.org/docs/current/errcodes-appendix.html: connection, resources, operator
# intervention, system error, read-only server, lock not available
_POSTGRESQL_OUTAGES: Final = ("08", "53", "57", "58", "25006", "55P03")
_POSTGRESQL_CONFLICTS: Final = ("40001", "40P01")  # serialization failure, deadlock
_POSTGRESQL_UNDEFINED: Final = ("42P01", "42703")  # table, column
_POSTGRESQL_CONNECT: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "campaigns",
    "options": "-c statement_timeout=30s -c lock_timeout=10s"
    " -c idle_in_transaction_session_timeout=10s -c timezone=UTC",
}


def database_clock(dialect: str) -> str:
    """The SQL expression for the database's own time in epoch seconds; not the transaction's start."""
    return _CLOCKS[dialect]


class Database:
    """One database, from any number of threads. Transactions are short and never span a network call."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect: str = engine.dialect.name
        self._clock = text(f"SELECT {database_clock(self.dialect)}")

    def __repr__(self) -> str:
        return f"<Database {self.engine.url.render_as_string(hide_password=True)}>"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end, rolled back by an exception.

        Raises DatabaseUnavailable in an outage, DatabaseError where tables are missing or the file is none;
        what is wrong with a value or a statement comes through as SQLAlchemy's error.
        """
        with self._transaction(campaigns_write=True) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction; on SQLite it never waits for a writer."""
        with self._transaction(campaigns_write=False) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, campaigns_write: bool) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connection:
                connection.execution_options(campaigns_write=campaigns_write)
                with connection.begin():
                    yield connection
        except (exc.DBAPIError, exc.TimeoutError) as error:
            translated = _translated(error, self.engine.url)
            if translated is None:
                raise
            raise translated from error

    def clock(self, connection: Connection) -> float:
        """The database's time, seconds since the epoch, on an open connection."""
        return float(connection.execute(self._clock).scalar_one())

    def now(self) -> float:
        """The database's time, seconds since the epoch."""
        with self.read() as connection:
            return self.clock(connection)

    def check(self) -> None:
        """Raise DatabaseError if the database is too old, not durable, or not migrated."""
        from campaigns import schema  # noqa: PLC0415 - Alembic takes long to import, and few need it

        with self.read() as connection:
            if self.dialect == "sqlite":
                _check_sqlite(connection)
            else:
                _check_postgresql(connection)
            schema.check(connection)

    def upgrade(self) -> None:
        """Create the tables, or bring them up to date. Safe to run twice at once."""
        from campaigns import schema  # noqa: PLC0415 - Alembic takes long to import, and few need it

        with self.write() as connection:
            schema.upgrade(connection)

    def close(self) -> None:
        self.engine.dispose()


def create_database(url: str | URL) -> Database:
    """A Database for a SQLAlchemy URL: `sqlite:///file` or `postgresql+psycopg://user@host/db`.

    Connects to nothing yet. Raises DatabaseError for a URL that is none, or of another database.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except exc.ArgumentError as error:
        raise DatabaseError(
            "the database URL cannot be read; expected sqlite:/// or postgresql+psycopg://"
        ) from error
    if backend == "sqlite":
        return Database(_sqlite_engine(parsed))
    if backend == "postgresql":
        return Database(_postgresql_engine(parsed))
    raise DatabaseError(f"the database {backend} is not supported; use sqlite:/// or postgresql+psycopg://")


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise DatabaseError("SQLite needs a file, as in sqlite:///campaigns.db: processes share it")
    busy_seconds = float(str(url.query.get("timeout", BUSY_SECONDS)))
    settings = {"timeout": busy_seconds, "check_same_thread": False}
    engine = create_engine(url, connect_args=settings, hide_parameters=True)

    @event.listens_for(engine, "do_connect")
    def _make_privately(*_: object) -> None:
        if url.database and not url.database.startswith("file:"):
            with suppress(OSError):  # SQLite says better what is wrong; its -wal and -shm follow this mode
                make_private_file(Path(url.database))

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("campaigns_write", True)
        if writes:
            _begin_immediate(connection, busy_seconds)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _begin_immediate(connection: Connection, busy_seconds: float) -> None:
    """Ask for the write lock every millisecond or two.

    SQLite's own busy handler sleeps for up to 100 ms between its tries, and starves behind busy writers:
    a pause would wait for seconds.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    deadline = time.monotonic() + busy_seconds
    driver.execute("PRAGMA busy_timeout = 0").close()
    try:
        while not _has_begun(driver) and time.monotonic() < deadline:
            time.sleep(random.uniform(0.0005, 0.002))  # noqa: S311 - jitter
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # fails again: this way SQLAlchemy wraps the error
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}").close()


def _has_begun(driver: sqlite3.Connection) -> bool:
    try:
        driver.execute("BEGIN IMMEDIATE").close()
    except sqlite3.OperationalError:
        return False
    return True


def _postgresql_engine(url: URL) -> Engine:
    settings = {key: value for key, value in _POSTGRESQL_CONNECT.items() if key not in url.query}
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=settings,
            isolation_level="READ COMMITTED",
            pool_timeout=10,
            hide_parameters=True,  # an error's text must not quote addresses
        )
    except ModuleNotFoundError as error:
        raise DatabaseError("PostgreSQL needs psycopg; run `pip install campaigns[postgresql]`") from error


def _check_sqlite(connection: Connection) -> None:
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise DatabaseError(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
    if connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < 2:
        raise DatabaseError("SQLite does not sync its commits; synchronous must be FULL")
    if connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() != "wal":
        raise DatabaseError("SQLite cannot keep a write-ahead log here; put the file on a local disk")


def _check_postgresql(connection: Connection) -> None:
    for name in ("synchronous_commit", "fsync"):
        value = connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one()
        if value == "off":
            raise DatabaseError(f"PostgreSQL has {name} = {value}; a commit must survive a crash: turn it on")
    if connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one():
        raise DatabaseError("this PostgreSQL server is a read-only standby; use the primary's address")


def _translated(error: exc.DBAPIError | exc.TimeoutError, url: URL) -> DatabaseError | None:
    if is_outage(error):
        return DatabaseUnavailable(_outage_text(error, url))
    if isinstance(error, exc.DBAPIError) and _is_missing_table(error):
        return DatabaseError("the database is not up to date; run `campaigns db upgrade`")
    if isinstance(error, exc.DBAPIError) and _sqlite_code(error) in _SQLITE_BROKEN:
        return DatabaseError(
            f"the database file {url.database} is damaged or is none: {error.orig};"
            " put a backup in its place, or name another file in `database`"
        )
    return None


def _is_missing_table(error: exc.DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return str(error.orig).startswith(("no such table", "no such column"))
    return sqlstate(error) in _POSTGRESQL_UNDEFINED


def _sqlite_code(error: exc.DBAPIError) -> int | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # the extended codes carry more in the upper bits


def is_outage(error: Exception) -> bool:
    """Whether waiting and trying again may help (the database is away, locked, full or read-only)."""
    if isinstance(error, exc.TimeoutError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_code(error) in _SQLITE_OUTAGES
    state = sqlstate(error)
    if state is None:
        return error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError)
    return error.connection_invalidated or state.startswith(_POSTGRESQL_OUTAGES)


def is_conflict(error: Exception) -> bool:
    """Whether the transaction lost a race (deadlock, serialization) and is simply run again."""
    return isinstance(error, exc.DBAPIError) and sqlstate(error) in _POSTGRESQL_CONFLICTS


def sqlstate(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _outage_text(error: Exception, url: URL) -> str:
    original = getattr(error, "orig", None) or error
    which = f"database {url.database}" if isinstance(original, sqlite3.Error) else "database"
    return f"the {which} cannot be reached or written: {str(original).strip().splitlines()[0]}"

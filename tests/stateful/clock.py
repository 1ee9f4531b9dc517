"""A clock that the test sets, in place of the database's own; and attempts' own clocks beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from campaigns import database
from campaigns.database import Database, create_database

START = 1_000_000.0
"""Whole seconds throughout, so that sums are exact in both databases and in Python."""

_CLOCK = "(SELECT at FROM hand_clock)"


class HandClock:
    """`now` is the database's time. `monotonic` is what a worker's own clock shows: it never jumps."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.now = self.monotonic = START
        self._execute("CREATE TABLE hand_clock (at double precision)")
        self._execute("INSERT INTO hand_clock VALUES (0)")

    def __repr__(self) -> str:
        return f"<HandClock at {self.now}>"

    def reset(self) -> None:
        self.monotonic = START
        self._set(START)

    def advance(self, seconds: float) -> None:
        self.monotonic += seconds
        self._set(self.now + seconds)

    def jump(self, seconds: float) -> None:
        """Somebody sets the database's clock, or a machine sleeps: workers do not notice."""
        self._set(self.now + seconds)

    def _set(self, now: float) -> None:
        self.now = now
        self._execute("UPDATE hand_clock SET at = :at", at=now)

    def _execute(self, sql: str, **parameters: object) -> None:
        with self._database.write() as connection:
            connection.execute(text(sql), parameters)


@contextmanager
def clocked_database(url: str) -> Iterator[tuple[Database, HandClock]]:
    """The migrated database at `url`, reading the time from a table. Not synced: nobody pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        for dialect in ("sqlite", "postgresql"):
            patch.setitem(database._CLOCKS, dialect, _CLOCK)  # type: ignore[misc]
        opened = create_database(url)
        try:
            _unsynced(opened)
            yield opened, HandClock(opened)
        finally:
            opened.close()


def _unsynced(opened: Database) -> None:
    if opened.dialect == "postgresql":
        with opened.write() as connection:
            name = connection.execute(text("SELECT current_database()")).scalar_one()
            connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    else:
        with opened.read() as connection:  # the pool keeps this one connection for its one thread
            driver = connection.connection.driver_connection
            assert driver is not None
        driver.execute("PRAGMA synchronous = OFF").close()
    if opened.dialect == "postgresql":
        opened.engine.dispose()  # new connections have the new setting

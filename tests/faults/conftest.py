"""The same installations as the acceptance tests have, with faults injected."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import either_place, new_place, place
from tests.faults.trial import Trial, Trials
from tests.postgres import PostgresServer, postgres_server

__all__ = ["either_place", "either_trial", "new_place", "new_trial", "own_postgres", "place", "trial"]


HERE = Path(__file__).parent
LONGEST_SECONDS = 600
"""A test here waits for many processes; what hangs is found by its own patience."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_SECONDS))


@pytest.fixture
def new_trial(tmp_path: Path) -> Iterator[Trials]:
    """Makes an installation whose history is kept; it is taken down at the end, whatever happened."""
    with ExitStack() as stack:

        def make(database: str | None = None, **options: Any) -> Trial:
            directory = tmp_path / "trial"
            directory.mkdir(exist_ok=True)
            return stack.enter_context(Trial(directory, database, **options))

        yield make


@pytest.fixture
def trial(new_trial: Trials) -> Trial:
    """An installation on SQLite, with short leases and deadlines, whose history is kept."""
    return new_trial()


@pytest.fixture
def either_trial(new_trial: Trials, database_url: str) -> Trial:
    """The same, once on SQLite and once on PostgreSQL."""
    return new_trial(database_url)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be killed; the others' goes on."""
    with postgres_server() as server:
        yield server

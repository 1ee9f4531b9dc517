"""Fixtures for whole installations."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.place import Place

Places = Callable[..., Place]


@pytest.fixture
def new_place(tmp_path: Path) -> Iterator[Places]:
    """Makes an installation; it is taken down at the end, whatever happened."""
    with ExitStack() as stack:

        def make(database: str | None = None, **options: Any) -> Place:
            directory = tmp_path / "place"
            directory.mkdir()
            return stack.enter_context(Place(directory, database, **options))

        yield make


@pytest.fixture
def place(new_place: Places) -> Place:
    """An installation on SQLite with leases of three seconds."""
    return new_place(delivery="lease_seconds = 3\nconnect_seconds = 2")


@pytest.fixture
def either_place(new_place: Places, database_url: str) -> Place:
    """The same, once on SQLite and once on PostgreSQL."""
    return new_place(database_url, delivery="lease_seconds = 3\nconnect_seconds = 2")

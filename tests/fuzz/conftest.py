"""Long runs take as long as they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.budget import IS_LONG

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if IS_LONG and _HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(0))

"""Whom the soak's campaigns must reach is what the ledger took, and not what it has kept."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from campaigns.database import Database, create_database
from campaigns.ledger import Added, Ledger
from campaigns.states import Status
from tests.faults.checker import judge
from tests.faults.history import collect, watch
from tests.soak.traffic import SMALLEST, Traffic

NAME = "soak-1"


def _one_campaign(ledger: Ledger) -> dict[str, list[str]]:
    """Whom the one campaign that is added must reach; the next one would be due minutes later."""
    traffic = Traffic(ledger, seed=1, pace=60)
    traffic.start()
    deadline = time.monotonic() + 60
    while not traffic.added and traffic.failure is None:
        assert time.monotonic() < deadline, "no campaign was added"
        time.sleep(0.01)
    traffic.end()
    assert traffic.failure is None
    return traffic.emails


def _violations(ledger: Ledger, emails: dict[str, list[str]]) -> list[str]:
    return [one.what for one in judge(collect(ledger.database, [], emails=emails)) if one.property == "C"]


class _Forgetful(Ledger):
    """Says that it has added recipients to a campaign that runs, and has not."""

    def add_recipients(self, campaign_id: int, rows: Any, progress: Any = None) -> Added:
        if self.campaign_by_id(campaign_id).status is Status.RUNNING:
            return Added(added=len(rows), duplicate=0, suppressed=0)
        return super().add_recipients(campaign_id, rows, progress)


class _Hasty(Ledger):
    """Its campaigns are cancelled as soon as they are sent."""

    def send(self, name: str, *arguments: Any, **options: Any) -> Any:
        sent = super().send(name, *arguments, **options)
        self.cancel(name)
        return sent


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    database = create_database(sqlite_url)
    watch(database)
    yield database
    database.close()


def test_whoever_came_while_the_campaign_ran_is_missed_if_they_are_lost(sqlite: Database) -> None:
    ledger = _Forgetful(sqlite)
    emails = _one_campaign(ledger)
    kept = ledger.counts(NAME).total
    assert len(emails[NAME]) >= SMALLEST and kept == len(emails[NAME]) * 2 // 3
    assert any(f"lost {len(emails[NAME]) - kept}" in what for what in _violations(ledger, emails))


def test_whoever_came_too_late_is_not_missed(sqlite: Database) -> None:
    ledger = _Hasty(sqlite)
    emails = _one_campaign(ledger)
    assert len(emails[NAME]) == ledger.counts(NAME).total
    assert _violations(ledger, emails) == []

"""A server is not condemned further while nobody else can take the mail, whatever the reason for that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from campaigns.allowance import Allowance
from campaigns.breaker import Fault
from campaigns.database import create_database
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.settings import load_settings

CONFIGURATION = """
database = "{database}"
broker = "amqp://localhost:1//"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:1"
tls = "none"
limits = ["1000/d"]
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:2"
tls = "none"
"""
FIRST_SECONDS, LONGEST_SECONDS = 2.0, 120.0
DAY_SECONDS = 86_400.0

Longest = Callable[..., float]


@pytest.fixture
def longest(sqlite_url: str, tmp_path: Path) -> Longest:
    """The longest cool-down of a secondary that is dead for an hour, while `read` are read."""
    file = tmp_path / "campaigns.toml"
    file.write_text(CONFIGURATION.format(database=sqlite_url))
    settings = load_settings(file, {})
    ledger = Ledger(create_database(settings.database))
    now = [1_700_000_000.0]
    board = HealthBoard(
        None,
        clock=lambda: now[0],
        servers=("primary", "secondary"),
        random=lambda: 0.5,
        monotonic=lambda: now[0],
    )
    fleet = Fleet(settings, ledger, board, monotonic=lambda: now[0])

    def run(*read: str, is_full: bool = False) -> float:
        ledger.heartbeat("w1", read, host="here", pid=1, sent_per_second=0.0)
        with ledger.database.write() as connection:
            connection.execute(text("UPDATE worker SET started_at = started_at - 60"))
        if is_full:
            board.set_full_for("primary", DAY_SECONDS)
        found = 0.0
        for _ in range(200):
            now[0] += 18.0
            fleet.refresh_soon()
            fleet.refresh()
            probe = board.may_probe("secondary")
            if probe is not None:
                board.fault("secondary", Fault(reason="refused", token=probe.token))
            health = board.snapshot().get("secondary")
            if health is not None and health.open_until is not None:
                found = max(found, health.open_until - health.since)
        return found

    return run


def test_cool_downs_grow_while_another_one_takes_the_mail(longest: Longest) -> None:
    assert longest("primary", "secondary") == LONGEST_SECONDS


def test_cool_downs_do_not_grow_while_the_other_one_is_full(longest: Longest) -> None:
    assert longest("primary", "secondary", is_full=True) == FIRST_SECONDS


def test_cool_downs_do_not_grow_while_nobody_reads_the_other_one(longest: Longest) -> None:
    assert longest("secondary") == FIRST_SECONDS


def test_cool_downs_do_not_grow_while_the_other_ones_limit_is_used_up(
    longest: Longest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Allowance, "is_exhausted", lambda *_: (DAY_SECONDS, "1000/d"))
    assert longest("primary", "secondary") == FIRST_SECONDS

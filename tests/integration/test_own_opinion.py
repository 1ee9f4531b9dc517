"""While processes cannot share what they know of the servers, none of them moves mail on its own opinion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import Settings
from workers.standing import Standing


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(socket=tmp_path / "v.sock", directory=tmp_path / "valkey")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def fleet(ledger: Ledger, tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Fleet]:
    servers = [
        {"name": name, "url": "smtp://127.0.0.1:2525", "tls": "none"} for name in ("primary", "secondary")
    ]
    settings = Settings.model_validate(
        {
            "directory": tmp_path,
            "broker": f"redis+socket://{broker.socket}",
            "servers": servers,
        }
    )
    board = HealthBoard(settings.state_url, policy=settings.breaker, servers=["primary", "secondary"])
    yield Fleet(settings, ledger, board)
    board.close()


def give_up(fleet: Fleet, server: str) -> None:
    for _ in range(fleet.settings.breaker.consecutive_faults):
        fleet.board.fault(server, "refused")
    fleet.refresh()
    assert fleet.state(server) == "open"


def test_what_all_know_moves_mail(fleet: Fleet) -> None:
    give_up(fleet, "primary")
    assert fleet.unavailable() == ("primary",)
    assert Standing(fleet).another("promotional", "", "", "primary") == "secondary"


def test_what_one_alone_believes_moves_none(fleet: Fleet, broker: EmbeddedBroker) -> None:
    broker.kill()
    give_up(fleet, "primary")
    assert fleet.admits("primary") is False, "it takes no mail from this process"
    assert fleet.unavailable() == (), "what waits for it stays"
    assert Standing(fleet).another("promotional", "", "", "primary") is None, "what it gave up waits"

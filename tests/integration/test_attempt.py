"""One attempt of a worker, against a real server and a real database: what it leaves in the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from campaigns.database import create_database
from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.queues import create_app
from campaigns.settings import load_settings
from tests.crowd import Crowd
from workers.attempt import Attempt, Job
from workers.services import Services

CONFIGURATION = """
database = "{database}"
broker = "amqp://localhost:1//"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:{port}"
tls = "none"
weight = 1
"""
LISTED = "550 5.7.1 Service unavailable; client [192.0.2.7] blocked using b.barracudacentral.org"
UNAUTHENTICATED = "550 5.7.26 Your email has been blocked because the sender is unauthenticated."


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedSmtpServer]:
    async with ScriptedSmtpServer(tmp_path / "accepted.jsonl") as server:
        yield server


@pytest.fixture
async def services(server: ScriptedSmtpServer, sqlite_url: str, tmp_path: Path) -> AsyncIterator[Services]:
    """All that a worker process has, but for the broker: with one server, an attempt does not need it."""
    file = tmp_path / "campaigns.toml"
    file.write_text(CONFIGURATION.format(database=sqlite_url, port=server.port), encoding="utf-8")
    settings = load_settings(file, {})
    database = create_database(settings.database)
    fleet = Fleet(settings, Ledger(database), HealthBoard(settings.state_url))
    services = Services(settings, create_app(settings), database, fleet, owner="worker-1")
    yield services
    await services.close()


def outcomes(services: Services) -> list[str]:
    with services.database.read() as connection:
        return list(connection.execute(text("SELECT outcome FROM attempt ORDER BY id")).scalars())


@pytest.mark.parametrize(
    ("reply", "outcome", "counted"),
    [(LISTED, "policy-server-domain", {}), (UNAUTHENTICATED, "policy", {"primary": {"example.com"}})],
)
async def test_a_refusal_by_policy_is_counted_only_if_it_is_the_senders(
    services: Services, server: ScriptedSmtpServer, reply: str, outcome: str, counted: dict[str, set[str]]
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="dot", action="reply", reply=reply))
    await Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services).run()
    assert outcomes(services) == [outcome]
    assert services.ledger.policy_refusals(crowd.campaign_id) == counted
    assert services.ledger.policy_refusers(crowd.ids[0]) == {"primary"}

"""All that one attempt of a worker needs: a real server, a real database, and the services of a process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from campaigns.database import create_database
from campaigns.demo.smtp_server import ScriptedSmtpServer
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.queues import create_app
from campaigns.settings import load_settings
from workers.services import Services

CONFIGURATION = """
database = "{database}"
broker = "amqp://localhost:1//"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:{port}"
tls = "none"
{more}
"""

MakeServices = Callable[[str], Services]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedSmtpServer]:
    async with ScriptedSmtpServer(tmp_path / "accepted.jsonl") as server:
        yield server


@pytest.fixture
async def make_services(
    server: ScriptedSmtpServer, sqlite_url: str, tmp_path: Path
) -> AsyncIterator[MakeServices]:
    """Of a configuration that goes on with these lines of TOML after the primary's."""
    made: list[Services] = []

    def make(more: str) -> Services:
        file = tmp_path / "campaigns.toml"
        text = CONFIGURATION.format(database=sqlite_url, port=server.port, more=more)
        file.write_text(text, encoding="utf-8")
        settings = load_settings(file, {})
        database = create_database(settings.database)
        names = [server.name for server in settings.servers]
        board = HealthBoard(settings.state_url, policy=settings.breaker, servers=names)
        fleet = Fleet(settings, Ledger(database), board)
        made.append(Services(settings, create_app(settings), database, fleet, owner="worker-1"))
        return made[-1]

    yield make
    for services in made:
        await services.close()


@pytest.fixture
def services(make_services: MakeServices) -> Services:
    """All that a worker process has, but for the broker: with one server, an attempt does not need it."""
    return make_services("")

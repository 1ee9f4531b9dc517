"""A server that takes fewer connections than are configured: when an attempt holds that against it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from campaigns.breaker import Fault
from campaigns.database import create_database
from campaigns.demo.smtp_server import ScriptedSmtpServer
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
[breaker]
slow_seconds = {slow_seconds}
"""

MakeServices = Callable[[float], Services]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedSmtpServer]:
    async with ScriptedSmtpServer(tmp_path / "accepted.jsonl") as server:
        server.most_connections = 0
        yield server


@pytest.fixture
async def make_services(
    server: ScriptedSmtpServer, sqlite_url: str, tmp_path: Path
) -> AsyncIterator[MakeServices]:
    made: list[Services] = []

    def make(slow_seconds: float) -> Services:
        file = tmp_path / "campaigns.toml"
        text = CONFIGURATION.format(database=sqlite_url, port=server.port, slow_seconds=slow_seconds)
        file.write_text(text, encoding="utf-8")
        settings = load_settings(file, {})
        database = create_database(settings.database)
        fleet = Fleet(settings, Ledger(database), HealthBoard(settings.state_url, policy=settings.breaker))
        made.append(Services(settings, create_app(settings), database, fleet, owner="worker-1"))
        return made[-1]

    yield make
    for services in made:
        await services.close()


@pytest.mark.parametrize(
    ("slow_seconds", "others_per_second", "faults"),
    [(60.0, 0.0, 0), (0.5, 0.0, 1), (0.5, 3.0, 0)],
    ids=["for a while only", "to everybody", "others have all connections"],
)
async def test_one_connection_too_many_is_a_fault_only_if_it_is_so_for_everybody_and_for_long(
    make_services: MakeServices,
    monkeypatch: pytest.MonkeyPatch,
    slow_seconds: float,
    others_per_second: float,
    faults: int,
) -> None:
    services = make_services(slow_seconds)
    fleet = services.standing._fleet
    fleet.readers = replace(fleet.readers, sent_per_second={"primary": others_per_second})
    told: list[Fault] = []

    async def report_fault(_: str, fault: Fault) -> None:
        told.append(fault)

    monkeypatch.setattr(services.standing, "report_fault", report_fault)
    crowd = Crowd(services.ledger)
    crowd.queue()
    job = Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary")
    result = await Attempt(job, services).run()
    assert result is not None and result.state == "RETRY" and "too many connections" in result.result
    assert len(told) == faults

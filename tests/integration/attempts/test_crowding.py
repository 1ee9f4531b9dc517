"""A server that takes fewer connections than are configured: when an attempt holds that against it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaigns.breaker import Fault
from campaigns.demo.smtp_server import ScriptedSmtpServer
from tests.crowd import Crowd
from tests.integration.attempts.conftest import MakeServices
from workers.attempt import Attempt, Job


@pytest.fixture
def server(server: ScriptedSmtpServer) -> ScriptedSmtpServer:
    server.most_connections = 0
    return server


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
    services = make_services(f"[breaker]\nslow_seconds = {slow_seconds}")
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

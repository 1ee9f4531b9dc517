"""A worker's attempts and the limits: what is full costs no attempt, no connection and no claim."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Claim, Ledger, Operation
from campaigns.queues import TaskResult
from tests.crowd import Crowd, new_recipients
from tests.integration.attempts.conftest import MakeServices
from workers.attempt import Attempt, Job
from workers.services import Services

ONE_AN_HOUR = '[servers.domain_limits]\n"example.com" = "1/h"'


async def _attempt(services: Services, crowd: Crowd, number: int) -> TaskResult | None:
    job = Job(campaign=crowd.name, delivery_id=crowd.ids[number], server="primary")
    return await Attempt(job, services).run()


async def test_mail_to_a_full_domain_goes_back_untouched_and_others_pass(
    make_services: MakeServices, server: ScriptedSmtpServer
) -> None:
    services = make_services(ONE_AN_HOUR)
    crowd, other = Crowd(services.ledger, 2), Crowd(services.ledger, 0)
    services.ledger.add_recipients(other.campaign_id, new_recipients(1, domain="b.example"))
    other.ids = [delivery.id for delivery in services.ledger.deliveries(other.name)]
    crowd.queue()
    other.queue()
    assert (await _attempt(services, crowd, 0)).state == "SUCCESS"  # type: ignore[union-attr]
    held = await _attempt(services, crowd, 1)
    assert held is not None
    assert held.state == "RETRY"
    assert "the limit of 1/h to example.com through primary" in held.result
    row = crowd.row(crowd.ids[1])
    assert (row["state"], row["fence"], row["deferrals"]) == ("pending", 0, 0)
    assert row["next_attempt_at"] > services.ledger.now() + 30
    assert len(crowd.attempts()) == 1
    assert (await _attempt(services, other, 0)).state == "SUCCESS"  # type: ignore[union-attr]


async def test_a_full_limit_opens_no_connection(
    make_services: MakeServices, server: ScriptedSmtpServer
) -> None:
    services = make_services("[servers.warm_up]\nstart = 2099-01-01\nper_day = [10]")
    crowd = Crowd(services.ledger, 3)
    crowd.queue()
    results = await asyncio.gather(*(_attempt(services, crowd, number) for number in range(3)))
    held_by = "the limit of 0/d (warm-up begins on 2099-01-01)"
    assert all(result is not None and held_by in result.result for result in results)
    assert "0 idle, 0 busy" in repr(services.pool("primary"))
    assert crowd.attempts() == []


async def test_a_message_too_many_uses_up_nothing(make_services: MakeServices) -> None:
    services = make_services('limits = ["1/h"]')
    crowd = Crowd(services.ledger, 1)
    ignored = await _attempt(services, crowd, 0)
    assert ignored is not None
    assert ignored.state == "IGNORED"
    crowd.queue()
    await asyncio.sleep(0.1)
    assert (await _attempt(services, crowd, 0)).state == "SUCCESS"  # type: ignore[union-attr]


async def test_a_server_that_cannot_be_reached_uses_up_nothing(
    make_services: MakeServices, server: ScriptedSmtpServer
) -> None:
    services = make_services('limits = ["1/h"]')
    crowd = Crowd(services.ledger, 2)
    crowd.queue()
    server.script.set(Misbehaviour(phase="greeting", action="reply", reply="421 4.3.2 not now"))
    await _attempt(services, crowd, 0)
    server.script.clear()
    await asyncio.sleep(0.1)
    assert (await _attempt(services, crowd, 1)).state == "SUCCESS"  # type: ignore[union-attr]


class _AwayForAClaim(Ledger):
    """The database goes away with the first claim, and returns."""

    has_been_away = False

    def apply(self, operations: Sequence[Operation]) -> list[object]:
        if not self.has_been_away and any(isinstance(operation, Claim) for operation in operations):
            self.has_been_away = True
            raise DatabaseUnavailable("gone")
        return super().apply(operations)


async def test_a_claim_that_the_database_does_not_take_uses_up_nothing(
    make_services: MakeServices,
) -> None:
    services = make_services('limits = ["1/h"]')
    crowd = Crowd(services.ledger, 1)
    crowd.queue()
    services.ledger.__class__ = _AwayForAClaim
    services.group._write = services.ledger.apply  # the bound method was taken before
    sent = await _attempt(services, crowd, 0)
    assert cast(_AwayForAClaim, services.ledger).has_been_away
    assert sent is not None
    assert sent.state == "SUCCESS", sent.result


async def test_an_attempt_that_is_stopped_while_it_connects_uses_up_nothing(
    make_services: MakeServices, server: ScriptedSmtpServer
) -> None:
    services = make_services('limits = ["1/h"]')
    crowd = Crowd(services.ledger, 2)
    crowd.queue()
    server.script.set(Misbehaviour(phase="greeting", action="delay", seconds=30))
    attempt = Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services)
    task = asyncio.create_task(attempt.run())
    while not server.stats["misbehaved.greeting.delay"]:  # noqa: ASYNC110 - the server's own time
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    attempt.stop()
    assert await task is None
    server.script.clear()
    await asyncio.sleep(0.1)
    assert (await _attempt(services, crowd, 1)).state == "SUCCESS"  # type: ignore[union-attr]


async def test_a_domain_that_is_throttled_gets_no_more_from_this_server_for_now(
    make_services: MakeServices, server: ScriptedSmtpServer
) -> None:
    services = make_services("")
    crowd = Crowd(services.ledger, 2)
    crowd.queue()
    reply = "450 4.7.1 Rate limit for your address, try again in 40 minutes"
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply=reply))
    await _attempt(services, crowd, 0)
    (block,) = services.ledger.blocks()
    assert (block.server, block.domain) == ("primary", "example.com")
    assert block.until == pytest.approx(services.ledger.now() + 2400, abs=30)
    server.script.clear()
    held = await _attempt(services, crowd, 1)
    assert held is not None
    assert held.state == "RETRY"
    assert len(crowd.attempts()) == 1
    (event,) = services.ledger.events()
    assert (event.kind, event.server, event.to_state) == ("limit", "primary", "full")


async def test_a_server_that_is_full_in_its_greeting_is_left_alone_for_as_long_as_it_says(
    make_services: MakeServices, server: ScriptedSmtpServer
) -> None:
    services = make_services("")
    crowd = Crowd(services.ledger, 1)
    crowd.queue()
    reply = "421 4.7.0 busy, try again in 50 seconds"
    server.script.set(Misbehaviour(phase="greeting", action="reply", reply=reply))
    await _attempt(services, crowd, 0)
    health = services.standing._fleet.board.snapshot()["primary"]
    assert health.is_full
    assert health.rest_seconds == pytest.approx(50, abs=5)
    assert health.state == "closed"

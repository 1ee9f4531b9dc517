"""What a worker does with mail that a drill has find its server dead, and what the command refuses."""

from __future__ import annotations

import pytest

from campaigns.breaker import Fault
from campaigns.ledger import NewRecipient
from campaigns.queues import TaskResult
from campaigns.states import State
from tests.integration.attempts.conftest import MakeServices
from workers.attempt import Attempt, Job
from workers.services import Services

MORE = """
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:9"
tls = "none"
[streams]
transactional = ["primary"]
[breaker]
consecutive_faults = 1
"""


@pytest.fixture
def services(make_services: MakeServices) -> Services:
    """A server, a second one that is not in every stream, and a breaker that opens at the first fault."""
    return make_services(MORE)


def queued_mail(services: Services, purpose: str, stream: str = "promotional") -> Job:
    ledger = services.ledger
    campaign = ledger.create_campaign(
        purpose,
        sender="Drill <drill@example.com>",
        subject="Hi",
        text="Hello",
        purpose=purpose,
        stream=stream,
    )
    ann = NewRecipient(email="ann@example.com", dedupe_key="ann@example.com", domain="example.com")
    ledger.add_recipients(campaign.id, [ann])
    ledger.send(campaign.name)
    (due,) = [one for one in ledger.due(10) if one.campaign_id == campaign.id]
    ledger.enqueue([(due.delivery_id, "primary")])
    return Job(campaign=campaign.name, delivery_id=due.delivery_id, server="primary")


async def attempted(
    services: Services,
    purpose: str,
    *,
    live: bool,
    notice_seconds: float = 0.0,
    stream: str = "promotional",
) -> TaskResult:
    """One attempt of a mail of that purpose while the primary is declared dead."""
    job = queued_mail(services, purpose, stream)
    services.ledger.begin_drill("primary", is_live=live, notice_seconds=notice_seconds, seconds=60)
    await services.standing.refresh()
    result = await Attempt(job, services).run()
    assert result is not None
    return result


def state_of(services: Services, purpose: str) -> State:
    (delivery,) = services.ledger.deliveries(purpose)
    return delivery.state


def breaker(services: Services) -> list[str | None]:
    return [event.to_state for event in services.ledger.events() if event.kind == "breaker"]


async def test_a_drills_mail_finds_the_server_dead_and_is_never_claimed(services: Services) -> None:
    result = await attempted(services, "drill", live=False)
    assert result.state == "RETRY" and "declared dead by a drill" in result.result
    assert state_of(services, "drill") is State.PENDING
    (delivery,) = services.ledger.deliveries("drill")
    assert delivery.fence == 0, "it was not claimed"
    assert services.ledger.drill_attempts([services.ledger.campaign("drill").id]) == []
    assert breaker(services) == [], "the server did nothing wrong"
    (drill,) = services.ledger.drills()
    assert drill.detection_seconds is not None


async def test_other_mail_goes_through_a_server_that_a_drill_declares_dead(services: Services) -> None:
    assert (await attempted(services, "campaign", live=False)).state == "SUCCESS"
    (drill,) = services.ledger.drills()
    assert drill.detection_seconds is None, "it did not meet the drill"


async def test_a_live_drill_is_met_by_all_mail_and_the_breaker_hears_of_it(services: Services) -> None:
    assert (await attempted(services, "campaign", live=True)).state == "RETRY"
    assert state_of(services, "campaign") is State.PENDING
    assert breaker(services) == ["open"]


async def test_mail_goes_out_until_the_moment_that_was_announced(services: Services) -> None:
    assert (await attempted(services, "campaign", live=True, notice_seconds=60)).state == "SUCCESS"


async def test_mail_that_has_no_other_server_does_not_wait_for_the_end_of_a_live_drill(
    services: Services,
) -> None:
    assert (await attempted(services, "campaign", live=True, stream="transactional")).state == "SUCCESS"
    assert breaker(services) == []


async def test_mail_goes_through_the_server_of_a_live_drill_once_the_other_one_fails(
    services: Services,
) -> None:
    await services.standing.report_fault("secondary", Fault(reason="for the test"))
    assert (await attempted(services, "campaign", live=True)).state == "SUCCESS"


async def test_a_drills_own_mail_never_goes_through_the_server_that_it_declares_dead(
    services: Services,
) -> None:
    assert (await attempted(services, "drill", live=True, stream="transactional")).state == "RETRY"
    assert state_of(services, "drill") is State.PENDING

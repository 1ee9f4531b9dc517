"""A break-off that is lost on its way: what it may not come to."""

from __future__ import annotations

import asyncio

import pytest
from aiosmtplib.protocol import SMTPProtocol

from campaigns.breaker import Fault
from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.queues import TaskResult
from campaigns.reply import Phase
from campaigns.states import State
from tests.crowd import Crowd
from workers.attempt import Attempt, Job
from workers.services import Services


def attempt_of(services: Services, crowd: Crowd, index: int = 0) -> Attempt:
    return Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[index], server="primary"), services)


async def at_its_dot(attempt: Attempt, server: ScriptedSmtpServer) -> asyncio.Task[TaskResult | None]:
    """The attempt under way; the server has been given its dot."""
    dots = server.stats["dots"]
    task = asyncio.create_task(attempt.run())
    while server.stats["dots"] == dots:  # noqa: ASYNC110 - the server's own time
        await asyncio.sleep(0.01)
    return task


def end_with_the_answer(attempt: Attempt, how: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ends it in the very turn of the loop in which the answer to its EHLO comes. Returns what was ended."""
    data_received = SMTPProtocol.data_received
    ended: list[str] = []

    def received(protocol: SMTPProtocol, data: bytes) -> None:
        data_received(protocol, data)
        if attempt.wait.phase is Phase.EHLO and not ended:
            ended.append(how)
            attempt.break_off() if how == "broken off" else attempt.stop()

    monkeypatch.setattr(SMTPProtocol, "data_received", received)
    return ended


@pytest.mark.parametrize("how", ["broken off", "stopped"])
async def test_a_break_off_that_comes_together_with_an_answer_holds(
    services: Services, server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    attempt = attempt_of(services, crowd)
    ended = end_with_the_answer(attempt, how, monkeypatch)
    result = await asyncio.wait_for(attempt.run(), 10)
    assert ended and server.stats["dots"] == 0
    assert crowd.row()["fence"] == 0, "it was not even claimed"
    if how == "broken off":
        assert result is not None and "the server is given up" in result.result
    assert "0 busy" in repr(services.pool("primary"))


async def test_a_break_off_that_comes_together_with_an_answer_to_the_second_connection_holds(
    services: Services, server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(services.ledger, 2)
    crowd.queue()
    await attempt_of(services, crowd).run()
    server.script.set(Misbehaviour(phase="mail", action="drop", times=1))
    attempt = attempt_of(services, crowd, 1)
    ended = end_with_the_answer(attempt, "broken off", monkeypatch)
    await asyncio.wait_for(attempt.run(), 10)
    assert ended and server.stats["dots"] == 1
    assert crowd.state(crowd.ids[1]) is State.PENDING
    assert "0 busy" in repr(services.pool("primary")) and len(services.leases) == 0


async def test_who_is_ended_at_the_dot_leaves_an_uncertain_although_it_is_to_be_broken_off(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="dot", action="accept-stall", seconds=30))
    attempt = attempt_of(services, crowd)
    task = await at_its_dot(attempt, server)
    attempt._broken_off_at = Phase.EHLO
    attempt.stop(even_at_the_dot=True)
    await task
    assert server.stats["accepted"] == 1
    assert crowd.state() is State.UNCERTAIN


async def test_mail_that_went_on_to_its_dot_tells_how_the_server_did(
    services: Services, server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    told: list[Fault] = []

    async def report_fault(_: str, fault: Fault) -> None:
        told.append(fault)

    monkeypatch.setattr(services.standing, "report_fault", report_fault)
    server.script.set(Misbehaviour(phase="dot", action="reply", reply="421 4.3.0 going down"))
    attempt = attempt_of(services, crowd)
    send_over = attempt._send_over

    async def send(*arguments: object) -> object:
        attempt._broken_off_at = Phase.EHLO
        return await send_over(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attempt, "_send_over", send)
    await attempt.run()
    assert [fault.reason for fault in told] == ["421 4.3.0 going down"]

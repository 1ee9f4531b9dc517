"""What an attempt may not do, each shown where only its own guard prevents it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from sqlalchemy import text

from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Claim, Ledger, Operation, Record
from campaigns.queues import TaskResult
from campaigns.states import State
from tests.crowd import Crowd
from workers.attempt import Attempt, Job, Step
from workers.leases import LeaseKeeper
from workers.services import Services
from workers.transaction import Transaction


class _Told(Ledger):
    """Tells of what is asked of it before it does it."""

    asked: Callable[[Sequence[Operation]], None]

    def apply(self, operations: Sequence[Operation]) -> list[object]:
        self.asked(operations)
        return super().apply(operations)


def when_asked(services: Services, act: Callable[[Sequence[Operation]], None]) -> None:
    services.ledger.__class__ = _Told
    ledger = cast(_Told, services.ledger)
    ledger.asked = act
    services.group._write = ledger.apply  # the bound method was taken before


def attempt_of(services: Services, crowd: Crowd, index: int = 0) -> Attempt:
    job = Job(campaign=crowd.name, delivery_id=crowd.ids[index], server="primary")
    return Attempt(job, services)


async def at_its_dot(attempt: Attempt, server: ScriptedSmtpServer) -> asyncio.Task[TaskResult | None]:
    """The attempt under way; the server has been given its dot."""
    task = asyncio.create_task(attempt.run())
    while not server.stats["dots"]:  # noqa: ASYNC110 - the server's own time
        await asyncio.sleep(0.01)
    return task


async def test_who_is_ended_at_the_dot_leaves_an_uncertain(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="dot", action="delay", seconds=30))
    attempt = attempt_of(services, crowd)
    task = await at_its_dot(attempt, server)
    attempt.stop(even_at_the_dot=True)
    await task
    assert crowd.state() is State.UNCERTAIN


async def test_a_warm_shutdown_waits_for_the_reply_to_the_dot(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="dot", action="delay", seconds=0.3))
    attempt = attempt_of(services, crowd)
    task = await at_its_dot(attempt, server)
    attempt.stop()
    await task
    assert crowd.state() is State.SENT


async def until(attempt: Attempt, step: Step) -> None:
    while attempt.step is not step:  # noqa: ASYNC110 - the moment itself is wanted
        await asyncio.sleep(0)


async def terminated(task: asyncio.Task[TaskResult | None]) -> None:
    """As `revoke --terminate` does it."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("step", [Step.CLAIMING, Step.SENDING])
async def test_mail_whose_task_is_terminated_before_the_dot_is_free_at_once(
    services: Services, server: ScriptedSmtpServer, step: Step
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="rcpt", action="delay", seconds=30))
    attempt = attempt_of(services, crowd)
    task = asyncio.create_task(attempt.run())
    await until(attempt, step)
    await terminated(task)
    row = crowd.row(crowd.ids[0])
    assert (row["state"], row["crashes"]) == ("pending", 0)
    assert row["next_attempt_at"] <= services.ledger.now()
    assert len(services.leases) == 0
    assert server.stats["dots"] == 0


async def test_a_reply_that_comes_to_a_terminated_task_at_its_dot_is_recorded(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="dot", action="delay", seconds=0.3))
    await terminated(await at_its_dot(attempt_of(services, crowd), server))
    assert crowd.state() is State.SENT
    assert len(services.leases) == 0


async def test_a_mistake_of_ours_after_the_dot_leaves_an_uncertain(
    services: Services, server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    reply_to_dot = Transaction._reply_to_dot

    async def go_wrong(transaction: Transaction) -> Any:
        await reply_to_dot(transaction)
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(Transaction, "_reply_to_dot", go_wrong)
    await attempt_of(services, crowd).run()
    assert server.stats["accepted"] == 1
    assert crowd.state() is State.UNCERTAIN


async def test_a_worker_that_ends_waits_for_what_is_being_recorded(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    attempt = attempt_of(services, crowd)
    settle = attempt._settle

    async def slowly(*arguments: Any) -> TaskResult:
        await asyncio.sleep(0.3)
        return await settle(*arguments)

    attempt._settle = slowly  # type: ignore[method-assign]
    task = asyncio.create_task(attempt.run())
    await until(attempt, Step.RECORDING)
    await asyncio.sleep(0.05)
    assert crowd.state() is State.COMMITTING
    await services.close()
    assert crowd.state() is State.SENT
    await task


@pytest.mark.parametrize("times", [1, 2])
async def test_a_terminated_task_without_a_reply_to_its_dot_leaves_an_uncertain(
    services: Services, server: ScriptedSmtpServer, times: int
) -> None:
    """After the time that a shutdown gives it; or at once, when it is told so twice."""
    crowd = Crowd(services.ledger)
    crowd.queue()
    shutdown_seconds = 0.3 if times == 1 else 30.0
    services.settings = services.settings.model_copy(
        update={"delivery": services.delivery.model_copy(update={"shutdown_seconds": shutdown_seconds})}
    )
    server.script.set(Misbehaviour(phase="dot", action="delay", seconds=30))
    task = await at_its_dot(attempt_of(services, crowd), server)
    if times == 2:
        task.cancel()
        await asyncio.sleep(0.1)
        assert crowd.state() is State.COMMITTING
    await asyncio.wait_for(terminated(task), 5)
    row = crowd.row(crowd.ids[0])
    assert (row["state"], row["reply"]) == ("uncertain", "dot shutdown: its task was terminated")
    assert len(services.leases) == 0


async def test_a_claim_that_was_answered_late_has_the_rest_of_its_lease(
    services: Services, server: ScriptedSmtpServer
) -> None:
    """The process slept between asking and being answered: by then another may hold the delivery."""
    crowd = Crowd(services.ledger)
    crowd.queue()
    now = [1_000.0]
    lease_seconds = services.delivery.lease_seconds
    services.leases = LeaseKeeper(services._renew, lease_seconds=lease_seconds, monotonic=lambda: now[0])

    def sleep(operations: Sequence[Operation]) -> None:
        if any(isinstance(operation, Claim) for operation in operations):
            now[0] += lease_seconds + 1

    when_asked(services, sleep)
    await attempt_of(services, crowd).run()
    assert server.records() == []
    assert crowd.state() is State.PENDING


async def test_the_lease_is_held_until_the_outcome_is_recorded(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    held: list[int] = []

    def look(operations: Sequence[Operation]) -> None:
        if any(isinstance(operation, Record) for operation in operations):
            held.append(len(services.leases))

    when_asked(services, look)
    await attempt_of(services, crowd).run()
    assert held == [1]
    assert len(services.leases) == 0


async def test_a_connection_that_died_while_idle_costs_nothing(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger, 2)
    crowd.queue()
    await attempt_of(services, crowd).run()
    server.script.set(Misbehaviour(phase="mail", action="drop", times=1))
    await attempt_of(services, crowd, 1).run()
    assert [attempt["outcome"] for attempt in crowd.attempts()] == ["sent", "sent"]
    assert len(server.records()) == 2


async def test_nothing_is_asked_of_a_server_while_the_database_is_away(
    services: Services, server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    services._database_up.clear()
    is_waiting, ready = asyncio.Event(), services.database_ready

    async def database_ready() -> None:
        is_waiting.set()
        await ready()

    monkeypatch.setattr(services, "database_ready", database_ready)
    task = asyncio.create_task(attempt_of(services, crowd).run())
    await asyncio.wait({task, asyncio.create_task(is_waiting.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert is_waiting.is_set() and server.stats["connections"] == 0
    services._database_up.set()
    await task
    assert crowd.state() is State.SENT


async def test_bad_addresses_never_open_a_breaker(services: Services, server: ScriptedSmtpServer) -> None:
    crowd = Crowd(services.ledger, 30)
    crowd.queue()
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="550 5.1.1 No such user"))
    for index in range(30):
        await attempt_of(services, crowd, index).run()
    await services.standing.refresh()
    assert services.standing._fleet.state("primary") == "closed"
    assert crowd.in_state(State.FAILED) == 30


async def test_addresses_that_a_server_cannot_read_never_open_a_breaker(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger, 6)
    crowd.queue()
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="501 malformed address: no"))
    for index in range(6):
        await attempt_of(services, crowd, index).run()
    await services.standing.refresh()
    assert services.standing._fleet.state("primary") == "closed"
    assert crowd.in_state(State.FAILED) == 6


async def test_a_local_problem_with_an_address_is_held_against_a_server_through_which_nothing_goes(
    services: Services, server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.standing, "is_sent_through", lambda _: True)
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="451 Temporary local problem"))
    board = services.standing._fleet.board
    for _ in range(4):
        board.fault("primary", "for the test")
    await attempt_of(services, crowd).run()
    assert crowd.state() is State.PENDING
    await services.standing.refresh()
    assert services.standing._fleet.state("primary") == "closed"
    monkeypatch.undo()
    await tried_again(services, crowd)
    services.standing._fleet.refresh_soon()
    await services.standing.refresh()
    assert services.standing._fleet.state("primary") == "open"


async def tried_again(services: Services, crowd: Crowd, index: int = 0) -> None:
    """Without the wait for it."""
    crowd.set("next_attempt_at", 0.0)
    assert crowd.queue(ids=[crowd.ids[index]])
    await attempt_of(services, crowd, index).run()


def days_go_by(services: Services, delivery_id: int) -> None:
    """What became of the delivery so far was three days ago."""
    with services.database.write() as connection:
        for statement in (
            "UPDATE delivery SET first_attempt_at = first_attempt_at - 259200 WHERE id = :id",
            "UPDATE attempt SET finished_at = finished_at - 259200 WHERE delivery_id = :id",
            "UPDATE pause SET began_at = began_at - 259200, ended_at = ended_at - 259200",
        ):
            connection.execute(text(statement), {"id": delivery_id})


@pytest.mark.parametrize("is_well", [True, False])
async def test_a_mail_that_a_server_answers_with_faults_is_given_up_if_the_server_takes_others(
    services: Services, server: ScriptedSmtpServer, is_well: bool
) -> None:
    crowd = Crowd(services.ledger, 2)
    broken = Misbehaviour(phase="rcpt", action="reply", reply="451 4.3.0 Temporary lookup failure")
    server.script.set(broken)
    for _ in range(3):
        await tried_again(services, crowd)
        assert crowd.state() is State.PENDING
    days_go_by(services, crowd.ids[0])
    if is_well:
        server.script.clear()
        await tried_again(services, crowd, 1)
        server.script.set(broken)
    await tried_again(services, crowd)
    assert crowd.state() is (State.FAILED if is_well else State.PENDING)


async def test_a_mail_that_a_server_answers_with_faults_comes_to_an_end_though_nothing_else_goes_through_it(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="451 4.3.0 Temporary lookup failure"))
    for _ in range(3):
        await tried_again(services, crowd)
    days_go_by(services, crowd.ids[0])
    await tried_again(services, crowd)
    assert crowd.state() is State.PENDING
    days_go_by(services, crowd.ids[0])
    await tried_again(services, crowd)
    assert crowd.state() is State.FAILED


TOO_MANY = Misbehaviour(phase="rcpt", action="reply", reply="452 4.5.3 Too many recipients")
QUOTA = Misbehaviour(
    phase="dot", action="reply", reply="454 4.7.0 Throttling failure: Daily message quota exceeded."
)


def is_full(services: Services) -> bool:
    fleet = services.standing._fleet
    fleet.refresh_soon()
    fleet.refresh()
    return fleet._is_full("primary")


def full_seconds(services: Services) -> float:
    """How much longer the primary is full."""
    return services.standing._fleet.board.look()["primary"].rest_seconds


async def test_a_server_is_full_when_it_says_so_to_several_mails_in_a_row(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger, 4)
    server.script.set(TOO_MANY)
    for index in (0, 0, 0, 1):
        await tried_again(services, crowd, index)
    assert not is_full(services), "these two may be odd"
    server.script.clear()
    await tried_again(services, crowd, 3)
    server.script.set(TOO_MANY)
    for index in (0, 2):
        await tried_again(services, crowd, index)
    assert not is_full(services), "it took one meanwhile"
    await tried_again(services, crowd, 1)
    assert is_full(services)
    assert crowd.in_state(State.PENDING) == 3


@pytest.mark.parametrize("is_well", [True, False])
async def test_a_mail_that_hears_full_for_days_is_given_up_only_if_the_server_takes_others(
    services: Services, server: ScriptedSmtpServer, is_well: bool
) -> None:
    crowd = Crowd(services.ledger, 2)
    server.script.set(TOO_MANY)
    for _ in range(3):
        await tried_again(services, crowd)
    for _ in range(3):
        days_go_by(services, crowd.ids[0])
    if is_well:
        server.script.clear()
        await tried_again(services, crowd, 1)
        server.script.set(TOO_MANY)
    await tried_again(services, crowd)
    assert crowd.state() is (State.FAILED if is_well else State.PENDING)


async def test_a_quota_of_our_own_account_closes_the_server_at_once_and_fails_no_mail(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger, 2)
    for day in range(6):
        server.script.set(QUOTA)
        await tried_again(services, crowd)
        assert is_full(services)
        assert crowd.state() is State.PENDING
        services.standing._fleet.board.forget()
        assert not is_full(services)
        if day == 3:
            server.script.clear()
            await tried_again(services, crowd, 1)
        days_go_by(services, crowd.ids[0])
    assert crowd.in_state(State.SENT) == 1


async def test_a_quota_of_our_own_account_is_believed_for_long_when_three_mails_hear_of_it(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger, 4)
    server.script.set(QUOTA)
    for index in (0, 1, 1):
        await tried_again(services, crowd, index)
        assert 50 < full_seconds(services) <= 60
        services.standing._fleet.board.forget()
    await tried_again(services, crowd, 2)
    assert full_seconds(services) > 3500


async def test_a_quota_of_our_own_account_is_not_held_against_a_mail_that_hears_other_words_later(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger, 2)
    server.script.set(QUOTA)
    for _ in range(6):
        await tried_again(services, crowd)
        services.standing._fleet.board.forget()
    for _ in range(3):
        days_go_by(services, crowd.ids[0])
    server.script.clear()
    await tried_again(services, crowd, 1)
    server.script.set(TOO_MANY)
    await tried_again(services, crowd)
    assert crowd.state() is State.PENDING


@pytest.mark.parametrize("reply", ["451 4.3.0 Temporary lookup failure", "450 4.2.0 Greylisted"])
async def test_the_time_of_a_pause_is_not_held_against_a_mail(
    services: Services, server: ScriptedSmtpServer, reply: str
) -> None:
    crowd = Crowd(services.ledger, 2)
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply=reply))
    for _ in range(3):
        await tried_again(services, crowd)
    services.ledger.pause(crowd.name)
    days_go_by(services, crowd.ids[0])
    services.ledger.resume(crowd.name)
    server.script.clear()
    await tried_again(services, crowd, 1)
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply=reply))
    await tried_again(services, crowd)
    assert crowd.state() is State.PENDING


async def test_a_pause_takes_back_none_of_the_time_before_and_after_it(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="450 4.2.0 Greylisted"))
    for _ in range(3):
        await tried_again(services, crowd)
        services.ledger.pause(crowd.name)
        services.ledger.resume(crowd.name)
    assert crowd.state() is State.PENDING
    days_go_by(services, crowd.ids[0])
    await tried_again(services, crowd)
    assert crowd.state() is State.FAILED


async def test_a_mail_that_was_held_back_for_days_is_not_given_up_at_its_first_deferral(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="451 4.3.0 Not now"))
    await tried_again(services, crowd)
    days_go_by(services, crowd.ids[0])
    server.script.clear()
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="450 4.2.0 Greylisted"))
    for deferrals in (1, 2):
        await tried_again(services, crowd)
        assert (crowd.state(), crowd.row()["deferrals"]) == (State.PENDING, deferrals)
    days_go_by(services, crowd.ids[0])
    await tried_again(services, crowd)
    assert crowd.state() is State.FAILED


class _Forgetful(Ledger):
    def deferred_since(self, delivery_id: int) -> float | None:
        raise DatabaseUnavailable("away")


async def test_nothing_is_given_up_while_the_database_is_away(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    server.script.set(Misbehaviour(phase="rcpt", action="reply", reply="450 4.2.0 Greylisted"))
    await tried_again(services, crowd)
    days_go_by(services, crowd.ids[0])
    services.standing._fleet.ledger.__class__ = _Forgetful
    await tried_again(services, crowd)
    assert (crowd.state(), crowd.row()["deferrals"]) == (State.PENDING, 2)
    services.standing._fleet.ledger.__class__ = Ledger
    await tried_again(services, crowd)
    assert crowd.state() is State.FAILED


async def test_a_mail_that_no_server_is_big_enough_for_fails_and_blames_nobody(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    server.announce(["SIZE 100"])
    await attempt_of(services, crowd).run()
    assert crowd.state() is State.FAILED
    assert [one["outcome"] for one in crowd.attempts()] == ["policy-message"]
    assert services.standing._fleet.blocked("promotional", "news@example.org", "example.com") == frozenset()


@pytest.mark.parametrize("why", ["its breaker is open", "the operator closed it"])
async def test_a_server_that_takes_no_mail_is_asked_nothing(
    services: Services, server: ScriptedSmtpServer, why: str
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    if why == "the operator closed it":
        services.ledger.set_server_mode("primary", "closed")
    else:
        for _ in range(5):
            services.standing._fleet.board.fault("primary", "for the test")
    services.standing._fleet.refresh_soon()
    await services.standing.refresh()
    await attempt_of(services, crowd).run()
    assert server.stats["connections"] == 0
    assert crowd.state() is State.PENDING
    assert crowd.row()["fence"] == 0, "it was not even claimed"

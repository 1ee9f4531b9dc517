"""One attempt of a worker, against a real server and a real database: what it leaves in the ledger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import cast

import pytest
from sqlalchemy import text

from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.errors import DatabaseUnavailable
from campaigns.health import Probe
from campaigns.ledger import Claim, Ledger, Operation, Record
from campaigns.states import State
from tests.crowd import Crowd
from workers.attempt import Attempt, Job, Step
from workers.services import Services

LISTED = "550 5.7.1 Service unavailable; client [192.0.2.7] blocked using b.barracudacentral.org"
UNAUTHENTICATED = "550 5.7.26 Your email has been blocked because the sender is unauthenticated."


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


def state_of(services: Services, delivery_id: int) -> str:
    with services.database.read() as connection:
        sql = text("SELECT state FROM delivery WHERE id = :id")
        return str(connection.execute(sql, {"id": delivery_id}).scalar_one())


def reply_of(services: Services, delivery_id: int) -> str:
    with services.database.read() as connection:
        sql = text("SELECT reply FROM delivery WHERE id = :id")
        return str(connection.execute(sql, {"id": delivery_id}).scalar_one())


class _Ledger(Ledger):
    """Fails in the ways that are asked for."""

    refuses_records = False
    is_away = False
    refuses_events = False

    def apply(self, operations: Sequence[Operation]) -> list[object]:
        if self.is_away:
            raise DatabaseUnavailable("gone")
        refused = [self.refuses_records and isinstance(operation, Record) for operation in operations]
        good = iter(super().apply([op for op, bad in zip(operations, refused, strict=True) if not bad]))
        return [ValueError("refused") if bad else next(good) for bad in refused]

    def record_event(self, *args: object, **kwargs: object) -> None:
        if self.refuses_events:
            raise ValueError("refused")


@pytest.fixture
def ledger_of(services: Services) -> _Ledger:
    ledger = services.ledger
    ledger.__class__ = _Ledger
    services.group._write = ledger.apply  # the bound method was taken before
    return cast(_Ledger, ledger)


async def test_a_250_is_recorded_although_the_task_is_cancelled_meanwhile(
    services: Services, server: ScriptedSmtpServer, ledger_of: _Ledger
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    attempt = Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services)
    task = asyncio.create_task(attempt.run())
    while attempt.step is not Step.RECORDING:  # noqa: ASYNC110 - the moment itself is wanted
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await services.close()
    assert state_of(services, crowd.ids[0]) == "sent"


async def test_a_250_that_the_ledger_refuses_is_kept_and_recorded_when_it_can_be(
    services: Services, server: ScriptedSmtpServer, ledger_of: _Ledger
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    ledger_of.refuses_records = True
    await Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services).run()
    assert state_of(services, crowd.ids[0]) == "committing"
    (kept,) = (services.settings.data_directory / "journal").glob("*.journal")
    assert '"to": "sent"' in kept.read_text()
    ledger_of.refuses_records = False
    await services.database_ready()
    assert state_of(services, crowd.ids[0]) == "sent", "replayed before the next claim"


async def test_an_outcome_that_is_kept_after_the_database_returned_is_replayed_too(
    services: Services, server: ScriptedSmtpServer, ledger_of: _Ledger
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    ledger_of.refuses_records = True
    append = services.journal.append
    is_keeping, gate = threading.Event(), threading.Event()

    def append_slowly(record: Record) -> None:
        is_keeping.set()
        gate.wait(10)
        append(record)

    services.journal.append = append_slowly  # type: ignore[method-assign]
    attempt = Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services)
    task = asyncio.create_task(attempt.run())
    await asyncio.to_thread(is_keeping.wait, 10)
    services.database_lost()
    ready = asyncio.create_task(services.database_ready())
    await asyncio.sleep(1.0)
    assert not ready.done(), "nothing is claimed while an outcome is on its way to the journal"
    ledger_of.refuses_records = False
    gate.set()
    await asyncio.gather(task, ready)
    assert state_of(services, crowd.ids[0]) == "sent"


async def test_a_report_of_the_server_that_fails_does_not_cost_the_outcome(
    services: Services, server: ScriptedSmtpServer, ledger_of: _Ledger
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    ledger_of.refuses_events = True
    for _ in range(4):
        services.standing._fleet.board.fault("primary", "for the test")
    await services.standing.refresh()
    server.script.set(Misbehaviour(phase="dot", action="reply", reply="421 4.3.0 going down"))
    await Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services).run()
    assert outcomes(services) == ["unreachable"]


async def test_a_trial_after_an_outage_is_given_back_though_the_one_before_it_was_reported(
    services: Services, server: ScriptedSmtpServer, ledger_of: _Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    admitted: list[str] = []
    reported: list[str] = []
    released: list[str] = []

    async def admits(*_: object) -> Probe:
        ledger_of.is_away = False
        admitted.append(f"trial {len(admitted) + 1}")
        return Probe(server="primary", token=admitted[-1])

    async def report(probe: Probe, *_: object, **__: object) -> None:
        reported.append(probe.token)
        services.ledger.cancel(crowd.name)
        ledger_of.is_away = True

    async def release(probe: Probe) -> None:
        released.append(probe.token)

    for method in (admits, report, release):
        monkeypatch.setattr(services.standing, method.__name__, method)
    server.script.set(Misbehaviour(phase="greeting", action="drop", times=1))
    await Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services).run()
    assert (admitted, reported, released) == (["trial 1", "trial 2"], ["trial 1"], ["trial 2"])


async def test_the_local_part_of_an_address_that_a_server_quotes_is_hidden(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    with services.database.read() as connection:
        sql = text("SELECT email FROM recipient WHERE id = :id")
        local = connection.execute(sql, {"id": crowd.ids[0]}).scalar_one().partition("@")[0]
    server.script.set(
        Misbehaviour(phase="rcpt", action="reply", reply=f"550 5.1.1 No such user {local} here")
    )
    await Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services).run()
    assert reply_of(services, crowd.ids[0]).startswith("550 5.1.1 No such user")
    assert local not in reply_of(services, crowd.ids[0])


async def _during_its_body(
    services: Services, server: ScriptedSmtpServer, crowd: Crowd, meanwhile: str
) -> object:
    """One attempt, whose 354 comes late; `meanwhile` something happens to its delivery."""
    server.script.set(Misbehaviour(phase="data", action="delay", seconds=0.3))
    attempt = Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services)
    task = asyncio.create_task(attempt.run())
    while state_of(services, crowd.ids[0]) != "claimed":  # noqa: ASYNC110 - another's transaction
        await asyncio.sleep(0.01)
    match meanwhile:
        case "pause":
            services.ledger.pause(crowd.name)
        case "cancel":
            services.ledger.cancel(crowd.name)
        case "sweep":
            crowd.set("lease_until", 1.0)
            services.ledger.sweep_leases()
        case "reclaim":
            crowd.set("lease_until", 1.0)
            services.ledger.sweep_leases()
            crowd.queue("primary")
            services.ledger.apply(
                [Claim(delivery_id=crowd.ids[0], server="primary", owner="other", lease_seconds=60)]
            )
        case "outage":
            cast(_Ledger, services.ledger).is_away = True
        case "shutdown":
            attempt.stop()
    return await task


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [
        ("pause", "pending"),
        ("cancel", "cancelled"),
        ("sweep", "pending"),
        ("reclaim", "claimed"),
        ("shutdown", "pending"),
    ],
)
async def test_the_dot_is_not_sent_when_the_ledger_says_no(
    services: Services, server: ScriptedSmtpServer, meanwhile: str, left: str
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    await _during_its_body(services, server, crowd, meanwhile)
    assert server.records() == []
    assert state_of(services, crowd.ids[0]) == left


async def test_the_dot_is_not_sent_when_the_database_is_away_at_the_commit_point(
    services: Services, server: ScriptedSmtpServer, ledger_of: _Ledger
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    await _during_its_body(services, server, crowd, "outage")
    assert server.records() == []
    ledger_of.is_away = False
    await services.database_ready()
    assert state_of(services, crowd.ids[0]) == "pending", "given back from the journal"


async def test_a_worker_that_stops_right_after_its_claim_sends_nothing(
    services: Services, server: ScriptedSmtpServer
) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    attempt = Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), services)
    task = asyncio.create_task(attempt.run())
    while attempt.step is not Step.CLAIMING:  # noqa: ASYNC110 - the moment itself is wanted
        await asyncio.sleep(0)
    attempt.stop()
    await task
    assert server.records() == []
    assert state_of(services, crowd.ids[0]) == "pending"


async def test_the_journal_of_another_database_changes_nothing_here(services: Services) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    services.journal.append(
        Record(
            delivery_id=crowd.ids[0],
            fence=1,
            server="primary",
            owner="worker-0",
            to=State.SENT,
            from_committing=True,
            outcome="sent",
            campaign_token="of another",
        )
    )
    await services.replay_journal()
    assert state_of(services, crowd.ids[0]) == "queued"
    assert list((services.settings.data_directory / "journal").glob("*.refused"))


def test_a_report_with_a_fence_that_no_row_has_had_changes_nothing(services: Services) -> None:
    crowd = Crowd(services.ledger)
    crowd.queue()
    report = Record(
        delivery_id=crowd.ids[0], fence=1, server="primary", owner="w", to=State.SENT, outcome="sent"
    )
    services.ledger.apply([report])
    assert state_of(services, crowd.ids[0]) == "queued"

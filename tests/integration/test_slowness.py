"""What slow servers cost: real attempts, a real server that hangs, a real ledger and Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from campaigns.database import create_database
from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.queues import create_app
from campaigns.settings import load_settings
from tests.crowd import Crowd
from workers.attempt import Attempt, Job
from workers.services import Services
from workers.slowness import Slowness

CONFIGURATION = """
database = "{database}"
broker = "embedded"

[[servers]]
name = "primary"
url = "smtp://127.0.0.1:{port}"
tls = "none"
connections = {connections}

[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:1"
tls = "none"

[breaker]
slow_seconds = 0.5
"""


@dataclass(kw_only=True)
class Bench:
    """A worker process but for its queue: `work` makes attempts, and watches them."""

    services: Services
    server: ScriptedSmtpServer

    async def work(self, crowd: Crowd, seconds: float = 10.0) -> list[Attempt]:
        """One attempt for each delivery, all at once; returns when they have ended."""
        jobs = [Job(campaign=crowd.name, delivery_id=one, server="primary") for one in crowd.ids]
        attempts = [Attempt(job, self.services) for job in jobs]
        async with asyncio.timeout(seconds):
            await self.watched(attempts, [asyncio.ensure_future(attempt.run()) for attempt in attempts])
        return attempts

    async def watched(self, attempts: Sequence[Attempt], tasks: Sequence[asyncio.Future[object]]) -> None:
        running = set(attempts)
        slowness = Slowness(running, self.services)
        for attempt, task in zip(attempts, tasks, strict=True):
            task.add_done_callback(lambda _, attempt=attempt: running.discard(attempt))
        while running:
            await asyncio.sleep(0.05)
            await slowness.look()
        for task in tasks:
            task.result()

    def states(self, crowd: Crowd) -> list[tuple[str, str | None]]:
        with self.services.database.read() as connection:
            sql = text("SELECT state, server FROM delivery WHERE campaign_id = :id ORDER BY id")
            rows = connection.execute(sql, {"id": crowd.campaign_id}).all()
        return [(str(state), server) for state, server in rows]

    def events(self) -> list[tuple[str | None, str | None]]:
        events = self.services.ledger.events("primary")
        return [(event.to_state, event.reason) for event in events if event.kind == "breaker"]

    @property
    def board(self) -> HealthBoard:
        return self.services.standing._fleet.board


@pytest.fixture
async def bench(ledger: Ledger, database_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Bench]]:
    made: list[tuple[Services, EmbeddedBroker]] = []
    async with ScriptedSmtpServer(tmp_path / "accepted.jsonl") as server:

        def make(connections: int = 10) -> Bench:
            file = tmp_path / "campaigns.toml"
            file.write_text(
                CONFIGURATION.format(database=database_url, port=server.port, connections=connections)
            )
            settings = load_settings(file, {})
            broker = EmbeddedBroker.of(settings)
            broker.start()
            database = create_database(settings.database)
            board = HealthBoard(settings.state_url, policy=settings.breaker, servers=["primary", "secondary"])
            fleet = Fleet(settings, Ledger(database), board)
            services = Services(settings, create_app(settings), database, fleet, owner="worker-1")
            made.append((services, broker))
            return Bench(services=services, server=server)

        yield make
        for services, broker in made:
            await services.close()
            broker.stop()


@pytest.mark.parametrize("phase", ["greeting", "ehlo", "mail", "rcpt", "data"])
async def test_mails_that_wait_for_a_silent_server_go_through_another_long_before_their_deadline(
    bench: Callable[..., Bench], phase: str
) -> None:
    made = bench()
    made.server.script.set(Misbehaviour(phase=phase, action="stall"))
    crowd = Crowd(made.services.ledger, 14)
    crowd.queue()
    await made.work(crowd, seconds=5.0)
    assert made.states(crowd) == [("queued", "secondary")] * 14
    ((to, reason),) = made.events()
    assert to == "open"
    assert reason is not None and "no answer at" in reason
    assert made.server.records() == []


async def test_a_server_that_reads_no_body_is_slow_too(bench: Callable[..., Bench]) -> None:
    made = bench(connections=1)
    made.server.script.set(Misbehaviour(phase="body", action="stall"))
    crowd = Crowd(made.services.ledger, 1)
    with made.services.database.write() as connection:
        connection.execute(
            text("UPDATE campaign SET text = :text"), {"text": "a long line of text\n" * 30_000}
        )
    crowd.queue()
    await made.work(crowd)
    assert made.states(crowd) == [("queued", "secondary")]
    ((_, reason),) = made.events()
    assert reason is not None and "no answer at body for 0." in reason


async def test_who_waits_at_the_dot_is_slow_but_never_broken_off(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.server.script.set(Misbehaviour(phase="dot", action="delay", seconds=1.2))
    crowd = Crowd(made.services.ledger, 6)
    crowd.queue()
    attempts = await made.work(crowd)
    assert all(attempt.is_told_slow for attempt in attempts)
    assert made.states(crowd) == [("sent", "primary")] * 6
    ((to, reason),) = made.events()
    assert (to, reason is not None and "no answer at dot" in reason) == ("open", True)
    assert len(made.server.records()) == 6


async def test_one_tarpitted_recipient_among_good_traffic_condemns_nobody(
    bench: Callable[..., Bench],
) -> None:
    made = bench(connections=4)
    made.server.script.set(Misbehaviour(phase="rcpt", action="delay", seconds=1.2, times=1))
    made.server.script.set(Misbehaviour(phase="mail", action="delay", seconds=0.1))
    crowd = Crowd(made.services.ledger, 60)
    crowd.queue()
    attempts = await made.work(crowd, seconds=20.0)
    assert sum(attempt.is_told_slow for attempt in attempts) == 1
    assert made.states(crowd) == [("sent", "primary")] * 60
    assert made.events() == []


async def test_a_reply_that_came_too_late_is_no_success(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.server.script.set(Misbehaviour(phase="rcpt", action="delay", seconds=0.7))
    crowd = Crowd(made.services.ledger, 1)
    crowd.queue()
    made.services.awake.tick()  # and nobody looks any more
    await Attempt(Job(campaign=crowd.name, delivery_id=crowd.ids[0], server="primary"), made.services).run()
    assert made.states(crowd) == [("sent", "primary")]
    assert made.board.snapshot()["primary"].consecutive_faults == 1


async def test_a_mail_that_was_never_asked_of_the_server_says_nothing_of_it(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    crowd = Crowd(made.services.ledger, 1)
    with made.services.database.write() as connection:
        connection.execute(text("UPDATE campaign SET subject = '{{ missing }}'"))
    crowd.queue()
    await made.work(crowd)
    assert [state for state, _ in made.states(crowd)] == ["failed"]
    made.board.fault("primary", "tells what was gathered")
    assert made.board.snapshot()["primary"].consecutive_faults == 1
    board = HealthBoard(made.services.settings.state_url)
    assert board.snapshot()["primary"].consecutive_faults == 1
    board.close()

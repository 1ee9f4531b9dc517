"""What a worker makes sure of before it begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from campaigns.database import create_database
from campaigns.errors import BrokerError, DatabaseError
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.publishing import publish_deliveries
from campaigns.queues import create_app
from campaigns.settings import Settings, load_settings
from campaigns.states import State
from tests.crowd import Crowd, report
from workers.journal import Journal
from workers.runtime import Runtime
from workers.tasks import _Workplace

CONFIGURATION = """
database = "{database}"
broker = "{broker}"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:1"
tls = "none"
"""
NO_REDIS = "amqp://localhost:1//"


def settings_of(directory: Path, database: str, broker: str = NO_REDIS) -> Settings:
    file = directory / "campaigns.toml"
    file.write_text(CONFIGURATION.format(database=database, broker=broker), encoding="utf-8")
    return load_settings(file, {})


async def test_a_worker_replays_the_journals_of_the_dead_before_it_begins(
    sqlite_url: str, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, sqlite_url)
    database = create_database(settings.database)
    crowd = Crowd(Ledger(database))
    (claim,) = crowd.committing()
    token = crowd.ledger.campaign(crowd.name).token
    dead = Journal(settings.data_directory / "journal", "dead")
    dead.append(report(claim, State.SENT, from_committing=True, campaign_token=token))
    dead.close()
    runtime = Runtime(settings, create_app(settings), ["primary"])
    await runtime.start()
    assert crowd.state() is State.SENT
    await runtime.stop()
    database.close()


async def test_a_worker_does_not_begin_on_a_database_that_is_not_fit(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, f"sqlite:///{tmp_path / 'empty.db'}")
    runtime = Runtime(settings, create_app(settings), ["primary"])
    with pytest.raises(DatabaseError, match="campaigns db upgrade"):
        await runtime.start()
    await runtime.stop()


def is_left_alone(client: redis.Redis) -> bool:
    """Whether the broker soon has no connection but the client's."""
    deadline = time.monotonic() + 5
    while len(client.client_list()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(client.client_list()) == 1


async def test_a_worker_that_has_ended_holds_no_connection_to_redis(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "campaigns.toml"
    configuration = CONFIGURATION.format(database=sqlite_url, broker="embedded")
    file.write_text(configuration + 'limits = ["30/h"]', encoding="utf-8")
    settings = load_settings(file, {})
    broker = EmbeddedBroker.of(settings)
    broker.start()
    runtime = Runtime(settings, create_app(settings), ["primary"])
    runtime.producer.run_once()
    with redis.Redis(unix_socket_path=str(settings.broker_socket)) as client:
        assert len(client.client_list()) > 1
        await runtime.stop()
        assert await asyncio.to_thread(is_left_alone, client)
    broker.stop()


@pytest.fixture
def evicting(sqlite_url: str, tmp_path: Path) -> Iterator[Settings]:
    settings = settings_of(tmp_path, sqlite_url, "embedded")
    broker = EmbeddedBroker.of(settings)
    broker.start()
    with redis.Redis(unix_socket_path=str(settings.broker_socket)) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    yield settings
    broker.stop()


async def test_a_worker_does_not_begin_with_a_broker_that_may_throw_messages_away(evicting: Settings) -> None:
    workplace = _Workplace(create_app(evicting), evicting)
    with pytest.raises(BrokerError, match=r"allkeys-lru.*noeviction"):
        await workplace.start()
    await workplace.stop()


@pytest.fixture
def runtime(sqlite_url: str, tmp_path: Path) -> Iterator[Runtime]:
    """Of a worker whose broker refuses every message, for a reason of its own."""
    settings = settings_of(tmp_path, sqlite_url, "embedded")
    broker = EmbeddedBroker.of(settings)
    broker.start()
    with redis.Redis(unix_socket_path=str(settings.broker_socket)) as client:
        client.execute_command("ACL", "SETUSER", "default", "-lpush", "-rpush")
    yield Runtime(settings, create_app(settings), ["primary"])
    broker.stop()


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(one.levelname, one.getMessage()) for one in caplog.records if one.levelno >= logging.WARNING]


GONE = ("WARNING", "the broker takes no messages; what is queued is published when it does")


async def test_a_broker_that_refuses_what_is_produced_is_a_line(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    crowd = Crowd(runtime.services.ledger, 3)
    for _ in range(3):
        assert await runtime._once(runtime.produce) == 0
        assert runtime.services.ledger.withdraw_queued("primary", 3, stream="promotional") == 3
        await asyncio.sleep(0.3)  # its turn comes again
    assert crowd.in_state(State.PENDING) == 3
    assert lines_of(caplog) == [GONE]
    assert "lpush" in vars(caplog.records[-1])["reason"]
    await runtime.stop()


async def test_a_step_that_meets_a_broker_that_refuses_pauses_and_is_no_surprise(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("workers.runtime.AGAIN_SECONDS", 0.2)
    app = create_app(runtime.settings)
    crowd = Crowd(runtime.services.ledger, 3)
    crowd.queue("primary")

    async def publish() -> None:
        publish_deliveries(app, runtime.services.ledger.queued_of(crowd.campaign_id))

    began = time.monotonic()
    for _ in range(3):
        await runtime._once(publish)
    assert time.monotonic() - began >= 0.6
    assert lines_of(caplog) == [GONE]
    await runtime.stop()

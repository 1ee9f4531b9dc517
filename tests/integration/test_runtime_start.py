"""What a worker makes sure of before it begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from campaigns.database import create_database
from campaigns.errors import BrokerError, DatabaseError
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
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

"""A real Valkey server for each test, and real workers."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from campaigns.local.broker import EmbeddedBroker
from campaigns.queues import create_app
from campaigns.settings import Settings
from tests.integration.celery.worker_process import Notes, WorkerProcess


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: the path of a unix socket has a limit."""
    path = Path(tempfile.mkdtemp(prefix="celery-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def broker(directory: Path) -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker(socket=directory / "v.sock", directory=directory / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def broker_url(broker: EmbeddedBroker) -> str:
    return f"redis+socket://{broker.socket}"


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(broker.socket)) as connected:
        yield connected


@pytest.fixture
def settings(directory: Path, broker_url: str) -> Settings:
    servers = [
        {"name": name, "url": "smtp://127.0.0.1:2525", "tls": "none"} for name in ("primary", "secondary")
    ]
    return Settings.model_validate({"directory": directory, "broker": broker_url, "servers": servers})


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    made = create_app(settings)
    yield made
    made.close()


@pytest.fixture
def notes(directory: Path) -> Notes:
    return Notes(directory)


@pytest.fixture
def worker(directory: Path, broker_url: str) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []

    def make(*options: str, ready: bool = True, name: str = "one", **environment: str) -> WorkerProcess:
        process = WorkerProcess(directory, broker_url, name=name, **environment)
        started.append(process)
        return process.start(*(options or ("-Q", "smtp.primary")), ready=ready)

    yield make
    for process in started:
        process.kill()

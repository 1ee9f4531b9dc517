"""A scripted server on real sockets, and connections to it, on asyncio's own loop and on uvloop's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from campaigns.demo.smtp_server import ScriptedSmtpServer
from tests.integration.smtp.trial import PATIENT, Dial, configured
from workers.deadlines import Deadlines
from workers.smtp import SmtpConnection


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Both loops: their transports differ in what they do with a write, a pause and an end."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedSmtpServer]:
    async with ScriptedSmtpServer(
        tmp_path / "accepted.jsonl", keeps_data=True, receive_buffer_octets=4096
    ) as server:
        yield server


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
async def dial(server: ScriptedSmtpServer) -> AsyncIterator[Dial]:
    """Opens connections to the server, and aborts them in the end."""
    opened: list[SmtpConnection] = []

    async def open_connection(deadlines: Deadlines = PATIENT, **fields: object) -> SmtpConnection:
        connection = await SmtpConnection.open(configured(server, **fields), deadlines, "client.example.com")
        opened.append(connection)
        return connection

    yield open_connection
    for connection in opened:
        connection.abort()

"""A client of each kind of database, in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.campaign import Campaign
from campaigns.client import Client
from campaigns.settings import Server, Settings


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two servers that are not there, and an embedded broker that does not run."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    servers = (
        Server(name="primary", host="127.0.0.1", port=1, tls="none", weight=70),
        Server(name="secondary", host="127.0.0.1", port=1, tls="none", weight=30),
    )
    return Settings(directory=here, database=database_url, servers=servers)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as client:
        yield client


@pytest.fixture
def campaign(client: Client) -> Campaign:
    """A draft whose template uses `first_name`."""
    return client.create_campaign(
        "spring", sender="News <news@example.com>", subject="Hi {{ first_name }}", text="Hello"
    )


def write_list(path: Path, count: int, *, every_rejected: int = 0, every_duplicate: int = 0) -> Path:
    """A list of `count` lines; every so many are rejected or repeat the line before."""
    lines = ["email,first_name"]
    for number in range(1, count + 1):
        if every_rejected and number % every_rejected == 0:
            lines.append(f"not-an-address-{number},Bad")
        elif every_duplicate and number % every_duplicate == 0:
            lines.append(f"USER{number - 1}@example.com,Again")
        else:
            lines.append(f"user{number}@example.com,Name {number}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

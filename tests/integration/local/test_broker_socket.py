"""The embedded broker's socket where its path would be too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import Server, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """In a directory whose path is too long for a unix socket."""
    server = Server(name="primary", host="127.0.0.1", port=1, tls="none")
    return Settings(directory=tmp_path / ("a-long-name-" * 10), servers=(server,))


def test_a_directory_made_for_the_socket_alone_goes_with_it(settings: Settings) -> None:
    broker = EmbeddedBroker.of(settings)
    broker.start()
    short = broker.socket.parent
    assert short.is_dir() and settings.directory not in short.parents
    broker.stop()
    assert not short.exists()
    assert broker.directory.is_dir(), "the data stays"
    broker.start()
    assert broker.is_running()
    broker.stop()


def test_what_a_killed_broker_left_is_removed(settings: Settings) -> None:
    broker = EmbeddedBroker.of(settings)
    broker.start()
    broker.kill()
    assert broker.socket.exists()
    EmbeddedBroker.of(settings).remove_socket()
    assert not broker.socket.parent.exists()


def test_a_directory_with_anything_else_in_it_stays(settings: Settings) -> None:
    broker = EmbeddedBroker.of(settings)
    broker.start()
    other = broker.socket.parent / "somebody-elses"
    other.touch()
    broker.stop()
    assert other.exists() and not broker.socket.exists()
    other.unlink()
    other.parent.rmdir()

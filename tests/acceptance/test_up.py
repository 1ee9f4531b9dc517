"""`campaigns up`: one at a time, nothing outlives it, Flower is for this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import load_settings

COMMAND = [str(Path(sys.executable).parent / "campaigns"), "up"]
CONFIGURATION = """
database = "sqlite:///campaigns.db"
broker = "embedded"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:9"
tls = "none"
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:9"
tls = "none"
"""
Start = Callable[..., "Up"]

pytestmark = pytest.mark.timeout(180)


class Up:
    """A `campaigns up` in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *options],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if not key.startswith("CAMPAIGNS_")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []

    def until(self, text: str) -> str:
        """The first line that has `text` in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"it never said {text!r}: {''.join(self.said)}")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.said += self.process.stdout.readlines()
        return self.process.wait(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its path is too long for a unix socket."""
    folder = tmp_path / ("a-long-name-" * 10)
    folder.mkdir()
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    (folder / "campaigns.toml").write_text(CONFIGURATION)
    started: list[Up] = []

    def starting(*options: str) -> Up:
        started.append(Up(folder, *options))
        return started[-1]

    yield starting
    for up in started:
        up.process.kill()
        up.process.communicate()


def until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 20
    while any(process.is_running() and process.status() != "zombie" for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_can_be_killed_and_started_again_but_not_started_twice(start: Start, folder: Path):
    address = load_settings(folder / "campaigns.toml", {}).broker_socket
    first = start()
    first.until("ready:")
    family = first.family()
    assert len(family) == 4  # broker, control, and a worker for each server
    assert {os.getpgid(child.pid) for child in family} == {os.getpgid(first.process.pid)}

    second = start()
    second.until(f"running here already (process {first.process.pid}")
    assert second.process.wait(20) == 1

    first.end(signal.SIGKILL)
    until_gone(family)

    third = start()
    third.until("ready:")
    family = third.family()
    assert third.end(signal.SIGINT) == 0
    until_gone(family)
    assert folder not in address.parents and not address.parent.exists()
    assert not [line for line in third.said if "Traceback" in line]


def test_a_power_cut_that_damaged_the_brokers_file_does_not_keep_it_from_starting(start: Start, folder: Path):
    broker = EmbeddedBroker.of(load_settings(folder / "campaigns.toml", {}))
    broker.start()
    broker.stop()
    (file,) = broker.append_only_directory.glob("*.incr.aof")
    file.write_bytes(file.read_bytes() + bytes(512))
    up = start()
    assert "WARNING its append-only file was damaged" in up.until("append-only file")
    up.until("ready:")
    assert up.end(signal.SIGINT) == 0
    assert not [line for line in up.said if "Traceback" in line]


def test_it_waits_in_one_line_for_a_broker_that_is_not_there(start: Start, folder: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    configuration = CONFIGURATION.replace('"embedded"', f'"redis://me:secret@127.0.0.1:{port}"')
    (folder / "campaigns.toml").write_text(
        configuration.replace("campaigns.db", "new/directory/campaigns.db")
    )
    up = start()
    up.until(f"waiting for the broker at redis://127.0.0.1:{port} ")
    assert (folder / "new" / "directory" / "campaigns.db").exists()
    assert up.family() == []
    assert up.end(signal.SIGINT) == 0
    assert [line.split(":")[0].split(" ")[0] for line in up.said] == [
        "starting",
        "waiting",
        "ending,",
        "ended;",
    ]


def test_it_starts_the_workers_when_the_broker_is_there(start: Start, folder: Path, tmp_path: Path):
    broker = EmbeddedBroker(socket=tmp_path / "b.sock", directory=tmp_path / "broker")
    configuration = CONFIGURATION.replace('"embedded"', f'"redis+socket://{broker.socket}"')
    (folder / "campaigns.toml").write_text(configuration)
    up = start()
    up.until(f"waiting for the broker at {broker.socket} ")
    broker.start()
    try:
        up.until("ready:")
        assert up.end(signal.SIGINT) == 0
    finally:
        broker.stop()


def test_flower_shows_the_workers_and_listens_on_loopback_alone(start: Start):
    up = start("--flower")
    address = up.until("Flower: ").partition("Flower: ")[2].strip()
    flower = next(child for child in up.family() if "flower" in child.cmdline())
    assert {connection.laddr.ip for connection in flower.net_connections("inet")} == {"127.0.0.1"}
    deadline = time.monotonic() + 30
    while b"primary-1@" not in urllib.request.urlopen(f"{address}/workers", timeout=10).read():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert up.end(signal.SIGTERM) == 0

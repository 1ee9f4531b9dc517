"""What the workers' logs say of the servers: each change once in the cluster, by whoever records it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from campaigns.breaker import Fault
from campaigns.fleet import Fleet
from campaigns.health import Change, HealthBoard
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import Settings

SERVERS = [
    {"name": "primary", "url": "smtp://127.0.0.1:1", "tls": "none", "weight": 70},
    {"name": "secondary", "url": "smtp://127.0.0.1:1", "tls": "none", "weight": 30},
]


class Cluster:
    """Three processes that look at the servers, at a time of the test's own."""

    def __init__(self, settings: Settings, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 1_800_000_000.0
        self.ledger = ledger
        self.boards = [
            HealthBoard(settings.state_url, clock=lambda: self.now, random=lambda: 0.5) for _ in range(3)
        ]
        self.fleets = [Fleet(settings, ledger, board) for board in self.boards]
        self._caplog = caplog
        self.look()

    def look(self) -> list[tuple[str, ...]]:
        """What all of them log meanwhile: the message and its fields."""
        for fleet in self.fleets:
            fleet.refresh_soon()
            fleet.refresh()
        fields = ("server", "from", "to", "reason")
        lines = [
            (one.getMessage(), *(str(vars(one)[field]) for field in fields if field in vars(one)))
            for one in self._caplog.records
            if one.name == "campaigns.fleet"
        ]
        self._caplog.clear()
        return lines


@pytest.fixture
def cluster(ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Cluster]:
    settings = Settings.model_validate({"directory": tmp_path, "servers": SERVERS})
    broker = EmbeddedBroker.of(settings)
    broker.start()
    cluster = Cluster(settings, ledger, caplog)
    yield cluster
    for board in cluster.boards:
        board.close()
    broker.stop()


def test_what_an_operator_changes_is_in_one_log(cluster: Cluster) -> None:
    message = "an operator changed a server"
    cluster.ledger.set_server_mode("primary", "drained", "ask ann@example.com")
    assert cluster.look() == [(message, "primary", "drained", "ask <address>")]
    cluster.ledger.set_server_weight("primary", 20, configured=70)
    assert cluster.look() == [(message, "primary", "weight 20")]
    cluster.ledger.set_server_weight("primary", None, configured=70)
    cluster.ledger.set_server_mode("secondary", "closed")
    assert cluster.look() == [
        (message, "primary", "its configured weight"),
        (message, "secondary", "closed", ""),
    ]
    assert cluster.look() == []


def test_a_failure_and_the_steps_of_the_return_are_in_one_log(cluster: Cluster) -> None:
    for _ in range(5):
        cluster.boards[0].fault("primary", "refused")
    assert cluster.look() == [
        ("a server's breaker changed", "primary", "closed", "open", "5 faults in 0.0 s: refused")
    ]
    cluster.now += 3
    for _ in range(3):
        probe = cluster.boards[1].may_probe("primary")
        assert probe is not None
        cluster.boards[1].success("primary", token=probe.token)
    lines = cluster.look()
    for _ in range(3):
        cluster.boards[2].success("primary")
        cluster.now += 6
        lines += cluster.look()
    assert [line[2:4] for line in lines] == [
        ("open", "half-open"),
        ("half-open", "closed"),
        ("10 %", "25 %"),
        ("25 %", "50 %"),
        ("50 %", "100 %"),
    ]
    assert len([one for one in cluster.ledger.events() if one.server == "primary"]) == 6


class _Door:
    """A lock that says when somebody waits for it."""

    def __init__(self, somebody_waits: threading.Event) -> None:
        self._lock = threading.Lock()
        self._somebody_waits = somebody_waits

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._somebody_waits.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_what_two_threads_record_is_told_in_its_order(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, board = cluster.fleets[0], cluster.boards[0]
    record, is_writing, may_write = fleet.record, threading.Event(), threading.Event()

    def record_when_the_second_waits_or_is_through(change: Change) -> None:
        if not is_writing.is_set():
            is_writing.set()
            assert may_write.wait(10)
        record(change)

    monkeypatch.setattr(fleet, "record", record_when_the_second_waits_or_is_through)
    monkeypatch.setattr(fleet, "_recording", _Door(may_write))
    for _ in range(5):
        board.fault("primary", "refused")
    cluster.now += 3
    with ThreadPoolExecutor() as threads:
        probe = board.may_probe("primary")
        first = threads.submit(fleet.refresh)
        assert probe is not None and is_writing.wait(10)
        second = threads.submit(fleet.report, "primary", Fault(reason="refused", token=probe.token))
        second.add_done_callback(lambda _: may_write.set())
        for one in (first, second):
            one.result(10)
    told = [event.to_state for event in cluster.ledger.events("primary") if event.kind == "breaker"]
    assert told == ["open", "half-open", "open"]

"""Urgent mail finds a place; mail leaves its weights only as configured: with a real ledger and broker."""

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.producer import Producer
from campaigns.settings import Settings
from campaigns.states import State
from campaigns.sweep import Sweeper
from tests.crowd import Crowd

SERVERS = ("primary", "secondary")
CONNECTIONS = 4
WINDOW = 5 * CONNECTIONS


def settings_of(directory: Path, broker_url: str, **more: Any) -> Settings:
    limits = more.pop("server_limits", {})
    servers = [
        {
            "name": name,
            "url": "smtp://127.0.0.1:2525",
            "tls": "none",
            "connections": CONNECTIONS,
            **limits.get(name, {}),
        }
        for name in SERVERS
    ]
    return Settings.model_validate({"directory": directory, "broker": broker_url, "servers": servers, **more})


class Bench:
    """A producer and a sweeper of their own, with workers that only say they are there."""

    def __init__(self, ledger: Ledger, app: Celery, settings: Settings) -> None:
        self.ledger, self.now = ledger, 1_000.0
        self.board = HealthBoard(settings.state_url)
        self.fleet = Fleet(settings, ledger, self.board, monotonic=lambda: self.now)
        self.producer = Producer(ledger, app, settings, self.fleet, monotonic=lambda: self.now)
        self.sweeper = Sweeper(ledger, app, settings, self.fleet, monotonic=lambda: self.now)

    def worker(self, server: str, sent: float, most: float | None) -> None:
        load = {server: (sent, most)}
        self.ledger.heartbeat(
            f"worker-{server}", [server], host="here", pid=1, sent_per_second=sent, loads=load
        )
        self.fleet.refresh_soon()

    def fill(self) -> int:
        return sum(iter(self.producer.run_once, 0))

    @property
    def queued(self) -> dict[str, int]:
        return self.ledger.queued_counts()


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, ledger: Ledger, app: Celery, directory: Path, broker_url: str
) -> Bench:
    return Bench(ledger, app, settings_of(directory, broker_url, **getattr(request, "param", {})))


def one_crawls(bench: Bench) -> None:
    """The primary sends a hundredth of what the secondary could; both windows are full, then one is empty."""
    bench.worker("primary", 1.0, 1.0)
    bench.worker("secondary", 0.0, 100.0)


def work_off(bench: Bench, crowd: Crowd, server: str) -> None:
    waiting = [one.delivery_id for one in bench.ledger.queued_of(crowd.campaign_id) if one.server == server]
    crowd.claim(server, waiting)


def test_urgent_mail_finds_a_place_when_all_windows_are_full(bench: Bench) -> None:
    Crowd(bench.ledger, 400)
    bench.fill()
    assert bench.producer.run_once() == 0
    urgent = Crowd(bench.ledger, 5, stream="transactional")
    assert bench.producer.run_once() == 5
    assert urgent.in_state(State.QUEUED) == 5


def test_by_capacity_the_share_of_a_crawling_server_goes_to_the_idle_one(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 100)
    one_crawls(bench)
    bench.producer.run_once()
    work_off(bench, crowd, "secondary")
    bench.producer.run_once()
    assert bench.queued["secondary"] > 0, "though it was the primary's turn"


@pytest.mark.parametrize("bench", [{"sharing": "weights"}], indirect=True)
def test_by_weights_it_waits_for_the_crawling_server(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 100)
    one_crawls(bench)
    bench.fill()
    work_off(bench, crowd, "secondary")
    bench.now += 60.0
    bench.fill()
    assert bench.queued == {"primary": WINDOW}


def test_at_the_end_what_waits_for_a_crawling_server_goes_to_the_idle_one(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 2 * WINDOW)
    one_crawls(bench)
    bench.producer.run_once()
    work_off(bench, crowd, "secondary")
    bench.producer.run_once()
    assert bench.queued["primary"] <= 1
    assert bench.queued["secondary"] >= WINDOW - 1


def test_nothing_is_evened_out_to_a_server_that_is_taken_off_some_of_it(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 2 * WINDOW)
    one_crawls(bench)
    bench.producer.run_once()
    work_off(bench, crowd, "secondary")
    until = bench.ledger.now() + 300.0
    bench.ledger.add_block(server="secondary", domain="example.com", until=until, reason="throttled")
    bench.fleet.refresh_soon()
    bench.producer.run_once()
    assert "secondary" not in bench.queued, "it would hand it back, and be given it again"


@pytest.mark.parametrize("bench", [{"server_limits": {"secondary": {"rate": "3/s"}}}], indirect=True)
def test_a_reroute_gives_a_limited_server_what_it_may_take_and_the_rest_waits_in_the_ledger(
    bench: Bench,
) -> None:
    crowd = Crowd(bench.ledger, 300)
    crowd.queue("primary")
    for _ in range(20):
        bench.board.fault("primary", "refused")
    bench.sweeper.run_once()
    assert 0 < bench.queued["secondary"] <= 12
    assert "primary" not in bench.queued
    assert crowd.in_state(State.PENDING) >= 288


@pytest.mark.parametrize("bench", [{"server_limits": {"primary": {"rate": "3/s"}}}], indirect=True)
def test_by_capacity_what_a_rate_holds_back_goes_to_the_idle_one(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 100)
    bench.worker("primary", 3.0, 500.0)
    bench.worker("secondary", 3.0, 500.0)
    bench.fill()
    work_off(bench, crowd, "secondary")
    bench.producer.run_once()
    assert bench.queued["secondary"] > 0, "though it was the primary's turn"
    assert bench.queued["primary"] <= 12

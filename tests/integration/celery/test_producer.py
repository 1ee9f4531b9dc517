"""Who gets the places when there are few: a real producer, ledger and broker."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from celery import Celery

from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.limits import Limits
from campaigns.producer import Producer
from campaigns.rooms import PROBES
from campaigns.settings import Settings
from campaigns.states import State
from tests.crowd import Crowd, new_recipients

DAILY = 1 / 86_400


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> HealthBoard:
    return HealthBoard(None, clock=clock)


@pytest.fixture
def settings(directory: Path, broker_url: str) -> Settings:
    servers = [{"name": name, "url": "smtp://127.0.0.1:2525", "tls": "none"} for name in ("one", "two")]
    streams = {"promotional": ("one",), "transactional": ("two",)}
    return Settings.model_validate(
        {"directory": directory, "broker": broker_url, "servers": servers, "streams": streams}
    )


@pytest.fixture
def producer(ledger: Ledger, app: Celery, settings: Settings, board: HealthBoard) -> Producer:
    return Producer(ledger, app, settings, Fleet(settings, ledger, board))


def half_open(board: HealthBoard, clock: Clock, server: str = "two") -> None:
    for _ in range(5):
        board.fault(server, "refused")
    clock.now += 60


def dead(board: HealthBoard, server: str) -> None:
    for _ in range(5):
        board.fault(server, "refused")


def exhausted(ledger: Ledger, settings: Settings, count: int) -> list[Crowd]:
    """Campaigns whose rate allows nothing for a day."""
    crowds = [Crowd(ledger, 5, stream="transactional", rate_per_second=DAILY) for _ in range(count)]
    limits = Limits(settings.state_url)
    for crowd in crowds:
        assert limits.take(f"campaign:{crowd.campaign_id}", DAILY, 5, burst_seconds=1.0).granted == 1
    limits.close()
    return crowds


def test_a_half_open_server_is_probed_whoever_waits_for_a_dead_one(
    ledger: Ledger, producer: Producer, board: HealthBoard, clock: Clock
) -> None:
    waiting = [Crowd(ledger, 5) for _ in range(2)]
    probing = Crowd(ledger, 5, stream="transactional")
    half_open(board, clock)
    dead(board, "one")
    assert producer.run_once() == PROBES
    assert probing.in_state(State.QUEUED) == PROBES
    assert [crowd.in_state(State.QUEUED) for crowd in waiting] == [0, 0]


def test_campaigns_that_their_rate_holds_back_take_no_places(
    ledger: Ledger, producer: Producer, settings: Settings, board: HealthBoard, clock: Clock
) -> None:
    exhausted(ledger, settings, 2)
    free = Crowd(ledger, 5, stream="transactional")
    half_open(board, clock)
    assert producer.run_once() == PROBES
    assert free.in_state(State.QUEUED) == PROBES


def test_nor_do_they_take_the_places_of_campaigns_whose_rate_allows_something(
    ledger: Ledger, producer: Producer, settings: Settings, board: HealthBoard, clock: Clock
) -> None:
    exhausted(ledger, settings, 12)
    rated = Crowd(ledger, 5, stream="transactional", rate_per_second=100.0)
    half_open(board, clock)
    turns = 12 // PROBES + 1
    assert any(producer.run_once() for _ in range(turns))
    assert rated.in_state(State.QUEUED) > 0


def test_nothing_is_taken_while_every_stream_waits(
    ledger: Ledger, producer: Producer, board: HealthBoard
) -> None:
    crowd = Crowd(ledger, 5)
    dead(board, "one")
    assert producer.run_once() == 0
    assert crowd.in_state(State.PENDING) == 5
    board.forget()
    assert producer.run_once() == 5


def test_a_campaign_keeps_to_its_rate(ledger: Ledger, producer: Producer, board: HealthBoard) -> None:
    rated, free = Crowd(ledger, 40, rate_per_second=5.0), Crowd(ledger, 40)
    producer.run_once()
    assert 1 <= rated.in_state(State.QUEUED) <= 5
    assert free.in_state(State.QUEUED) == 40


def test_a_cold_server_is_tried_with_mail_only_when_no_hot_one_can_take_it(
    ledger: Ledger, app: Celery, board: HealthBoard, clock: Clock, settings: Settings
) -> None:
    servers = [
        {"name": name, "url": "smtp://127.0.0.1:2525", "tls": "none", "weight": weight}
        for name, weight in (("one", 1), ("two", 0))
    ]
    settings = Settings.model_validate(
        {"directory": settings.directory, "broker": settings.broker, "servers": servers}
    )
    producer = Producer(ledger, app, settings, Fleet(settings, ledger, board))
    half_open(board, clock)
    Crowd(ledger, 20)
    producer.run_once()
    assert ledger.queued_counts() == {"one": 20}
    dead(board, "one")
    Crowd(ledger, 20)
    producer.run_once()
    assert ledger.queued_counts()["two"] == PROBES


def limited(settings: Settings) -> Settings:
    """The same, with a domain that takes one mail a second."""
    return Settings.model_validate(
        {**settings.model_dump(exclude_unset=True), "limits": {"slow.example": "1/s"}}
    )


def slow_first(ledger: Ledger, settings: Settings, slow: int, others: int) -> Crowd:
    """`slow` recipients at a domain with a limit, and then some at another; 10/s, of which ten may go now."""
    crowd = Crowd(ledger, 0, send=False, rate_per_second=10.0)
    assert left_of_rate(settings, crowd, -10) == 0
    ledger.add_recipients(crowd.campaign_id, new_recipients(slow, domain="slow.example"))
    ledger.add_recipients(crowd.campaign_id, new_recipients(others, slow))
    ledger.send(crowd.name)
    crowd.ids = [delivery.id for delivery in ledger.deliveries(crowd.name)]
    return crowd


def left_of_rate(settings: Settings, crowd: Crowd, wanted: int = 10) -> int:
    limits = Limits(settings.state_url)
    granted = limits.take(f"campaign:{crowd.campaign_id}", 10.0, wanted, burst_seconds=1.0).granted
    limits.close()
    return granted


def queued_of(crowd: Crowd, ids: Sequence[int]) -> int:
    return sum(crowd.state(one) is State.QUEUED for one in ids)


def test_mail_that_a_domains_limit_holds_uses_up_nothing_of_its_campaigns_rate(
    ledger: Ledger, app: Celery, settings: Settings, board: HealthBoard
) -> None:
    settings = limited(settings)
    producer = Producer(ledger, app, settings, Fleet(settings, ledger, board))
    crowd = slow_first(ledger, settings, 60, 60)
    assert 9 <= producer.run_once() <= 11
    assert queued_of(crowd, crowd.ids[60:]) >= 6


def test_what_a_rate_allowed_and_no_mail_used_is_given_back(
    ledger: Ledger, producer: Producer, settings: Settings
) -> None:
    crowd = Crowd(ledger, 5, rate_per_second=DAILY)
    ledger.add_block("one", domain="example.com", reason="for the test")
    assert producer.run_once() == 0
    limits = Limits(settings.state_url)
    assert limits.take(f"campaign:{crowd.campaign_id}", DAILY, 1, burst_seconds=1.0).granted == 1
    limits.close()


def test_mail_that_nobody_may_take_uses_up_nothing_of_its_campaigns_rate(
    ledger: Ledger, producer: Producer, settings: Settings
) -> None:
    crowd = slow_first(ledger, settings, 20, 20)
    ledger.add_block("one", domain="slow.example", reason="for the test")
    producer.run_once()
    assert queued_of(crowd, crowd.ids[20:]) >= 10


def test_while_redis_is_away_each_of_all_workers_takes_its_part_of_a_campaigns_rate(
    ledger: Ledger, app: Celery, settings: Settings, board: HealthBoard
) -> None:
    settings = settings.model_copy(update={"state": "redis://127.0.0.1:1/0"})
    for name, servers in (("first", ["one"]), ("second", ["two"]), ("third", ["two"]), ("control", [])):
        ledger.heartbeat(name, servers, host="here", pid=1, sent_per_second=0.0)
    producer = Producer(ledger, app, settings, Fleet(settings, ledger, board))
    crowd = Crowd(ledger, 40, rate_per_second=20.0)
    producer.run_once()
    time.sleep(1.1)
    producer.run_once()
    assert 2 <= crowd.in_state(State.QUEUED) <= 7

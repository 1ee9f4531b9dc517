"""The sweep, step by step, on a real ledger (both kinds) and a real Valkey; no workers, no waiting."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from campaigns.broker_outage import SETTLED_SECONDS
from campaigns.broker_queue import waiting_deliveries
from campaigns.client import Client
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.publishing import publish_deliveries, queue_keys, queue_name, ready_count
from campaigns.queues import create_app
from campaigns.settings import Settings, load_settings
from campaigns.states import State, Status
from campaigns.sweep import Sweeper
from tests.crowd import Crowd

CONFIGURATION = """
database = "{database}"
broker = "embedded"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:1"
tls = "none"
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:2"
tls = "none"
"""


@dataclass(kw_only=True)
class Bench:
    settings: Settings
    ledger: Ledger
    fleet: Fleet
    sweeper: Sweeper
    now: list[float]

    def waiting(self, server: str) -> set[int]:
        return waiting_deliveries(self.settings.broker_url, server) or set()

    def break_primary(self) -> None:
        for _ in range(5):
            self.fleet.board.fault("primary", "for the test")


@pytest.fixture
def bench(ledger: Ledger, database_url: str, tmp_path: Path) -> Iterator[Bench]:
    file = tmp_path / "campaigns.toml"
    file.write_text(CONFIGURATION.format(database=database_url))
    settings = load_settings(file, {})
    broker = EmbeddedBroker.of(settings)
    broker.start()
    now = [1_000.0]
    fleet = Fleet(settings, ledger, HealthBoard(settings.state_url), monotonic=lambda: now[0])
    sweeper = Sweeper(ledger, create_app(settings), settings, fleet, monotonic=lambda: now[0])
    yield Bench(settings=settings, ledger=ledger, fleet=fleet, sweeper=sweeper, now=now)
    fleet.board.close()
    broker.stop()


def publish_all(bench: Bench, crowd: Crowd) -> None:
    publish_deliveries(create_app(bench.settings), bench.ledger.queued_of(crowd.campaign_id))


def test_a_full_queue_of_an_open_server_moves_to_the_other(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 600)
    crowd.queue("primary")
    bench.break_primary()
    bench.sweeper.run_once()
    assert bench.ledger.queued_counts() == {"secondary": 600}
    assert bench.waiting("secondary") == set(crowd.ids)
    assert bench.ledger.counts(crowd.name).servers["primary"].rerouted == 600


def late(bench: Bench, size: int = 3) -> Crowd:
    """As if it was imported while the database's clock was two hours ahead."""
    crowd = Crowd(bench.ledger, size)
    crowd.set("next_attempt_at", bench.ledger.now() + 7_200)
    return crowd


def test_a_worker_that_starts_does_not_wait_for_the_time_before_the_clock_was_set_back(bench: Bench) -> None:
    late(bench, 1_100)
    bench.sweeper.run_once()
    assert len(bench.ledger.due(2_000)) == 1_100


def test_that_the_clock_was_set_back_is_noticed_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sweeper.run_once()
    late(bench)
    bench.now[0] += 2
    bench.sweeper.run_once()
    assert bench.ledger.due(10) == [], "it is looked for rarely"
    ahead = bench.fleet.now
    monkeypatch.setattr(bench.fleet, "now", lambda: ahead() - 7_200)
    bench.sweeper.run_once()
    assert len(bench.ledger.due(10)) == 3


def test_what_waits_for_a_healthy_server_stays(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 20)
    crowd.queue("primary")
    publish_all(bench, crowd)
    bench.sweeper.run_once()
    assert bench.ledger.queued_counts() == {"primary": 20}


def test_mail_for_a_server_that_was_taken_out_of_the_configuration_moves(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 20)
    crowd.queue("retired")
    bench.sweeper.run_once()
    counts = bench.ledger.queued_counts()
    assert "retired" not in counts
    assert sum(counts.values()) == 20


def test_a_server_that_another_worker_still_reads_is_not_gone(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 20)
    crowd.queue("renamed")
    bench.ledger.heartbeat("old-worker", ["renamed"], host="here", pid=1, sent_per_second=0.0)
    bench.fleet.refresh_soon()
    bench.sweeper.run_once()  # sees the worker
    bench.sweeper.run_once()
    assert bench.ledger.queued_counts().get("renamed", 0) == 20


def test_a_queue_that_nobody_reads_is_given_to_the_other(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 20)
    crowd.queue("primary")
    bench.ledger.heartbeat("worker-2", ["secondary"], host="here", pid=1, sent_per_second=0.0)
    with bench.ledger.database.write() as connection:  # it has been there for long: nobody else starts now
        connection.execute(text("UPDATE worker SET started_at = started_at - 60"))
    bench.fleet.refresh_soon()
    bench.sweeper.run_once()
    assert bench.ledger.queued_counts() == {"secondary": 20}


def test_what_waits_for_a_closed_server_goes_to_the_other_and_for_a_drained_one_stays(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 20)
    crowd.queue("primary")
    bench.ledger.set_server_mode("primary", "drained")
    bench.fleet.refresh_soon()
    bench.sweeper.run_once()
    assert bench.ledger.queued_counts() == {"primary": 20}
    assert bench.fleet.usable("promotional") == ("secondary",), "but nothing new comes"
    bench.ledger.set_server_mode("primary", "closed")
    bench.fleet.refresh_soon()
    bench.sweeper.run_once()
    assert bench.ledger.queued_counts() == {"secondary": 20}
    assert bench.fleet.usable("promotional") == ("secondary",)


def test_what_a_worker_has_in_hand_is_not_published_again(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", 1.0)
    publish_all(bench, crowd)
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        (key,) = client.scan_iter("smtp.primary*")
        for number, message in enumerate(client.lpop(key, 4)):  # as kombu notes what a worker takes
            client.hset("unacked", str(number), json.dumps([json.loads(message), "", "smtp.primary"]))
        bench.sweeper.run_once()
        assert client.llen(key) == 6


def test_only_what_the_broker_lost_is_published_again(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", 1.0)
    kept = bench.ledger.queued_of(crowd.campaign_id)[:6]
    app = create_app(bench.settings)
    publish_deliveries(app, kept)
    bench.sweeper.run_once()
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        messages = sum(client.llen(key) for key in client.scan_iter("smtp.primary*"))
    assert messages == 10, "six that were there, four again"
    assert bench.waiting("primary") == set(crowd.ids)


class Counted:
    """A broker that tells of a queue no more than how much is in it, as RabbitMQ does."""

    def __init__(self, bench: Bench) -> None:
        self.app = create_app(bench.settings.model_copy(update={"broker": "amqp://h//"}))
        self.app.conf.broker_url = "memory://"
        self.sweeper = Sweeper(bench.ledger, self.app, bench.settings, bench.fleet)

    def count(self) -> int:
        return ready_count(self.app, "primary")

    def read_all(self) -> list[int]:
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            messages = [channel.basic_get("smtp.primary", no_ack=True) for _ in range(self.count())]
            return [json.loads(message.body)[1]["delivery"] for message in messages]


@pytest.fixture
def counted(bench: Bench) -> Iterator[Counted]:
    made = Counted(bench)
    yield made
    with made.app.connection_for_write() as connection:
        connection.default_channel.queue_delete("smtp.primary")


def test_a_queue_that_can_only_be_counted_does_not_grow(bench: Bench, counted: Counted) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    publish_deliveries(counted.app, bench.ledger.queued_of(crowd.campaign_id))
    for _ in range(3):
        crowd.set("queued_at", 1.0)
        counted.sweeper.run_once()
        assert counted.count() == 10


def test_what_a_queue_that_can_only_be_counted_lost_is_published_again(
    bench: Bench, counted: Counted
) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", 1.0)
    *kept, _, _, _ = bench.ledger.queued_of(crowd.campaign_id)
    publish_deliveries(counted.app, kept)
    counted.sweeper.run_once()
    assert counted.count() == 10, "as many as are missing, although not those"
    read = set(counted.read_all())
    assert read == set(crowd.ids[:7])
    crowd.claim("primary", sorted(read))
    counted.sweeper.run_once()
    assert counted.read_all() == crowd.ids[7:]


def test_a_queue_that_is_not_there_is_filled_again(bench: Bench, counted: Counted) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", 1.0)
    assert counted.count() == 0
    counted.sweeper.run_once()
    assert counted.read_all() == crowd.ids


def test_what_was_published_again_has_its_time_again(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", 1.0)
    bench.sweeper.run_once()
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        client.flushall()
        bench.sweeper.run_once()
        assert client.dbsize() == 0, "nothing is published twice within its patience"


def test_a_flush_is_noticed_long_before_the_usual_patience_ends(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", bench.ledger.now() - 5)
    bench.sweeper.run_once()
    assert bench.waiting("primary") == set(crowd.ids)


class Told:
    """What the log says of the broker, and what of mail that is published again."""

    LOGGERS = ("campaigns.broker_outage", "campaigns.sweep")

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        for name in self.LOGGERS:
            caplog.set_level(logging.INFO, name)
        self._caplog = caplog

    def lines(self) -> list[tuple[str, ...]]:
        """All since the last time."""
        fields = ("server", "count")
        lines = [
            (one.getMessage(), *(str(vars(one)[field]) for field in fields if field in vars(one)))
            for one in self._caplog.records
            if one.name in self.LOGGERS
        ]
        self._caplog.clear()
        return lines


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


GONE = ("the broker takes no messages; what is queued is published when it does",)
BACK = ("the broker takes messages again",)
AGAIN = "queued mail without a message was published again"


def turns(bench: Bench, count: int) -> None:
    """A second each."""
    for _ in range(count):
        bench.sweeper.run_once()
        bench.now[0] += 1


def test_what_a_full_broker_does_not_take_is_not_called_published_and_keeps_its_age(
    bench: Bench, told: Told
) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    crowd.set("queued_at", 1.0)
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        client.config_set("maxmemory", 1)
        turns(bench, 3)
        assert [one.delivery_id for one in bench.ledger.stale_queued("primary", 1_000)] == crowd.ids
        assert told.lines() == [GONE]
        client.config_set("maxmemory", 0)
        turns(bench, 1)
        assert told.lines() == [(AGAIN, "primary", "10")]
    assert bench.waiting("primary") == set(crowd.ids)
    assert bench.ledger.stale_queued("primary", 1_000) == []
    turns(bench, int(SETTLED_SECONDS) + 2)
    assert told.lines() == [BACK]


def test_a_dead_broker_is_a_line_and_so_is_its_return(bench: Bench, told: Told) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    publish_all(bench, crowd)
    broker = EmbeddedBroker.of(bench.settings)
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        client.shutdown(nosave=True)
    turns(bench, 20)
    assert told.lines() == [GONE]
    assert bench.sweeper.reroute("primary") == 10
    assert told.lines() == [], "nor is there one for what was moved meanwhile"
    crowd.set("queued_at", bench.ledger.now() + 60)  # nobody looks yet for what the broker lost
    broker.start()
    turns(bench, int(SETTLED_SECONDS) + 2)
    assert told.lines() == [BACK]
    broker.stop()


@pytest.mark.parametrize("refusing", ["primary", "secondary"])
def test_a_queue_that_refuses_keeps_no_other_servers_mail_back(
    bench: Bench, told: Told, refusing: str
) -> None:
    other = "secondary" if refusing == "primary" else "primary"
    crowd = Crowd(bench.ledger, 10)
    crowd.queue(refusing, crowd.ids[:4])
    crowd.queue(other, crowd.ids[4:])
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        for key in queue_keys(queue_name(refusing)):
            client.set(key, "no list")
        for first_line in ([GONE], []):
            crowd.set("queued_at", 1.0)
            turns(bench, 1)
            assert bench.waiting(other) == set(crowd.ids[4:])
            assert sorted(told.lines()) == sorted([*first_line, (AGAIN, other, "6")])
            client.delete(*queue_keys(queue_name(other)))
    assert [one.delivery_id for one in bench.ledger.stale_queued(refusing, 1_000)] == crowd.ids[:4]


def test_a_broker_that_is_asked_nothing_is_not_called_back(bench: Bench, told: Told) -> None:
    bench.sweeper.run_once()
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        client.shutdown(nosave=True)
    turns(bench, 1)
    bench.ledger.withdraw_queued("primary", 10, stream="promotional")
    turns(bench, int(SETTLED_SECONDS) + 5)
    assert told.lines() == [GONE]


def test_after_an_outage_nobodys_lease_is_judged_for_a_while(bench: Bench) -> None:
    crowd = Crowd(bench.ledger)
    crowd.queue("primary")
    crowd.claim()
    crowd.set("lease_until", 1.0)
    bench.sweeper.hold_judgement(20.0)
    bench.now[0] += 19.0
    bench.sweeper.run_once()
    assert crowd.state() is State.CLAIMED
    bench.now[0] += 2.0
    bench.sweeper.run_once()
    assert crowd.state() is State.PENDING


def test_a_campaign_is_finished_although_the_broker_is_away(bench: Bench) -> None:
    crowd = Crowd(bench.ledger)
    crowd.queue("primary")
    (claim,) = crowd.claim()
    crowd.commit([claim])
    crowd.report(claim, State.SENT)
    other = Crowd(bench.ledger, 5)
    other.queue("primary")
    EmbeddedBroker.of(bench.settings)
    with redis.Redis(unix_socket_path=str(bench.settings.broker_socket)) as client:
        client.shutdown(nosave=True)
    bench.sweeper.run_once()
    assert bench.ledger.counts(crowd.name).status is Status.FINISHED
    assert [event.to_state for event in bench.ledger.events(campaign=crowd.name)][-1] == "finished"


def test_the_end_of_the_systems_own_mail_is_no_event(bench: Bench) -> None:
    bench.ledger.create_campaign("alert-1", sender="n@example.com", subject="x", text="x", purpose="alert")
    bench.ledger.send("alert-1")
    bench.sweeper.run_once()
    assert bench.ledger.campaign("alert-1").status is Status.FINISHED
    assert bench.ledger.events(campaign="alert-1") == []


def test_resuming_a_campaign_publishes_what_its_pause_swallowed(bench: Bench) -> None:
    crowd = Crowd(bench.ledger, 10)
    crowd.queue("primary")
    client = Client(bench.settings)
    campaign = client.campaign(crowd.name)
    campaign.pause()
    assert bench.waiting("primary") == set(), "workers took the messages, and claimed nothing"
    campaign.resume()
    assert bench.waiting("primary") == set(crowd.ids)
    client.close()

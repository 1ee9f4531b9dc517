"""The broker is full, gone, empty, cut off, or says everything three times. Nothing that matters is in it."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from campaigns.publishing import queue_keys, queue_name
from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.proxy import BOTH, TO_CLIENT, TO_SERVER, BadNetwork
from tests.faults.trial import PATIENCE_SECONDS, Trial, Trials, patiently
from tests.faults.valkey import Valkey

slow = pytest.mark.slow
LOST = "Connection to broker lost"
"""What a worker writes, once for each time that its connection breaks."""


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path / "valkey-tcp")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tcp_trial(new_trial: Trials, valkey: Valkey) -> Trial:
    """An installation whose broker is reached over TCP."""
    return new_trial(broker_url=valkey.url)


def _under_way(trial: Trial, count: int, start: bool = True) -> list[str]:
    """So slow that it takes seconds whatever the machine can do."""
    emails = addresses(count)
    for server in (trial.primary, trial.secondary):
        server.set("dot", "delay", seconds=0.2)
    if start:
        trial.start_workers()
    trial.send("spring", emails)
    patiently(lambda: trial.count("spring", State.SENT) >= 50, what=trial.logs)
    return emails


def _all_are_sent(trial: Trial, emails: list[str]) -> None:
    trial.verdict()
    assert trial.states("spring") == {State.SENT: len(emails)}, "no fault of the broker leaves a doubt"


@slow
def test_a_full_broker_is_waited_out(tcp_trial: Trial, valkey: Valkey) -> None:
    emails = _under_way(tcp_trial, 1_500)
    with tcp_trial.outage_on_the_way("spring", "full", "broker"), valkey.client() as client:
        client.config_set("maxmemory", 1)
        time.sleep(6)
        client.config_set("maxmemory", 0)
        refused = client.info("errorstats").get("errorstat_OOM", {}).get("count", 0)
        assert refused >= 1, "the fault was met"
    _all_are_sent(tcp_trial, emails)


@pytest.mark.parametrize("policy", ["allkeys-lru"])
def test_a_broker_that_may_throw_messages_away_is_refused_at_the_start(
    tcp_trial: Trial, valkey: Valkey, policy: str
) -> None:
    with valkey.client() as client:
        client.config_set("maxmemory-policy", policy)
    worker = tcp_trial.start_worker("primary")
    try:
        assert worker.wait(PATIENCE_SECONDS) != 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"it runs\n{tcp_trial.logs()}")
    assert "set it to noeviction" in tcp_trial.logs()


@slow
@pytest.mark.parametrize("with_file", [True, False])
def test_a_broker_that_is_killed_twice(tcp_trial: Trial, valkey: Valkey, with_file: bool) -> None:
    emails = _under_way(tcp_trial, 1_500)
    with tcp_trial.outage_on_the_way("spring", "killed twice", "broker"):
        for pause_seconds in (1.0, 4.0):
            valkey.kill()
            if not with_file:
                files = list((valkey.directory / "appendonlydir").glob("*"))
                assert files, "there is something to lose"
                for file in files:
                    file.unlink()
            time.sleep(pause_seconds)
            valkey.start()
            time.sleep(2.0)
    assert tcp_trial.logs(100_000).count(LOST) >= len(tcp_trial.workers), "the fault was met"
    _all_are_sent(tcp_trial, emails)


@slow
def test_a_broker_that_is_flushed_again_and_again(tcp_trial: Trial, valkey: Valkey) -> None:
    emails = _under_way(tcp_trial, 1_500)
    with tcp_trial.outage_on_the_way("spring", "flushed", "broker"), valkey.client() as client:
        flushed = 0
        for _ in range(6):
            flushed += _flush(client)
            time.sleep(0.7)
        assert flushed >= 1, "the fault was met"
    _all_are_sent(tcp_trial, emails)


def _flush(client: redis.Redis) -> int:
    """How many messages it had: those that waited, and those in the hands of workers."""
    pipeline = client.pipeline(transaction=True)
    for server in ("primary", "secondary"):
        for key in queue_keys(queue_name(server)):
            pipeline.llen(key)
    pipeline.hlen("unacked")
    pipeline.flushall()
    *counts, _ = pipeline.execute()
    return sum(counts)


@pytest.fixture
def far_trial(new_trial: Trials, valkey: Valkey) -> Iterator[tuple[Trial, BadNetwork]]:
    """Broker and health board are reached over a bad network."""
    with BadNetwork(valkey.port) as network:
        through = f"redis://127.0.0.1:{network.port}/0"
        yield new_trial(broker_url=valkey.url, worker_environ={"CAMPAIGNS_BROKER": through}), network


@slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("direction", ["both", TO_SERVER, TO_CLIENT])
def test_a_silent_partition_of_forty_seconds(far_trial: tuple[Trial, BadNetwork], direction: str) -> None:
    trial, network = far_trial
    emails = _under_way(trial, 1_500)
    with trial.outage_on_the_way("spring", "partition", "broker"):
        network.be(held=BOTH if direction == "both" else frozenset({direction}))
        time.sleep(40)
        network.heal()
        assert network.met["held"] >= 1, "the fault was met"
    _all_are_sent(trial, emails)


@slow
def test_a_slow_and_narrow_way_to_the_broker(far_trial: tuple[Trial, BadNetwork]) -> None:
    trial, network = far_trial
    with trial.outage("slow and narrow", "broker"):
        network.be(latency_seconds=0.15, octets_per_second=50_000)
        emails = _under_way(trial, 300)
        trial.wait_until_finished("spring")
        assert network.met["latency_seconds"] >= len(emails), "the fault was met"
        assert network.met["octets_per_second"] >= len(emails), "the fault was met"
        network.heal()
    connected = re.findall(r"Connected to \S*@127\.0\.0\.1:(\d+)/", trial.logs(100_000))
    assert set(connected) == {str(network.port)}, "no worker has another way"
    _all_are_sent(trial, emails)


def test_every_message_may_come_three_times(trial: Trial) -> None:
    for server in ("primary", "secondary"):
        trial.odd_worker(server, oddities="thrice")
    trial.wait_for_workers(2)
    with trial.outage("every message three times", "broker"):
        emails = _under_way(trial, 300, start=False)
        trial.wait_until_finished("spring")
    _all_are_sent(trial, emails)
    published = re.findall(r"published thrice: (\d+)", trial.logs(100_000))
    assert sum(map(int, published)) >= len(emails), "the others found nothing to claim"


@slow
def test_a_visibility_timeout_far_shorter_than_a_mail_takes(trial: Trial) -> None:
    for server in (trial.primary, trial.secondary):
        server.set("dot", "delay", seconds=5.0)
    for name in ("primary", "secondary"):
        trial.odd_worker(name, oddities="visibility:2")
    trial.wait_for_workers(2)
    with trial.outage("visibility timeout of 2 s", "broker"):
        emails = addresses(60)
        trial.send("spring", emails)
        trial.wait_until_finished("spring")
    _all_are_sent(trial, emails)
    again = re.findall(r"delivered again: (\d+)", trial.logs(100_000))
    assert sum(map(int, again)) >= len(emails), "each took longer than that"

"""Real workers on a real Valkey: what they do with messages, signals, and the death of others."""

import base64
import json
import os
import pickle
import signal
import time

import psutil
import pytest

from campaigns.broker_queue import waiting_count, waiting_deliveries
from campaigns.queues import publish_deliveries
from tests.integration.celery.worker_process import Delivery, wait_until

pytestmark = pytest.mark.timeout(90)

BOTH = pytest.mark.parametrize("transport", ["bulk", "stock"])


def publish(app, count, *, first=1, **fields):
    publish_deliveries(app, [Delivery(delivery_id=n, **fields) for n in range(first, first + count)])


def is_empty(client):
    return client.hlen("unacked") == 0 and client.zcard("unacked_index") == 0


@BOTH
def test_a_worker_runs_what_is_published_and_leaves_nothing_behind(app, worker, notes, client, transport):
    publish(app, 300)
    assert waiting_deliveries(app, "primary") == set(range(1, 301))
    assert waiting_deliveries(app, "secondary") == set()
    worker(transport=transport)
    wait_until(lambda: len(notes.of("ended")) == 300)
    assert sorted(notes.of("ended")) == list(range(1, 301))
    wait_until(lambda: is_empty(client))
    assert waiting_count(app, "primary") == 0


def test_no_more_tasks_run_at_a_time_than_asked_for(app, worker, notes, client):
    publish(app, 30, campaign_name="stuck")
    worker("-Q", "smtp.primary", "-c", "4")
    wait_until(lambda: len(notes.of("began")) == 4)
    assert client.hlen("unacked") == 8  # prefetch: twice as many
    assert waiting_deliveries(app, "primary") == set(range(1, 31))
    assert waiting_count(app, "primary") == 22


def test_by_default_a_worker_follows_the_connections_of_its_own_servers(app, worker):
    worker()
    stats = next(iter(app.control.inspect(timeout=10, limit=1).stats().values()))
    assert stats["pool"]["max-concurrency"] == 44  # 20 connections, two tasks each, and four
    assert stats["pool"]["loop"].startswith("uvloop")
    assert stats["prefetch_count"] == 88


def test_what_runs_can_be_inspected(app, worker, notes):
    publish(app, 1, campaign_name="stuck")
    worker()
    wait_until(lambda: notes.of("began"))
    (active,) = next(iter(app.control.inspect(timeout=10, limit=1).active().values()))
    assert active["name"] == "campaigns.deliver"
    assert active["kwargs"] == {"campaign": "stuck", "delivery": 1, "server": "primary"}
    assert abs(active["time_start"] - time.time()) < 60


@BOTH
def test_transactional_mail_overtakes_what_waits(app, worker, notes, transport):
    publish(app, 200)
    publish(app, 20, first=1001, stream="transactional")
    worker("-Q", "smtp.primary", "-c", "1", transport=transport)
    wait_until(lambda: len(notes.of("ended")) == 220)
    assert set(notes.of("began")[:20]) == set(range(1001, 1021))


@BOTH
def test_a_warm_shutdown_waits_for_what_runs_and_puts_the_rest_back(app, worker, notes, client, transport):
    publish(app, 30, campaign_name="slow")
    process = worker("-Q", "smtp.primary", "-c", "4", transport=transport)
    wait_until(lambda: len(notes.of("began")) >= 4)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    began, ended = notes.of("began"), notes.of("ended")
    assert sorted(began) == sorted(ended) and len(ended) < 12
    assert is_empty(client)
    assert waiting_deliveries(app, "primary") == set(range(1, 31)) - set(ended)


def test_a_warm_shutdown_ends_when_the_grace_is_over(app, worker, notes, client):
    publish(app, 3, campaign_name="stuck")
    process = worker(grace="0.5")
    wait_until(lambda: len(notes.of("began")) == 3)
    process.signal(signal.SIGTERM)
    assert process.wait(within_seconds=10) == 0
    assert sorted(notes.of("cancelled")) == [1, 2, 3]
    assert is_empty(client)
    assert waiting_deliveries(app, "primary") == {1, 2, 3}


def test_the_stop_hook_ends_what_runs_and_its_messages_are_acknowledged(app, worker, notes, client):
    publish(app, 5, campaign_name="heeds")
    process = worker(hooks="1")
    wait_until(lambda: len(notes.of("began")) == 5)
    process.signal(signal.SIGTERM)
    assert process.wait(within_seconds=10) == 0
    assert notes.words()[0] == "start-hook" and notes.words()[6] == "stop-hook"
    assert sorted(notes.of("ended")) == [1, 2, 3, 4, 5]
    assert is_empty(client) and waiting_deliveries(app, "primary") == set()


@pytest.mark.parametrize(
    "signals", [[signal.SIGQUIT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGQUIT]]
)
def test_a_cold_shutdown_cancels_what_runs_and_puts_it_back(app, worker, notes, client, signals):
    publish(app, 30, campaign_name="stuck")
    process = worker("-Q", "smtp.primary", "-c", "4")
    wait_until(lambda: len(notes.of("began")) == 4)
    for number in signals:
        process.signal(number)
        time.sleep(0.5)  # two signals at once are one to the kernel
    process.wait(within_seconds=15)
    assert sorted(notes.of("cancelled")) == sorted(notes.of("began"))
    assert is_empty(client)
    assert waiting_deliveries(app, "primary") == set(range(1, 31))


def test_what_a_killed_worker_held_comes_back_when_nobody_renews_it(app, worker, notes, client):
    publish(app, 3, campaign_name="stuck")
    first = worker(name="first", visibility="3")
    wait_until(lambda: len(notes.of("began")) == 3)
    worker(name="second", visibility="3")
    time.sleep(5)  # longer than the visibility timeout: the living worker renews, and nothing moves
    assert len(notes.of("began")) == 3 and client.hlen("unacked") == 3
    first.kill()
    wait_until(lambda: len(notes.of("began")) == 6)
    assert sorted(notes.of("began")) == [1, 1, 2, 2, 3, 3]
    assert [line[2] for line in notes.lines()] == ["False"] * 3 + ["True"] * 3


def test_a_broker_that_comes_back_empty_is_used_at_once(app, worker, notes, broker, client):
    publish(app, 2, campaign_name="stuck")
    process = worker()
    wait_until(lambda: len(notes.of("began")) == 2)
    broker.kill()
    process.wait_for_log("cannot be reached")
    for file in (broker.directory / "appendonlydir").iterdir():
        file.unlink()
    broker.start()
    came_back = time.monotonic()
    publish(app, 5, first=10)
    wait_until(lambda: len(notes.of("ended")) == 5)
    assert time.monotonic() - came_back < 15
    assert sorted(notes.of("ended")) == [10, 11, 12, 13, 14]


def _killed_with_all_on_record(app, process, notes, broker, everybody):
    """Whether the broker was killed: not while a message is popped and nowhere noted, which it would lose."""
    process.signal(signal.SIGSTOP)
    try:
        time.sleep(0.05)  # what the worker asked for is answered
        if waiting_deliveries(app, "primary") | set(notes.of("ended")) != everybody:
            return False
        broker.kill()
        return True
    finally:
        process.signal(signal.SIGCONT)


def test_a_broker_that_comes_back_with_its_data_loses_nothing(app, worker, notes, broker, client):
    publish(app, 40, campaign_name="slow")
    process = worker("-Q", "smtp.primary", "-c", "4", visibility="3")
    wait_until(lambda: len(notes.of("began")) >= 8)
    wait_until(lambda: _killed_with_all_on_record(app, process, notes, broker, set(range(1, 41))))
    process.wait_for_log("cannot be reached")
    broker.start()
    wait_until(
        lambda: set(notes.of("ended")) == set(range(1, 41)),
        within_seconds=40,
        what=lambda: f"ended: {notes.of('ended')}\n{process.log}",
    )
    wait_until(lambda: is_empty(client) and waiting_count(app, "primary") == 0)


def test_a_worker_that_starts_before_its_broker_waits_for_it(app, worker, notes, broker):
    broker.stop()
    process = worker(ready=False)
    process.wait_for_log("cannot be reached")
    broker.start()
    process.wait_for_log(" ready.", within_seconds=15)
    publish(app, 1)
    wait_until(lambda: notes.of("ended") == [1])


def test_a_worker_that_waits_for_its_broker_can_be_stopped(worker, broker):
    broker.stop()
    process = worker(ready=False)
    process.wait_for_log("cannot be reached")
    process.signal(signal.SIGTERM)
    process.wait(within_seconds=10)


@BOTH
def test_after_a_flush_messages_still_arrive(app, worker, notes, client, transport):
    worker(transport=transport)
    publish(app, 3)
    wait_until(lambda: len(notes.of("ended")) == 3)
    client.flushall()
    publish(app, 3, first=4)
    wait_until(lambda: len(notes.of("ended")) == 6)
    app.send_task("tests.plain", args=[7], queue="smtp.primary")
    wait_until(lambda: notes.of("plain") == [7])


def message(tag, body="W10=", content_type="application/json", **headers):
    """As kombu stores it; `W10=` is an empty list."""
    return json.dumps(
        {
            "body": body,
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": headers,
            "properties": {
                "delivery_tag": tag,
                "delivery_info": {"exchange": "", "routing_key": "smtp.primary"},
                "body_encoding": "base64",
            },
        }
    ).encode()


MALFORMED = [
    b"not JSON at all",
    b"[]",
    b"null",
    b'{"body": "e30="}',
    json.dumps(
        {"body": "!", "headers": {}, "properties": {"delivery_tag": "a", "delivery_info": {}}}
    ).encode(),
    json.dumps({"headers": None, "properties": {"delivery_tag": "b", "delivery_info": {}}}).encode(),
    message("no headers"),
    message("no id", task="campaigns.deliver"),
    message("not base64", body="*", task="campaigns.deliver", id="not base64"),
    message("not JSON", body="bm90IGpzb24=", task="campaigns.deliver", id="not JSON"),
    message("two parts", body="WzEsIDJd", task="campaigns.deliver", id="two parts"),
    message(
        "pickle", "gASVBQAAAAAAAABLAS4=", "application/x-python-serialize", task="campaigns.deliver", id="p"
    ),
    message(
        "expires", body="W1tdLCB7fSwge31d", task="campaigns.deliver", id="e", expires="never", eta="soon"
    ),
]


def test_malformed_messages_are_dropped_once_and_harm_no_other(app, worker, notes, client):
    for number, message in enumerate(MALFORMED):
        client.lpush("smtp.primary", message)
        publish(app, 1, first=number + 1, stream="transactional")
    app.send_task("no.such.task", queue="smtp.primary", kwargs={"a": 1})
    app.send_task("campaigns.deliver", queue="smtp.primary", kwargs={"wrong": "arguments"})
    app.send_task("campaigns.deliver", queue="smtp.primary", args=[1, 2, 3, 4, 5])
    process = worker(visibility="2")
    wait_until(lambda: len(notes.of("ended")) == len(MALFORMED))
    wait_until(lambda: is_empty(client) and waiting_count(app, "primary") == 0)
    publish(app, 1, first=99)
    wait_until(lambda: 99 in notes.of("ended"))
    assert sorted(notes.of("began")) == [*range(1, len(MALFORMED) + 1), 99]
    assert "Unrecoverable" not in process.log and "restarts" not in process.log.lower()


class Trap:
    """Whoever opens its pickle makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_opened(app, worker, notes, client, tmp_path):
    body = base64.b64encode(pickle.dumps(Trap(tmp_path / "opened"))).decode()
    fields = {"task": "campaigns.deliver", "id": "p"}
    client.lpush("smtp.primary", message("pickle", body, "application/x-python-serialize", **fields))
    publish(app, 1)
    worker()
    wait_until(lambda: 1 in notes.of("ended") and is_empty(client) and waiting_count(app, "primary") == 0)
    assert not (tmp_path / "opened").exists()


def test_plain_tasks_run_beside_the_asynchronous_ones(app, worker, notes, client):
    publish(app, 2, campaign_name="stuck")
    worker()
    for number in range(5):
        app.send_task("tests.plain", args=[number], queue="smtp.primary")
        app.send_task("tests.blocks", args=[number], queue="smtp.primary")
    wait_until(lambda: len(notes.of("plain")) == 5 and len(notes.of("blocks")) == 5)
    wait_until(lambda: client.hlen("unacked") == 2)


def test_a_restart_of_the_pool_leaves_no_thread_behind(app, worker, notes):
    process = worker()
    before = psutil.Process(process.process.pid).num_threads()
    for number in range(1, 4):
        (reply,) = app.control.broadcast("pool_restart", reply=True, timeout=10, limit=1)
        assert list(reply.values()) == [{"ok": "reload started"}]
        publish(app, 1, first=number)
        wait_until(lambda wanted=number: len(notes.of("ended")) == wanted)
    assert psutil.Process(process.process.pid).num_threads() <= before


def test_a_start_hook_that_refuses_ends_the_worker_with_one_line(worker):
    process = worker(ready=False, hooks="fail")
    assert process.wait() == 1
    (line,) = [line for line in process.log.splitlines() if "noeviction" in line]
    assert "the worker cannot start: the broker has maxmemory-policy allkeys-lru" in line
    assert "Traceback" not in process.log


def test_a_connection_that_is_cut_is_made_again_and_its_acks_are_written(app, worker, notes, client):
    publish(app, 8, campaign_name="slow")
    process = worker("-Q", "smtp.primary", "-c", "4")
    wait_until(lambda: len(notes.of("began")) == 4)
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)
    process.wait_for_log("Connection to broker lost")
    publish(app, 2, first=100)
    wait_until(lambda: set(notes.of("ended")) == {*range(1, 9), 100, 101})
    wait_until(lambda: is_empty(client) and waiting_count(app, "primary") == 0)


def test_a_full_broker_gives_what_it_has(app, worker, notes, client):
    publish(app, 14, campaign_name="slow")
    process = worker("-Q", "smtp.primary", "-c", "4", visibility="1")
    wait_until(lambda: len(notes.of("began")) == 4)
    client.config_set("maxmemory", 1)
    wait_until(lambda: set(notes.of("ended")) == set(range(1, 15)))
    process.wait_for_log("refused to note what a worker holds")
    wait_until(lambda: is_empty(client) and waiting_count(app, "primary") == 0)


def test_a_dead_workers_messages_come_back_although_the_brokers_clock_was_set_back(
    app, worker, notes, client
):
    publish(app, 3, campaign_name="stuck")
    first = worker(name="first", visibility="2")
    wait_until(lambda: client.hlen("unacked") == 3 and len(notes.of("began")) == 3)
    first.kill()
    for tag in client.zrange("unacked_index", 0, -1):
        client.zadd("unacked_index", {tag: time.time() + 86_400})
    worker(name="second", visibility="2")
    wait_until(lambda: len(notes.of("began")) == 6)


def test_a_living_worker_keeps_its_messages_when_the_brokers_clock_is_set_back(app, worker, notes, client):
    publish(app, 3, campaign_name="stuck")
    worker(name="first", visibility="3")
    wait_until(lambda: len(notes.of("began")) == 3)
    worker(name="second", visibility="3")
    for tag in client.zrange("unacked_index", 0, -1):
        client.zadd("unacked_index", {tag: time.time() + 86_400})
    wait_until(
        lambda: (
            max(score for _, score in client.zrange("unacked_index", 0, -1, withscores=True))
            < time.time() + 60
        )
    )
    time.sleep(4)  # longer than the visibility timeout
    assert len(notes.of("began")) == 3

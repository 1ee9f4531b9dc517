"""What Flower shows is true: the events of real workers, as a real receiver sees them."""

import threading
import time
from contextlib import ExitStack

import pytest

from campaigns import publishing
from campaigns.queues import publish_deliveries
from tests.integration.celery.events_seen import EventsSeen
from tests.integration.celery.worker_process import Delivery, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def seen(app):
    events = EventsSeen(app)
    yield events
    events.stop()


def test_a_heartbeat_does_not_wait_for_a_broker_that_is_away_and_is_sent_when_it_is_back(app, broker, client):
    with app.connection_for_write() as connection, ExitStack() as stack:
        dispatcher = app.events.Dispatcher(connection, hostname="worker@here")
        dispatcher.send("worker-online", retry=True)
        broker.kill()
        beat = threading.Thread(
            target=dispatcher.send, args=["worker-heartbeat"], kwargs={"retry": True}, daemon=True
        )
        beat.start()
        beat.join(5)
        assert not beat.is_alive()
        broker.start()
        seen = EventsSeen(app)
        stack.callback(seen.stop)
        wait_until(lambda: client.pubsub_numpat() > 0)
        dispatcher.send("worker-heartbeat", retry=True)
        dispatcher.flush()
        wait_until(lambda: [event["type"] for event in seen.events] == 2 * ["worker-heartbeat"])


STATES = {
    "quick": ("SUCCESS", "task-succeeded"),
    "plain": ("SUCCESS", "task-succeeded"),
    "retries": ("RETRY", "task-retried"),
    "fails": ("FAILURE", "task-failed"),
    "raises": ("FAILURE", "task-failed"),
    "exits": ("FAILURE", "task-failed"),
    "cancels": ("FAILURE", "task-failed"),
    "nothing": ("IGNORED", "task-ignored"),
}


def test_each_task_ends_in_the_state_that_it_returned(app, worker, seen, client, monkeypatch):
    monkeypatch.setattr(publishing.secrets, "token_hex", lambda _: "abcd")
    process = worker()
    published = [
        Delivery(delivery_id=number, campaign_name=name) for number, name in enumerate(STATES, start=1)
    ]
    publish_deliveries(app, published)
    ids = {delivery.campaign_name: publishing.task_id(delivery) for delivery in published}
    assert ids["quick"] == "quick.1.primary.abcd"
    wait_until(lambda: all(len(seen.of(identity)) == 3 for identity in ids.values()))
    for name, (state, kind) in STATES.items():
        assert seen.kinds(ids[name]) == ["task-received", "task-started", kind]
        task = seen.state.tasks[ids[name]]
        assert task.state == state, name
        assert task.name == "campaigns.deliver"
        number = list(STATES).index(name) + 1
        assert task.kwargs == str({"campaign": name, "delivery": number, "server": "primary"})
        assert "@example" not in str(seen.of(ids[name]))
        assert time.time() - 30 < task.started <= task.timestamp
    assert seen.state.tasks[ids["quick"]].result == "250 2.0.0 accepted by primary"
    assert seen.state.tasks[ids["plain"]].result == "just a text"
    assert seen.state.tasks[ids["retries"]].exception == "450 4.2.2 mailbox full; again in 300 s"
    assert seen.state.tasks[ids["fails"]].exception == "550 5.1.1 no such user"
    assert seen.state.tasks[ids["raises"]].exception == "ValueError: cannot send to <address>"
    assert "tiny_app.py" in seen.state.tasks[ids["raises"]].traceback
    assert seen.state.tasks[ids["nothing"]].result == "claimed by another worker"
    wait_until(lambda: client.hlen("unacked") == 0)
    assert "cannot send to <address>" in process.log and "bob@example" not in process.log


def test_the_runtime_is_the_time_that_the_task_took(app, worker, seen):
    worker()
    publish_deliveries(app, [Delivery(delivery_id=1, campaign_name="slow")])
    wait_until(lambda: any(event["type"] == "task-succeeded" for event in seen.events))
    (event,) = [event for event in seen.events if event["type"] == "task-succeeded"]
    started = next(event for event in seen.events if event["type"] == "task-started")
    assert 1.0 <= event["runtime"] < 2.0
    assert 0.9 < event["timestamp"] - started["timestamp"] < 2.0

"""Real workers on a real Valkey: what they do with messages, signals and each other's death."""

import signal

import pytest

from campaigns.broker_queue import waiting_count, waiting_deliveries
from campaigns.queues import publish_deliveries
from tests.integration.celery.worker_process import Delivery, wait_until

pytestmark = pytest.mark.timeout(90)


def test_a_worker_runs_what_is_published_and_leaves_nothing_behind(app, worker, notes, client):
    publish_deliveries(app, [Delivery(delivery_id=number) for number in range(1, 501)])
    assert waiting_deliveries(app, "primary") == set(range(1, 501))
    worker()
    wait_until(lambda: len(notes.of("ended")) == 500)
    assert sorted(notes.of("ended")) == list(range(1, 501))
    wait_until(lambda: client.hlen("unacked") == 0 and client.zcard("unacked_index") == 0)
    assert waiting_count(app, "primary") == 0

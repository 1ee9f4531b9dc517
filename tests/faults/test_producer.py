"""A producer may die at any point, and any number of them may run at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from campaigns.broker_queue import waiting_deliveries
from campaigns.states import State
from tests.acceptance.place import Place, addresses

ROOT = Path(__file__).parents[2]
POINTS = ("before-enqueue", "after-enqueue", "half-published", "after-publish")


def _producer(place: Place, point: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.faults.producing_child", str(place.config), point]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _age_what_is_queued(place: Place) -> None:
    """As if the sweep's patience had passed."""
    with place.database.write() as connection:
        connection.execute(text("UPDATE delivery SET queued_at = queued_at - 60 WHERE state = 'queued'"))


@pytest.mark.parametrize("point", POINTS)
def test_a_producer_that_dies_neither_loses_nor_repeats(place: Place, point: str) -> None:
    emails = addresses(150)
    place.send("spring", emails)
    child = _producer(place, point)
    assert child.wait(30) == -9, "it was to die at that point"
    assert place.counts("spring").states[State.PENDING] + place.count("spring", State.QUEUED) == 150
    _age_what_is_queued(place)
    place.start_workers()
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == 150


def test_two_producers_at_once_queue_everybody_once(either_place: Place) -> None:
    place, emails = either_place, addresses(400)
    place.send("spring", emails)
    children = [_producer(place, "never") for _ in range(2)]
    for child in children:
        assert child.wait(60) == 0
    queued = place.count("spring", State.QUEUED)
    found = [
        waiting_deliveries(place.settings.broker_url, name) or set() for name in ("primary", "secondary")
    ]
    assert queued > 0
    assert len(found[0]) + len(found[1]) == queued, "one message for each that is queued, in one queue"
    assert not found[0] & found[1]
    place.start_workers()
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == 400

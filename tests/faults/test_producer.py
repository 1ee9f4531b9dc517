"""A producer may die at any point, and any number of them may run at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from campaigns.broker_queue import waiting_deliveries
from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.trial import PATIENCE_SECONDS, Trial

ROOT = Path(__file__).parents[2]
POINTS = ("before-enqueue", "after-enqueue", "half-published", "after-publish")


def _producer(trial: Trial, point: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.faults.producing_child", str(trial.config), point]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _age_what_is_queued(trial: Trial) -> None:
    """As if the sweep's patience had passed."""
    with trial.database.write() as connection:
        connection.execute(text("UPDATE delivery SET queued_at = queued_at - 60 WHERE state = 'queued'"))


@pytest.mark.parametrize("point", POINTS)
def test_a_producer_that_dies_neither_loses_nor_repeats(trial: Trial, point: str) -> None:
    emails = addresses(150)
    trial.send("spring", emails)
    child = _producer(trial, point)
    assert child.wait(PATIENCE_SECONDS) == -9, "it was to die at that point"
    assert trial.counts("spring").states[State.PENDING] + trial.count("spring", State.QUEUED) == 150
    _age_what_is_queued(trial)
    trial.faults.note(f"producer killed: {point}")
    trial.start_workers()
    trial.verdict()
    assert trial.states("spring") == {State.SENT: 150}


def test_two_producers_at_once_queue_everybody_once(either_trial: Trial) -> None:
    trial, emails = either_trial, addresses(400)
    trial.send("spring", emails)
    children = [_producer(trial, "never") for _ in range(2)]
    for child in children:
        assert child.wait(PATIENCE_SECONDS) == 0
    queued = trial.count("spring", State.QUEUED)
    found = [
        waiting_deliveries(trial.settings.broker_url, name) or set() for name in ("primary", "secondary")
    ]
    assert queued > 0
    assert len(found[0]) + len(found[1]) == queued, "one message for each that is queued, in one queue"
    assert not found[0] & found[1]
    trial.start_workers()
    trial.verdict()
    assert trial.states("spring") == {State.SENT: 400}

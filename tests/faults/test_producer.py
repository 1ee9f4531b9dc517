"""A producer may die at any point, and any number of them may run at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from campaigns.broker_queue import waiting_count, waiting_deliveries
from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.producing_child import CHUNK
from tests.faults.trial import PATIENCE_SECONDS, Trial

ROOT = Path(__file__).parents[2]
POINTS = ("before-enqueue", "between-chunks", "after-enqueue", "half-published", "after-publish")


def _producer(trial: Trial, point: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.faults.producing_child", str(trial.config), point]
    command += [str(trial.directory)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _noted(trial: Trial, kind: str, child: "subprocess.Popen[bytes]") -> set[int]:
    return set(json.loads((trial.directory / f"{kind}-{child.pid}").read_text()))


def _age_what_is_queued(trial: Trial) -> None:
    """As if the sweep's patience had passed."""
    with trial.database.write() as connection:
        connection.execute(text("UPDATE delivery SET queued_at = queued_at - 60 WHERE state = 'queued'"))


def _judge_what_is_queued(queued: int, due: int, point: str) -> None:
    assert due > 2 * CHUNK, "one split has several chunks"
    if point in {"before-enqueue", "between-chunks"}:
        assert queued == (CHUNK if point == "between-chunks" else 0)
    else:
        assert queued == due


@pytest.mark.parametrize("point", POINTS)
def test_a_producer_that_dies_neither_loses_nor_repeats(trial: Trial, point: str) -> None:
    emails = addresses(150)
    trial.send("spring", emails)
    child = _producer(trial, point)
    assert child.wait(PATIENCE_SECONDS) == -9, "it was to die at that point"
    states = trial.states("spring")
    assert states.get(State.PENDING, 0) + states.get(State.QUEUED, 0) == 150
    _judge_what_is_queued(states.get(State.QUEUED, 0), len(_noted(trial, "due", child)), point)
    _age_what_is_queued(trial)
    trial.faults.note(f"producer killed: {point}")
    trial.start_workers()
    trial.verdict()
    assert trial.states("spring") == {State.SENT: 150}


def test_two_producers_that_see_the_same_queue_everybody_once(either_trial: Trial) -> None:
    trial, emails = either_trial, addresses(400)
    trial.send("spring", emails)
    children = [_producer(trial, "together") for _ in range(2)]
    for child in children:
        assert child.wait(PATIENCE_SECONDS) == 0
    due, taken = ([_noted(trial, kind, child) for child in children] for kind in ("due", "taken"))
    assert len(due[0] & due[1]) > 2 * CHUNK, "both saw them"
    assert not taken[0] & taken[1], "and each was one's"
    assert taken[0] | taken[1] == due[0] | due[1]
    queued = trial.count("spring", State.QUEUED)
    broker, names = trial.settings.broker_url, ("primary", "secondary")
    assert queued > 0
    assert sum(waiting_count(broker, name) or 0 for name in names) == queued, "one message for each"
    assert len(set().union(*(waiting_deliveries(broker, name) or () for name in names))) == queued
    trial.start_workers()
    trial.verdict()
    assert trial.states("spring") == {State.SENT: 400}

"""A worker whose wall clock is hours off. The database's own time decides; deadlines are monotonic."""

import subprocess

import pytest

from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.trial import Trial, Trials, patiently

TWO_HOURS = 7200


def _seconds_off(trial: Trial, worker: subprocess.Popen[bytes]) -> float:
    """By how much the worker's clock differed, at its last claim, from that of the file system."""
    shown = trial.directory / f"clock-{worker.pid}"
    return float(shown.read_text()) - shown.stat().st_mtime


@pytest.mark.parametrize(
    "seconds", [TWO_HOURS, pytest.param(-TWO_HOURS, marks=pytest.mark.slow)], ids=["ahead", "behind"]
)
def test_a_worker_with_a_wrong_clock_harms_nobody(new_trial: Trials, postgres_url: str, seconds: int) -> None:
    trial = new_trial(postgres_url)
    trial.primary.set("rcpt", "reply", reply="450 4.2.2 mailbox full", times=10)
    with trial.outage(f"a clock {seconds} s off", "worker"):
        worker = trial.odd_worker("primary", oddities=f"clock:{seconds}")
        trial.start_worker("secondary")
        trial.wait_for_workers(2)
        trial.send("spring", addresses(300))
        trial.wait_until_finished("spring")
    trial.verdict()
    assert trial.states("spring") == {State.SENT: 300}
    assert trial.counts("spring").servers["primary"].sent > 100, "it worked"
    assert _seconds_off(trial, worker) == pytest.approx(seconds, abs=60), "and by the wrong time"


@pytest.mark.slow
def test_a_worker_with_a_wrong_clock_that_dies_is_found_dead(new_trial: Trials, postgres_url: str) -> None:
    trial = new_trial(postgres_url)
    doomed = trial.odd_worker("primary", oddities=f"clock:{TWO_HOURS},kill:dot handed over:20")
    trial.start_worker("secondary")
    trial.wait_for_workers(2)
    trial.send("spring", addresses(200))
    trial.wait_for_death(doomed)
    assert _seconds_off(trial, doomed) == pytest.approx(TWO_HOURS, abs=60)
    at_dot = trial.at_its_dot(doomed)
    trial.faults.note("worker killed", may_leave_uncertain=at_dot)
    patiently(lambda: trial.count("spring", State.COMMITTING) == 0, what=trial.logs)
    trial.verdict()

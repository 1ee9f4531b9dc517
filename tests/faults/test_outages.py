"""Outages of the database and of the broker are waited out; nothing is restarted by hand."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.trial import Trial, Trials, patiently
from tests.postgres import PostgresServer

DELIVERY = "lease_seconds = 3\nconnect_seconds = 2"
OUTAGE_SECONDS = float(os.environ.get("CAMPAIGNS_TEST_OUTAGE_SECONDS", "8"))
"""A minute, where somebody has the time."""
BACK_AT_WORK_SECONDS = 15


AWAY = "the database does not answer"
BROKER_LOST = "Connection to broker lost"


def _is_noticed(trial: Trial, words: str) -> None:
    """A fault must be met to count: each worker writes so."""
    logs = trial.directory.glob("worker-*.log")
    unmoved = [log.name for log in logs if words not in log.read_text(errors="replace")]
    assert not unmoved, f"{unmoved} did not notice\n{trial.logs()}"


def _sends_again_within(trial: Trial, seconds: float) -> None:
    sent = trial.count("spring", State.SENT)
    patiently(lambda: trial.count("spring", State.SENT) > sent, seconds=seconds, what=trial.logs)


def test_work_goes_on_when_a_killed_database_is_back(new_trial: Trials, own_postgres: PostgresServer) -> None:
    emails = addresses(2_000)
    trial = new_trial(own_postgres.url(own_postgres.create_database()), delivery=DELIVERY, tables="")
    trial.start_workers()
    trial.send("spring", emails)
    patiently(lambda: trial.count("spring", State.SENT) >= 200, what=trial.logs)
    with trial.outage("killed", "database"):
        own_postgres.stop(signal.SIGQUIT)
        time.sleep(1)
        accepted = trial.accepted_count()
        time.sleep(OUTAGE_SECONDS)
        assert trial.accepted_count() == accepted, "nothing is sent that could not be recorded"
        _is_noticed(trial, AWAY)
        own_postgres.start()
    trial.database.close()  # our own connections are dead, too
    _sends_again_within(trial, BACK_AT_WORK_SECONDS)
    trial.verdict()
    assert trial.states("spring") == {State.SENT: len(emails)}, "what was at its dot came from the journals"


def test_replies_that_come_while_the_database_is_away_are_recorded_afterwards(
    new_trial: Trials, own_postgres: PostgresServer
) -> None:
    emails = addresses(40)
    trial = new_trial(own_postgres.url(own_postgres.create_database()), delivery=DELIVERY, tables="")
    for server in (trial.primary, trial.secondary):
        server.set("dot", "delay", seconds=3.0)
    trial.start_workers()
    trial.send("spring", emails)
    patiently(lambda: trial.count("spring", State.COMMITTING) >= 10, what=trial.logs)
    own_postgres.stop(signal.SIGQUIT)
    patiently(
        lambda: list((trial.settings.data_directory / "journal").glob("*.journal")),
        what=lambda: f"the replies were written down\n{trial.logs()}",
    )
    own_postgres.start()
    trial.database.close()  # our own connections are dead, too
    for server in (trial.primary, trial.secondary):
        server.clear()
    trial.verdict()
    assert trial.states("spring") == {State.SENT: len(emails)}
    patiently(lambda: not list((trial.settings.data_directory / "journal").glob("*.journal")))


@contextmanager
def _locked(trial: Trial) -> Iterator[None]:
    with closing(sqlite3.connect(trial.database_file, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


def test_work_goes_on_when_a_locked_database_is_free_again(trial: Trial) -> None:
    emails = addresses(1_000)
    trial.start_workers()
    trial.send("spring", emails)
    patiently(lambda: trial.count("spring", State.SENT) >= 200, what=trial.logs)
    with trial.outage("locked", "database"), _locked(trial):
        time.sleep(15)
        _is_noticed(trial, AWAY)
    _sends_again_within(trial, BACK_AT_WORK_SECONDS)
    trial.verdict()
    assert trial.states("spring") == {State.SENT: len(emails)}


def test_work_goes_on_when_the_broker_is_back(trial: Trial) -> None:
    emails = addresses(1_500)
    trial.start_workers()
    trial.send("spring", emails)
    patiently(lambda: trial.count("spring", State.SENT) >= 200, what=trial.logs)
    with trial.outage("killed", "broker"):
        trial.broker.kill()
        time.sleep(OUTAGE_SECONDS)
        _is_noticed(trial, BROKER_LOST)
        trial.broker.start()
    _sends_again_within(trial, BACK_AT_WORK_SECONDS)
    trial.verdict()
    assert trial.states("spring") == {State.SENT: len(emails)}

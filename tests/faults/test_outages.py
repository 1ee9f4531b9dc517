"""Outages of the database and of the broker are waited out; nothing is restarted by hand."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from campaigns.states import State
from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually
from tests.postgres import PostgresServer

DELIVERY = "lease_seconds = 3\nconnect_seconds = 2"
OUTAGE_SECONDS = float(os.environ.get("CAMPAIGNS_TEST_OUTAGE_SECONDS", "8"))
"""A minute, where somebody has the time."""
BACK_AT_WORK_SECONDS = 15


def _sends_again_within(place: Place, seconds: float) -> None:
    sent = place.count("spring", State.SENT)
    eventually(lambda: place.count("spring", State.SENT) > sent, seconds=seconds, what=place.logs)


def test_work_goes_on_when_a_killed_database_is_back(new_place: Places, own_postgres: PostgresServer) -> None:
    emails = addresses(2_000)
    place = new_place(own_postgres.url(own_postgres.create_database()), delivery=DELIVERY)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.SENT) >= 200, what=place.logs)
    own_postgres.stop(signal.SIGQUIT)
    time.sleep(1)
    accepted = place.accepted_count()
    time.sleep(OUTAGE_SECONDS)
    assert place.accepted_count() == accepted, "nothing is sent that could not be recorded"
    own_postgres.start()
    place.database.close()  # our own connections are dead, too
    _sends_again_within(place, BACK_AT_WORK_SECONDS)
    place.wait_until_finished("spring")
    counts = place.judge("spring", emails)
    assert counts.states[State.SENT] == len(emails), "what was at its dot came from the journals"


def test_replies_that_come_while_the_database_is_away_are_recorded_afterwards(
    new_place: Places, own_postgres: PostgresServer
) -> None:
    emails = addresses(40)
    place = new_place(own_postgres.url(own_postgres.create_database()), delivery=DELIVERY)
    for server in (place.primary, place.secondary):
        server.set("dot", "delay", seconds=3.0)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.COMMITTING) >= 10, what=place.logs)
    own_postgres.stop(signal.SIGQUIT)
    eventually(
        lambda: list((place.settings.data_directory / "journal").glob("*.journal")),
        what=lambda: f"the replies were written down\n{place.logs()}",
    )
    own_postgres.start()
    place.database.close()  # our own connections are dead, too
    for server in (place.primary, place.secondary):
        server.clear()
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)
    eventually(lambda: not list((place.settings.data_directory / "journal").glob("*.journal")))


@contextmanager
def _locked(place: Place) -> Iterator[None]:
    with closing(sqlite3.connect(place.database_file, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


def test_work_goes_on_when_a_locked_database_is_free_again(place: Place) -> None:
    emails = addresses(1_000)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.SENT) >= 200, what=place.logs)
    with _locked(place):
        time.sleep(15)
    _sends_again_within(place, BACK_AT_WORK_SECONDS)
    place.wait_until_finished("spring")
    counts = place.judge("spring", emails)
    assert counts.states[State.SENT] == len(emails)


def test_work_goes_on_when_the_broker_is_back(place: Place) -> None:
    emails = addresses(1_500)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.SENT) >= 200, what=place.logs)
    place.broker.kill()
    time.sleep(OUTAGE_SECONDS)
    place.broker.start()
    _sends_again_within(place, BACK_AT_WORK_SECONDS)
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)

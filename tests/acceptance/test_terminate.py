"""`revoke --terminate`, Flower's "Terminate": what becomes of the mail whose task an operator ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import text

from campaigns.queues import DELIVER_TASK, create_app
from campaigns.states import State
from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually

pytestmark = pytest.mark.timeout(120)

LEASE_SECONDS = 6.0
DELIVERY = f"lease_seconds = {LEASE_SECONDS}\ndot_seconds = 60\nshutdown_seconds = {{grace}}"
ONE_SERVER = '[streams]\npromotional = ["primary"]'


def _one_mail_under_way(
    new_place: Places, phase: str, state: State, *, grace: float = 1.0, seconds: float = 40.0
) -> Place:
    """The server takes its time once; the mail is in this state."""
    place = new_place(delivery=DELIVERY.format(grace=grace), tables=ONE_SERVER)
    place.primary.set(phase, "delay", seconds=seconds, times=1)
    place.start_worker("primary")
    place.wait_for_workers(1)
    place.send("spring", addresses(1))
    eventually(lambda: place.count("spring", state) == 1, what=place.logs)
    time.sleep(0.5)  # from the commit point to the dot
    return place


def _terminate(place: Place) -> None:
    app = create_app(place.settings)
    replies = app.control.inspect(timeout=10, limit=1).active() or {}
    tasks = [task for of_worker in replies.values() for task in of_worker]
    running = [task["id"] for task in tasks if task["name"] == DELIVER_TASK]
    assert len(running) == 1, tasks
    app.control.revoke(running, terminate=True)


def _row(place: Place) -> dict[str, Any]:
    with place.database.read() as connection:
        return dict(connection.execute(text("SELECT * FROM delivery")).one()._mapping)


def test_mail_that_is_terminated_before_its_dot_is_sent_anew_without_waiting_for_its_lease(
    new_place: Places,
) -> None:
    place = _one_mail_under_way(new_place, "rcpt", State.CLAIMED)
    _terminate(place)
    eventually(lambda: place.count("spring", State.SENT) == 1, seconds=LEASE_SECONDS - 1, what=place.logs)
    place.judge("spring", addresses(1))
    row = _row(place)
    assert (row["fence"], row["crashes"]) == (2, 0)


def test_mail_that_is_terminated_at_its_dot_is_uncertain_and_not_sent_again(new_place: Places) -> None:
    place = _one_mail_under_way(new_place, "dot", State.COMMITTING)
    _terminate(place)
    counts = place.wait_until_finished("spring", seconds=LEASE_SECONDS)
    assert counts.states[State.UNCERTAIN] == 1
    row = _row(place)
    assert (row["fence"], row["reply"]) == (1, "dot shutdown: its task was terminated")
    place.judge("spring", addresses(1))


def test_mail_that_is_terminated_at_its_dot_is_sent_if_the_server_still_says_so(new_place: Places) -> None:
    place = _one_mail_under_way(new_place, "dot", State.COMMITTING, grace=30.0, seconds=4.0)
    _terminate(place)
    assert place.wait_until_finished("spring").states[State.SENT] == 1
    place.judge("spring", addresses(1))
    assert _row(place)["fence"] == 1

"""The operator's hand and cold standbys, in whole installations."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.client import Client
from campaigns.demo.mail_record import read_records
from campaigns.states import State
from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually
from tests.standby_commands import command, kill, log_of

pytestmark = pytest.mark.timeout(240)

EVERYWHERE_SECONDS = 4.0
"""Every process looks at the operator's decisions every 2 s; the rest is for a busy machine."""


@pytest.fixture
def slow_place(new_place: Places) -> Place:
    """A campaign lasts long enough for an operator to do something about it."""
    return new_place(delivery="lease_seconds = 5", rate='rate = "40/s"', top='sharing = "weights"')


def start_both_twice(place: Place) -> None:
    for _ in range(2):
        place.start_worker("primary")
        place.start_worker("secondary")
    place.wait_for_workers(4)


def test_a_closed_server_gets_no_more_mail_and_what_waited_goes_to_the_other(slow_place: Place) -> None:
    place, emails = slow_place, addresses(600)
    start_both_twice(place)
    place.send("spring", emails)
    eventually(lambda: len(place.primary.records()) > 40)
    with Client(place.settings) as client:
        client.set_server_mode("primary", "closed", reason="disk full")
    closed_at = time.time()
    counts = place.wait_until_finished("spring")
    last = max(mail.at for mail in place.primary.records())
    assert last - closed_at < EVERYWHERE_SECONDS
    assert counts.servers["primary"].rerouted > 0
    assert place.judge("spring", emails).states[State.SENT] == len(emails)


def test_a_drained_server_sends_what_waits_for_it_and_takes_mail_again_when_it_is_open(
    slow_place: Place,
) -> None:
    place, emails = slow_place, addresses(300)
    start_both_twice(place)
    place.send("spring", emails)
    eventually(lambda: len(place.primary.records()) > 20)
    with Client(place.settings) as client:
        client.set_server_mode("primary", "drained")
        eventually(lambda: "primary" not in place.ledger.queued_counts())
        counts = place.wait_until_finished("spring")
        assert counts.servers["primary"].rerouted == 0
        before = len(place.primary.records())
        client.set_server_mode("primary", "open")
        time.sleep(EVERYWHERE_SECONDS)
        more = addresses(100, "more")
        place.send("summer", more)
        place.wait_until_finished("summer")
    assert len(place.primary.records()) > before
    assert place.judge("spring", emails).states[State.SENT] == len(emails)
    assert place.judge("summer", more).states[State.SENT] == len(more)


# ---- standbys

RESERVE = """
[[servers]]
name = "reserve"
url = "smtp://127.0.0.1:{port}"
tls = "none"
weight = 0
on_activate = {on_activate}
on_deactivate = {on_deactivate}
activate_seconds = 30
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "reserve.jsonl"
    yield file
    kill(file)


def reserve(port: int, record: Path) -> str:
    """Its configuration: JSON's lists of strings are TOML's."""
    on_activate, on_deactivate = (json.dumps(command(action, port, record)) for action in ("start", "stop"))
    return RESERVE.format(port=port, on_activate=on_activate, on_deactivate=on_deactivate)


def test_when_every_hot_server_dies_the_standby_is_started_and_carries_the_mail(
    new_place: Places, port: int, record: Path
) -> None:
    place = new_place(delivery="lease_seconds = 3\nconnect_seconds = 2", tables=reserve(port, record))
    for server in ("primary", "secondary", "reserve", "reserve"):
        place.start_worker(server)
    place.wait_for_workers(4)
    place.send("spring", addresses(50))
    place.wait_until_finished("spring")
    assert log_of(record) == [], "the hot ones carry it"
    place.primary.kill()
    place.secondary.kill()
    emails = addresses(200, "more")
    place.send("summer", emails)
    place.wait_until_finished("summer")
    assert log_of(record) == ["start"]
    carried = [mail.recipient for mail in read_records(record)]
    assert sorted(carried) == sorted(emails)
    changes = [(one.from_state, one.to_state) for one in place.ledger.events() if one.kind == "standby"]
    assert changes == [("resting", "starting"), ("starting", "active")]


def test_a_dead_standby_is_known_before_it_is_needed(new_place: Places, port: int, record: Path) -> None:
    lines = reserve(port, record).splitlines()
    place = new_place(tables="\n".join(line for line in lines if "activate" not in line))
    place.start_workers()
    eventually(lambda: sum(one.probed_at is not None for one in place.ledger.probes().values()) == 3)
    with Client(place.settings) as client:
        primary, _, standby = client.servers()
        assert primary.probe is not None and primary.probe.error is None
        assert standby.probe is not None and "connect" in (standby.probe.error or "")
        subprocess.run(command("start", port, record), check=True)
        eventually(lambda: client.servers()[2].probe.error is None)  # type: ignore[union-attr]
    told = [(one.server, one.to_state) for one in place.ledger.events() if one.kind == "probe"]
    assert told == [("reserve", "failing"), ("reserve", "ok")]

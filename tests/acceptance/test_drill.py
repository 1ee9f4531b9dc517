"""A failover is rehearsed: with an installation of our own, or with a configured pair of servers.

CAMPAIGNS_DRILL_CONFIG names a configuration whose workers run, and CAMPAIGNS_DRILL_RECIPIENTS a list of seed
addresses: then the first test measures that pair, too.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from campaigns.states import State
from tests.acceptance.place import Place, addresses, eventually

CONFIGURED = "CAMPAIGNS_DRILL_CONFIG"
SEEDS = 3


def start(config: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`campaigns drill` as an operator calls it."""
    environ = {**os.environ, "CAMPAIGNS_CONFIG": str(config)}
    return subprocess.Popen(
        [sys.executable, "-m", "campaigns", "drill", "--json", *arguments],
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def end(process: "subprocess.Popen[str]", *, status: int = 0) -> dict[str, Any]:
    """What it printed."""
    told, steps = process.communicate(timeout=200)
    assert process.returncode == status, told + steps
    result = json.loads(told)
    assert isinstance(result, dict)
    return result


def seeds_file(place: Place, emails: list[str]) -> str:
    file = place.directory / "seeds.csv"
    file.write_text("email\n" + "".join(f"{email}\n" for email in emails))
    return str(file)


def drill(place: Place, *arguments: str, emails: list[str] | None = None) -> "subprocess.Popen[str]":
    seeds = seeds_file(place, emails or addresses(SEEDS, "seed"))
    return start(place.config, "--recipients", seeds, "--from", "Drill <drill@example.com>", *arguments)


@pytest.mark.skipif(CONFIGURED not in os.environ, reason="no configured pair is named")
def test_the_configured_pair_passes_a_drill() -> None:
    result = end(
        start(Path(os.environ[CONFIGURED]), "--recipients", os.environ["CAMPAIGNS_DRILL_RECIPIENTS"])
    )
    assert (result["status"], result["lost"], result["duplicates"]) == ("passed", 0, 0), result


def test_a_drill_measures_a_failover_and_restores(either_place: Place) -> None:
    place = either_place
    place.start_workers()
    result = end(drill(place, "--seconds", "3"))
    assert (result["status"], result["mails"], result["sent"]) == ("passed", SEEDS + 1, SEEDS + 1), result
    assert (result["lost"], result["duplicates"], result["uncertain"]) == (0, 0, 0)
    assert 0 <= result["detection_seconds"] <= result["switch_seconds"] < 3
    assert 0 <= result["return_seconds"] < 10
    assert len(place.secondary.records()) == SEEDS, "all found the primary dead"
    assert len(place.primary.records()) == 1, "one shows that it is back"
    assert place.ledger.declared_dead() == []
    assert place.breaker_events() == [], "the breaker heard nothing of it"
    assert place.ledger.campaigns() == [], "it is no campaign of the operator's"
    events = [(one.to_state, one.server) for one in place.ledger.events() if one.kind == "drill"]
    assert events == [("running", "primary"), ("passed", "primary")]
    assert place.ledger.last_drills()["primary"].status == "passed"


def test_other_mail_does_not_notice_a_drill(place: Place) -> None:
    place.start_workers()
    running = drill(place, "--seconds", "300")
    eventually(place.ledger.declared_dead, what="a declaration")
    emails = addresses(600)
    place.send("spring", emails)
    place.wait_until_finished("spring")
    assert place.ledger.declared_dead(), "it went on meanwhile"
    assert place.counts("spring").servers["primary"].sent > 300
    assert place.counts("spring").servers["primary"].rerouted == 0
    place.judge("spring", emails)
    running.send_signal(signal.SIGINT)
    result = end(running, status=1)
    assert "broken off" in result["reason"], result
    assert (result["lost"], result["duplicates"], result["uncertain"]) == (0, 0, 0), result


def test_in_a_live_drill_the_breaker_opens_and_all_mail_goes_through_the_other(either_place: Place) -> None:
    place = either_place
    place.start_workers()
    running = drill(place, "--seconds", "4", "--live", "--yes")
    eventually(place.ledger.declared_dead, what="a declaration")
    dead = place.ledger.declared_dead()[0]
    eventually(lambda: place.ledger.now() >= dead.since, what="the death")
    emails = addresses(1_000)
    place.send("spring", emails)
    place.wait_until_finished("spring")
    result = end(running)
    place.judge("spring", emails)
    assert place.counts("spring").states[State.SENT] == len(emails)
    assert place.counts("spring").servers["primary"].rerouted > 0
    assert (result["status"], result["live"]) == ("passed", True), result
    assert result["detection_seconds"] is not None, "by the breaker's own event"
    assert "open" in {event.to_state for event in place.breaker_events()}


def test_a_live_drill_ends_when_the_other_server_is_taken_away(place: Place) -> None:
    place.start_workers()
    running = drill(place, "--seconds", "300", "--live", "--yes")
    eventually(lambda: len(place.secondary.records()) == SEEDS, what=place.logs)
    place.ledger.set_server_mode("secondary", "closed")
    result = end(running, status=1)
    assert "no other server could take mail of the stream transactional any more" in result["reason"]
    assert place.ledger.declared_dead() == []


def test_ctrl_c_restores_at_once(place: Place) -> None:
    place.start_workers()
    running = drill(place, "--seconds", "300")
    eventually(lambda: len(place.secondary.records()) == SEEDS, what=place.logs)
    running.send_signal(signal.SIGINT)
    result = end(running, status=1)
    assert (result["status"], result["lost"]) == ("failed", 0)
    assert "broken off" in result["reason"]
    assert place.ledger.declared_dead() == []
    place.send("spring", addresses(50))
    place.wait_until_finished("spring")


def test_a_drill_that_is_killed_runs_out_by_itself(place: Place) -> None:
    place.start_workers()
    running = drill(place, "--seconds", "4", "--live", "--yes")
    eventually(place.ledger.declared_dead, what="a declaration")
    running.kill()
    running.communicate()
    eventually(lambda: place.ledger.declared_dead() == [], what="its end")
    result = end(drill(place, "--seconds", "3"))
    assert result["status"] == "passed"
    assert [one.status for one in place.ledger.drills()] == ["failed", "passed"]


def test_a_drill_fails_if_the_other_server_accepts_nothing(place: Place) -> None:
    place.start_workers()
    result = end(drill(place, "--seconds", "3", emails=addresses(2, "rcpt-550-5.1.1")), status=1)
    assert (result["status"], result["sent"], result["lost"]) == ("failed", 0, 0)
    assert "no mail went out through another server" in result["reason"]
    assert "550" in result["reason"]


def test_a_drill_is_refused_where_nobody_can_take_over(place: Place) -> None:
    place.start_worker("primary")
    place.wait_for_workers(1)
    running = drill(place)
    told, steps = running.communicate(timeout=60)
    assert (running.returncode, told) == (1, "")
    assert "no other server could take over from primary" in steps
    assert place.ledger.drills() == []

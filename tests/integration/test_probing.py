"""Idle servers are tried without a mail: by real conversations where the wire matters."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.probing import CERTIFICATE_WARNING_SECONDS, PROBE_EVERY_SECONDS, Prober
from campaigns.server import Server
from campaigns.server_check import ServerCheck
from campaigns.settings import Settings
from campaigns.states import State
from tests.crowd import Crowd


@dataclass(kw_only=True)
class Answers:
    """In place of the servers: what each trial finds, and who was tried."""

    found: ServerCheck = field(default_factory=lambda: ServerCheck(ok=True, detail="it answers"))
    tried: list[str] = field(default_factory=list)

    def __call__(self, server: Server, timeout_seconds: float) -> ServerCheck:
        self.tried.append(server.name)
        return self.found


@dataclass(kw_only=True)
class Clock:
    """The board's time: it passes as well, and faster where a test says so."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.seconds


@dataclass(kw_only=True)
class Watch:
    """One process that probes."""

    ledger: Ledger
    fleet: Fleet
    answers: Answers
    prober: Prober
    clock: Clock

    def turn(self) -> list[str]:
        """Who was tried in this turn."""
        self.fleet.refresh_soon()
        self.fleet.refresh()
        before = len(self.answers.tried)
        self.prober.run_once()
        self.fleet.refresh()
        return self.answers.tried[before:]

    def let_time_pass(self, seconds: float) -> None:
        with self.ledger.database.write() as connection:
            for sql in (
                "UPDATE probe SET next_at = next_at - :seconds",
                "UPDATE attempt SET finished_at = finished_at - :seconds",
                "UPDATE event SET at = at - :seconds",
            ):
                connection.execute(text(sql), {"seconds": seconds})

    def events(self) -> list[tuple[str | None, str | None, str | None]]:
        return [(one.server, one.to_state, one.reason) for one in self.ledger.events() if one.kind == "probe"]


def settings_of(directory: Path, port: int = 1, **reserve: Any) -> Settings:
    servers = [
        {"name": "primary", "url": f"smtp://127.0.0.1:{port}", "tls": "none"},
        {"name": "reserve", "url": f"smtp://127.0.0.1:{port}", "tls": "none", "weight": 0, **reserve},
    ]
    return Settings.model_validate({"directory": directory, "servers": servers})


def watch_of(ledger: Ledger, settings: Settings) -> Watch:
    names = [server.name for server in settings.servers]
    clock = Clock()
    board = HealthBoard(None, clock=clock, policy=settings.breaker, servers=names)
    fleet, answers = Fleet(settings, ledger, board), Answers()
    prober = Prober(fleet, check=answers)
    return Watch(ledger=ledger, fleet=fleet, answers=answers, prober=prober, clock=clock)


@pytest.fixture
def watch(ledger: Ledger, tmp_path: Path) -> Watch:
    return watch_of(ledger, settings_of(tmp_path))


@pytest.fixture
def smtp(tmp_path: Path) -> Iterator[SmtpServerProcess]:
    with SmtpServerProcess(tmp_path / "mails.jsonl") as server:
        yield server


def test_an_idle_server_is_asked_all_that_a_mail_would_be_but_for_the_mail(
    ledger: Ledger, tmp_path: Path, smtp: SmtpServerProcess
) -> None:
    settings = settings_of(tmp_path, smtp.port)
    fleet = Fleet(settings, ledger, HealthBoard(None))
    fleet.refresh()
    Prober(fleet).run_once()
    for name in ("primary", "reserve"):
        probe = ledger.probes()[name]
        assert probe.error is None and probe.succeeded_at is not None
        assert probe.latency_seconds is not None and probe.latency_seconds > 0
    assert smtp.stats()["connections"] == 2
    assert smtp.records() == []


def test_of_several_processes_one_probes(ledger: Ledger, tmp_path: Path) -> None:
    watches = [watch_of(ledger, settings_of(tmp_path)) for _ in range(3)]
    threads = [threading.Thread(target=watch.turn) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tried = [name for watch in watches for name in watch.answers.tried]
    assert sorted(tried) == ["primary", "reserve"]


def test_a_server_is_probed_again_after_half_a_minute(watch: Watch) -> None:
    assert watch.turn() == ["primary", "reserve"]
    assert watch.turn() == []
    watch.let_time_pass(PROBE_EVERY_SECONDS)
    assert watch.turn() == ["primary", "reserve"]


def test_a_server_that_carries_mail_is_left_alone(watch: Watch) -> None:
    crowd = Crowd(watch.ledger)
    (claim,) = crowd.committing("primary")
    crowd.report(claim, State.SENT)
    assert watch.turn() == ["reserve"]
    watch.let_time_pass(PROBE_EVERY_SECONDS)
    assert watch.turn() == ["primary", "reserve"]


def test_a_dead_standby_is_known_before_it_is_needed(watch: Watch) -> None:
    """Tried sooner once it has failed, until its breaker is open; and then in its usual time."""
    watch.answers.found = ServerCheck(ok=False, detail="h:25: connect: Connection refused")
    turns = 0
    while watch.fleet.state("reserve") == "closed":
        assert "reserve" in watch.turn()
        watch.let_time_pass(6)
        turns += 1
        assert turns <= 10
    assert turns == watch.fleet.settings.breaker.consecutive_faults
    assert watch.turn() == []
    assert [one for one in watch.events() if one[0] == "reserve"] == [
        ("reserve", "failing", "h:25: connect: Connection refused")
    ]
    breaker = [one for one in watch.ledger.events() if one.kind == "breaker" and one.server == "reserve"]
    assert [one.to_state for one in breaker] == ["open"]


def test_a_dead_standby_is_told_once_however_long_it_is_dead(watch: Watch) -> None:
    """Its breaker tries it after each cool-down, with probes alone: nothing changed for the operator."""
    watch.answers.found = ServerCheck(ok=False, detail="h:25: connect: Connection refused")
    for _ in range(40):
        watch.turn()
        watch.let_time_pass(PROBE_EVERY_SECONDS)
        watch.clock.seconds += 2 * PROBE_EVERY_SECONDS
    told = [(one.kind, one.to_state) for one in watch.ledger.events() if one.server == "reserve"]
    assert told == [("probe", "failing"), ("breaker", "open")]


def test_a_server_that_answers_again_is_told_once(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    good, watch.answers.found = watch.answers.found, ServerCheck(ok=False, detail="h:25: connect: refused")
    watch.turn()
    watch.answers.found = good
    for _ in range(2):
        watch.let_time_pass(PROBE_EVERY_SECONDS)
        watch.turn()
    assert [one[:2] for one in watch.events() if one[0] == "primary"] == [
        ("primary", "failing"),
        ("primary", "ok"),
    ]
    assert watch.fleet.state("primary") == "closed"
    assert [
        (one.levelname, one.getMessage()) for one in caplog.records if vars(one)["server"] == "primary"
    ] == [
        ("WARNING", "an idle server does not answer"),
        ("WARNING", "an idle server answers again"),
    ]


def test_a_standby_that_is_not_started_is_not_expected_to_answer(ledger: Ledger, tmp_path: Path) -> None:
    watch = watch_of(ledger, settings_of(tmp_path, on_activate=["start"]))
    assert watch.turn() == ["primary"]
    ledger.begin_standby_turn(
        "reserve", "me", before="resting", state="starting", seconds=60, reason="for the test"
    )
    ledger.end_standby_turn("reserve", "me", before="starting", state="active", reason="for the test")
    assert watch.turn() == ["reserve"]


def test_what_the_operator_closed_is_tried_but_not_judged(watch: Watch) -> None:
    watch.ledger.set_server_mode("primary", "closed")
    watch.answers.found = ServerCheck(ok=False, detail="h:25: connect: refused")
    for _ in range(10):
        watch.turn()
        watch.let_time_pass(PROBE_EVERY_SECONDS)
    assert watch.fleet.state("primary") == "closed"
    assert watch.ledger.probes()["primary"].error == "h:25: connect: refused"


@pytest.mark.parametrize(("days", "told"), [(13, True), (15, False)])
def test_a_certificate_that_ends_soon_is_told_once_a_day(watch: Watch, days: int, told: bool) -> None:
    ends = watch.ledger.now() + days * 86_400
    watch.answers.found = ServerCheck(ok=True, detail="it answers", certificate_until=ends)
    for _ in range(3):
        watch.turn()
        watch.let_time_pass(PROBE_EVERY_SECONDS)
    warnings = [one for one in watch.events() if one[1] == "certificate"]
    assert [one[0] for one in warnings] == (["primary", "reserve"] if told else [])
    assert not told or (warnings[0][2] or "").endswith("in 13 days")
    assert CERTIFICATE_WARNING_SECONDS == 14 * 86_400
    watch.let_time_pass(86_400)
    watch.turn()
    assert len([one for one in watch.events() if one[1] == "certificate"]) == (4 if told else 0)

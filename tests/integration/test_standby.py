"""Standbys that are started and stopped by real commands, on both databases; times are injected."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.settings import Settings
from campaigns.standby import StandbyKeeper, StandbyTiming
from campaigns.states import State
from tests.crowd import Crowd, eventually
from tests.standby_commands import command, kill, log_of

QUICK = StandbyTiming(settle_seconds=0.0, leave_seconds=0.0)


@dataclass(kw_only=True)
class Guard:
    """One process that keeps the standby `reserve`, whose clock is ours."""

    ledger: Ledger
    fleet: Fleet
    keeper: StandbyKeeper
    now: list[float] = field(default_factory=list)

    def turn(self, after_seconds: float = 0.0) -> str:
        """The standby's state after a turn."""
        self.now[0] += after_seconds
        self.fleet.refresh_soon()
        self.fleet.refresh()
        self.keeper.run_once()
        return self.state

    def start(self) -> str:
        """All hot servers go, and it is known for long enough."""
        self.lose("primary")
        self.turn()
        return self.turn(3.0)

    @property
    def state(self) -> str:
        standby = self.ledger.standbys().get("reserve")
        return "resting" if standby is None else standby.state

    def lose(self, *servers: str) -> None:
        for server in servers:
            self.ledger.set_server_mode(server, "closed")

    def find(self, *servers: str) -> None:
        for server in servers:
            self.ledger.set_server_mode(server, "open")

    def changes(self) -> list[tuple[str | None, str | None]]:
        return [(one.from_state, one.to_state) for one in self.ledger.events() if one.kind == "standby"]

    def let_pauses_pass(self) -> None:
        with self.ledger.database.write() as connection:
            connection.execute(text("UPDATE standby SET until = until - 3600"))


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "reserve.jsonl"
    yield file
    kill(file)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


MakeGuard = Callable[..., Guard]


@pytest.fixture
def guard_of(ledger: Ledger, tmp_path: Path, port: int, record: Path) -> MakeGuard:
    """Makes a process with `reserve` configured so; left out: with commands that work."""

    def make(owner: str = "one", timing: StandbyTiming = QUICK, **reserve: Any) -> Guard:
        commands = {
            "on_activate": command("start", port, record),
            "on_deactivate": command("stop", port, record),
        }
        servers = [
            {"name": "primary", "url": "smtp://127.0.0.1:1", "tls": "none"},
            {
                **{"name": "reserve", "url": f"smtp://127.0.0.1:{port}", "tls": "none", "weight": 0},
                **{"activate_seconds": 30, **commands, **reserve},
            },
        ]
        settings = Settings.model_validate({"directory": tmp_path, "servers": servers})
        fleet = Fleet(settings, ledger, HealthBoard(None))
        now = [1000.0]
        keeper = StandbyKeeper(fleet, owner=owner, timing=timing, monotonic=lambda: now[0])
        return Guard(ledger=ledger, fleet=fleet, keeper=keeper, now=now)

    return make


def test_a_standby_rests_while_a_hot_server_takes_the_mail(guard_of: MakeGuard, record: Path) -> None:
    Crowd(guard_of().ledger)
    guard = guard_of()
    assert [guard.turn(60) for _ in range(3)] == ["resting"] * 3
    assert log_of(record) == [] and guard.fleet.usable("promotional") == ("primary",)


def test_it_is_started_when_mail_waits_and_no_hot_server_takes_it(guard_of: MakeGuard, record: Path) -> None:
    guard = guard_of()
    Crowd(guard.ledger)
    guard.lose("primary")
    assert guard.turn() == "resting"
    assert guard.turn(2.9) == "resting", "a blip is no reason"
    assert guard.turn(0.2) == "active"
    assert log_of(record) == ["start"]
    assert guard.changes() == [("resting", "starting"), ("starting", "active")]
    guard.turn()
    assert guard.fleet.usable("promotional") == ("reserve",)
    assert guard.ledger.probes()["reserve"].error is None


def test_it_is_not_started_without_mail(guard_of: MakeGuard, record: Path) -> None:
    guard = guard_of()
    guard.lose("primary")
    assert [guard.turn(60) for _ in range(3)] == ["resting"] * 3
    assert log_of(record) == []


def test_it_is_stopped_when_a_hot_server_has_been_back_for_a_minute(
    guard_of: MakeGuard, record: Path
) -> None:
    guard = guard_of()
    Crowd(guard.ledger)
    assert guard.start() == "active"
    assert guard.turn(600) == "active", "it is the only one"
    guard.find("primary")
    assert guard.turn() == "active"
    assert guard.turn(59) == "active"
    guard.lose("primary")
    assert guard.turn(1) == "active", "the minute begins anew"
    guard.find("primary")
    assert guard.turn(59) == "active"
    assert guard.turn(60) == "resting"
    assert log_of(record) == ["start", "stop"]
    assert guard.changes()[2:] == [("active", "stopping"), ("stopping", "resting")]


def test_a_process_that_saw_no_need_of_it_does_not_stop_what_another_has_just_started(
    guard_of: MakeGuard, record: Path
) -> None:
    guard, other = guard_of("one"), guard_of("other")
    Crowd(guard.ledger)
    assert [other.turn(60) for _ in range(3)] == ["resting"] * 3
    assert guard.start() == "active"
    guard.find("primary")
    assert other.turn(1) == "active"
    assert other.turn(59) == "active"
    assert other.turn(1) == "resting", "its own minute is over"
    assert log_of(record) == ["start", "stop"]


def test_it_goes_on_while_mail_waits_for_it_or_is_on_its_way_through_it(guard_of: MakeGuard) -> None:
    guard = guard_of()
    crowd = Crowd(guard.ledger)
    assert guard.start() == "active"
    crowd.queue("reserve")
    guard.find("primary")
    guard.turn()
    assert guard.turn(600) == "active"
    (claim,) = crowd.committing("reserve")
    assert guard.turn(600) == "active"
    crowd.report(claim, State.SENT, server="reserve")
    assert guard.turn(600) == "resting"


def test_it_is_never_stopped_over_a_mail_that_came_at_the_last_moment(
    guard_of: MakeGuard, record: Path
) -> None:
    """Another process handed it one before it saw that the standby is being stopped."""
    guard = guard_of()
    crowd = Crowd(guard.ledger)
    assert guard.start() == "active"
    guard.find("primary")
    guard.turn()
    is_busy = guard.ledger.is_busy

    def and_then_one_comes(server: str) -> bool:
        busy = is_busy(server)
        crowd.committing("reserve")
        return busy

    guard.ledger.is_busy = and_then_one_comes  # type: ignore[method-assign]
    assert guard.turn(60) == "active"
    assert log_of(record) == ["start"]
    assert guard.changes()[2:] == [("active", "stopping"), ("stopping", "active")]


def test_one_that_the_operator_has_closed_is_not_started_and_is_stopped(
    guard_of: MakeGuard, record: Path
) -> None:
    guard = guard_of()
    Crowd(guard.ledger)
    guard.lose("reserve")
    assert guard.start() == "resting"
    guard.find("reserve")
    guard.turn()
    assert guard.turn(3) == "active"
    guard.lose("reserve")
    guard.turn()
    assert guard.turn(60) == "resting"
    assert log_of(record) == ["start", "stop"]


def test_one_that_the_operator_made_hot_is_started_for_its_share(guard_of: MakeGuard) -> None:
    guard = guard_of()
    Crowd(guard.ledger)
    guard.ledger.set_server_weight("reserve", 30, configured=0)
    guard.turn()
    assert guard.turn(3) == "active"
    assert guard.turn(600) == "active"


def test_of_several_processes_one_starts_it(guard_of: MakeGuard, record: Path) -> None:
    guards = [guard_of(owner=f"worker-{number}") for number in range(3)]
    Crowd(guards[0].ledger)
    threads = [threading.Thread(target=guard.start) for guard in guards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log_of(record) == ["start"]
    assert guards[0].changes() == [("resting", "starting"), ("starting", "active")]


def test_one_that_died_while_it_is_needed_is_started_again(guard_of: MakeGuard, record: Path) -> None:
    guard = guard_of()
    Crowd(guard.ledger)
    assert guard.start() == "active"
    kill(record)
    for _ in range(guard.fleet.settings.breaker.consecutive_faults):
        guard.fleet.board.probe_result("reserve", False, "connection refused")
    guard.turn()
    assert guard.turn(29) == "active"
    assert log_of(record) == ["start"]
    assert guard.turn(1) == "active"
    assert log_of(record) == ["start", "start"]
    assert guard.changes()[2:] == [("active", "starting"), ("starting", "active")]


FAILING = [sys.executable, "-c", "import sys; print('no quota for another machine'); sys.exit(3)"]


def test_a_command_that_fails_is_an_event_and_tried_again_after_a_growing_pause(guard_of: MakeGuard) -> None:
    guard = guard_of(on_activate=FAILING)
    Crowd(guard.ledger)
    pauses = []
    assert guard.start() == "resting"
    for failures in (1, 2, 3):
        standby = guard.ledger.standbys()["reserve"]
        assert standby.failures == failures and standby.until is not None
        assert standby.reason is not None and standby.reason.endswith("ended with status 3")
        pauses.append(standby.until - standby.changed_at)
        changes = len(guard.changes())
        guard.turn(3600)
        assert len(guard.changes()) == changes, "nobody tries before the pause is over"
        guard.let_pauses_pass()
        guard.turn()
    assert 4 <= pauses[0] <= 6 and 8 <= pauses[1] <= 12 and 16 <= pauses[2] <= 24
    assert guard.changes()[:2] == [("resting", "starting"), ("starting", "resting")]


def test_mail_flows_only_to_one_that_answers(guard_of: MakeGuard) -> None:
    """Its command succeeds, and nobody listens."""
    guard = guard_of(on_activate=[sys.executable, "-c", "pass"], activate_seconds=1)
    guard.keeper = StandbyKeeper(guard.fleet, owner="one", timing=StandbyTiming(needed_seconds=0.0))
    Crowd(guard.ledger)
    guard.lose("primary")
    assert guard.turn() == "resting"
    reason = guard.ledger.standbys()["reserve"].reason or ""
    assert reason.startswith("it did not answer within 1 s") and "connect" in reason
    assert guard.fleet.usable("promotional") == ()


def test_what_a_process_left_half_done_is_finished_by_another(guard_of: MakeGuard, record: Path) -> None:
    guard = guard_of(owner="two")
    Crowd(guard.ledger)
    guard.ledger.begin_standby_turn(
        "reserve", "one", before="resting", state="starting", seconds=60, reason="for the test"
    )
    assert guard.start() == "starting"
    guard.let_pauses_pass()
    assert guard.turn() == "active"
    assert log_of(record) == ["start"]


def test_one_left_half_started_that_nobody_needs_any_more_is_stopped(
    guard_of: MakeGuard, record: Path
) -> None:
    guard = guard_of(owner="two")
    guard.ledger.begin_standby_turn(
        "reserve", "one", before="resting", state="starting", seconds=0, reason="for the test"
    )
    assert guard.turn() == "resting"
    assert log_of(record) == ["stop"]


def test_a_command_to_stop_that_fails_leaves_it_active_and_is_tried_again(guard_of: MakeGuard) -> None:
    guard = guard_of(on_deactivate=FAILING)
    Crowd(guard.ledger)
    assert guard.start() == "active"
    guard.find("primary")
    guard.turn()
    assert guard.turn(60) == "active"
    assert guard.ledger.standbys()["reserve"].failures == 1
    assert guard.turn(600) == "active"
    assert len(guard.changes()) == 4
    guard.let_pauses_pass()
    guard.turn()
    assert guard.turn(60) == "active"
    assert guard.ledger.standbys()["reserve"].failures == 2


def test_without_a_command_to_stop_it_is_left_alone(guard_of: MakeGuard, record: Path) -> None:
    guard = guard_of(on_deactivate=[])
    Crowd(guard.ledger)
    assert guard.start() == "active"
    guard.find("primary")
    guard.turn()
    assert guard.turn(60) == "resting"
    assert log_of(record) == ["start"]


def test_a_worker_that_ends_gives_its_turn_back_at_once(guard_of: MakeGuard, tmp_path: Path) -> None:
    code = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(600)"
    guard = guard_of(on_activate=[sys.executable, "-c", code])
    Crowd(guard.ledger)
    working = threading.Thread(target=guard.start)
    working.start()
    eventually((tmp_path / "begun").exists)
    guard.keeper.stop()
    guard.keeper.wait_until_at_rest(20)
    working.join(1)
    assert not working.is_alive()
    standby = guard.ledger.standbys()["reserve"]
    assert (standby.state, standby.failures) == ("resting", 0)
    other = guard_of(owner="two")
    other.turn()
    assert other.turn(3) == "active"


def test_a_cold_server_is_needed_while_no_hot_one_takes_the_mail(guard_of: MakeGuard) -> None:
    guard = guard_of(on_activate=[], on_deactivate=[])
    needed = guard.fleet.is_needed
    guard.turn()
    assert needed("primary") and not needed("reserve")
    guard.lose("primary")
    guard.turn()
    assert needed("reserve") and not needed("primary")
    guard.ledger.set_server_mode("reserve", "drained")
    guard.turn()
    assert needed("reserve"), "what waits still goes out through it"
    guard.lose("reserve")
    guard.turn()
    assert not needed("reserve")


def test_a_standby_is_needed_only_while_it_is_started(guard_of: MakeGuard) -> None:
    guard = guard_of()
    Crowd(guard.ledger)
    guard.lose("primary")
    guard.turn()
    assert not guard.fleet.is_needed("reserve")
    guard.turn(3)
    guard.turn()
    assert guard.fleet.is_needed("reserve")
    guard.find("primary")
    guard.turn()
    assert not guard.fleet.is_needed("reserve")

"""Drills in the ledger: one at a time, with an end, each told as events."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from campaigns.drill_calendar import remind_of_drills
from campaigns.errors import DrillRefused
from campaigns.ledger import DrillRecord, DrillResult, Ledger
from campaigns.settings import Server, Settings
from campaigns.states import State
from tests.crowd import Crowd

PASSED = DrillResult(
    status="passed",
    detection_seconds=0.5,
    switch_seconds=1.0,
    recipients=3,
    sent=3,
    reason="secondary took 3",
)


def begin(
    ledger: Ledger, *, seconds: float = 60.0, notice_seconds: float = 0.0, live: bool = False
) -> DrillRecord:
    return ledger.begin_drill("primary", is_live=live, notice_seconds=notice_seconds, seconds=seconds)


def told(ledger: Ledger) -> list[tuple[str | None, str | None]]:
    return [(event.from_state, event.to_state) for event in ledger.events() if event.kind == "drill"]


def test_a_drill_is_announced_ahead_and_has_an_end(ledger: Ledger) -> None:
    drill = begin(ledger, notice_seconds=5, seconds=20)
    assert drill.dead_until is not None
    assert drill.dead_until - drill.started_at == pytest.approx(20)
    assert drill.started_at == pytest.approx(ledger.now() + 5, abs=2)
    (dead,) = ledger.declared_dead()
    assert (dead.server, dead.since, dead.until) == ("primary", drill.started_at, drill.dead_until)


def test_of_many_who_begin_at_once_one_does(ledger: Ledger) -> None:
    done: list[object] = []

    def try_it() -> None:
        try:
            done.append(begin(ledger))
        except DrillRefused as refused:
            done.append(refused)

    threads = [threading.Thread(target=try_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, DrillRecord) for one in done) == 1
    assert len(ledger.declared_dead()) == 1


def test_its_end_restores_and_is_kept_with_what_was_measured(ledger: Ledger) -> None:
    drill = begin(ledger)
    assert ledger.end_declaration(drill.id)
    assert not ledger.end_declaration(drill.id)
    assert ledger.declared_dead() == []
    assert ledger.finish_drill(drill.id, PASSED)
    kept = ledger.drill(drill.id)
    assert (kept.status, kept.switch_seconds, kept.sent, kept.reason) == (
        "passed",
        1.0,
        3,
        "secondary took 3",
    )
    assert (kept.is_live, kept.dead_until) == (False, None)
    assert kept.finished_at is not None
    assert ledger.last_drills() == {"primary": kept}
    assert ledger.drills() == [kept]
    assert told(ledger) == [(None, "running"), ("running", "passed")]


def test_the_first_meeting_is_kept_and_no_later_one(ledger: Ledger) -> None:
    drill = begin(ledger)
    assert ledger.meet_drill(drill.id)
    first = ledger.drill(drill.id).detection_seconds
    assert first is not None and first >= 0
    assert not ledger.meet_drill(drill.id)
    assert ledger.drill(drill.id).detection_seconds == first


def test_what_nobody_finished_has_failed_when_the_next_begins(ledger: Ledger) -> None:
    killed = begin(ledger)
    ledger.end_declaration(killed.id)
    assert ledger.give_up_drills(after_seconds=300) == [], "it may still measure the way back"
    begin(ledger)
    assert ledger.drill(killed.id).status == "failed"
    assert not ledger.finish_drill(killed.id, PASSED), "its process comes too late"
    assert told(ledger) == [(None, "running"), ("running", "failed"), (None, "running")]


def test_a_drill_that_runs_is_not_given_up(ledger: Ledger) -> None:
    drill = begin(ledger)
    assert ledger.give_up_drills(after_seconds=0) == []
    ledger.end_declaration(drill.id)
    assert ledger.give_up_drills(after_seconds=0) == ["primary"]


def test_the_last_drill_of_a_server_is_its_newest_finished_one(ledger: Ledger) -> None:
    for status in ("failed", "passed"):
        drill = begin(ledger)
        ledger.finish_drill(drill.id, DrillResult(status=status))  # type: ignore[arg-type]
    running = begin(ledger)
    assert ledger.last_drills()["primary"].id == running.id - 1
    assert [one.status for one in ledger.drills()] == ["failed", "passed", "running"]


def test_steered_mail_is_due_for_that_server_and_was_never_anywhere_else(ledger: Ledger) -> None:
    crowd = Crowd(ledger, 3)
    assert ledger.steer(crowd.campaign_id, "secondary") == 3
    assert {due.server for due in ledger.due(10)} == {"secondary"}
    ledger.enqueue([(delivery, "secondary") for delivery in crowd.ids])
    assert ledger.counts(crowd.name).servers.get("secondary") is None, "nothing left it"
    assert ledger.steer(crowd.campaign_id, "primary") == 0, "what is queued stays where it is"


def test_the_attempts_of_a_drills_mail_are_told_in_their_order(ledger: Ledger) -> None:
    crowd, other = Crowd(ledger), Crowd(ledger)
    for one in (crowd, other):
        one.queue()
        (claim,) = one.committing()
        one.report(claim, State.SENT)
    (attempt,) = ledger.drill_attempts([crowd.campaign_id])
    assert (attempt.delivery_id, attempt.outcome) == (crowd.ids[0], "sent")
    assert ledger.drill_attempts([]) == []


def test_an_overdue_drill_is_an_event_a_day(ledger: Ledger) -> None:
    servers = tuple(Server(name=name, host="127.0.0.1", port=1, tls="none", weight=1) for name in ("a", "b"))
    settings = Settings(directory=Path("/nowhere"), servers=servers, drill_every="30d")
    remind_of_drills(settings, ledger)
    remind_of_drills(settings, ledger)
    assert [(event.server, event.to_state) for event in ledger.events()] == [
        ("a", "overdue"),
        ("b", "overdue"),
    ]
    assert ledger.remind_of_drill("a", "again", every_seconds=0.0), "a day later"

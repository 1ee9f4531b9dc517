"""What operators decide of the servers, and whose turn it is to probe one or to start a standby."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from campaigns.ledger import Ledger
from campaigns.states import State
from tests.crowd import Crowd


def changes(ledger: Ledger, kind: str) -> list[tuple[str | None, str | None, str | None]]:
    return [(one.from_state, one.to_state, one.reason) for one in ledger.events() if one.kind == kind]


def at_once(calls: list[Callable[[], bool]]) -> list[bool]:
    """What each answers, all called at the same moment."""
    gate, answers = threading.Barrier(len(calls)), list[bool]()

    def ask(call: Callable[[], bool]) -> None:
        gate.wait()
        answers.append(call())

    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def set_column(ledger: Ledger, table: str, column: str, value: object) -> None:
    """For times that nobody wants to wait for."""
    with ledger.database.write() as connection:
        connection.execute(text(f"UPDATE {table} SET {column} = :value"), {"value": value})


# ---- the operator


def test_a_mode_is_kept_with_its_reason_and_an_event(ledger: Ledger) -> None:
    assert ledger.set_server_mode("primary", "closed", "the disk is full")
    mode = ledger.modes()["primary"]
    assert (mode.mode, mode.weight, mode.reason) == ("closed", None, "the disk is full")
    assert changes(ledger, "operator") == [("open", "closed", "the disk is full")]


def test_a_mode_that_holds_already_changes_nothing(ledger: Ledger) -> None:
    assert not ledger.set_server_mode("primary", "open")
    assert ledger.set_server_mode("primary", "drained", "first")
    assert not ledger.set_server_mode("primary", "drained", "second")
    assert ledger.modes()["primary"].reason == "first"
    assert changes(ledger, "operator") == [("open", "drained", "first")]


def test_of_many_operators_who_close_a_server_at_once_one_does(ledger: Ledger) -> None:
    assert sorted(at_once([lambda: ledger.set_server_mode("primary", "closed")] * 4)) == [False] * 3 + [True]
    assert changes(ledger, "operator") == [("open", "closed", None)]


def test_a_weight_is_the_operators_until_the_configured_one_is_asked_for(ledger: Ledger) -> None:
    assert ledger.set_server_weight("primary", 20, configured=70, reason="warming up")
    assert not ledger.set_server_weight("primary", 20, configured=70)
    assert ledger.modes()["primary"].weight == 20
    assert ledger.set_server_weight("primary", None, configured=70)
    assert ledger.modes()["primary"].weight is None
    assert changes(ledger, "operator") == [
        ("weight 70 (configured)", "weight 20", "warming up"),
        ("weight 20", "weight 70 (configured)", None),
    ]


def test_mode_and_weight_do_not_touch_each_other(ledger: Ledger) -> None:
    ledger.set_server_mode("primary", "drained")
    ledger.set_server_weight("primary", 5, configured=1)
    ledger.set_server_mode("primary", "open")
    mode = ledger.modes()["primary"]
    assert (mode.mode, mode.weight) == ("open", 5)


# ---- probes


def test_one_process_at_a_time_probes_a_server(ledger: Ledger) -> None:
    assert at_once([lambda: ledger.take_probe_turn("primary", 30)] * 4).count(True) == 1
    assert not ledger.take_probe_turn("primary", 30)
    assert ledger.take_probe_turn("secondary", 30)
    ledger.probe_sooner("primary", 0)
    assert ledger.take_probe_turn("primary", 30)


def test_a_turn_left_far_ahead_by_a_clock_that_was_set_back_is_taken(ledger: Ledger) -> None:
    assert ledger.take_probe_turn("primary", 30)
    set_column(ledger, "probe", "next_at", ledger.now() + 86_400)
    assert ledger.take_probe_turn("primary", 30)


def test_a_probe_that_turns_out_as_before_is_no_event(ledger: Ledger) -> None:
    ledger.take_probe_turn("primary", 30)
    for error in (None, None, "connect: refused", "connect: refused", None):
        ledger.record_probe("primary", error=error, latency_seconds=0.1, certificate_until=2e9)
    assert changes(ledger, "probe") == [
        ("ok", "failing", "connect: refused"),
        ("failing", "ok", "it answers again"),
    ]


def test_a_failed_probe_leaves_the_last_success_to_be_seen(ledger: Ledger) -> None:
    ledger.take_probe_turn("primary", 30)
    ledger.record_probe("primary", error=None, latency_seconds=0.25, certificate_until=2e9)
    ledger.record_probe("primary", error="connect: refused")
    probe = ledger.probes()["primary"]
    assert probe.succeeded_at is not None and probe.probed_at is not None
    assert probe.succeeded_at <= probe.probed_at
    assert (probe.latency_seconds, probe.certificate_until, probe.error) == (0.25, 2e9, "connect: refused")


def test_a_probe_is_outdated_by_a_later_mail_or_change_of_the_breaker(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    for server in ("primary", "secondary"):
        ledger.record_probe(server, error="auth: 535")
        ledger.record_event(kind="breaker", server=server, from_state="closed", to_state="open")
    assert not ledger.is_probe_outdated("primary"), "the probe itself may have opened it"
    crowd.report(claim, State.SENT)
    assert ledger.is_probe_outdated("primary") and not ledger.is_probe_outdated("secondary")
    set_column(ledger, "probe", "probed_at", ledger.now() + 1)
    assert not ledger.is_probe_outdated("primary")
    set_column(ledger, "event", "at", ledger.now() + 10)
    assert ledger.is_probe_outdated("secondary")
    assert not ledger.is_probe_outdated("reserve")


def test_a_certificate_is_warned_of_once_a_day(ledger: Ledger) -> None:
    assert ledger.warn_of_certificate("primary", "it ends soon", every_seconds=86_400)
    assert not ledger.warn_of_certificate("primary", "it ends soon", every_seconds=86_400)
    assert ledger.warn_of_certificate("secondary", "it ends soon", every_seconds=86_400)
    set_column(ledger, "event", "at", ledger.now() - 86_401)
    assert ledger.warn_of_certificate("primary", "it ends soon", every_seconds=86_400)


def test_a_server_that_carries_mail_is_not_idle(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    (claim,) = crowd.committing()
    assert not ledger.has_carried("primary", 30)
    crowd.report(claim, State.SENT)
    assert ledger.has_carried("primary", 30) and not ledger.has_carried("secondary", 30)
    set_column(ledger, "attempt", "finished_at", ledger.now() - 31)
    assert not ledger.has_carried("primary", 30)


# ---- standbys


def begin(ledger: Ledger, owner: str, seconds: float = 60.0) -> bool:
    return ledger.begin_standby_turn(
        "reserve", owner, before="resting", state="starting", seconds=seconds, reason="nobody else"
    )


def test_one_process_starts_a_standby(ledger: Ledger) -> None:
    owners = [f"worker-{number}" for number in range(4)]
    assert at_once([lambda owner=owner: begin(ledger, owner) for owner in owners]).count(True) == 1  # type: ignore[misc]
    assert ledger.standbys()["reserve"].state == "starting"
    assert changes(ledger, "standby") == [("resting", "starting", "nobody else")]


def take_over(ledger: Ledger) -> bool:
    return ledger.begin_standby_turn(
        "reserve", "two", before="starting", state="starting", seconds=60, reason="worker one is gone"
    )


@pytest.mark.parametrize("until", [-1.0, 86_400.0])
def test_a_turn_whose_time_is_over_is_taken_over_and_its_owner_has_no_say_any_more(
    ledger: Ledger, until: float
) -> None:
    """Also one that ends a day ahead because the database's clock was set back."""
    begin(ledger, "one")
    assert not take_over(ledger)
    set_column(ledger, "standby", "until", ledger.now() + until)
    assert take_over(ledger)
    assert not ledger.end_standby_turn("reserve", "one", before="starting", state="active", reason="late")
    assert ledger.end_standby_turn("reserve", "two", before="starting", state="active", reason="it answers")
    standby = ledger.standbys()["reserve"]
    assert (standby.state, standby.owner, standby.failures) == ("active", None, 0)


def test_after_a_failure_nobody_tries_again_before_the_pause_is_over(ledger: Ledger) -> None:
    begin(ledger, "one")
    ledger.end_standby_turn(
        *("reserve", "one"),
        before="starting",
        state="resting",
        reason="no answer",
        is_failure=True,
        pause_seconds=60,
    )
    assert ledger.standbys()["reserve"].failures == 1
    assert not begin(ledger, "two")
    set_column(ledger, "standby", "until", ledger.now() - 1)
    assert begin(ledger, "two")
    assert ledger.standbys()["reserve"].failures == 1
    ledger.end_standby_turn("reserve", "two", before="starting", state="active", reason="it answers")
    assert ledger.standbys()["reserve"].failures == 0


def test_streams_wait_while_mail_of_theirs_is_queued_or_due(ledger: Ledger) -> None:
    assert ledger.waiting_streams() == frozenset()
    crowd, other = Crowd(ledger, 2), Crowd(ledger, 1, stream="transactional")
    assert ledger.waiting_streams() == {"promotional", "transactional"}
    other.set("next_attempt_at", ledger.now() + 3600)
    assert ledger.waiting_streams() == {"promotional"}
    crowd.queue()
    assert ledger.waiting_streams() == {"promotional"}
    for claim in crowd.committing():
        crowd.report(claim, State.SENT)
    assert ledger.waiting_streams() == frozenset()


def test_a_server_is_busy_while_mail_waits_for_it_or_is_on_its_way(ledger: Ledger) -> None:
    crowd = Crowd(ledger)
    assert not ledger.is_busy("primary")
    crowd.queue()
    assert ledger.is_busy("primary") and not ledger.is_held("primary")
    (claim,) = crowd.committing()
    assert ledger.is_busy("primary") and ledger.is_held("primary") and not ledger.is_busy("secondary")
    crowd.report(claim, State.SENT)
    assert not ledger.is_busy("primary")

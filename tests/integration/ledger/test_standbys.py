"""Whose turn it is with a standby: one process at a time, and who lost its turn says nothing any more."""

from __future__ import annotations

from typing import Any

from campaigns.ledger import Ledger


def begin(ledger: Ledger, owner: str, **more: Any) -> bool:
    values = {"before": "resting", "state": "starting", "seconds": 60.0, "reason": "for the test", **more}
    return ledger.begin_standby_turn("cold", owner, **values)


def end(ledger: Ledger, owner: str, **more: Any) -> bool:
    values = {"before": "starting", "state": "active", "reason": "it answers", **more}
    return ledger.end_standby_turn("cold", owner, **values)


def test_one_process_has_the_turn(ledger: Ledger) -> None:
    assert begin(ledger, "one")
    assert not begin(ledger, "two")
    assert not begin(ledger, "two", before="starting")
    assert ledger.standbys()["cold"].owner == "one"


def test_who_lost_its_turn_says_nothing_any_more(ledger: Ledger) -> None:
    assert begin(ledger, "one", seconds=0.0)
    assert begin(ledger, "two", before="starting")
    assert not end(ledger, "one", state="resting", is_failure=True, pause_seconds=300.0)
    standby = ledger.standbys()["cold"]
    assert (standby.state, standby.owner, standby.failures) == ("starting", "two", 0)
    assert end(ledger, "two")
    assert ledger.standbys()["cold"].state == "active"
    assert [event.to_state for event in ledger.events()] == ["starting", "starting", "active"]


def test_after_a_failure_nobody_begins_before_the_pause_is_over(ledger: Ledger) -> None:
    assert begin(ledger, "one")
    assert end(ledger, "one", state="resting", is_failure=True, pause_seconds=300.0)
    assert not begin(ledger, "two")
    assert ledger.standbys()["cold"].failures == 1

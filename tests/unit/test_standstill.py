"""Why nothing of a campaign moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from campaigns.ledger import ModeRecord
from campaigns.server_status import ServerStatus
from campaigns.standstill import NO_WORKER, may_carry, why_nothing_moves


def server(name: str, mode: str = "open", **fields: Any) -> ServerStatus:
    told = {"state": "closed", "share": 0.0, "weight": 1, "has_worker": True, **fields}
    record = ModeRecord(server=name, mode=mode, weight=None, reason=None, changed_at=0.0)  # type: ignore[arg-type]
    return ServerStatus(name=name, mode=record, **told)


def test_nothing_is_said_while_one_server_takes_mail() -> None:
    assert why_nothing_moves([server("a", mode="closed"), server("b")]) == ""
    assert why_nothing_moves([server("a", is_full=True), server("b", returned=0.1)]) == ""
    assert why_nothing_moves([server("a", state="half-open"), server("b")]) == ""


def test_without_any_worker_that_is_the_reason() -> None:
    assert why_nothing_moves([server("a", has_worker=False), server("b", has_worker=False)]) == NO_WORKER


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        (
            [server("a", mode="closed"), server("b", mode="closed")],
            "no server takes mail now: a is closed by hand, b is closed by hand;"
            " `campaigns servers open NAME` opens one",
        ),
        (
            [server("a", is_full=True), server("b", is_full=True)],
            "no server takes mail now: a is full (by its own word), b is full (by its own word)",
        ),
        (
            [server("a", state="open", reason="refused"), server("b", has_worker=False)],
            "no server takes mail now: a is resting (refused), b has no worker",
        ),
        (
            [server("a", state="half-open", last_fault="refused"), server("b", mode="closed")],
            "no server takes more than single mails now: a is on trial (being tried with single mails;"
            " last fault: refused), b is closed by hand; `campaigns servers open NAME` opens one",
        ),
    ],
)
def test_each_server_s_reason_is_told(servers: list[ServerStatus], told: str) -> None:
    assert why_nothing_moves(servers) == told


@pytest.mark.parametrize("trouble", ["is not there", "did not answer in time"])
def test_without_the_broker_that_is_the_reason_and_what_still_goes_out_is_not_denied(trouble: str) -> None:
    away = [server(name, state="unknown", share=None, broker_trouble=trouble) for name in ("a", "b")]
    told = f"the broker {trouble}: what is queued waits for it"
    assert why_nothing_moves(away) == told
    assert why_nothing_moves([replace(away[0], has_worker=False), away[1]]) == told
    assert all(may_carry(one) for one in away)


def test_the_operators_hand_is_told_before_the_broker_that_is_away() -> None:
    away = {"state": "unknown", "share": None, "broker_trouble": "is not there"}
    told = why_nothing_moves([server("a", mode="closed", **away), server("b", mode="drained", **away)])
    assert told.startswith("no server takes mail now: a is closed by hand, b is drained by hand")
    assert why_nothing_moves([server("a", has_worker=False, **away)]) == NO_WORKER


def test_a_health_board_apart_that_is_away_keeps_no_mail_from_going_out() -> None:
    assert why_nothing_moves([server("a", state="unknown", share=None)]) == ""


def test_a_server_on_trial_still_carries_the_mails_that_try_it() -> None:
    assert may_carry(server("a", state="half-open"))


def test_a_drained_server_still_carries_what_waits_there() -> None:
    drained = server("a", mode="drained")
    assert may_carry(drained)
    assert why_nothing_moves([drained]).startswith("no server takes mail now: a is drained by hand")
    assert not may_carry(server("a", mode="closed")) and not may_carry(server("a", is_full=True))

"""What is told of a server, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from campaigns.allowance import UsedLimit
from campaigns.breaker import BreakerState
from campaigns.health import ServerHealth
from campaigns.ledger import Mode, ModeRecord, ProbeRecord, StandbyRecord, StandbyState
from campaigns.server import Server
from campaigns.server_status import ServerFacts, ServerStatus, server_statuses
from campaigns.settings import Settings

NOW = 1_800_000_000.0
READ = ("primary", "secondary", "reserve")


def settings(reserve: tuple[str, ...] = ()) -> Settings:
    servers = [
        Server(name="primary", host="h", port=25, tls="none", weight=70),
        Server(name="secondary", host="h", port=25, tls="none", weight=30),
        Server(name="reserve", host="h", port=25, tls="none", weight=0, on_activate=reserve),
    ]
    return Settings(directory=Path("/srv"), servers=tuple(servers))


def health(name: str, **changes: object) -> ServerHealth:
    values: dict[str, object] = {"state": BreakerState.CLOSED, "since": NOW, "reason": "", "open_until": None}
    return ServerHealth(**{"name": name, "consecutive_faults": 0, **values, **changes})  # type: ignore[arg-type]


def mode(name: str, mode: Mode = "open", weight: int | None = None) -> ModeRecord:
    return ModeRecord(server=name, mode=mode, weight=weight, reason="for the test", changed_at=NOW)


def standby(state: StandbyState) -> dict[str, StandbyRecord]:
    record = StandbyRecord(
        server="reserve", state=state, owner=None, until=None, failures=0, reason="", changed_at=NOW
    )
    return {"reserve": record}


def told(facts: ServerFacts, reserve: tuple[str, ...] = ()) -> dict[str, ServerStatus]:
    statuses = server_statuses(settings(reserve), replace(facts, readers=READ), NOW)
    return {status.name: status for status in statuses}


def shares(facts: ServerFacts, reserve: tuple[str, ...] = ()) -> list[float]:
    return [round(status.share or 0.0, 3) for status in told(facts, reserve).values()]


@pytest.mark.parametrize("off", ["drained", "closed"])
def test_a_server_that_the_operator_took_out_has_no_share(off: Mode) -> None:
    facts = ServerFacts(modes={"primary": mode("primary", off)})
    assert shares(facts) == [0.0, 1.0, 0.0]
    primary = told(facts)["primary"]
    assert primary.state_text == f"{off} by hand"
    assert (primary.since_shown, primary.reason_text) == (NOW, "for the test")
    assert primary.to_dict()["mode"] == off and primary.to_dict()["state"] == "closed"


def test_the_operators_weight_counts_and_the_configured_one_is_told() -> None:
    facts = ServerFacts(modes={"primary": mode("primary", weight=10)})
    assert shares(facts) == [0.25, 0.75, 0.0]
    assert told(facts)["primary"].weight_text == "10 (configured 70)"
    assert told(facts)["secondary"].weight_text == "30"


def test_a_server_that_gets_its_load_back_tells_how_far_it_is() -> None:
    facts = ServerFacts(health={"primary": health("primary", share=0.25)})
    assert told(facts)["primary"].state_text == "back at 25 %"
    assert shares(facts) == [0.175, 0.825, 0.0]


def test_a_server_whose_limit_is_used_up_is_full() -> None:
    facts = ServerFacts(exhausted=["primary"])
    assert told(facts)["primary"].state_text == "full"
    assert shares(facts) == [0.0, 1.0, 0.0]


def test_a_full_server_tells_which_of_its_limits_is_used_up() -> None:
    used = (UsedLimit(limit="50/h", used=50, of=50), UsedLimit(limit="900/d", used=50, of=900))
    facts = ServerFacts(health={"primary": health("primary")}, exhausted=["primary"], used={"primary": used})
    assert (told(facts)["primary"].since_shown, told(facts)["primary"].reason_text) == (
        None,
        "50/h is used up",
    )


@pytest.mark.parametrize(
    ("used", "told"),
    [
        (UsedLimit(limit="50/h", used=5, of=50), "5 of 50 in 1 h"),
        (UsedLimit(limit="20000/d (warm-up)", used=769, of=20_000), "769 of 20,000 in 24 h (warm-up)"),
        (
            UsedLimit(limit="0/d (warm-up begins on 2026-03-02)", used=0, of=0),
            "0 of 0 in 24 h (warm-up begins on 2026-03-02)",
        ),
    ],
)
def test_what_is_used_of_a_limit_is_told_with_its_time(used: UsedLimit, told: str) -> None:
    assert used.told == told


@pytest.mark.parametrize(
    ("state", "words"),
    [("resting", "not started"), ("starting", "being started"), ("active", "working")],
)
def test_a_standby_takes_nothing_before_it_is_started(state: StandbyState, words: str) -> None:
    bad = {name: health(name, state=BreakerState.OPEN) for name in ("primary", "secondary")}
    facts = ServerFacts(health=bad, standbys=standby(state))
    assert told(facts, ("start",))["reserve"].state_text == words
    assert shares(facts, ("start",)) == [0.0, 0.0, 1.0 if state == "active" else 0.0]


def test_a_standby_that_was_never_started_rests_and_nothing_is_amiss() -> None:
    reserve = told(ServerFacts(), ("start",))["reserve"]
    assert (reserve.state_text, reserve.is_amiss, reserve.since_shown) == ("not started", False, None)
    assert told(ServerFacts())["reserve"].state_text == "working"


def test_what_the_operator_did_is_told_before_what_the_breaker_did() -> None:
    facts = ServerFacts(
        health={"primary": health("primary", state=BreakerState.OPEN)},
        modes={"primary": mode("primary", "closed")},
    )
    primary = told(facts)["primary"]
    assert (primary.state_text, primary.state) == ("closed by hand", "open")


def test_only_a_board_that_is_with_the_broker_tells_of_its_trouble(tmp_path: Path) -> None:
    apart = Settings(directory=tmp_path, servers=settings().servers, state="redis://h:1/0")
    for one, told, trouble in (
        (settings(), "the broker", "is not there"),
        (apart, "the Redis that `state` names", ""),
    ):
        status = server_statuses(one, ServerFacts(), NOW, trouble="is not there")[0]
        assert (status.state, status.broker_trouble) == ("unknown", trouble)
        assert status.reason_text == f"not known now: {told} is not there"


def test_what_the_operator_did_is_known_without_the_broker() -> None:
    facts = ServerFacts(modes={"primary": mode("primary", "closed")})
    statuses = server_statuses(settings(("start",)), facts, NOW, trouble="is not there")
    assert [(one.state_text, one.share_text, one.state) for one in statuses] == [
        ("closed by hand", "0 %", "unknown"),
        ("unknown", "?", "unknown"),
        ("not started", "0 %", "unknown"),
    ]
    assert [one.reason_text for one in statuses] == [
        "for the test",
        "not known now: the broker is not there",
        "",
    ]


def test_a_server_that_works_as_far_as_mail_has_shown_tells_of_a_probe_that_failed_since() -> None:
    failed = ProbeRecord(
        server="primary",
        probed_at=NOW,
        succeeded_at=NOW - 60,
        latency_seconds=None,
        certificate_until=None,
        error="connect: Connection refused",
    )
    primary = told(ServerFacts(probes={"primary": failed}))["primary"]
    shown = (primary.state_text, primary.since_shown, primary.reason_text)
    assert shown == ("working", NOW, "its last probe failed")
    well = replace(failed, error=None)
    assert told(ServerFacts(probes={"primary": well}))["primary"].reason_text == ""
    ill = ServerFacts(
        probes={"primary": failed},
        health={"primary": health("primary", state=BreakerState.OPEN, reason="dead")},
    )
    assert told(ill)["primary"].reason_text == "dead"
    assert replace(primary, is_probe_outdated=True).reason_text == ""

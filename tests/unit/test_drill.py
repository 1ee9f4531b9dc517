"""What a drill is judged by, and when one is overdue."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.drill import read_seeds
from campaigns.drill_calendar import overdue_drills
from campaigns.drill_findings import Findings
from campaigns.errors import InvalidRecipients
from campaigns.ledger import DeadServer, DrillAttempt, DrillRecord
from campaigns.settings import Server, Settings
from campaigns.states import State

DIED, BACK = 100.0, 120.0
DAY = 86_400.0


def attempt(
    delivery: int, server: str, at: float, outcome: str = "sent", reply: str = "250 ok"
) -> DrillAttempt:
    return DrillAttempt(delivery_id=delivery, server=server, outcome=outcome, finished_at=at, reply=reply)


def findings(*attempts: DrillAttempt, **changes: Any) -> Findings:
    """Two mails through the secondary, one through the primary again; and what is given instead."""
    usual = (attempt(1, "secondary", 101.5), attempt(2, "secondary", 101.2), attempt(3, "primary", 120.4))
    values: dict[str, Any] = {
        "server": "primary",
        "since": DIED,
        "until": BACK,
        "states": dict.fromkeys((1, 2, 3), State.SENT),
        "attempts": attempts or usual,
        "returning": {3},
        "detection_seconds": 0.3,
    }
    return Findings(**{**values, **changes})


def test_a_drill_is_passed_if_all_went_through_the_other_and_the_server_came_back() -> None:
    result = findings().result()
    assert (result.status, result.reason) == ("passed", "secondary took 2 of 2")
    assert result.switch_seconds == pytest.approx(1.2)
    assert result.return_seconds == pytest.approx(0.4)
    assert (result.recipients, result.sent, result.lost, result.duplicates) == (3, 3, 0, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"states": {1: State.SENT, 2: State.QUEUED, 3: State.SENT}}, "lost: 1"),
        ({"states": {1: State.SENT, 2: State.CANCELLED, 3: State.SENT}}, "lost: 1"),
        ({"returning": {}}, "no mail went out through primary again"),
        ({"since": 80.0}, "longer than 10 s"),
        ({"broken_off": "the operator had enough"}, "had enough"),
    ],
)
def test_a_drill_fails_if_anything_of_the_promise_does_not_hold(changes: dict[str, Any], reason: str) -> None:
    result = findings(**changes).result()
    assert result.status == "failed"
    assert reason in (result.reason or "")


def test_a_mail_that_was_accepted_twice_fails_a_drill() -> None:
    twice = (attempt(1, "secondary", 101.0), attempt(1, "primary", 121.0), attempt(3, "primary", 121.0))
    result = findings(*twice).result()
    assert (result.status, result.duplicates) == ("failed", 1)


def test_a_mail_that_goes_through_the_dead_server_fails_a_drill() -> None:
    """Some worker did not hear of it, and would not have heard of a real failure either."""
    ignored = (attempt(1, "secondary", 101.0), attempt(2, "primary", 101.0), attempt(3, "primary", 121.0))
    assert "in spite of its death: 1" in (findings(*ignored).result().reason or "")


def test_no_switch_tells_the_last_reply() -> None:
    refused = attempt(1, "secondary", 101.0, outcome="rejected", reply="550 5.1.1 no such user")
    result = findings(refused, states={1: State.FAILED}, returning=set()).result()
    assert (result.status, result.lost, result.switch_seconds) == ("failed", 0, None)
    assert "550 5.1.1 no such user" in (result.reason or "")


def test_what_its_recipients_side_deferred_is_not_lost() -> None:
    greylisted = attempt(1, "secondary", 101.0, outcome="deferred", reply="451 greylisted")
    usual = findings().attempts
    assert findings(*usual[1:], greylisted, states={1: State.PENDING, 2: State.SENT, 3: State.SENT}).lost == 0


def test_what_waits_when_a_drill_is_broken_off_is_not_lost() -> None:
    assert findings(states={1: State.PENDING, 2: State.CLAIMED}, broken_off="enough").lost == 0


STATES = st.dictionaries(st.integers(1, 6), st.sampled_from(State), max_size=6)
ATTEMPTS = st.lists(
    st.builds(
        attempt,
        st.integers(1, 6),
        st.sampled_from(["primary", "secondary"]),
        st.floats(90, 140),
        st.sampled_from(["sent", "deferred", "unreachable", "uncertain", "rejected"]),
    )
)


@given(STATES, ATTEMPTS, st.frozensets(st.integers(1, 6)), st.sampled_from(["", "enough"]))
def test_a_passed_drill_lost_nothing_sent_nothing_twice_switched_and_returned(
    states: dict[int, State], attempts: list[DrillAttempt], returning: frozenset[int], broken_off: str
) -> None:
    result = Findings(
        server="primary",
        since=DIED,
        until=BACK,
        states=states,
        attempts=attempts,
        returning=returning,
        broken_off=broken_off,
    ).result()
    assert result.sent + result.lost + result.uncertain <= result.recipients == len(states)
    assert result.reason
    if result.status == "passed":
        assert (result.lost, result.duplicates, broken_off) == (0, 0, "")
        assert result.switch_seconds is not None and 0 <= result.switch_seconds <= 10
        assert result.return_seconds is not None and result.return_seconds >= 0


@given(st.sampled_from(["campaign", "alert", "drill"]), st.booleans(), st.floats(0, 200))
def test_a_server_is_dead_for_a_drills_mail_alone_unless_it_is_live(
    purpose: str, is_live: bool, now: float
) -> None:
    dead = DeadServer(drill_id=1, server="primary", is_live=is_live, since=DIED, until=BACK)
    concerned = dead.concerns(purpose, now)
    if now >= BACK or (purpose != "drill" and not is_live):
        assert not concerned
    elif now >= DIED:
        assert concerned
    elif purpose != "drill":
        assert not concerned, "it is announced, and has not begun"


def record(status: str = "passed", finished_at: float = 0.0) -> DrillRecord:
    return DrillRecord(
        id=1,
        server="primary",
        is_live=False,
        status=status,  # type: ignore[arg-type]
        dead_until=None,
        started_at=finished_at - 20,
        finished_at=finished_at,
        detection_seconds=0.1,
        switch_seconds=0.2,
        return_seconds=0.3,
        recipients=3,
        sent=3,
        lost=0,
        duplicates=0,
        uncertain=0,
        reason="lost: 1" if status == "failed" else None,
    )


def settings(**values: Any) -> Settings:
    servers = (
        Server(name="primary", host="127.0.0.1", port=1, tls="none", weight=70),
        Server(name="secondary", host="127.0.0.1", port=1, tls="none", weight=0),
    )
    return Settings(**{"directory": Path("/nowhere"), "servers": servers, "drill_every": "30d", **values})


def test_a_drill_is_overdue_when_it_is_older_than_configured() -> None:
    last = {"primary": record(finished_at=100 * DAY)}
    assert overdue_drills(settings(), last, 129 * DAY) == {}
    told = overdue_drills(settings(), last, 145 * DAY)
    assert "45 days ago, and one is due every 30 days" in told["primary"]


def test_a_server_that_was_never_drilled_or_failed_its_drill_is_overdue() -> None:
    assert "never rehearsed" in overdue_drills(settings(), {}, DAY)["primary"]
    failed = {"primary": record("failed", finished_at=DAY)}
    assert "failed: lost: 1" in overdue_drills(settings(), failed, DAY + 1)["primary"]


def test_a_cold_server_is_never_overdue_and_none_is_without_a_setting_or_a_second_server() -> None:
    assert "secondary" not in overdue_drills(settings(), {}, DAY)
    assert overdue_drills(settings(drill_every=None), {}, DAY) == {}
    assert overdue_drills(settings(servers=settings().servers[:1]), {}, DAY) == {}
    alone = {"promotional": ["primary"], "transactional": ["primary"]}
    assert overdue_drills(settings(streams=alone), {}, DAY) == {}


def test_seeds_are_read_once_each_and_a_wrong_one_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "seeds.csv"
    file.write_text("name,email\nAnn,ann@example.com\nAnn again,ANN@example.com\nBob,bob@example.com\n")
    assert [one.email for one in read_seeds(file)] == ["ann@example.com", "bob@example.com"]
    file.write_text("email\nann@example.com\nno address\n")
    with pytest.raises(InvalidRecipients, match=r"line 3"):
        read_seeds(file)

"""What the operator is told, and how often."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.alerts import (
    LATE_SECONDS,
    LONGEST_RETRY_SECONDS,
    MOST_LISTED,
    Alert,
    deserves_alert,
    is_due,
    next_alert,
    pause_seconds,
    sentence,
    settled,
)
from campaigns.events import BY_OPERATOR
from campaigns.ledger import AlertRecord, TellableEvent

HOUR = 3600.0
NOON = 1_800_000_000.0


def event(number: int = 1, at: float = NOON, **changes: str | None) -> TellableEvent:
    fields = {"server": "primary", "campaign": None, "from_state": "closed", "to_state": "open"}
    named = {"kind": "breaker", "reason": "5 faults in 0.8 s: connection refused", **fields, **changes}
    return TellableEvent(id=number, at=at, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "before", "after", "told"),
    [
        ("breaker", "closed", "open", True),
        ("breaker", "half-open", "closed", True),
        ("breaker", "open", "half-open", False),
        ("breaker", "half-open", "open", False),
        ("share", "50 %", "100 %", True),
        ("share", "10 %", "25 %", False),
        ("share", "50 %", "25 %", False),
        ("limit", "open", "full", True),
        ("limit", "full", "open", True),
        ("standby", "starting", "active", True),
        ("standby", "starting", "resting", True),
        ("probe", "ok", "failing", True),
        ("drill", "running", "failed", True),
        ("drill", None, "overdue", True),
        ("operator", "open", "drained", True),
        ("campaign", "running", "paused", True),
        ("campaign", "running", "finished", False),
        ("something-new", None, None, False),
    ],
)
def test_the_operator_is_told_of_changes_and_not_of_steps_on_the_way(
    kind: str, before: str | None, after: str | None, told: bool
) -> None:
    assert deserves_alert(event(kind=kind, from_state=before, to_state=after)) is told


def test_a_pause_by_hand_is_no_news() -> None:
    paused = event(kind="campaign", campaign="spring", from_state="running", to_state="paused")
    assert deserves_alert(replace(paused, reason="SPF fails everywhere"))
    assert not deserves_alert(replace(paused, reason=BY_OPERATOR))


def test_what_happens_to_an_alerts_own_mail_causes_no_alert() -> None:
    paused = event(kind="campaign", campaign="alert-7", from_state="running", to_state="paused")
    assert not deserves_alert(replace(paused, purpose="alert"))
    assert deserves_alert(replace(paused, purpose="drill"))


def test_the_first_event_is_told_at_once() -> None:
    alert = next_alert([event(7)], [], now=NOON)
    assert alert == Alert(events=(event(7),), omitted=0, last_id=7)


def test_what_deserves_no_alert_is_passed_over() -> None:
    step = event(8, from_state="open", to_state="half-open")
    assert next_alert([step], [], now=NOON) == Alert(events=(), omitted=0, last_id=8)
    assert next_alert([], [event(7)], now=NOON) is None


def test_of_very_many_the_newest_are_listed_and_the_others_counted() -> None:
    many = [event(number, NOON) for number in range(1, MOST_LISTED + 51)]
    alert = next_alert(many, [], now=NOON)
    assert alert is not None
    assert (len(alert.events), alert.omitted, alert.events[-1].id) == (MOST_LISTED, 50, MOST_LISTED + 50)
    assert alert.text().startswith("(50 more; `campaigns events` lists them)\n")
    assert alert.to_dict()["omitted"] == 50


def test_what_is_older_than_a_day_is_not_told_as_news() -> None:
    old, young = event(1, NOON - 25 * HOUR), event(2, NOON - 1)
    assert next_alert([old], [], now=NOON) == Alert(events=(), omitted=0, last_id=1)
    assert next_alert([old, young], [], now=NOON) == Alert(events=(young,), omitted=1, last_id=2)


def changes_of(server: str, times: list[float], start: int = 1) -> list[TellableEvent]:
    """It goes to and fro."""
    states = ("closed", "open")
    return [
        event(start + n, at, server=server, from_state=states[n % 2], to_state=states[1 - n % 2])
        for n, at in enumerate(times)
    ]


def test_repetitions_wait_for_news_or_an_hour() -> None:
    told = changes_of("primary", [NOON + n for n in range(4)])
    again = changes_of("primary", [NOON + 60, NOON + 70], start=5)
    assert next_alert(again, told, now=NOON + 70) is None
    assert next_alert(again, told[:3], now=NOON + 70) is not None
    assert next_alert(again, told, now=NOON + 60 + HOUR) == Alert(events=tuple(again), omitted=0, last_id=6)


@pytest.mark.parametrize(
    "news",
    [
        event(7, NOON + 71, server="secondary"),
        event(7, NOON + 71, kind="drill", to_state="failed"),
        event(7, NOON + 71, kind="campaign", server=None, campaign="spring", to_state="paused"),
    ],
)
def test_news_of_another_thing_takes_the_repetitions_along(news: TellableEvent) -> None:
    told = changes_of("primary", [NOON + n for n in range(4)])
    again = changes_of("primary", [NOON + 60, NOON + 70], start=5)
    alert = next_alert([*again, news], told, now=NOON + 71)
    assert alert == Alert(events=(*again, news), omitted=0, last_id=7)


def test_what_the_operator_does_is_never_a_mere_repetition() -> None:
    told = [event(n, NOON, kind="operator", to_state="drained") for n in range(1, 20)]
    assert next_alert([event(20, NOON, kind="operator", to_state="open")], told, now=NOON) is not None


def tellings(times: list[float], *, every: float, until: float) -> list[Alert]:
    """What one channel is sent for a server that changes at these times, looked at each second."""
    every_event = changes_of("primary", times)
    sent: list[Alert] = []
    last_id, not_before = 0, 0.0
    for second in range(int(until - NOON) + 1):
        now = NOON + second
        pending = [one for one in every_event if one.id > last_id and one.at <= now]
        alert = next_alert(pending, every_event[:last_id], now=now) if now >= not_before else None
        if alert is not None:
            last_id, not_before = alert.last_id, now + every
            sent += [alert] if alert.events else []
    return sent


def test_a_server_that_flaps_for_two_hours_causes_few_messages() -> None:
    times = [NOON + 10.0 * n for n in range(720)]
    sent = tellings(times, every=60.0, until=NOON + 3 * HOUR + 120)
    assert len(sent) <= 6, "not one a minute"
    assert sum(len(alert.events) + alert.omitted for alert in sent) == 720, "and nothing is kept back"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5400), max_size=60), st.sampled_from([1.0, 60.0, 600.0]))
def test_every_change_is_told_once_within_an_hour_and_a_pause(offsets: list[int], every: float) -> None:
    times = sorted(NOON + offset for offset in offsets)
    sent = tellings(times, every=every, until=NOON + 5400 + HOUR + 2 * every + 2)
    told = [one.id for alert in sent for one in alert.events]
    assert told == [*range(1, len(times) + 1)]


@given(st.sets(st.integers(1, 40)), st.integers(0, 10), st.floats(0, 2 * LATE_SECONDS))
def test_nothing_is_passed_over_while_a_number_may_still_appear(
    numbers: set[int], after_id: int, age: float
) -> None:
    events = [event(number, NOON - age) for number in sorted(numbers) if number > after_id]
    found = [one.id for one in settled(events, after_id, NOON)]
    assert found == [one.id for one in events][: len(found)]
    if age < LATE_SECONDS:
        assert found == [*range(after_id + 1, after_id + 1 + len(found))]
    else:
        assert len(found) == len(events)


def test_a_number_that_is_missing_for_long_holds_up_nobody() -> None:
    early, late = event(3, NOON - 60), event(5, NOON - LATE_SECONDS - 1)
    assert settled([early, late], 1, NOON) == [early, late]
    assert settled([early, event(5, NOON - 1)], 1, NOON) == [early]


def record(next_at: float) -> AlertRecord:
    return AlertRecord(channel="webhook", last_event_id=0, next_at=next_at, failures=0, error=None, now=NOON)


def test_a_clock_that_was_set_back_does_not_silence_a_channel() -> None:
    assert is_due(record(NOON), 60.0)
    assert not is_due(record(NOON + 60), 60.0)
    assert not is_due(record(NOON + 5 * HOUR), 5 * HOUR), "as configured"
    assert is_due(record(NOON + 24 * HOUR), 60.0)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_to_an_hour(failures: int, jitter: float) -> None:
    pause = pause_seconds(failures, jitter)
    assert 4 <= pause <= 1.21 * LONGEST_RETRY_SECONDS
    assert pause_seconds(failures + 3, jitter) >= pause


def test_a_message_says_what_happened_to_whom_and_why() -> None:
    alert = Alert(events=(event(1), event(2, NOON + 9, to_state="closed", reason=None)), omitted=0, last_id=2)
    assert alert.text().splitlines() == [
        "2027-01-15 08:00:00  primary: given up (5 faults in 0.8 s: connection refused)",
        "2027-01-15 08:00:09  primary: takes mail again",
    ]
    assert alert.subject() == "[campaigns] primary: takes mail again, the last of 2 changes"
    assert replace(alert, events=alert.events[:1]).subject() == "[campaigns] primary: given up"
    told = alert.to_dict()["events"][0]
    assert list(told) == ["id", "at", "server", "campaign", "kind", "from", "to", "reason"]


def test_a_kind_of_event_without_words_of_its_own_is_told_as_it_is() -> None:
    assert sentence(event(kind="operator", to_state="drained", reason=None)) == "primary: operator drained"

"""Progress, pace, servers and watching, as values."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from campaigns.breaker import BreakerState
from campaigns.errors import DatabaseUnavailable
from campaigns.health import ServerHealth
from campaigns.pace import rates_of
from campaigns.progress import Progress, ServerProgress
from campaigns.server_status import ServerFacts, ServerStatus, server_statuses
from campaigns.settings import Server, Settings
from campaigns.states import State, Status
from campaigns.waiting import Waiting
from campaigns.watch import View, clock_text, line_of, render, watch

NOW = 1_800_000_000.0


def progress(status: Status = Status.RUNNING, sent: int = 0, rate: float = 0.0, **fields: str) -> Progress:
    return Progress(
        name="spring",
        status=status,
        reason=fields.get("reason"),
        total=100,
        counts={State.SENT: sent, State.QUEUED: 100 - sent},
        servers={"primary": ServerProgress(sent=sent, rerouted=3)},
        rate_per_second=rate,
    )


def test_done_and_alive_add_up_to_the_total() -> None:
    told = progress(sent=40)
    assert (told.done, told.alive, told.total) == (40, 60, 100)
    assert not told.is_over
    assert progress(Status.CANCELLED).is_over and progress(Status.FINISHED).is_over


def test_the_time_left_is_unknown_while_nothing_moves() -> None:
    assert progress(rate=0.0).eta_seconds is None
    assert progress(Status.PAUSED, rate=5.0).eta_seconds is None
    assert progress(sent=40, rate=30.0).eta_seconds == 2.0


def test_the_time_left_is_by_the_rate_of_the_campaign_if_that_is_less_than_the_pace() -> None:
    told = progress(sent=40, rate=30.0)
    assert replace(told, most_per_second=20.0).eta_seconds == 3.0
    assert replace(told, most_per_second=20.0).to_dict()["rate_per_second"] == 30.0
    assert replace(told, most_per_second=60.0).eta_seconds == 2.0


def test_no_time_left_is_told_when_who_waits_for_later_ends_the_campaign() -> None:
    waits = Waiting(count=49, first_seconds=200.0, last_seconds=300.0)
    told = replace(progress(sent=40, rate=30.0), waiting=waits)
    assert told.eta_seconds is None
    assert told.to_dict()["eta_seconds"] is None
    assert "30/s  49 wait for a later time, the first in 3:20  " in line_of(view(told))
    soon = replace(told, waiting=Waiting(count=1, first_seconds=1.0, last_seconds=1.0))
    assert soon.eta_seconds == 2.0
    assert soon.waiting_text == "1 waits for a later time"


@pytest.mark.parametrize(
    ("state", "words"), [("closed", "working"), ("half-open", "on trial"), ("open", "resting")]
)
def test_people_read_of_a_server_in_words_and_programs_as_ever(state: str, words: str) -> None:
    told = ServerStatus(name="primary", state=state, share=0.0, weight=70, reason="cool-down is over")
    assert (told.state_text, told.to_dict()["state"]) == (words, state)
    assert told.to_dict()["reason"] == "cool-down is over"
    assert ("being tried with single mails" in told.reason_text) is (state == "half-open")


def test_a_reason_is_in_the_object_only_where_there_is_one() -> None:
    assert "reason" not in progress().to_dict()
    assert progress(reason="refused").to_dict()["reason"] == "refused"


def test_a_rate_is_of_the_last_ten_seconds_and_not_watered_down() -> None:
    steady = [(1, NOW - second / 10) for second in range(200)]
    assert rates_of(steady, NOW)[1] == pytest.approx(10, rel=0.02)
    assert rates_of([(1, NOW - 2.0)] * 100, NOW) == {1: 50.0}
    assert rates_of([(1, NOW - 0.1)] * 7, NOW) == {1: 7.0}
    assert rates_of([(1, NOW - 60.0)], NOW) == {}
    assert rates_of([(1, NOW), (2, NOW), (2, NOW)], NOW) == {1: 1.0, 2: 2.0}


def settings(*weights: int) -> Settings:
    servers = tuple(
        Server(name=f"s{number}", host="h", port=25, tls="none", weight=weight)
        for number, weight in enumerate(weights)
    )
    return Settings(directory=Path("/srv"), servers=servers)


def opened(name: str) -> ServerHealth:
    return ServerHealth(
        name=name,
        state=BreakerState.OPEN,
        since=NOW,
        reason="refused",
        open_until=NOW + 9,
        consecutive_faults=3,
    )


@pytest.mark.parametrize(
    ("weights", "bad", "readers", "shares"),
    [
        ((70, 30), (), ("s0", "s1"), [0.7, 0.3]),
        ((70, 30), ("s0",), ("s0", "s1"), [0.0, 1.0]),
        ((70, 30), ("s0", "s1"), ("s0", "s1"), [0.0, 0.0]),
        ((70, 0), (), ("s0", "s1"), [1.0, 0.0]),
        ((70, 0), ("s0",), ("s0", "s1"), [0.0, 1.0]),
        ((70, 30), (), ("s1",), [0.0, 1.0]),
        ((70, 30), (), (), [0.7, 0.3]),
    ],
)
def test_a_share_is_what_a_server_is_given_now(
    weights: tuple[int, ...], bad: tuple[str, ...], readers: tuple[str, ...], shares: list[float]
) -> None:
    facts = ServerFacts(health={name: opened(name) for name in bad}, readers=readers)
    told = server_statuses(settings(*weights), facts, NOW)
    assert [one.share for one in told] == shares


def test_health_that_is_not_known_is_said_to_be_so() -> None:
    (told,) = server_statuses(settings(1), ServerFacts(), NOW, trouble="did not answer in time")
    assert (told.state_text, told.share_text, told.is_amiss) == ("unknown", "?", False)
    assert told.reason_text == "not known now: the broker did not answer in time"
    assert (told.to_dict()["state"], told.to_dict()["share"]) == ("unknown", None)


def view(told: Progress, note: str = "") -> View:
    server = ServerStatus(name="primary", state="open", share=0.0, weight=70, reason="connection refused")
    return View(progress=told, servers=(server,), note=note)


def test_a_line_tells_counts_pace_and_what_is_wrong() -> None:
    line = line_of(view(progress(sent=40, rate=30.0), note="look"))
    assert line == "spring running  40/100  queued 60  sent 40  30/s  0:02 left  primary is resting  look"


def test_no_rate_and_no_time_left_is_told_where_it_stands_still_and_the_note_says_why() -> None:
    still = progress(sent=40)
    assert "  0/s  no estimate yet  " in line_of(view(still))
    assert (
        line_of(view(still, note="look"))
        == "spring running  40/100  queued 60  sent 40  primary is resting  look"
    )
    assert "30/s  0:02 left" in line_of(view(progress(sent=40, rate=30.0), note="single mails go out"))
    waits = replace(still, waiting=Waiting(count=49, first_seconds=200.0, last_seconds=300.0))
    assert "sent 40  49 wait for a later time, the first in 3:20  " in line_of(view(waits, note="look"))


def test_the_live_view_fits_80_columns_and_names_the_reason() -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=False)
    with screen.capture() as captured:
        screen.print(
            render(view(progress(sent=40, reason="every server refuses"), note="no worker is running"))
        )
    text = captured.get()
    assert max(len(line) for line in text.splitlines()) <= 80
    for part in ("40 of 100", "every server refuses", "connection refused", "no worker is running", "100 %"):
        assert part in text


def test_watching_waits_for_a_database_that_is_away() -> None:
    def views() -> Iterator[View | DatabaseUnavailable]:
        yield DatabaseUnavailable("the database cannot be reached")
        yield view(progress(sent=40))
        yield DatabaseUnavailable("the database cannot be reached")
        yield view(progress(Status.FINISHED, sent=100))

    shown = io.StringIO()
    assert watch(reader(views()), file=shown).status is Status.FINISHED
    assert shown.getvalue().splitlines()[-1].startswith("spring finished  100/100")


def reader(views: Iterator[View | DatabaseUnavailable]) -> Callable[[], View]:
    def read() -> View:
        found = next(views)
        if isinstance(found, DatabaseUnavailable):
            raise found
        return found

    return read


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (9, "0:09"), (125, "2:05"), (3723, "1:02:03")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text

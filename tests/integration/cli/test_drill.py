"""`campaigns drill` says what is missing before it declares anything dead; `campaigns drills` lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from campaigns.client import Client
from campaigns.ledger import DrillResult, Ledger
from campaigns.settings import load_settings
from tests.integration.cli.conftest import Desk


@pytest.fixture
def ledger(desk: Desk) -> Iterator[Ledger]:
    desk.write("seeds.csv", "email\nann@example.com\n")
    with Client(load_settings()) as client:
        yield client.ledger


def refusal(desk: Desk, *arguments: str) -> str:
    """The one thing that is said; nothing is declared dead."""
    result = desk.run("drill", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr


SEEDS = ("--recipients", "seeds.csv")
SENDER = ("--from", "drill@example.com")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "with --recipients seeds.csv"),
        (SEEDS, "with --from"),
        ((*SEEDS, *SENDER), "no worker is running"),
        ((*SEEDS, *SENDER, "--server", "primry"), "primary"),
        ((*SEEDS, *SENDER, "--live"), "with --yes"),
        ((*SEEDS, *SENDER, "--seconds", "nan"), "600 s at most"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_declared_dead(
    desk: Desk, ledger: Ledger, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refusal(desk, *arguments)
    assert (ledger.drills(), ledger.campaigns("drill")) == ([], [])


def test_a_list_of_customers_is_no_list_of_seeds(desk: Desk, ledger: Ledger) -> None:
    desk.write("list.csv", "email\n" + "".join(f"person{n}@example.com\n" for n in range(101)))
    assert "101 seed addresses are too many" in refusal(desk, "--recipients", "list.csv", *SENDER)
    assert ledger.drills() == []


def test_a_drill_is_refused_while_the_other_server_is_not_read(desk: Desk, ledger: Ledger) -> None:
    ledger.heartbeat("w1", ["primary"], host="here", pid=1, sent_per_second=0.0)
    assert "no other server could take over from primary" in refusal(desk, *SEEDS, *SENDER)


def test_a_live_drill_is_refused_while_one_stream_has_no_other_server(desk: Desk, ledger: Ledger) -> None:
    """Also where the one that would be measured has one: the server counts as dead for all mail."""
    ledger.heartbeat("w1", ["primary", "secondary"], host="here", pid=1, sent_per_second=0.0)
    file = desk.directory / "campaigns.toml"
    file.write_text(file.read_text() + '[streams]\nreceipts = ["primary"]\n')
    said = refusal(desk, *SEEDS, *SENDER, "--live", "--yes")
    assert "no server but primary can take mail of the stream receipts" in said
    assert "leave --live out, or give receipts another server" in said
    assert (ledger.drills(), ledger.campaigns("drill")) == ([], [])


def test_a_drill_is_refused_while_another_one_runs(desk: Desk, ledger: Ledger) -> None:
    ledger.heartbeat("w1", ["primary", "secondary"], host="here", pid=1, sent_per_second=0.0)
    ledger.begin_drill("secondary", is_live=False, notice_seconds=0, seconds=60)
    assert "a drill of secondary runs now" in refusal(desk, *SEEDS, *SENDER)
    assert ledger.campaigns("drill") == []


def test_a_sender_that_makes_no_message_is_refused_before_the_drill(desk: Desk, ledger: Ledger) -> None:
    ledger.heartbeat("w1", ["primary", "secondary"], host="here", pid=1, sent_per_second=0.0)
    assert refusal(desk, *SEEDS, "--from", "nobody").startswith("error: ")
    assert ledger.drills() == []


def test_the_sender_of_the_last_campaign_is_the_drills(desk: Desk, ledger: Ledger) -> None:
    assert desk.send().exit_code == 0
    assert "no worker is running" in refusal(desk, *SEEDS)


def test_an_overdue_drill_is_a_note_beside_the_servers(
    desk: Desk, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "drill" not in desk.run("servers").stderr
    monkeypatch.setenv("CAMPAIGNS_DRILL_EVERY", "30d")
    assert "note: primary: its failover was never rehearsed" in desk.run("servers").stderr


def test_drills_are_listed_with_what_they_showed(desk: Desk, ledger: Ledger) -> None:
    assert "No drill yet" in desk.run("drills").stderr
    assert desk.json("drills") == []
    drill = ledger.begin_drill("primary", is_live=False, notice_seconds=0, seconds=9)
    ledger.finish_drill(
        drill.id,
        DrillResult(
            status="passed",
            detection_seconds=0.31,
            switch_seconds=0.42,
            recipients=4,
            sent=4,
            reason="secondary took 3 of 3",
        ),
    )
    (one,) = desk.json("drills")
    assert (one["server"], one["status"], one["live"], one["switch_seconds"]) == (
        "primary",
        "passed",
        False,
        0.42,
    )
    assert (one["mails"], one["sent"], one["return_seconds"]) == (4, 4, None)
    table = desk.run("drills").stdout
    for text in ("passed", "0.4 s", "4 of 4", "secondary took 3 of 3"):
        assert text in table

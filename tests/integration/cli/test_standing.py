"""Where campaigns and servers stand, and what can be done about it, in words and numbers that agree."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from campaigns.client import Client
from campaigns.errors import TransitionRefused
from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import load_settings
from tests.integration.api.conftest import write_list
from tests.integration.cli.conftest import Desk


def test_a_row_of_the_table_adds_up(desk: Desk) -> None:
    desk.run("suppress", "add", "ann@example.com")
    desk.send()
    desk.run("cancel", "spring")
    head, row = desk.run("status").stdout.splitlines()
    assert head.split("  ")[-2:] == ["not sent", "to go"]
    total, *parts = (int(cell) for cell in row.split()[2:])
    assert (total, parts) == (2, [0, 0, 0, 2, 0])


def test_the_time_left_is_not_told_by_a_pace_above_the_campaigns_own(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_list(desk.directory / "list.csv", 100)
    desk.send("--rate", "10/s")
    with Client(load_settings()) as client:
        client.ledger.heartbeat("w", ["primary", "secondary"], host="here", pid=1, sent_per_second=0.0)
    monkeypatch.setattr(Client, "rate_per_second", lambda *_: 40.0)
    assert "40.0 mails/s, 10 s to go" in desk.run("status", "spring").stdout
    for told in (desk.json("status", "spring"), *desk.json("status"), desk.json("resume", "spring")):
        assert (told["rate_per_second"], told["eta_seconds"]) == (40.0, 10.0)


def test_json_has_the_word_of_the_table_beside_that_of_the_breaker(desk: Desk) -> None:
    broker = EmbeddedBroker.of(load_settings())
    broker.start()
    try:
        assert [(one["state"], one["told"]) for one in desk.json("servers")] == [("closed", "working")] * 2
        assert desk.json("servers", "drain", "primary")["told"] == "drained by hand"
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("status", "command", "told"),
    [
        (
            "finished",
            "pause",
            "is finished and cannot be paused; `campaigns retry spring` tries those who failed again",
        ),
        ("draft", "pause", "is a draft and cannot be paused; it was not sent yet"),
    ],
)
def test_a_refusal_says_what_can_be_done_instead(desk: Desk, status: str, command: str, told: str) -> None:
    desk.send()
    set_status(status)
    assert desk.run(command, "spring").stderr == f"error: campaign spring {told}\n"


def test_a_scheduled_campaign_that_is_resumed_is_to_be_held_or_called_off(desk: Desk) -> None:
    desk.send("--at", "2099-01-01T00:00:00Z")
    told = desk.run("resume", "spring").stderr
    assert "`campaigns pause spring` holds it, `campaigns cancel spring` calls it off" in told


def test_a_paused_campaign_that_is_sent_again_is_to_be_resumed(desk: Desk) -> None:
    desk.send()
    desk.run("pause", "spring")
    with (
        Client(load_settings()) as client,
        pytest.raises(TransitionRefused, match="`campaigns resume spring`"),
    ):
        client.campaign("spring").send()


def set_status(status: str) -> None:
    with Client(load_settings()) as client, client.ledger.database.write() as connection:
        connection.execute(text("UPDATE campaign SET status = :status"), {"status": status})

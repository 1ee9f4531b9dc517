"""`campaigns alerts`: who is told, whether it gets through, and a message to try it."""

from __future__ import annotations

import json
import logging

import pytest

from campaigns.client import Client
from campaigns.settings import load_settings
from tests.integration.cli.conftest import CONFIGURATION, Desk
from tests.webhook_server import WebhookServer


def configure(desk: Desk, alerts: str) -> None:
    database = load_settings().database
    desk.write("campaigns.toml", CONFIGURATION.format(database=database) + f"[alerts]\n{alerts}\n")


def test_without_a_channel_it_says_that_nobody_is_told(desk: Desk) -> None:
    result = desk.run("alerts")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nobody is told" in result.stderr and "[alerts]" in result.stderr
    assert desk.json("alerts") == []
    assert desk.run("alerts", "test").exit_code == 1
    found = {one["name"]: one for one in json.loads(desk.run("check", "--json").stdout)}
    assert found["alerts"]["ok"] and "nobody is told" in found["alerts"]["detail"]


def test_it_says_how_each_channel_stands_and_keeps_the_secret(desk: Desk) -> None:
    configure(desk, 'webhook = "https://hooks.example.com/zyxwv"\nemail = "ops@example.com"')
    with Client(load_settings()) as client:
        record = client.ledger.begin_alerts("webhook")
        turn = client.ledger.take_alert(record, 30.0)
        assert turn is not None
        client.ledger.alert_failed("webhook", turn, error="it answered 410 Gone", pause_seconds=60.0)
    assert desk.json("alerts") == [
        {
            "channel": "webhook",
            "to": "https://hooks.example.com/...",
            "failures": 1,
            "error": "it answered 410 Gone",
        },
        {"channel": "email", "to": "ops@example.com", "failures": 0, "error": None},
    ]
    shown = desk.run("alerts").stdout
    assert "the last try did not get through: it answered 410 Gone" in shown
    assert "no worker has looked for news yet" in shown
    found = {one["name"]: one for one in json.loads(desk.run("check", "--json").stdout)}
    assert not found["alerts by webhook"]["ok"] and found["alerts by email"]["ok"]
    assert "zyxwv" not in shown + json.dumps(found) + repr(load_settings())


def test_a_message_is_posted_to_try_the_webhook(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with WebhookServer() as hook, caplog.at_level(logging.DEBUG):
        configure(desk, f'webhook = "{hook.url}"')
        (trial,) = desk.json("alerts", "test")
        assert trial["ok"] and "it took the message" in trial["detail"]
        assert [event["to"] for event in hook.events] == ["test"]
        hook.status = 404
        result = desk.run("alerts", "test")
        assert result.exit_code == 1
        assert "FAILED" in result.stdout and "it answered 404 Not Found" in result.stdout
    assert "zyxwv" not in result.output + json.dumps(trial) + caplog.text


def test_a_mail_that_no_worker_takes_waits(desk: Desk) -> None:
    configure(desk, 'email = "ops@example.com"')
    result = desk.run("alerts", "test", "--seconds", "0.1")
    assert result.exit_code == 1
    assert "No worker is running" in result.stderr
    assert "not accepted by any server within 0.1 s; it waits" in result.stdout
    assert desk.json("status") == [], "it is no campaign of the operator's"


def test_a_suppressed_operator_is_told_of_it(desk: Desk) -> None:
    configure(desk, 'email = "ops@example.com"')
    desk.run("suppress", "add", "ops@example.com")
    result = desk.run("alerts", "test", "--seconds", "5")
    assert result.exit_code == 1
    assert "it is on the list of suppressed addresses" in result.stdout


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('webhook = "https://zyxwv@host/"', "alerts.webhook: must have neither a user name"),
        ('webhook = "https://host:zyxwv/"', "alerts.webhook: is not a valid address"),
        ('webhook = "ftp://host/zyxwv"', "alerts.webhook: must be an http:// or https:// address"),
        ('email = "nobody"', "alerts.email: has no usable address"),
        ('sender = "nobody"', "alerts.sender: has no usable address"),
        ('every = "often"', "alerts.every: 'often' is not a duration"),
        ('mail = "x"', 'alerts.mail: unknown key; did you mean "email"?'),
    ],
)
def test_a_mistake_is_told_without_the_secret(desk: Desk, line: str, complaint: str) -> None:
    configure(desk, line)
    result = desk.run("alerts")
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert "zyxwv" not in result.output

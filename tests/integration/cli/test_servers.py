"""The operator's hand: drain, close and open servers, and change their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import text

from campaigns.client import Client
from campaigns.fleet import READER_SECONDS
from campaigns.health import HealthBoard
from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import load_settings
from tests.integration.cli.conftest import Desk


def server(desk: Desk, name: str) -> dict[str, object]:
    (found,) = [one for one in desk.json("servers") if one["name"] == name]
    assert isinstance(found, dict)
    return found


def operator_events(desk: Desk) -> list[tuple[str, str, str, str | None]]:
    return [
        (event["server"], event["from"], event["to"], event["reason"])
        for event in desk.json("events")
        if event["kind"] == "operator"
    ]


@pytest.fixture
def broker(desk: Desk) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker.of(load_settings())
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.usefixtures("broker")
def test_a_server_is_drained_closed_and_opened_again(desk: Desk) -> None:
    drained = desk.run("servers", "drain", "primary", "--reason", "kernel update")
    assert (drained.exit_code, drained.stdout) == (
        0,
        "primary is given no more mail; what waits still goes out.\n",
    )
    assert "drained by hand" in desk.run("servers").stdout
    assert desk.run("servers", "close", "primary").exit_code == 0
    assert [server(desk, name)["share"] for name in ("primary", "secondary")] == [0.0, 1.0]
    assert desk.run("servers", "open", "primary").stdout == "primary is open: it takes mail again.\n"
    assert [server(desk, name)["share"] for name in ("primary", "secondary")] == [0.7, 0.3]
    assert operator_events(desk) == [
        ("primary", "open", "drained", "kernel update"),
        ("primary", "drained", "closed", None),
        ("primary", "closed", "open", None),
    ]


@pytest.mark.parametrize(("command", "word"), [("drain", "drained"), ("close", "closed"), ("open", "open")])
def test_what_is_so_already_is_no_failure_and_no_event(desk: Desk, command: str, word: str) -> None:
    desk.run("servers", command, "primary")
    before = operator_events(desk)
    again = desk.run("servers", command, "primary")
    assert (again.exit_code, again.stdout) == (0, f"primary is {word} already.\n")
    assert operator_events(desk) == before


@pytest.mark.usefixtures("broker")
def test_a_weight_is_changed_and_given_back(desk: Desk) -> None:
    assert desk.run("servers", "weight", "primary", "20").stdout == "primary has the weight 20.\n"
    told = server(desk, "primary")
    assert (told["weight"], told["configured_weight"], told["share"]) == (20, 70, 0.4)
    assert "20 (configured 70)" in desk.run("servers").stdout
    assert desk.run("servers", "weight", "primary", "20").stdout == "primary has the weight 20 already.\n"
    again = desk.run("servers", "weight", "primary", "--default")
    assert again.stdout == "primary has its configured weight.\n"
    assert server(desk, "primary")["share"] == 0.7
    assert [event[1:3] for event in operator_events(desk)] == [
        ("weight 70 (configured)", "weight 20"),
        ("weight 20", "weight 70 (configured)"),
    ]


def test_who_closes_the_last_open_server_is_told_that_mail_waits(desk: Desk) -> None:
    assert desk.run("servers", "close", "primary").stderr == ""
    last = desk.run("servers", "drain", "secondary")
    assert last.exit_code == 0
    assert last.stderr == (
        "note: no server of promotional, transactional is open: its mail waits until one is.\n"
    )
    assert "no server of promotional" in desk.run("servers").stderr
    assert desk.run("servers", "open", "primary").stderr == ""


@pytest.mark.parametrize("arguments", [["close", "primry"], ["weight", "primry", "5"]])
def test_an_unknown_server_is_answered_with_the_right_one(desk: Desk, arguments: list[str]) -> None:
    result = desk.run("servers", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'did you mean "primary"?' in result.stderr
    assert operator_events(desk) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["close"],
        ["shut", "primary"],
        ["weight", "primary"],
        ["weight", "primary", "5", "--default"],
        ["weight", "primary", "-1"],
        ["weight", "primary", "many"],
    ],
)
def test_wrong_usage_changes_nothing(desk: Desk, arguments: list[str]) -> None:
    assert desk.run("servers", *arguments).exit_code == 2
    assert operator_events(desk) == []


@pytest.mark.parametrize("number", ["-3", "-0.5", "2.5", "many", "1000001"])
def test_what_is_no_weight_is_told_what_one_is(desk: Desk, number: str) -> None:
    result = desk.run("servers", "weight", "primary", number)
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert "a weight is a whole number from 0 to 1000000" in told and "`campaigns servers close`" in told
    assert operator_events(desk) == []


def test_an_option_that_there_is_not_is_still_told_the_right_one(desk: Desk) -> None:
    assert "--reason" in desk.run("servers", "weight", "primary", "3", "--reasn", "x").stderr


@pytest.mark.parametrize("command", ["drain", "close", "open", "weight"])
def test_each_explains_itself(desk: Desk, command: str) -> None:
    assert desk.run("servers", command, "--help").stdout.startswith("Usage: ")


def test_json_is_the_server_as_it_is_now(desk: Desk) -> None:
    told = desk.json("servers", "close", "primary", "--reason", "disk full")
    assert (told["name"], told["mode"], told["mode_reason"]) == ("primary", "closed", "disk full")
    assert desk.json("servers", "weight", "primary", "5")["weight"] == 5


def test_probes_limits_and_certificates_are_shown(desk: Desk) -> None:
    with Client(load_settings()) as client:
        ends = client.ledger.now() + 3 * 86_400
        client.ledger.record_probe("primary", error=None, latency_seconds=0.0123, certificate_until=ends)
        client.ledger.record_probe("secondary", error="mx.example.com:25: connect: refused")
    shown = desk.run("servers")
    assert "12 ms" in shown.stdout and "connect: refused" in shown.stdout
    assert "the certificate of primary ends on" in shown.stderr
    probe = server(desk, "primary")["probe"]
    assert isinstance(probe, dict)
    assert (probe["ok"], probe["latency_seconds"], probe["error"]) == (True, 0.0123, None)
    probe = server(desk, "secondary")["probe"]
    assert isinstance(probe, dict)
    assert (probe["ok"], probe["succeeded_at"]) == (False, None)


def test_without_the_broker_nobody_claims_to_know_how_the_servers_do(desk: Desk) -> None:
    lines = desk.run("servers").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["primary", "unknown", "?"],
        ["secondary", "unknown", "?"],
    ]
    assert all(line.endswith("not known now: the broker is not there") for line in lines[1:3])
    told = server(desk, "primary")
    assert (told["state"], told["share"], told["worker"]) == ("unknown", None, False)


def test_a_worker_that_was_not_seen_for_long_is_none(desk: Desk) -> None:
    with Client(load_settings()) as client:
        now = client.ledger.now()
        client.ledger.heartbeat("w", ("primary",), host="h", pid=1, sent_per_second=0.0)
        assert server(desk, "primary")["worker"] is True
        with client.ledger.database.write() as connection:
            connection.execute(text("UPDATE worker SET seen_at = :at"), {"at": now - READER_SECONDS - 1})
        assert server(desk, "primary")["worker"] is False


def test_a_probe_that_mail_has_outdated_is_no_news(desk: Desk) -> None:
    with Client(load_settings()) as client:
        client.ledger.record_probe("primary", error="mx.example.com:25: auth: 535", certificate_until=2e9)
        assert "auth: 535" in desk.run("servers").stdout
        client.ledger.record_event(kind="breaker", server="primary", from_state="open", to_state="closed")
        with client.ledger.database.write() as connection:
            connection.execute(text("UPDATE probe SET probed_at = probed_at - 60"))
    shown = desk.run("servers").stdout
    assert "last probe" in shown and "before its latest mail or change" in shown and "535" not in shown
    probe = server(desk, "primary")["probe"]
    assert isinstance(probe, dict)
    assert (probe["outdated"], probe["ok"]) == (True, False)


def test_an_overdue_drill_is_told_under_the_table(desk: Desk) -> None:
    configuration = (desk.directory / "campaigns.toml").read_text()
    desk.write("campaigns.toml", 'drill_every = "30d"\n' + configuration)
    assert "note: primary: its failover was never rehearsed" in desk.run("servers").stderr


@pytest.mark.usefixtures("broker")
def test_python_does_the_same(desk: Desk) -> None:
    with Client(load_settings()) as client:
        assert client.set_server_mode("primary", "closed", reason="disk full")
        assert not client.set_server_mode("primary", "closed")
        assert client.set_server_weight("secondary", 5)
        assert client.closed_streams() == []
        assert [status.state_text for status in client.servers()] == ["closed by hand", "working"]


@pytest.mark.usefixtures("broker")
def test_a_server_that_said_that_it_is_full_is_opened_by_hand(desk: Desk) -> None:
    settings = load_settings()
    with closing(HealthBoard(settings.state_url)) as board:
        board.set_full_for("primary", 86_400, "452 daily quota exceeded")
        board.set_full_for("secondary", 86_400, "452 daily quota exceeded")
        assert desk.run("servers", "open", "primary").stdout == "primary is open: it takes mail again.\n"
        assert {name: one.is_full for name, one in board.look().items()} == {
            "primary": False,
            "secondary": True,
        }
    assert [one["full"] for one in desk.json("servers")] == [False, True]
    assert desk.run("servers", "open", "primary").stdout == "primary is open already.\n"
    told = [(one["kind"], one["server"], one["to"], one["reason"]) for one in desk.json("events")]
    assert told == [("limit", "primary", "open", "opened by hand")]

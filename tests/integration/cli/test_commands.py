"""Every command: what it prints, as text and as JSON, and its exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import time
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import text

from campaigns.cli import output
from campaigns.cli.group import _COMMANDS, main
from campaigns.client import Client
from campaigns.local.broker import EmbeddedBroker
from campaigns.settings import load_settings
from campaigns.states import State
from campaigns.watch import line_of
from tests.integration.api.test_campaign import end_all
from tests.integration.cli.conftest import CONFIGURATION, Desk


def test_init_writes_a_configuration_that_loads_as_it_is(bare_desk: Desk) -> None:
    assert bare_desk.run("init").exit_code == 0
    settings = load_settings(environ={})
    assert settings.embedded
    assert [(server.name, server.weight) for server in settings.servers] == [
        ("primary", 70),
        ("secondary", 30),
    ]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["campaigns.toml"]


def test_the_lines_that_init_comments_out_load_too(bare_desk: Desk) -> None:
    bare_desk.run("init")
    file = Path("campaigns.toml")
    lines = file.read_text().splitlines()
    options = [line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in lines]
    skipped = ("password_file", "ca_file")
    file.write_text("\n".join(line for line in options if not line.startswith(skipped)))
    settings = load_settings(environ={"CAMPAIGNS_PASSWORD_PRIMARY": "p"})
    assert settings.delivery == settings.delivery.__class__()
    assert list(settings.streams) == ["promotional", "transactional", "receipts"]


def test_init_never_overwrites(bare_desk: Desk) -> None:
    bare_desk.write("campaigns.toml", "mine")
    result = bare_desk.run("init")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: campaigns.toml is there already; it was not changed\n"
    assert Path("campaigns.toml").read_text() == "mine"


@pytest.mark.parametrize("command", [*_COMMANDS, "db upgrade", "suppress add", "suppress import"])
def test_every_command_explains_itself(desk: Desk, command: str) -> None:
    result = desk.run(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert max(len(line) for line in result.stdout.splitlines()) <= 110


def test_the_commands_of_the_contract_are_there() -> None:
    wanted = (
        *("init", "check", "demo", "up", "db", "send", "status", "watch", "recipients", "pause", "resume"),
        *("cancel", "retry", "suppress", "servers", "events"),
    )
    assert set(wanted) <= set(_COMMANDS)
    assert main.name == "main"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sned"],
        ["status", "a", "b"],
        ["pause"],
        ["recipients", "spring", "--state", "lost"],
        ["retry", "spring", "--state", "sent"],
        ["up", "--processes", "0"],
        ["send", "spring"],
        ["events", "--limit", "0"],
        ["events", "--limit", "9" * 20],
        ["drills", "--limit", "9" * 20],
    ],
)
def test_wrong_usage_has_exit_status_2(desk: Desk, arguments: list[str]) -> None:
    result = desk.run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_mistyped_command_is_answered_with_the_right_one(desk: Desk) -> None:
    assert "Did you mean 'send'?" in desk.run("sned").stderr


@pytest.mark.parametrize(
    "more", [["--at", "tomorrow"], ["--at", "2030-01-01T09:00:00"], ["--rate", "fast"], ["--rate", "0/s"]]
)
def test_a_wrong_time_or_rate_is_wrong_usage(desk: Desk, more: list[str]) -> None:
    assert desk.send(*more).exit_code == 2
    assert desk.json("status") == []


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["watch"], ["recipients"], ["pause"], ["resume"], ["cancel"], ["retry"]],
)
def test_an_unknown_name_has_exit_status_1_and_one_line(desk: Desk, arguments: list[str]) -> None:
    result = desk.run(*arguments, "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: there is no campaign nobody; `campaigns status` lists the names\n"


def test_an_unknown_server_has_exit_status_1(desk: Desk) -> None:
    result = desk.run("events", "--server", "primry")
    assert result.exit_code == 1
    assert 'did you mean "primary"?' in result.stderr


def test_without_a_configuration_every_command_says_what_to_do(bare_desk: Desk) -> None:
    for command in ("status", "servers", "check", "events"):
        result = bare_desk.run(command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert (
            result.stderr == "error: no campaigns.toml in this directory: run `campaigns init` to write one\n"
        )


def test_each_mistake_in_the_configuration_is_a_line(desk: Desk) -> None:
    wrong = CONFIGURATION.format(database="mysql://x") + "[delivery]\nlease_seconds = 0\n"
    desk.write("campaigns.toml", 'brocker = "x"' + wrong)
    lines = desk.run("status").stderr.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["error", "campaigns.toml", "brocker"],
        ["error", "campaigns.toml", "database"],
        ["error", "campaigns.toml", "delivery.lease_seconds"],
    ]


def test_send_prints_what_became_of_the_list(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\nann@example.com,Ann\nANN@example.com,Ann\nbad,Bob\n")
    result = desk.send()
    assert result.exit_code == 0
    assert "spring: 1 recipient added, 1 duplicate, 1 rejected." in result.stdout
    assert str(desk.directory / "spring-rejected.csv") in result.stdout
    assert "no worker is running" in result.stderr and "broker is not there" not in result.stderr
    rejected = list(csv.reader((desk.directory / "spring-rejected.csv").read_text("utf-8").splitlines()))
    assert rejected[0] == ["line", "email", "reason"]
    assert rejected[1][:2] == ["4", "bad"]


def test_send_prints_json_alone(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\nann@example.com,Ann\nbad,Bob\n")
    result = desk.send("--json")
    assert json.loads(result.stdout) == {
        "name": "spring",
        "status": "running",
        "added": 1,
        "duplicate": 0,
        "rejected": 1,
        "rejected_file": str(desk.directory / "spring-rejected.csv"),
    }


def test_an_existing_name_is_an_error(desk: Desk) -> None:
    assert desk.send().exit_code == 0
    result = desk.send()
    assert result.exit_code == 1
    assert result.stderr == "error: a campaign spring exists already (running); choose another name\n"


def test_a_mistake_in_template_or_list_leaves_no_campaign_behind(desk: Desk) -> None:
    desk.write("list.csv", "email\nann@example.com\n")
    result = desk.send()
    assert result.exit_code == 1
    assert "first_name" in result.stderr and result.stderr.count("\n") <= 3
    assert desk.json("status") == []


def test_a_campaign_can_be_sent_later_at_a_rate(desk: Desk) -> None:
    result = desk.send("--at", "2099-01-01T09:00:00+02:00", "--rate", "600/m", "--stream", "transactional")
    assert result.exit_code == 0
    assert re.search(r"It starts at 2099-01-01 [0-9:]{8} [+-][0-9]{4}\. Call it off", result.stdout)
    past = desk.send("--at", "2020-01-01T00:00:00Z", name="past").stdout
    assert "Its time is past: it starts at once. Follow it with `campaigns watch past`." in past
    assert "N/d" in desk.run("send", "--help").stdout
    assert desk.json("status", "spring")["status"] == "scheduled"
    with Client(load_settings()) as client:
        record = client.ledger.campaign("spring")
    assert (record.rate_per_second, record.stream) == (10, "transactional")


def test_status_is_the_object_of_the_contract(desk: Desk) -> None:
    desk.send()
    told = desk.json("status", "spring")
    assert told == {
        "name": "spring",
        "status": "running",
        "total": 2,
        "counts": {str(state): 2 if state is State.PENDING else 0 for state in State},
        "servers": {"primary": {"sent": 0, "rerouted": 0}, "secondary": {"sent": 0, "rerouted": 0}},
        "rate_per_second": 0.0,
        "eta_seconds": None,
    }
    assert desk.json("status") == [told]


def test_the_reason_stands_beside_the_status_of_what_was_paused_by_itself(desk: Desk) -> None:
    desk.send()
    with Client(load_settings()) as client:
        client.ledger.pause_by_policy(client.ledger.campaign("spring").id, "every server refuses the sender")
    assert desk.json("status", "spring")["reason"] == "every server refuses the sender"
    assert "every server refuses the sender" in desk.run("status", "spring").stdout


def test_pause_resume_and_cancel(desk: Desk) -> None:
    desk.send()
    assert [desk.run(step, "spring").exit_code for step in ("pause", "pause", "resume", "resume")] == [0] * 4
    assert [desk.run(step, "spring").exit_code for step in ("cancel", "cancel")] == [0, 0]
    refused = desk.run("resume", "spring")
    assert refused.exit_code == 1
    assert refused.stderr == "error: campaign spring is cancelled; that is final\n"
    assert desk.json("status", "spring")["counts"]["cancelled"] == 2


def test_retry_tells_how_many(desk: Desk) -> None:
    desk.send()
    assert "0 recipients of spring" in desk.run("retry", "spring").stdout
    assert desk.json("retry", "spring", "--state", "uncertain")["retried"] == 0


def test_recipients_are_listed_as_table_csv_and_json(desk: Desk) -> None:
    desk.write(
        "list.csv",
        "email,first_name\nann@example.com,Ann\n\N{LATIN SMALL LETTER E WITH ACUTE}ve@example.com,E\n",
    )
    desk.send()
    table = desk.run("recipients", "spring", "--state", "pending").stdout
    assert "ann@example.com" in table
    rows = list(csv.DictReader(io.StringIO(desk.run("recipients", "spring", "--format", "csv").stdout)))
    assert [row["email"] for row in rows] == [
        "ann@example.com",
        "\N{LATIN SMALL LETTER E WITH ACUTE}ve@example.com",
    ]
    told = json.loads(desk.run("recipients", "spring", "--format", "json").stdout)
    assert list(told[0]) == ["email", "state", "server", "reply", "deferrals", "updated_at", "message_id"]
    assert [row["message_id"] for row in rows] == [one["message_id"] for one in told]
    assert told[0]["state"] == "pending" and told[0]["updated_at"].endswith("+00:00")
    assert told == desk.json("recipients", "spring")
    assert json.loads(desk.run("recipients", "spring", "--state", "sent", "--format", "json").stdout) == []


def test_who_is_uncertain_is_listed_with_what_the_server_s_log_calls_the_mail(desk: Desk) -> None:
    desk.send()
    assert "message-id" not in desk.run("recipients", "spring").stdout
    with Client(load_settings()) as client, client.ledger.database.write() as connection:
        connection.execute(text("UPDATE delivery SET state = 'uncertain' WHERE id = 2"))
    first, second = (one["message_id"] for one in desk.json("recipients", "spring"))
    table = desk.run("recipients", "spring", "--state", "uncertain").stdout
    assert "message-id" in table and second in table.split() and first not in table


def test_a_reply_cannot_become_a_formula_in_a_spreadsheet(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\n=cmd@example.com,Ann\n")
    desk.send()
    assert "'=cmd@example.com" in desk.run("recipients", "spring", "--format", "csv").stdout


def test_the_suppression_list_is_kept(desk: Desk) -> None:
    added = desk.json("suppress", "add", "ann@example.com", "--reason", "asked")
    assert added == {"added": 1, "known": 0, "rejected": 0}
    desk.write("gone.csv", "email\nbob@example.com\nann@example.com\nbad\n")
    assert desk.json("suppress", "import", "gone.csv") == {"added": 1, "known": 1, "rejected": 1}
    assert [one["email"] for one in desk.json("suppress", "list")] == ["ann@example.com", "bob@example.com"]
    assert desk.run("suppress", "remove", "bob@example.com").exit_code == 0
    known = desk.run("suppress", "add", "ann@example.com").stdout
    assert known == "0 addresses suppressed, 1 known before.\n"
    missing = desk.run("suppress", "remove", "bob@example.com")
    assert missing.stdout == ""
    assert (missing.exit_code, missing.stderr) == (1, "error: bob@example.com is not on the list\n")
    assert desk.run("suppress", "add", "bad").exit_code == 1
    desk.send()
    assert desk.json("status", "spring")["counts"]["suppressed"] == 1


def test_a_bad_address_keeps_no_other_off_the_suppression_list_or_on_it(desk: Desk) -> None:
    added = desk.run("suppress", "add", "bad", "ann@example.com", "worse", "bob@example.com")
    assert (added.exit_code, added.stdout) == (1, "2 addresses suppressed, 2 rejected.\n")
    assert [line.split(":")[1].strip() for line in added.stderr.splitlines()] == ["bad", "worse"]
    assert [one["email"] for one in desk.json("suppress", "list")] == ["ann@example.com", "bob@example.com"]
    removed = desk.run("suppress", "remove", "bad", "ann@example.com", "cid@example.com", "bob@example.com")
    assert (removed.exit_code, removed.stdout) == (1, "2 addresses taken off the list.\n")
    assert [line.split()[1] for line in removed.stderr.splitlines()] == ["bad:", "cid@example.com"]
    assert desk.json("suppress", "list") == []


def test_the_status_says_where_to_look_for_what_was_not_sent(desk: Desk) -> None:
    desk.send()
    assert "campaigns recipients" not in desk.run("status", "spring").output
    with Client(load_settings()) as client:
        end_all(client, State.UNCERTAIN)
    told = desk.run("status", "spring")
    assert told.stderr.splitlines() == [
        "note: 2 uncertain: a server may have taken them, its reply never came;"
        " `campaigns recipients spring --state uncertain` lists them."
    ]


def test_servers_and_events_are_listed(desk: Desk) -> None:
    desk.send()
    told = desk.json("servers")
    assert [(one["name"], one["state"], one["share"]) for one in told] == [
        ("primary", "unknown", None),
        ("secondary", "unknown", None),
    ]
    contract = ["name", "state", "share", "weight", "since", "reason", *("worker", "limit")]
    assert list(told[0])[: len(contract)] == contract
    (event,) = desk.json("events")
    assert list(event) == ["at", "server", "campaign", "kind", "from", "to", "reason"]
    assert (event["campaign"], event["from"], event["to"]) == ("spring", "draft", "running")
    assert desk.json("events", "--server", "primary") == []
    desk.send(name="summer")
    assert desk.json("events", "--campaign", "spring") == [event]
    unknown = desk.run("events", "--campaign", "autumn")
    assert (unknown.exit_code, unknown.stdout) == (1, "") and "autumn" in unknown.stderr


def test_a_table_that_is_piped_has_a_line_for_each_row_and_folds_nothing(desk: Desk) -> None:
    long = f"{'a' * 60}@{'b' * 60}.example.com"
    desk.write("list.csv", f"email,first_name\n{long},Ann\n")
    desk.send()
    header, row = desk.run("recipients", "spring").stdout.splitlines()
    assert header.split() == ["email", "state", "server", "deferrals", "updated", "reply"]
    assert row.split()[0] == long
    assert len(desk.run("servers").stdout.splitlines()) == 3


def test_a_terminal_folds_reasons_but_neither_addresses_nor_times(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80, highlight=False)
    monkeypatch.setattr(output, "console", lambda **_: screen)
    email, at = f"{'a' * 30}@example.com", output.local_time(1.0)
    output.print_table(("email", "updated", "reply"), [(email, at, "word " * 30)], empty="")
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert email in shown and at in shown
    assert shown.count("word") == 30
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_terminal_that_is_too_narrow_breaks_lines_itself_and_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=60, highlight=False)
    monkeypatch.setattr(output, "console", lambda **_: screen)
    email, at = f"{'a' * 30}@example.com", output.local_time(1.0)
    columns = ("email", "state", "server", "deferrals>", "updated", "reply")
    output.print_table(columns, [(email, "pending", "primary", 3, at, "word " * 30)], empty="")
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(part in shown for part in (email, "pending", "primary", at, "deferrals"))
    assert shown.count("word") == 30


def test_a_time_of_today_is_told_without_its_date() -> None:
    assert len(output.short_time(time.time())) == len("12:34:56")
    assert output.short_time(86_400.0 * 3) == output.local_time(86_400.0 * 3)


def test_a_stream_that_nobody_configured_is_refused_and_the_known_are_listed(desk: Desk) -> None:
    refused = desk.send("--stream", "nosuch")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "promotional, transactional" in refused.stderr
    assert "promotional|transactional" in desk.run("send", "--help").stdout


def test_a_name_that_is_taken_is_told_before_anything_about_the_template(desk: Desk) -> None:
    desk.send()
    desk.write("list.csv", "email\nann@example.com\n")
    assert "error: a campaign spring exists already (running)" in desk.send().stderr


def test_resuming_and_retrying_without_workers_is_noted_as_for_send(desk: Desk) -> None:
    desk.send(name="two words")
    assert "`campaigns resume 'two words'`" in desk.run("pause", "two words").stdout
    note = "note: no worker is running; the mail goes out when one is (`campaigns up`).\n"
    assert desk.run("resume", "two words").stderr == note


def test_status_tells_why_nothing_moves_and_no_rate_that_is_not_true(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.send()
    assert "no worker is running: start `campaigns up`\n" in desk.run("status", "spring").stdout
    with Client(load_settings()) as client:
        client.ledger.heartbeat("w", ["primary", "secondary"], host="here", pid=1, sent_per_second=0.0)
    monkeypatch.setattr(Client, "rate_per_second", lambda *_: 40.0)
    told = desk.run("status", "spring").stdout
    assert "40.0 mails/s" in told and "no server" not in told
    for name in ("primary", "secondary"):
        desk.run("servers", "close", name)
    told = desk.run("status", "spring").stdout
    assert "no server takes mail now: primary is closed by hand, secondary is closed by hand" in told
    assert "mails/s" not in told and "estimate" not in told
    assert (
        desk.json("status", "spring")["rate_per_second"],
        desk.json("status", "spring")["eta_seconds"],
    ) == (
        0.0,
        None,
    )


def test_status_tells_that_the_broker_is_away_and_no_rate_unless_mail_still_goes_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.send()
    with Client(load_settings()) as client:
        client.ledger.heartbeat("w", ["primary", "secondary"], host="here", pid=1, sent_per_second=0.0)
        shown = line_of(client.campaign("spring").view())
    why = "the broker is not there: what is queued waits for it"
    told = desk.run("status", "spring").stdout
    assert why in told and why in shown
    assert "mails/s" not in told and "no estimate" not in told + shown
    monkeypatch.setattr(Client, "rate_per_second", lambda *_: 40.0)
    told = desk.run("status", "spring").stdout
    assert why in told and "40.0 mails/s" in told


def test_status_tells_when_a_scheduled_campaign_starts_and_that_a_draft_was_not_sent(desk: Desk) -> None:
    desk.send("--at", "2040-01-02T09:00:00Z", name="later")
    told = desk.run("status", "later").stdout
    assert "it starts at 2040-01-0" in told and "mails/s" not in told
    with Client(load_settings()) as client:
        client.create_campaign("half", sender="news@example.com", subject="Hi", text="x")
        shown = line_of(client.campaign("half").view())
    told = desk.run("status", "half").stdout
    assert "it is a draft that was not sent" in told and "the same `campaigns send` command goes on" in told
    assert "it is a draft that was not sent" in shown and "no estimate" not in shown


def test_markup_and_control_characters_in_names_are_not_obeyed(desk: Desk) -> None:
    desk.send(name="[bold]x")
    assert "[bold]x" in desk.run("status").stdout


def test_db_upgrade_makes_the_tables_and_may_be_repeated(bare_desk: Desk) -> None:
    bare_desk.run("init")
    missing = bare_desk.run("status")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "there is no database at" in missing.stderr
    assert [bare_desk.run("db", "upgrade").exit_code for _ in range(2)] == [0, 0]
    assert bare_desk.json("status") == []


def test_a_database_without_tables_is_one_line_with_the_remedy(desk: Desk) -> None:
    other = sqlite3.connect(desk.directory / "other.db")
    other.execute("CREATE TABLE unrelated (id)")
    other.close()
    desk.write("campaigns.toml", CONFIGURATION.format(database="sqlite:///other.db"))
    result = desk.run("status")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: the database is not up to date; run `campaigns db upgrade`\n",
    )


def test_the_first_send_makes_the_database(bare_desk: Desk) -> None:
    bare_desk.run("init")
    assert bare_desk.send().exit_code == 0
    assert bare_desk.json("status", "spring")["total"] == 2


def test_an_address_of_a_database_that_is_away_is_one_line(desk: Desk) -> None:
    desk.write(
        "campaigns.toml", CONFIGURATION.format(database="postgresql+psycopg://me:hunter2@127.0.0.1:1/x")
    )
    result = desk.run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the database cannot be reached")
    assert "hunter2" not in result.stderr


def test_check_says_what_works_and_what_does_not(desk: Desk) -> None:
    result = desk.run("check", "--json")
    assert result.exit_code == 1
    found = {one["name"]: one for one in json.loads(result.stdout)}
    assert found["database"]["ok"] and found["broker"]["ok"]
    assert found["server primary"] == {
        "name": "server primary",
        "ok": False,
        "detail": "127.0.0.1:1: connect: Connection refused",
    }
    assert "FAILED" in desk.run("check").stdout
    assert found["servers primary, secondary"]["note"]
    assert "note" in [line.split()[0] for line in desk.run("check").stdout.splitlines()]


def test_check_finds_a_broker_that_is_away(desk: Desk) -> None:
    for url in ("redis://127.0.0.1:1/0", "amqp://guest@127.0.0.1:1//"):
        desk.write("campaigns.toml", CONFIGURATION.format(database="sqlite:///x.db").replace("embedded", url))
        found = {one["name"]: one for one in json.loads(desk.run("check", "--json").stdout)}
        assert not found["broker"]["ok"]
        assert "cannot be reached" in found["broker"]["detail"]


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00Z"]
)
def test_a_time_that_no_clock_shows_is_wrong_usage(
    desk: Desk, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        result = desk.send("--at", moment)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "out of the range of time" in result.stderr


def test_an_absurd_rate_is_wrong_usage(desk: Desk) -> None:
    result = desk.send("--rate", "99999999999/s")
    assert result.exit_code == 2 and "more than 1,000,000 mails a second" in result.stderr


def test_a_name_that_looks_like_an_option_is_refused(desk: Desk) -> None:
    desk.send()
    common = ("--from", "n@example.com", "--subject", "x", "--text", "text.txt", "--recipients", "list.csv")
    result = desk.run("send", *common, "--", "--all")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no hyphen at its beginning" in result.stderr


def test_a_list_without_a_line_is_refused_before_anything_is_made(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\n")
    result = desk.send()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "list.csv has a header and no line below it; nothing was created" in result.stderr
    assert desk.json("status") == []


def test_an_empty_subject_or_text_is_refused(desk: Desk) -> None:
    assert "error: the subject is empty" in desk.send("--subject", " ").stderr
    desk.send(name="whole")
    desk.write("empty.txt", "\n")
    refused = desk.send("--text", "empty.txt")
    assert (refused.exit_code, refused.stderr) == (
        1,
        "error: the text is empty; left out, it is made of the HTML\n",
    )
    assert [one["name"] for one in desk.json("status")] == ["whole"]


def test_a_list_in_which_nobody_is_valid_is_noted(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\nbad,Bob\n")
    result = desk.send()
    assert result.exit_code == 0
    assert "note: nobody in list.csv can be written to; nothing of spring is sent.\n" in result.stderr
    desk.write("list.csv", "email,first_name\nann@example.com,Ann\n")
    assert "nobody in list.csv" not in desk.send(name="summer").stderr


def test_a_list_of_rejected_lines_that_has_no_place_stops_before_anything_is_made(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.write(".campaigns", "no directory")
    desk.send(name="first")
    monkeypatch.setenv("CAMPAIGNS_CONFIG", str(desk.directory / "campaigns.toml"))
    monkeypatch.chdir("/proc")  # not even root makes a file there
    arguments = ("--from", "n@example.com", "--subject", "Hi", "--text", str(desk.directory / "text.txt"))
    result = desk.run("send", "spring", *arguments, "--recipients", str(desk.directory / "list.csv"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "rejected lines could be listed neither here nor in" in result.stderr
    assert [one["name"] for one in desk.json("status")] == ["first"]


def test_up_where_nothing_can_be_written_is_one_line(desk: Desk) -> None:
    desk.write(".campaigns", "no directory")
    result = desk.run("up")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert ".campaigns/up.lock cannot be written: File exists" in result.stderr


def test_a_terminal_obeys_nothing_that_a_list_holds(desk: Desk) -> None:
    desk.write("list.csv", "mail,\x1b]0;owned\x07,\u202eevil\nann@example.com,1,2\n")
    result = desk.send()
    assert result.exit_code == 1 and "owned" in result.stderr and "evil" in result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())
    assert result.stderr.count("\n") == 1


def test_what_holds_addresses_is_for_its_owner_alone(bare_desk: Desk) -> None:
    umask = os.umask(0o022)
    try:
        bare_desk.run("init")
        bare_desk.write("list.csv", "email,first_name\nann@example.com,Ann\nbad,Bob\n")
        assert bare_desk.send().exit_code == 0
        with Client(load_settings()) as client:
            client.ledger.pause("spring")
            modes = {path.name: path.stat().st_mode & 0o777 for path in Path.cwd().glob("campaigns.db*")}
        assert modes == dict.fromkeys(("campaigns.db", "campaigns.db-wal", "campaigns.db-shm"), 0o600)
        EmbeddedBroker.of(load_settings()).command()
        assert Path(".campaigns").stat().st_mode & 0o777 == 0o700
        assert Path("spring-rejected.csv").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(umask)


def test_a_database_that_a_group_shares_stays_shared(desk: Desk) -> None:
    file = Path(load_settings().database.removeprefix("sqlite:///"))
    file.chmod(0o660)
    assert desk.send().exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o660

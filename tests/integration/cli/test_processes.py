"""The commands as processes: signals, terminals, pipes, and kills in the middle."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from campaigns.client import Client
from campaigns.settings import load_settings
from tests.integration.api.conftest import write_list
from tests.integration.cli.conftest import CONFIGURATION, Desk

DEADLINE_SECONDS = 60
SEND = (
    *("send", "spring", "--from", "news@example.com", "--subject", "Hi", "--text", "text.txt"),
    *("--recipients", "list.csv"),
)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_exit_statuses_reach_the_shell(desk: Desk) -> None:
    desk.send()
    for arguments, status in ((["status", "spring"], 0), (["status", "nobody"], 1), (["status", "--no"], 2)):
        with desk.start(*arguments) as process:
            process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == status


def test_nothing_but_json_is_on_standard_output_whatever_the_locale(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\n\N{LATIN SMALL LETTER E WITH ACUTE}ve@example.com,E\n")
    desk.send()
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    with desk.start("recipients", "spring", "--json", environ=ascii_only) as process:
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert json.loads(out)[0]["email"] == "\N{LATIN SMALL LETTER E WITH ACUTE}ve@example.com"
    with desk.start("recipients", "spring", environ=ascii_only) as process:
        out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert "ve@example.com" in out and errors == ""


def test_an_import_that_was_killed_goes_on_when_the_command_is_repeated(desk: Desk) -> None:
    write_list(desk.directory / "list.csv", 30_000, every_rejected=1000)
    desk.write("text.txt", "Hello {{ first_name }}")
    with desk.start(*SEND) as process:
        wait_until(lambda: imported(desk) >= 3000)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE_SECONDS)
    assert desk.json("status", "spring")["status"] == "draft"
    assert 0 < desk.json("status", "spring")["total"] < 29_970
    other = desk.run(*SEND[:4], "--subject", "Else", *SEND[6:])
    assert (other.exit_code, other.stderr.count("\n")) == (1, 1)
    assert "with another content (--subject);" in other.stderr
    result = desk.run(*SEND, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["added"], told["duplicate"], told["rejected"]) == (29_970, 0, 30)
    assert len(Path(told["rejected_file"]).read_text().splitlines()) == 31
    assert desk.json("status", "spring")["total"] == 29_970
    assert desk.run(*SEND).exit_code == 1


def test_an_import_that_is_interrupted_says_how_to_go_on(desk: Desk) -> None:
    write_list(desk.directory / "list.csv", 30_000)
    desk.write("text.txt", "Hello {{ first_name }}")
    with desk.start(*SEND) as process:
        wait_until(lambda: imported(desk) >= 2000)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert errors == "\nInterrupted; nothing of spring is sent. The same command goes on where it was.\n"
    assert desk.run(*SEND).exit_code == 0
    assert desk.json("status", "spring")["total"] == 30_000


@pytest.mark.parametrize("module", ["click", "sqlalchemy"])
def test_ctrl_c_while_modules_load_is_one_line(desk: Desk, tmp_path: Path, module: str) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / f"{module}.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    with desk.start("status", environ={"PYTHONPATH": str(slow)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, errors) == (130, "\nInterrupted; nothing was done.\n")


def test_ctrl_c_while_the_list_is_looked_over_says_that_nothing_was_created(desk: Desk) -> None:
    desk.write("text.txt", "Hello")
    errors = interrupted_while_it_reads(desk, "list.csv", *SEND)
    assert errors == "\nInterrupted; spring was not created, nothing of it is sent.\n"
    assert desk.json("status") == []


def test_ctrl_c_in_any_other_command_is_one_line(desk: Desk) -> None:
    arguments = ("suppress", "import", "list.csv")
    assert interrupted_while_it_reads(desk, "list.csv", *arguments) == "\nInterrupted.\n"


def interrupted_while_it_reads(desk: Desk, file: str, *arguments: str) -> str:
    """What a command says on standard error that is interrupted at a file before it comes to its end.

    The file ends after the signal: Python notices a signal that arrives just before a read blocks
    only when the read returns.
    """
    os.mkfifo(desk.directory / file)
    writers: list[int] = []

    def is_open() -> bool:
        with suppress(OSError):  # nobody reads yet
            writers.append(os.open(desk.directory / file, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    with desk.start(*arguments) as process:
        wait_until(is_open)
        process.send_signal(signal.SIGINT)
        os.close(writers[0])
        out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out) == (130, "")
    return str(errors)


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ((), "running", "is running all the same. Follow it with `campaigns watch spring`"),
        (
            ("--at", "2099-01-01T00:00:00Z"),
            "scheduled",
            "is scheduled all the same. Call it off with `campaigns cancel spring`",
        ),
    ],
)
def test_ctrl_c_after_the_commit_says_that_the_campaign_goes_on(
    desk: Desk, more: tuple[str, ...], status: str, told: str
) -> None:
    desk.write("list.csv", "email\nann@example.com\n")
    desk.write("text.txt", "Hello")
    with socket.create_server(("127.0.0.1", 0)) as broker:  # accepts, and never answers
        broker.settimeout(DEADLINE_SECONDS)
        url = f"redis://127.0.0.1:{broker.getsockname()[1]}/0"
        desk.write(
            "campaigns.toml", CONFIGURATION.format(database=load_settings().database).replace("embedded", url)
        )
        with desk.start(*SEND, *more) as process:
            connection, _ = broker.accept()
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=DEADLINE_SECONDS)
        connection.close()
    assert (process.returncode, out) == (130, "")
    assert errors == f"\nInterrupted; spring {told}.\n"
    assert desk.json("status", "spring")["status"] == status


def imported(desk: Desk) -> int:
    connection = sqlite3.connect(load_settings().database.removeprefix("sqlite:///"))
    try:
        return int(
            connection.execute("SELECT coalesce(sum(position), 0) FROM recipient_import").fetchone()[0]
        )
    finally:
        connection.close()


def test_a_campaign_that_was_imported_but_not_yet_sent_is_sent_when_the_command_is_repeated(
    desk: Desk,
) -> None:
    desk.write("list.csv", "email,first_name\nann@example.com,Ann\nbad,Bob\n")
    desk.write("text.txt", "Hello")
    with Client(load_settings()) as client:
        client.create_or_resume(
            "spring", recipients=Path("list.csv"), sender="news@example.com", subject="Hi", text="Hello"
        )
        client.campaign("spring").recipients.add_csv("list.csv")
    told = json.loads(desk.run(*SEND, "--json").stdout)
    assert (told["status"], told["added"], told["rejected"]) == ("running", 1, 1)


def test_a_changed_list_does_not_go_on_with_another_ones_import(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\nann@example.com,Ann\n")
    desk.write("text.txt", "Hello")
    with Client(load_settings()) as client:
        client.create_or_resume(
            "spring", recipients=Path("list.csv"), sender="news@example.com", subject="Hi", text="Hello"
        )
        client.campaign("spring").recipients.add_csv("list.csv")
    desk.write("list.csv", "email,first_name\nbob@example.com,Bob\n")
    result = desk.run(*SEND)
    assert result.exit_code == 1
    assert "the list was changed" in result.stderr


def test_a_draft_that_is_prepared_in_python_is_not_taken_over(desk: Desk) -> None:
    desk.write("list.csv", "email,first_name\nann@example.com,Ann\n")
    desk.write("text.txt", "Hello")
    with Client(load_settings()) as client:
        campaign = client.create_campaign("spring", sender="news@example.com", subject="Hi", text="Hello")
        campaign.recipients.add(["bob@example.com"])
    result = desk.run(*SEND)
    assert (result.exit_code, result.stderr) == (
        1,
        "error: a campaign spring exists already (draft); choose another name\n",
    )


def test_watching_on_a_terminal_ends_with_ctrl_c_and_the_campaign_goes_on(desk: Desk) -> None:
    desk.send()
    leader, follower = pty.openpty()
    with desk.start("watch", "spring", stdout=follower, stderr=follower, stdin=follower) as process:
        os.close(follower)
        shown = read_until(leader, "no worker is running")
        process.send_signal(signal.SIGINT)
        shown += read_until(leader, "campaigns watch spring")
        assert process.wait(DEADLINE_SECONDS) == 130
    os.close(leader)
    assert "0 of 2" in shown and "primary" in shown and "rerouted" in shown
    assert "spring goes on" in shown
    assert "Traceback" not in shown
    assert desk.json("status", "spring")["status"] == "running"


def read_until(terminal: int, text: str) -> str:
    seen, deadline = "", time.monotonic() + DEADLINE_SECONDS
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65536).decode()
    return seen


def test_watching_without_a_terminal_prints_lines_until_the_end(desk: Desk) -> None:
    desk.send()
    with desk.start("watch", "spring") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        desk.run("cancel", "spring")
        rest, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert first.startswith("spring running  0/2  pending 2")
    assert rest.splitlines()[-1].startswith("spring cancelled  2/2  cancelled 2")
    assert "\x1b" not in first + rest
    assert process.returncode == 0


def test_watching_with_json_prints_the_last_status_alone(desk: Desk) -> None:
    desk.send()
    desk.run("cancel", "spring")
    with desk.start("watch", "spring", "--json") as process:
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert json.loads(out)["status"] == "cancelled"


def test_sending_and_watching_with_json_prints_the_status_after_the_watch(desk: Desk) -> None:
    desk.write("list.csv", "email\nann@example.com\n")
    desk.write("text.txt", "Hello")
    with desk.start(*SEND, "--watch", "--json") as process:
        assert process.stderr is not None
        while "spring running" not in process.stderr.readline():
            assert process.poll() is None
        desk.run("cancel", "spring")
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    told = json.loads(out)
    assert (told["status"], told["added"]) == ("cancelled", 1)


def test_a_reader_that_goes_away_is_no_traceback(desk: Desk) -> None:
    write_list(desk.directory / "list.csv", 5000)
    desk.send()
    for form in ("table", "csv", "json"):
        with desk.start("recipients", "spring", "--format", form) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            errors = process.stderr.read()
            process.wait(DEADLINE_SECONDS)
        assert errors == ""


def test_help_is_quick_because_commands_are_loaded_when_called(desk: Desk) -> None:
    heavy = "{'celery', 'sqlalchemy', 'jinja2'}"
    code = f"import sys, campaigns.cli.group; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"

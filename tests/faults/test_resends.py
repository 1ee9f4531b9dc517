"""A 250 that turns up after the operator had its mail, which was uncertain, sent again."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.trial import Trial, patiently

EMAILS = addresses(30)


def _leave_replies_in_a_journal(trial: Trial, elsewhere: Path) -> set[int]:
    """A worker dies, and its journal is away, with 250s that the database did not take; returns whose."""
    journals = trial.settings.data_directory / "journal"
    trial.primary.set("dot", "delay", seconds=2.0)
    worker = trial.start_worker("primary")
    trial.wait_for_workers(1)
    trial.send("spring", EMAILS)
    patiently(lambda: trial.count("spring", State.COMMITTING) >= 5, what=trial.logs)
    with (
        trial.outage("locked", "database"),
        closing(sqlite3.connect(trial.database_file, timeout=30, isolation_level=None)) as connection,
    ):
        connection.execute("BEGIN IMMEDIATE")
        patiently(lambda: _journaled(journals), what=trial.logs)
        trial.kill_worker(worker)
        shutil.move(journals, elsewhere)
        connection.rollback()
    trial.primary.clear()
    return _journaled(elsewhere)


def _journaled(directory: Path) -> set[int]:
    lines = [line for file in directory.glob("*.journal") for line in file.read_text().splitlines()]
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["delivery_id"] for record in records if record["code"] == 250}


def _bring_back(trial: Trial, elsewhere: Path) -> None:
    """And wait until it was replayed."""
    journals = trial.settings.data_directory / "journal"
    journals.mkdir(mode=0o700, exist_ok=True)
    for file in elsewhere.iterdir():
        file.rename(journals / file.name)
    patiently(lambda: not list(journals.iterdir()), what=trial.logs)


def _resend(trial: Trial, replied: set[int]) -> None:
    patiently(lambda: trial.count("spring", State.COMMITTING) == 0, what=trial.logs)
    assert trial.count("spring", State.UNCERTAIN) >= len(replied) > 0
    trial.ledger.retry("spring", State.UNCERTAIN)


@pytest.mark.slow
def test_a_late_250_counts_while_the_mail_waits_to_be_sent_again(trial: Trial, tmp_path: Path) -> None:
    replied = _leave_replies_in_a_journal(trial, tmp_path / "elsewhere")
    trial.ledger.pause("spring")
    trial.start_workers()
    _resend(trial, replied)
    _bring_back(trial, tmp_path / "elsewhere")
    assert trial.count("spring", State.SENT) >= len(replied)
    trial.ledger.resume("spring")
    history = trial.verdict()
    assert trial.states("spring") == {State.SENT: len(EMAILS)}
    assert {len(history.accepted_of[number]) for number in replied} == {1}, "and nobody is served again"


@pytest.mark.slow
def test_a_late_250_changes_nothing_once_the_mail_was_sent_again(trial: Trial, tmp_path: Path) -> None:
    replied = _leave_replies_in_a_journal(trial, tmp_path / "elsewhere")
    trial.start_workers()
    _resend(trial, replied)
    trial.wait_until_finished("spring")
    before = trial.history().changes
    _bring_back(trial, tmp_path / "elsewhere")
    history = trial.verdict()
    assert trial.states("spring") == {State.SENT: len(EMAILS)}
    assert history.changes == before
    assert {len(history.accepted_of[number]) for number in replied} == {2}, "as the operator asked"
